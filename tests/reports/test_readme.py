"""The READMEs are held to their word: their code runs, their tables are those of the files."""

from __future__ import annotations

import re
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.numpy import save_file

from fanin.backends.arrays import initial_arrays
from fanin.backends.kinds import FixedFanIn
from fanin.backends.setup import LayerSetup
from fanin.benchmarks.records.store import read_results
from fanin.reports.pages.devices import devices_page
from fanin.reports.pages.readme import RESULTS, SECTIONS, marked_sections, readmes, write_readmes

ROOT = Path(__file__).parents[2]
TEXTS = {path: path.read_text(encoding="utf-8") for path in readmes(ROOT)}
WORDS = " ".join(" ".join(TEXTS.values()).split())


# By the framework that they load, which takes seconds: so they share a process.
EXAMPLES = {
    "tensorflow": tuple(f"tensorflow{more}" for more in ("", ", fused", ", chosen", ", words")),
    "torch": (
        *(f"torch{more}" for more in ("", ", fused", ", trained", ", chosen", ", grouped")),
        *("torch, head and tail", "torch, words", "torch, onnx", "torch, ranks"),
        *("onnx", "sparse features", "pandas", "own data", "lists"),
    ),
}
RUN = """
import os, sys
for path in sys.argv[1:]:
    os.chdir(os.path.dirname(path))
    with open(path) as file:
        code = compile(file.read(), path, "exec")
    exec(code, {"__name__": "__main__"})
"""


@pytest.mark.slow
@pytest.mark.parametrize("framework", EXAMPLES)
def test_examples_run(framework, tmp_path):
    """Each in a folder and with names of its own."""
    texts = "\n".join(TEXTS.values())
    paths = []
    for name in EXAMPLES[framework]:
        (code,) = re.findall(rf"```python\n(# {name}\n.*?)```", texts, re.DOTALL)
        assert len(code.splitlines()) < 24
        paths.append(tmp_path / name / "example.py")
        paths[-1].parent.mkdir()
        paths[-1].write_text(code)
        setup = LayerSetup(20, 50, FixedFanIn(4), intermediate=30)
        save_file(initial_arrays(setup, 0), paths[-1].with_name("torch-0.safetensors"))
    done = subprocess.run(
        [sys.executable, "-P", "-W", "error::UserWarning", "-c", RUN, *map(str, paths)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.parent.name)
def test_links_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", TEXTS[path]):
        if "://" not in target:
            assert (path.parent / target).exists(), target


def test_sessions_exist():
    noxfile = (ROOT / "noxfile.py").read_text(encoding="utf-8")
    defined = set(re.findall(r"^def (\w+)\(session", noxfile, re.MULTILINE))
    named = set(re.findall(r"nox -s (\w+)", WORDS))
    assert named
    assert named <= defined


def test_ci_runs_the_readme_test_command():
    assert "\nnox -s tests" in TEXTS[ROOT / "README.md"]
    assert re.search(r"^nox -s tests$", (ROOT / ".ci" / "run").read_text(), re.MULTILINE)


def test_the_page_of_all_devices_is_that_of_the_result_files():
    results = ROOT / RESULTS
    assert (results / "README.md").read_text(encoding="utf-8") == devices_page(results)


def test_committed_results_name_no_folder_of_the_machine_that_made_them():
    """Make them with `--data-dir` below the folder that one is in."""
    files = sorted((ROOT / "benchmarks" / "results").rglob("*.json"))
    assert files
    for path in files:
        assert not re.search(r'"(files in )?/', path.read_text(encoding="utf-8")), path


def test_tables_are_those_of_the_result_files():
    sections = [section for text in TEXTS.values() for section in marked_sections(text)]
    assert sorted(name for name, _ in sections) == sorted(SECTIONS)
    for name, content in sections:
        assert content == SECTIONS[name](ROOT / RESULTS), name


def test_a_section_that_no_readme_has_is_an_error(tmp_path):
    (tmp_path / "README.md").write_text("<!-- op: written by x -->\n<!-- op end -->\n")
    wrong = "marked sections op; each of floor, grouped, limits, links, op, predict, "
    with pytest.raises(SystemExit, match=wrong):
        write_readmes(tmp_path)


def test_what_is_said_of_the_executions_follows_from_their_result_files():
    measured: dict[tuple[str, str, str, str], dict[int, float]] = {}
    for run in read_results(ROOT / RESULTS / "executions"):
        assert run.test is not None
        task = run.task
        key = (run.backend, task.setup_name, task.execution, task.weights_dtype)
        measured.setdefault(key, {})[task.seed + run.repeat] = 100 * run.test.at_1
    for backend in ("torch", "tensorflow"):
        for setup in ("dense", "ffi-32", "ffi-32-2048"):
            fused = measured[backend, setup, "fused", "float32"]
            assert len(fused) == 3
            assert fused == measured[backend, setup, "autograd", "float32"]
    for dtype in ("float32", "bfloat16"):
        for setup in ("dense", "ffi-32", "ffi-32-2048"):
            seeds = measured["torch", setup, "fused", dtype].values()
            assert f"{statistics.fmean(seeds):.2f} ± {statistics.stdev(seeds):.2f}" in WORDS


def test_what_is_said_of_float8_follows_from_its_result_files():
    measured: dict[tuple[str, str], dict[str, list[tuple[float, float, float]]]] = {}
    for run in read_results(ROOT / RESULTS / "float8"):
        assert run.test is not None and run.task.recipe == "best"
        test = (100 * run.test.at_1, 100 * run.test.at_3, 100 * run.test.at_5)
        types = measured.setdefault((run.task.dataset, run.task.optimizer), {})
        types.setdefault(run.task.weights_dtype, []).append(test)
    assert measured
    for (dataset, optimizer), types in measured.items():
        row = f"| {dataset} | {optimizer} |"
        for dtype in ("float32", "bfloat16", "float8"):
            first, third, fifth = zip(*types[dtype], strict=True)
            assert len(first) == 3
            row += f" {statistics.fmean(first):.2f} ± {statistics.stdev(first):.2f}"
            row += f" / {statistics.fmean(third):.2f} / {statistics.fmean(fifth):.2f} |"
        assert row in WORDS


def test_what_is_said_of_the_executions_on_all_labels_follows_from_their_result_files():
    measured: dict[str, list[str]] = {"autograd": [], "fused": []}
    for run in read_results(ROOT / RESULTS / "whole-executions"):
        assert run.test is not None
        assert (run.task.dataset, run.task.setup_name) == ("wordnet", "ffi-32")
        assert run.task.epochs == len(run.history) == 5
        measured[run.task.execution].append(f"{100 * run.test.at_1:.2f}")
    first, second, third = measured["autograd"]
    assert measured["fused"] == measured["autograd"]
    assert f"P@1 {first}, {second} and {third} in either" in WORDS
