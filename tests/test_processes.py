"""One framework per process: what tests/conftest.py runs, counts and refuses.

It is tried in a folder of its own, in which `torch` and `keras` are empty modules.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

TESTS = Path(__file__).parent
FILES = {
    "pyproject.toml": """
[tool.pytest.ini_options]
addopts = ["--import-mode=importlib", "--strict-markers", "-p", "no:cacheprovider"]
testpaths = ["tests"]
pythonpath = ["support"]
markers = ["torch", "tensorflow"]
""",
    "support/torch.py": "",
    "support/keras.py": "",
    "tests/test_plain.py": "def test_it(): pass",
    "tests/test_module.py": """
import pytest
import torch
pytestmark = pytest.mark.torch
def test_it(): pass
""",
    "tests/test_each.py": """
import pytest
from frameworks import EACH_BACKEND
@pytest.mark.parametrize("backend", EACH_BACKEND)
def test_it(backend): __import__({"torch": "torch", "tensorflow": "keras"}[backend])
""",
}


@pytest.fixture
def project(tmp_path):
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    shutil.copy(TESTS / "conftest.py", tmp_path / "tests")
    shutil.copy(TESTS / "support" / "frameworks.py", tmp_path / "support")
    return tmp_path


def run(project: Path, *arguments: str) -> tuple[int, str, list[str]]:
    """pytest's exit code, all that it printed, and the frameworks that processes were begun for."""
    command = (sys.executable, "-P", "-m", "pytest", *arguments)
    environment = os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}  # they take a second to load
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    done = subprocess.run(command, cwd=project, env=environment, **streams, text=True, check=False)
    heads = [line for line in done.stdout.splitlines() if line.startswith("--- framework")]
    return done.returncode, done.stdout, [line.split()[-2] for line in heads]


def test_all_run_each_in_its_process(project):
    code, output, processes = run(project)
    assert (code, processes) == (0, ["none", "torch", "tensorflow"]), output
    assert output.splitlines()[-1].startswith("4 passed, 0 failed in ")


def test_a_named_module_runs_in_its_process_alone(project):
    code, output, processes = run(project, "tests/test_module.py::test_it")
    assert (code, processes) == (0, ["torch"]), output
    code, output, processes = run(project, "tests/test_each.py", "--framework", "tensorflow")
    assert (code, processes) == (0, []) and "1 passed, 1 deselected" in output


def test_that_no_test_is_chosen_counts_where_it_holds_everywhere(project):
    code, output, _ = run(project, "tests/test_plain.py", "-k", "it")
    assert code == 0 and output.splitlines()[-1].startswith("1 passed")
    assert run(project, "tests/test_plain.py", "-k", "other")[0] == 5


def test_failures_are_added_up(project):
    for name in ("test_plain.py", "test_module.py"):
        path = project / "tests" / name
        path.write_text(path.read_text() + "\ndef test_wrong(): assert False\n")
    code, output, processes = run(project)
    assert (code, processes) == (1, ["none", "torch", "tensorflow"])
    assert output.splitlines()[-1].startswith("4 passed, 2 failed in ")
    assert run(project, "-x")[2] == ["none"]


def test_a_framework_in_the_wrong_process_fails(project):
    (project / "tests" / "test_wrong.py").write_text("def test_it(): import keras")
    code, output, _ = run(project, "tests/test_wrong.py")
    assert code == 1
    assert "it loads tensorflow in the process for none: mark it with" in output
    (project / "tests" / "test_wrong.py").write_text("import torch\ndef test_it(): pass")
    code, output, _ = run(project, "tests/test_wrong.py")
    assert code == 2
    assert "it loads torch in the process for none: write `pytestmark = pytest.mark.to" in output


def test_a_marker_stands_in_the_module(project):
    """A framework's process imports no other modules."""
    (project / "support" / "elsewhere.py").write_text("import pytest\nmarked = pytest.mark.torch")
    path = project / "tests" / "test_hidden.py"
    path.write_text("from elsewhere import marked\n@marked\ndef test_it(): pass")
    assert run(project, "--framework", "torch")[:1] == (0,)
    code, output, _ = run(project, "--framework", "none")
    assert code == 4 and "test_hidden.py::test_it would not be found by torch's process" in output
    path.write_text("raise ValueError")
    assert run(project, "--framework", "none")[0] == 2
    code, output, _ = run(project, "--framework", "torch")
    assert code == 0 and "2 passed" in output


def test_a_test_has_one_framework(project):
    (project / "tests" / "test_both.py").write_text(
        "import pytest\n@pytest.mark.torch\n@pytest.mark.tensorflow\ndef test_it(): pass"
    )
    code, output, _ = run(project, "tests/test_both.py", "--framework", "none")
    assert code == 4, output


def test_a_process_that_crashes_is_an_error(project):
    (project / "tests" / "test_crash.py").write_text("def test_it(): __import__('os')._exit(7)")
    code, output, processes = run(project)
    assert (code, processes) == (7, ["none", "torch", "tensorflow"])
    assert output.splitlines()[-1].startswith("3 passed, 0 failed, 1 error in ")
