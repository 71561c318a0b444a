"""Shape twins, shape profiles and the plan: sizes, what is measured, what is expected of it."""

from __future__ import annotations

import io
import json
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from fanin.benchmarks.cli.app import app
from fanin.benchmarks.harness import plan
from fanin.benchmarks.harness import profile as shapes
from fanin.benchmarks.harness.child import Events, Request, begun
from fanin.benchmarks.measuring import measure
from fanin.benchmarks.records import published
from fanin.benchmarks.records.run import RunResult
from fanin.benchmarks.records.store import read_results, result_path, write_result
from fanin.benchmarks.records.task import Task
from fanin.datasets import PUBLISHED
from fanin.datasets.catalogue import Published
from fanin.reports import paper, write_report
from fanin.reports.shapes import shape_table, shape_values

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
TINY = Published("tiny", 3_000, 1_000, 320, 4.0, features=("slice",))


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setitem(PUBLISHED, "tiny", TINY)


def request_of(tmp_path, **values):
    usual = {"dataset": "tiny", "features": "slice", "execution": "fused"}
    task = Task.model_validate({**usual, **values})
    path = result_path(tmp_path, task, "torch", 0, "shapes")
    return Request(task=task, backend="torch", repeat=0, path=path, profile="shapes", steps=4)


def profiled(request):
    result = begun(request)
    shapes.profile(request, Events(io.StringIO()), result)
    return result


@pytest.mark.parametrize(
    ("values", "rewires"),
    [
        ({"architecture": "stratified", "connectivity": 8}, 32 / 1000),
        ({"architecture": "sparse", "connectivity": 8, "rewire_interval": -1}, 1.0),
        ({"architecture": "bottleneck"}, 0.0),
    ],
)
def test_a_profile_measures_steps_and_memory_and_no_precision(tmp_path, tiny, values, rewires):
    request = request_of(tmp_path, **values)
    result = profiled(request)
    assert result.status == "finished"
    assert result.test is None and result.train is None and result.history == []
    assert result.dataset is not None and result.dataset.synthetic
    assert (result.dataset.labels, result.dataset.train_instances) == (3_000, 1_000)
    of = result.extrapolation
    assert of is not None and len(of.step_seconds) == 4 and len(of.block_seconds) == 2
    assert of.steps_per_epoch == 32  # 1000 / 32, the last one ragged
    assert of.rewires_per_epoch == pytest.approx(rewires)
    assert (of.rewire_seconds is None) == (rewires == 0.0)
    assert result.memory is not None and result.memory.host_peak_rss_bytes
    write_result(request.path, result)
    assert list(read_results(tmp_path, "shapes")) == [result]
    assert list(read_results(tmp_path)) == []


def test_what_does_not_fit_is_said_before_it_is_built(tmp_path, tiny, monkeypatch):
    monkeypatch.setattr(shapes, "available_bytes", lambda: 1 << 20)
    request = request_of(tmp_path, architecture="dense")
    result = begun(request)
    with pytest.raises(plan.TooLargeError, match=r"needs about 0\.\d GiB, and 0\.0 GiB are"):
        shapes.profile(request, Events(io.StringIO()), result)
    # What is said of a machine says of which.
    assert result.machine is not None and result.dataset is not None and result.memory is None


def test_a_gpu_runs_what_the_memory_of_the_host_would_not_hold(tmp_path, tiny, monkeypatch):
    monkeypatch.setattr(measure, "gpu_name", lambda: "a GPU")
    assert not measure.runs_on_cpu("auto") and measure.runs_on_cpu("cpu")
    monkeypatch.setattr(shapes, "available_bytes", lambda: 1 << 20)
    # Not refused: what fits a GPU is for the GPU to say.
    result = profiled(request_of(tmp_path, architecture="bottleneck"))
    assert result.status == "finished"


def committed():
    folders = ("cpu", "cpu-cascade-lake")
    runs = (run for name in folders for run in read_results(RESULTS / name, "shapes"))
    return [run for run in runs if run.status == "finished"]


@pytest.mark.parametrize(
    "run", committed(), ids=lambda run: f"{run.task.dataset}-{run.task.features}-{run.task.slug}"
)
def test_the_plan_is_within_15_percent_of_the_measured_peak(run: RunResult):
    assert run.dataset is not None and run.machine is not None and run.memory is not None
    setup = run.task.setup(run.dataset.inputs, run.dataset.labels)
    machine = run.machine
    expected = plan.estimate(run.task, setup, run.backend, machine.threads, machine.processor)
    measured = shape_values(run)["memory_gib"]
    assert measured is not None
    assert expected.peak_bytes / plan.GIB == pytest.approx(measured, rel=0.15)


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
    of = run.extrapolation
    assert of is not None and of.step_seconds
    steps = float(np.median(of.step_seconds)) * of.steps_per_epoch
    rewiring = (of.rewire_seconds or 0.0) * of.rewires_per_epoch
    assert ours.value("train_seconds_per_epoch") == pytest.approx(steps + rewiring)
    evaluation = float(np.median(of.block_seconds)) * of.evaluation_blocks
    assert ours.value("seconds_per_epoch") == pytest.approx(steps + rewiring + evaluation)


def test_a_profile_that_does_not_fit_is_a_row_that_says_so(tmp_path, tiny):
    request = request_of(tmp_path, architecture="dense")
    now = datetime.now(UTC)
    run = RunResult.model_validate(
        {
            "status": "failed", "task": request.task, "backend": "torch", "repeat": 0,
            "started": now, "finished": now,
            "failure": {"kind": "TooLargeError", "message": "needs about 24.2 GiB, and ...",
                        "traceback": ""},
        }
    )  # fmt: skip
    (line,) = shape_table([run]).rows
    assert line[-1].text == "does not fit: needs about 24.2 GiB, and ..."


def planned(dataset: str, options: str):
    usual = ["plan", "--dataset", dataset, "--execution", "fused", "--backend", "torch"]
    return CliRunner().invoke(app, [*usual, *options.split()])


class TestPlan:
    def test_command(self):
        options = "--features slice --setup dense --setup ffi-32 --memory 2"
        done = planned("amazon-670k", options)
        assert done.exit_code == 0, done.output
        dense, ffi = (line for line in done.output.splitlines() if "torch" in line)
        assert " NO " in dense and " yes " in ffi and "343.8 M" in dense

    def test_wrong_usage_is_said(self):
        done = planned("amazon-670k", "--backend jax")
        assert done.exit_code == 2 and "unknown 'jax'; there are torch" in done.output
        assert planned("amazon-670k", "--memory 0").exit_code == 2

    def test_measures_what_is_not_given_and_nothing_else(self, monkeypatch):
        monkeypatch.setattr(plan, "measured_bandwidth", lambda threads: 7e9)
        monkeypatch.setattr(plan, "measured_flops", lambda threads: 8e9)
        for options, found in (
            ("--bandwidth 10", (1e10, 8e9)),
            ("--gflops 100", (7e9, 1e11)),
            ("", (7e9, 8e9)),
        ):
            answer = json.loads(planned("amazon-670k", f"--json --setup dense {options}").output)
            assert (answer["bandwidth_bytes_per_second"], answer["flops"]) == found

    @pytest.mark.parametrize("threads", [1, 3, 64])
    def test_the_bandwidth_takes_as_much_memory_with_many_threads(self, monkeypatch, threads):
        monkeypatch.setattr(plan, "_COPIED", 1 << 20)
        taken = []
        monkeypatch.setattr(plan.np, "copyto", lambda to, of: taken.append(to.nbytes + of.nbytes))
        assert plan.measured_bandwidth(threads) > 0
        assert sum(taken) / (1 << 20) / 5 == pytest.approx(1, rel=1e-3)  # five times

    @pytest.mark.parametrize("place", [0, 2 + 1])
    def test_json_counts_what_the_arrays_hold(self, monkeypatch, place):
        monkeypatch.setattr(plan, "sorting_pays", lambda sources, cpu: place > 0)
        options = "--features cascade --setup ffi-32-32768 --json --bandwidth 10 --gflops 100"
        done = planned("amazon-670k", options)
        (found,) = json.loads(done.output)["plans"]
        labels, hidden = 670_091, 768 * 32_768
        biases = labels + 32_768
        assert found["parameters"] == hidden + 32 * labels + biases
        # Weights, 16-bit sources, and 2 + 1 bytes for the place of each sorted connection.
        assert found["parameter_bytes"] == 4 * (hidden + biases) + 32 * labels * (4 + 2 + place)
        assert found["optimizer_bytes"] == 2 * 4 * (hidden + 32 * labels + biases)
        assert found["hours"] == pytest.approx(500 * found["hours_per_epoch"])

    @pytest.mark.parametrize("pays", [False, True])
    @pytest.mark.parametrize("backend", ["torch", "tensorflow"])
    def test_counted_bytes_are_those_of_a_trainer(self, tiny, monkeypatch, backend, pays):
        from fanin.backends import fused
        from fanin.backends.arrays import InitialArrays
        from fanin.backends.registry import make_trainer

        # Whatever CPU this is.
        monkeypatch.setattr(fused, "sorting_pays", lambda sources: pays)
        monkeypatch.setattr(plan, "sorting_pays", lambda sources, cpu: pays)
        for execution in ("autograd", "fused"):
            for kind in ("dense", "bottleneck", "stratified", "sparse", "dense-stratified"):
                values = {"dataset": "tiny", "features": "slice", "execution": execution}
                if "str" in kind or "sparse" in kind:
                    values["connectivity"] = 8
                if kind == "dense-stratified":
                    values["intermediate"] = 4096
                task = Task.model_validate({**values, "architecture": kind})
                setup = task.setup(512, 300)
                trainer = make_trainer(
                    backend, setup, InitialArrays(setup, 0), execution=task.execution
                )
                expected = plan.estimate(task, setup, backend, 2)
                counted = trainer.state_bytes()
                assert (expected.parameter_bytes, expected.optimizer_bytes) == counted, task.slug
