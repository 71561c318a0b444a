"""The rules of the tree: who may import whom, and what stands where."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from importlib import resources
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FRAMEWORKS = {"torch", "tensorflow", "keras", "jax"}


def imports(path: Path) -> set[str]:
    """Full names of all modules that a file imports, wherever in it; relative ones resolved."""
    parts = ("fanin", *path.relative_to(ROOT).with_suffix("").parts)
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                # In a package's __init__ the file's own folder is level 1, as in a module.
                base = ".".join((*parts[: -node.level], *([base] if base else [])))
            found |= {f"{base}.{alias.name}" for alias in node.names} | {base}
    return found


def python_files(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def offending(folder: str, forbidden: set[str]) -> list[str]:
    return [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in python_files(folder)
        for name in imports(path)
        if any(name == bad or name.startswith(f"{bad}.") for bad in forbidden)
    ]


ABOVE = {f"fanin.{name}" for name in ("backends", "datasets", "benchmarks", "reports")}


@pytest.mark.parametrize(
    ("folder", "forbidden"),
    [
        ("kernels", FRAMEWORKS | ABOVE),
        ("backends", {"fanin.benchmarks", "fanin.reports"}),
        ("datasets", FRAMEWORKS | {"fanin.backends", "fanin.benchmarks", "fanin.reports"}),
        ("reports", FRAMEWORKS | {"fanin.backends.torch", "fanin.backends.tensorflow"}),
        ("backends/torch", {"tensorflow", "keras", "fanin.backends.tensorflow", "fanin.datasets"}),
        ("backends/tensorflow", {"torch", "fanin.backends.torch", "fanin.datasets"}),
    ],
)
def test_who_may_import_whom(folder, forbidden):
    assert python_files(folder)
    assert offending(folder, forbidden) == []


def test_the_interface_names_no_framework():
    for name in ("__init__", "interface", "arrays", "checks", "fused"):
        path = ROOT / "backends" / f"{name}.py"
        assert not {i.partition(".")[0] for i in imports(path)} & FRAMEWORKS


def test_kernel_sources_include_no_framework():
    sources = [p for p in (ROOT / "kernels").rglob("*") if p.suffix in (".h", ".cpp", ".cu")]
    assert sources
    for path in sources:
        assert not re.search(r"#include\s*[<\"](torch|tensorflow|ATen|c10)/", path.read_text())


@pytest.mark.slow
@pytest.mark.parametrize("module", ["fanin.benchmarks.cli.app", "fanin.reports", "fanin.kernels"])
def test_the_harness_loads_no_framework(module):
    command = f"import sys, {module}; print({{'torch', 'tensorflow'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-P", "-c", command], capture_output=True, check=True)
    assert done.stdout.strip() == b"set()"


def test_installed_packages_are_complete():
    """What is not Python must travel too."""
    for package, name in [
        ("kernels", "include/fanin.h"),
        ("backends", "py.typed"),
        ("backends", "tensorflow/native/ops.cc"),
        ("datasets", "wordnet/wordnet.txt.xz"),
        ("datasets", "wordnet/LICENSE"),
        ("benchmarks", "tasks/wordnet/tfidf-svd512.json"),
        ("benchmarks", "published/ecml23.csv"),
        ("reports", "page.html.jinja"),
    ]:
        assert resources.files(f"fanin.{package}").joinpath(name).is_file(), f"{package}/{name}"


def test_exported_symbols_are_fanin_only():
    from fanin.kernels.library import library_path

    table = subprocess.run(
        ["nm", "--dynamic", "--defined-only", str(library_path())],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "LC_ALL": "C"},
    ).stdout
    names = {line.split()[-1] for line in table.splitlines()}
    assert "fanin_linear_forward" in names
    assert {n for n in names if not n.startswith("fanin_")} <= {"_init", "_fini"}


def test_each_python_file_says_what_lives_there():
    for folder in ("kernels", "backends", "datasets", "benchmarks", "reports", "tests"):
        for path in python_files(folder):
            assert ast.get_docstring(ast.parse(path.read_text())), path
