"""The README is held to its word: its code runs, its table is that of the result files."""

from __future__ import annotations

import importlib.util
import re
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.numpy import save_file

from fanin.backends.arrays import initial_arrays
from fanin.backends.setup import FixedFanIn, LayerSetup
from fanin.benchmarks.records.store import read_results
from fanin.reports.devices import devices_page

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize(
    "framework", ["torch", "tensorflow", "torch, fused", "tensorflow, fused", "torch, trained"]
)
def test_examples_run(framework, tmp_path):
    (code,) = re.findall(rf"```python\n(# {framework}\n.*?)```", README, re.DOTALL)
    assert len(code.splitlines()) < 24
    setup = LayerSetup(20, 50, FixedFanIn(4), intermediate=30)
    save_file(initial_arrays(setup, 0), tmp_path / "torch-0.safetensors")
    done = subprocess.run(
        [sys.executable, "-P", "-W", "error::UserWarning", "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        if "://" not in target:
            assert (ROOT / target).exists(), target


def test_sessions_exist():
    noxfile = (ROOT / "noxfile.py").read_text(encoding="utf-8")
    defined = set(re.findall(r"^def (\w+)\(session", noxfile, re.MULTILINE))
    named = set(re.findall(r"nox -s (\w+)", README))
    assert named
    assert named <= defined


def test_ci_runs_the_readme_test_command():
    assert "\nnox -s tests" in README
    assert re.search(r"^nox -s tests$", (ROOT / ".ci" / "run").read_text(), re.MULTILINE)


def test_the_page_of_all_devices_is_that_of_the_result_files():
    results = ROOT / "benchmarks" / "results"
    assert (results / "README.md").read_text(encoding="utf-8") == devices_page(results)


def test_tables_are_those_of_the_result_files():
    spec = importlib.util.spec_from_file_location("readme", ROOT / ".ci" / "readme.py")
    assert spec is not None
    assert spec.loader is not None
    writer = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(writer)
    for pattern, write in writer.SECTIONS.items():
        match = pattern.search(README)
        assert match is not None
        assert match[0] == match[1] + write() + match[2]


def test_what_is_said_of_the_executions_follows_from_their_result_files():
    found: dict[tuple[str, str, str, str], dict[int, float]] = {}
    for run in read_results(ROOT / "benchmarks" / "results" / "executions"):
        assert run.test is not None
        task = run.task
        key = (run.backend, task.setup_name, task.execution, task.weights_dtype)
        found.setdefault(key, {})[task.seed + run.repeat] = 100 * run.test.at_1
    for backend in ("torch", "tensorflow"):
        for setup in ("dense", "ffi-32", "ffi-32-2048"):
            fused = found[backend, setup, "fused", "float32"]
            assert len(fused) == 3
            assert fused == found[backend, setup, "autograd", "float32"]
    for dtype in ("float32", "bfloat16"):
        for setup in ("dense", "ffi-32", "ffi-32-2048"):
            seeds = found["torch", setup, "fused", dtype].values()
            said = f"{statistics.fmean(seeds):.2f} ± {statistics.stdev(seeds):.2f}"
            assert said in " ".join(README.split())


def test_what_is_said_of_the_executions_on_all_labels_follows_from_their_result_files():
    found: dict[str, list[str]] = {"autograd": [], "fused": []}
    for run in read_results(ROOT / "benchmarks" / "results" / "whole-executions"):
        assert run.test is not None
        assert (run.task.dataset, run.task.setup_name) == ("wordnet", "ffi-32")
        assert run.task.epochs == len(run.history) == 5
        found[run.task.execution].append(f"{100 * run.test.at_1:.2f}")
    first, second, third = found["autograd"]
    assert found["fused"] == found["autograd"]
    assert f"P@1 {first}, {second} and {third} in either" in " ".join(README.split())
