"""Shape profiles: what is measured, and what a report makes of it."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from fanin.backends.estimate import TooLargeError
from fanin.benchmarks.harness import profile as shapes
from fanin.benchmarks.harness.child import Events
from fanin.benchmarks.harness.request import Options, Request, begun
from fanin.benchmarks.measuring import machine
from fanin.benchmarks.records import published
from fanin.benchmarks.records.run import RunResult
from fanin.benchmarks.records.store import read_results, result_path, write_result
from fanin.benchmarks.records.task import Task
from fanin.reports import paper
from fanin.reports.pages.report import write_report
from fanin.reports.tables.profiles import profile_table

RESULTS = Path(__file__).parents[3] / "benchmarks" / "results"


def make_request(tmp_path, **values):
    """A shape profile of the tiny data set."""
    usual = {"dataset": "tiny", "features": "slice", "execution": "fused"}
    task = Task.model_validate({**usual, **values})
    options = Options(results=tmp_path, profile="shapes", steps=4)
    return Request(task=task, backend="torch", repeat=0, options=options)


def profiled(request):
    result = begun(request)
    shapes.profile(request, Events(lambda event: None), result)
    return result


@pytest.mark.torch
@pytest.mark.parametrize(
    ("values", "rewires"),
    [
        ({"architecture": "stratified", "connectivity": 8}, 32 / 1000),
        ({"architecture": "sparse", "connectivity": 8, "rewire_interval": -1}, 1.0),
        ({"architecture": "bottleneck"}, 0.0),
    ],
)
def test_a_profile_measures_steps_and_memory_and_no_precision(tmp_path, tiny, values, rewires):
    request = make_request(tmp_path, **values)
    result = profiled(request)
    assert result.status == "finished"
    assert result.test is None and result.train is None and result.history == []
    assert result.dataset is not None and result.dataset.synthetic
    assert (result.dataset.labels, result.dataset.train_instances) == (3_000, 1_000)
    measured = result.extrapolation
    assert measured is not None
    assert len(measured.step_seconds) == 4 and len(measured.block_seconds) == 2
    assert measured.steps_per_epoch == 32  # 1000 / 32, the last one ragged
    assert measured.rewires_per_epoch == pytest.approx(rewires)
    assert (measured.rewire_seconds is None) == (rewires == 0.0)
    assert result.memory is not None and result.memory.host_peak_rss_bytes
    write_result(request.path, result)
    assert list(read_results(tmp_path, "shapes")) == [result]
    assert list(read_results(tmp_path)) == []


@pytest.mark.torch
def test_what_does_not_fit_is_said_before_it_is_built(tmp_path, tiny, monkeypatch):
    monkeypatch.setattr(shapes, "available_bytes", lambda: 1 << 20)
    request = make_request(tmp_path, architecture="dense")
    result = begun(request)
    with pytest.raises(TooLargeError, match=r"needs about \d+\.\d MiB, and 1\.0 MiB are"):
        shapes.profile(request, Events(lambda event: None), result)
    # What is said of a machine says of which.
    assert result.machine is not None and result.dataset is not None and result.memory is None


@pytest.mark.torch
def test_a_gpu_runs_what_the_memory_of_the_host_would_not_hold(tmp_path, tiny, monkeypatch):
    monkeypatch.setattr(machine, "gpu_name", lambda: "a GPU")
    assert not machine.runs_on_cpu("auto") and machine.runs_on_cpu("cpu")
    monkeypatch.setattr(shapes, "available_bytes", lambda: 1 << 20)
    # Not refused: what fits a GPU is for the GPU to say.
    result = profiled(make_request(tmp_path, architecture="bottleneck"))
    assert result.status == "finished"


def committed():
    folders = ("cpu", "cpu-cascade-lake")
    runs = (run for name in folders for run in read_results(RESULTS / name, "shapes"))
    return [run for run in runs if run.status == "finished"]


def test_every_fused_ffi_row_takes_no_more_memory_than_published():
    ours = {
        (o.task, o.backend): o.value("memory_gib")
        for o in paper.profiled(committed())
        if o.execution == "fused"
    }
    rows = [
        row for table in published.published_tables() for row in published.published_rows(*table)
    ]
    ffi = [row for row in rows if row.task.setup_name.startswith("ffi")]
    assert len(ffi) == 41
    for row in ffi:
        mine = ours[row.task, "torch"]
        assert mine is not None and mine <= row.values["memory_gib"], row.task.slug


def test_a_profile_stands_beside_the_paper_as_synthetic_and_extrapolated(tmp_path):
    run = committed()[0]
    write_result(result_path(tmp_path, run.task, run.backend, 0, "shapes"), run)
    page = write_report(tmp_path).read_text()
    assert "Shape profile" in page and "synthetic; extrapolated" in page
    (ours,) = paper.profiled([run])
    assert ours.value("test_p1") is None and ours.value("memory_gib")
    times = run.extrapolation
    assert times is not None and times.step_seconds
    steps = float(np.median(times.step_seconds)) * times.steps_per_epoch
    rewiring = (times.rewire_seconds or 0.0) * times.rewires_per_epoch
    assert ours.value("train_seconds_per_epoch") == pytest.approx(steps + rewiring)
    evaluation = float(np.median(times.block_seconds)) * times.evaluation_blocks
    assert ours.value("seconds_per_epoch") == pytest.approx(steps + rewiring + evaluation)


def test_a_profile_that_does_not_fit_is_a_row_that_says_so(tmp_path, tiny):
    request = make_request(tmp_path, architecture="dense")
    now = datetime.now(UTC)
    run = RunResult.model_validate(
        {
            "status": "failed", "task": request.task, "backend": "torch", "repeat": 0,
            "started": now, "finished": now,
            "failure": {"kind": "TooLargeError", "message": "needs about 24.2 GiB, and ...",
                        "traceback": ""},
        }
    )  # fmt: skip
    (line,) = profile_table([run]).rows
    assert line[-1].text == "does not fit: needs about 24.2 GiB, and ..."
