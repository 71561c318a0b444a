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
    """Full names of all that a file imports, modules or their parts, wherever in the file."""
    parts = ("fanin", *path.relative_to(ROOT).with_suffix("").parts)
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                # In a package's __init__ the file's own folder is level 1, as in a module.
                base = ".".join((*parts[: -node.level], *([base] if base else [])))
            names |= {f"{base}.{alias.name}" for alias in node.names}
    return names


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
    for path in sorted((ROOT / "backends").glob("*.py")):
        assert not {i.partition(".")[0] for i in imports(path)} & FRAMEWORKS, path


# Floors: arrows run down only ---------------------------------------------------------------------

FOLDERS = ("kernels", "datasets", "backends", "benchmarks", "reports")
ROOMS = ("records", "measuring", "harness", "timing", "gpu_parts", "cli")
# From the lowest to the highest; `benchmarks` itself is what starts a command: `python -m`, gpu.py.
FLOORS = (
    "fanin.kernels",
    "fanin.datasets",
    "fanin.backends",
    *(f"fanin.benchmarks.{room}" for room in ROOMS),
    "fanin.benchmarks",
)
READ_BY_REPORTS = (*FLOORS[:3], "fanin.benchmarks.records", "fanin.reports")
# Commands print their tables by them.
MAY_IMPORT_REPORTS = (
    "fanin.benchmarks.cli",
    "fanin.benchmarks.gpu",
    "fanin.benchmarks.timing.floor",
    "fanin.benchmarks.timing.op",
    "fanin.benchmarks.timing.predict",
    "fanin.benchmarks.timing.ranks",
    "fanin.benchmarks.timing.step",
    "fanin.benchmarks.timing.text",
    "fanin.reports",
)


def modules() -> dict[str, Path]:
    """All modules of fanin by their full names."""
    paths = {}
    for folder in FOLDERS:
        for path in python_files(folder):
            parts = ("fanin", *path.relative_to(ROOT).with_suffix("").parts)
            paths[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return paths


MODULES = modules()


def arrows(path: Path) -> set[str]:
    """The modules of fanin that a file imports: of each name the part that is a module."""
    imported = set()
    for name in imports(path):
        while name and name not in MODULES:
            name = name.rpartition(".")[0]
        imported.add(name)
    return imported - {""}


ARROWS = {module: arrows(path) for module, path in MODULES.items()}


def inside(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


def floor(module: str) -> str:
    return max((each for each in FLOORS if inside(module, each)), key=len)


def test_no_arrow_runs_up():
    up = [
        f"{module} imports {name}"
        for module, names in ARROWS.items()
        for name in names
        if not inside(module, "fanin.reports") and not inside(name, "fanin.reports")
        if FLOORS.index(floor(name)) > FLOORS.index(floor(module))
    ]
    assert up == []


def test_reports_read_records_and_nothing_else_of_benchmarks():
    others = [
        f"{module} imports {name}"
        for module, names in ARROWS.items()
        for name in names
        if inside(module, "fanin.reports") and not any(inside(name, p) for p in READ_BY_REPORTS)
    ]
    assert others == []


def test_only_commands_import_reports():
    others = [
        f"{module} imports {name}"
        for module, names in ARROWS.items()
        for name in names
        if inside(name, "fanin.reports") and not any(inside(module, p) for p in MAY_IMPORT_REPORTS)
    ]
    assert others == []


def test_no_circle():
    """Take away what imports nothing that is left, until nothing is left."""
    left = dict(ARROWS)
    while ready := [module for module, names in left.items() if not names & left.keys() - {module}]:
        for module in ready:
            del left[module]
    assert not left, f"circles within {sorted(left)}"


def test_benchmarks_has_only_these_rooms():
    rooms = {path.parent.name for path in (ROOT / "benchmarks").glob("*/*.py")}
    assert rooms == set(ROOMS)


# Files --------------------------------------------------------------------------------------------


def sources(*folders: str) -> list[Path]:
    """C++ and CUDA files."""
    kinds = (".h", ".cpp", ".cu", ".cc")
    return sorted(p for f in folders for p in (ROOT / f).rglob("*") if p.suffix in kinds)


def too_long(paths: list[Path], most: int) -> list[str]:
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in paths}
    return [f"{p.relative_to(ROOT)}: {n} lines" for p, n in lengths.items() if n > most]


def test_no_python_file_is_over_400_lines():
    paths = [path for folder in (*FOLDERS, "tests") for path in python_files(folder)]
    assert too_long([ROOT / "noxfile.py", *paths], 400) == []


def test_no_cpp_file_is_over_450_lines():
    assert too_long(sources("kernels", "backends", "tests"), 450) == []


def test_no_other_file_is_committed_beside_the_folders():
    """A note is committed easily, and not seen until somebody clones. (An archive has no git.)"""
    listed = ["git", "ls-files", "--", ".", *(f":!{name}" for name in (*FOLDERS, "tests"))]
    done = subprocess.run(listed, cwd=ROOT, text=True, capture_output=True, check=False)
    files = {"README.md", "CONTRIBUTING.md", "LICENSE", "noxfile.py", "pyproject.toml"}
    files |= {"constraints.txt", ".gitignore", ".clang-format", ".ci/run"}
    assert set(done.stdout.splitlines()) <= files


def test_backends_have_the_same_files():
    """What only one of them needs lies in a folder of its own, such as `native`."""
    names = [
        {path.name for path in (ROOT / "backends" / backend).glob("*.py")}
        for backend in ("torch", "tensorflow")
    ]
    assert names[0] == names[1]


def test_each_readme_names_every_file():
    """A folder's README has a map, one line per file."""
    missing = []
    for folder in FOLDERS:
        readme = (ROOT / folder / "README.md").read_text(encoding="utf-8")
        paths = {*python_files(folder), *sources(folder)}
        for path in sorted(paths):
            if path.name != "__init__.py" and not re.search(rf"\b{path.stem}\b", readme):
                missing.append(str(path.relative_to(ROOT)))
    assert missing == []


# Words --------------------------------------------------------------------------------------------


def constants(path: Path) -> list[tuple[int, str]]:
    """The strings of a file with their lines."""
    return [
        (node.lineno, node.value)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]


def test_architectures_are_named_by_tasks_alone():
    """Everywhere else a setup is a value, see `backends/kinds.py`. `dense` and `sparse` are words
    of the field, too, so only the unmistakable names are looked for."""
    names = {"stratified", "dense-stratified", "dense-sparse"}
    uses = [
        f"{path.relative_to(ROOT)}:{line}: {text}"
        for module, path in MODULES.items()
        if module not in {"fanin.benchmarks.records.task", "fanin.benchmarks.records.architecture"}
        for line, text in constants(path)
        if names & {text, *re.findall(r"[\w-]+", text)}
    ]
    assert uses == []


def test_no_backend_is_told_by_its_name():
    """What differs between backends stands in the registry, and a backend knows its own name."""
    own = ("fanin.backends.registry", "fanin.backends.torch", "fanin.backends.tensorflow")
    uses = []
    for module, path in MODULES.items():
        if any(inside(module, package) for package in own):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            compared = isinstance(node, ast.Compare | ast.MatchValue)
            inner = (n for n in ast.walk(node) if isinstance(n, ast.Constant)) if compared else ()
            if any(constant.value in ("torch", "tensorflow") for constant in inner):
                uses.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert uses == []


# What is built and installed ----------------------------------------------------------------------


def test_kernel_sources_include_no_framework():
    paths = sources("kernels")
    assert paths
    for path in paths:
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
        ("reports", "pages/report.html.jinja"),
        ("reports", "pages/table.html.jinja"),
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
