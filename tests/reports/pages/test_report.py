"""The files of a report: where they go, poor results, and results that cannot be read."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from made_results import (
    dataset,
    failed,
    lockstep,
    run,
    save,
    task,
)

from fanin.benchmarks.records.base import Precision
from fanin.benchmarks.records.store import ResultError, lockstep_path, result_path
from fanin.reports.pages.report import ReportError, write_report


def test_a_folder_with_lockstep_results_alone_has_a_report(tmp_path: Path) -> None:
    page = write_report(save(tmp_path, lockstep())).read_text()
    assert "compared at every step" in page
    assert (tmp_path / "report" / "words" / "lsa" / "lockstep.png").exists()


def test_poor_results_have_a_report_too(tmp_path: Path) -> None:
    """Only failures that never loaded their data; one epoch that learnt nothing."""
    nothing = Precision(at_1=0, at_3=0, at_5=0)
    failures = [failed(dataset=None), failed(for_task=task(architecture="dense"), dataset=None)]
    assert "Runs that ended in an error" in write_report(save(tmp_path, *failures)).read_text()
    save(tmp_path, run("tensorflow", p1=0, epochs=1, test=nothing), run(memory=None))
    assert "12.0" in write_report(tmp_path).read_text()


def test_a_setup_that_did_not_fit_its_data_is_reported(tmp_path: Path) -> None:
    wide = task(connectivity=dataset().inputs + 1)
    page = write_report(save(tmp_path, run(), failed(for_task=wide))).read_text()
    assert "FFI 513" in page


def test_an_empty_folder_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(ReportError, match="fanin reproduce") as caught:
        write_report(tmp_path / "nothing")
    assert str(tmp_path / "nothing") in str(caught.value)
    assert not (tmp_path / "nothing").exists()


def test_a_broken_result_file_is_named(tmp_path: Path) -> None:
    save(tmp_path, run())
    path = result_path(tmp_path, task(), "torch", 0)
    content = json.loads(path.read_text())
    content["memory"]["parameter_bytes"] = "many"
    path.write_text(json.dumps(content))
    with pytest.raises(ResultError, match=re.escape(f"{path}: ")):
        write_report(tmp_path)
    assert not (tmp_path / "report").exists()


@pytest.mark.parametrize("name", ["mine.json", "torch-1.json", "../ffi-32.bak/torch-0.json"])
def test_a_copy_of_a_result_file_is_no_repeat(tmp_path: Path, name: str) -> None:
    save(tmp_path, run())
    path = result_path(tmp_path, task(), "torch", 0)
    copy = path.parent / name
    copy.parent.mkdir(exist_ok=True)
    copy.write_bytes(path.read_bytes())
    with pytest.raises(ResultError, match=re.escape(f"its contents belong to {path}")):
        write_report(tmp_path)


def test_a_copy_of_a_comparison_is_refused(tmp_path: Path) -> None:
    save(tmp_path, run(), lockstep())
    path = lockstep_path(tmp_path, task())
    (path.parent / "mine.json").write_bytes(path.read_bytes())
    with pytest.raises(ResultError, match=re.escape(f"its contents belong to {path}")):
        write_report(tmp_path)


def test_a_report_goes_where_it_is_told_and_replaces_an_earlier_one(tmp_path: Path) -> None:
    out = tmp_path / "elsewhere"
    stale = out / "words" / "lsa" / "memory.png"
    stale.parent.mkdir(parents=True)
    stale.write_bytes(b"from before")
    page = write_report(save(tmp_path / "results", run(memory=None)), out)
    assert page == out / "index.html"
    assert not stale.exists()
    assert not (tmp_path / "results" / "report").exists()


def _succeeds(code: str) -> None:
    result = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


@pytest.mark.slow
def test_a_report_imports_no_framework_and_no_backend() -> None:
    _succeeds(
        "import sys, fanin.benchmarks.records.task, fanin.backends.registry\n"
        "before = set(sys.modules)\n"
        "import fanin.reports.pages.readme\n"
        "assert 'matplotlib' not in sys.modules, 'before anything is drawn'\n"
        "import importlib, pkgutil\n"
        "for module in pkgutil.walk_packages(fanin.reports.__path__, 'fanin.reports.'):\n"
        "    importlib.import_module(module.name)\n"
        "names = {name.partition('.')[0] for name in sys.modules}\n"
        "assert not names & {'torch', 'tensorflow', 'keras', 'jax'}, names\n"
        "new = {name for name in set(sys.modules) - before if name.startswith('fanin.backends')}\n"
        "assert not new, new\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )


@pytest.mark.slow
def test_the_settings_of_matplotlib_for_its_user_do_not_matter(tmp_path: Path) -> None:
    """Such as those of a notebook, which its shell commands inherit: a window system that is not
    installed, LaTeX, and a file that is no text."""
    results = save(tmp_path / "results", run(), run("tensorflow"), lockstep())
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "matplotlibrc").write_bytes(b"text.usetex: True\nfont.size: 20\n\xff\n")
    notebook = "module://matplotlib_inline.backend_inline"
    code = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from fanin.reports.pages.report import write_report\n"
        "write_report(Path(sys.argv[1]), Path('out'))\n"
        f"assert os.environ.get('MPLBACKEND') in (None, {notebook!r})\n"
    )
    settings = {"MPLBACKEND": notebook, "MATPLOTLIBRC": str(theirs)}
    for folder, more in ((tmp_path, {}), (theirs, settings)):
        done = subprocess.run(
            [sys.executable, "-P", "-c", code, results],
            cwd=folder,
            env={**os.environ, **more},
            capture_output=True,
            text=True,
        )
        assert (done.returncode, done.stderr) == (0, "")
    pictures = sorted((tmp_path / "out").rglob("*.png"))
    assert len(pictures) > 3
    for path in pictures:
        same = theirs / path.relative_to(tmp_path)
        assert same.read_bytes() == path.read_bytes()


@pytest.mark.slow
def test_the_table_of_a_gpu_part_needs_only_what_measures() -> None:
    """A machine that measures alone prints it, too."""
    _succeeds(
        "import sys\n"
        "for name in ('pandas', 'jinja2', 'matplotlib'):\n"
        "    sys.modules[name] = None  # as if it was not installed\n"
        "import fanin.reports.tables.gpu\n"
    )
