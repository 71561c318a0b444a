"""The plan: bytes that are counted, peaks that are expected, and how fast a machine is."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from fakes import write_dataset
from frameworks import EACH_BACKEND
from typer.testing import CliRunner

from fanin.backends import estimate
from fanin.benchmarks.cli.app import app
from fanin.benchmarks.harness import plan, speed
from fanin.benchmarks.records.run import RunResult
from fanin.benchmarks.records.statistics import GIB
from fanin.benchmarks.records.store import read_results
from fanin.benchmarks.records.task import Task
from fanin.reports.profiles import profile_values

RESULTS = Path(__file__).parents[3] / "benchmarks" / "results"


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
    measured = profile_values(run)["memory_gib"]
    assert measured is not None
    assert expected.peak_bytes / GIB == pytest.approx(measured, rel=0.15)


def planned(dataset: str, options: str):
    usual = ["plan", "--dataset", dataset, "--execution", "fused", "--backend", "torch"]
    return CliRunner().invoke(app, [*usual, *options.split()])


class TestPlan:
    def test_command(self):
        options = "--features slice --setup dense --setup ffi-32 --memory 2"
        done = planned("amazon-670k", options)
        assert done.exit_code == 0, done.output
        dense, ffi = (line for line in done.output.splitlines() if "torch" in line)
        assert " NO " in dense and " yes " in ffi and " 343.8 " in dense

    def test_small_data_are_not_printed_as_nothing(self, tmp_path):
        task = {"dataset": "tiny", "features": "dense40", "epochs": 1, "architecture": "stratified"}
        (tmp_path / "tasks.json").write_text(json.dumps({"tasks": [{**task, "connectivity": 4}]}))
        places = ["--tasks", tmp_path / "tasks.json", "--data-dir", write_dataset(tmp_path)]
        given = [*places, "--backend", "torch", "--bandwidth", 10, "--gflops", 50, "--memory", 0.01]
        done = CliRunner().invoke(app, ["plan", *map(str, given)])
        assert done.exit_code == 0, done.output
        heads, _, row = (line for line in done.output.splitlines() if line.startswith("|"))
        cells = dict(zip(*([c.strip() for c in line.split("|")] for line in (heads, row)),
                         strict=True))  # fmt: skip
        assert cells["parameters"] == "250"  # 50 labels, each with 4 weights and a bias
        # Indices have 2 bytes; Adam has two moments.
        assert float(cells["model (KiB)"]) == pytest.approx((250 * 4 + 200 * 2) / 1024, abs=0.06)
        assert float(cells["optimiser (KiB)"]) == pytest.approx(2 * 250 * 4 / 1024, abs=0.06)
        assert cells["epoch (ms)"] == "under 0.1"
        assert "10.2 MiB of memory" in done.output

    def test_wrong_usage_is_said(self):
        done = planned("amazon-670k", "--backend jax")
        assert done.exit_code == 2 and "unknown 'jax'; there are torch" in done.output
        assert planned("amazon-670k", "--memory 0").exit_code == 2

    def test_measures_what_is_not_given_and_nothing_else(self, monkeypatch):
        monkeypatch.setattr(speed, "measured_bandwidth", lambda threads: 7e9)
        monkeypatch.setattr(speed, "measured_flops", lambda threads: 8e9)
        for options, expected in (
            ("--bandwidth 10", (1e10, 8e9)),
            ("--gflops 100", (7e9, 1e11)),
            ("", (7e9, 8e9)),
        ):
            answer = json.loads(planned("amazon-670k", f"--json --setup dense {options}").output)
            assert (answer["bandwidth_bytes_per_second"], answer["flops"]) == expected

    @pytest.mark.parametrize("threads", [1, 3, 64])
    def test_the_bandwidth_takes_as_much_memory_with_many_threads(self, monkeypatch, threads):
        monkeypatch.setattr(speed, "_COPIED", 1 << 20)
        taken = []
        monkeypatch.setattr(
            speed.np, "copyto", lambda to, source: taken.append(to.nbytes + source.nbytes)
        )
        assert speed.measured_bandwidth(threads) > 0
        assert sum(taken) / (1 << 20) / 5 == pytest.approx(1, rel=1e-3)  # five times

    @pytest.mark.parametrize("place", [0, 2 + 1])
    def test_json_counts_what_the_arrays_hold(self, monkeypatch, place):
        monkeypatch.setattr(estimate, "sorting_pays", lambda sources, cpu: place > 0)
        options = "--features cascade --setup ffi-32-32768 --json --bandwidth 10 --gflops 100"
        done = planned("amazon-670k", options)
        (counted,) = json.loads(done.output)["plans"]
        labels, inner = 670_091, 768 * 32_768
        biases = labels + 32_768
        assert counted["parameters"] == inner + 32 * labels + biases
        # Weights, 16-bit sources, and 2 + 1 bytes for the place of each sorted connection.
        assert counted["parameter_bytes"] == 4 * (inner + biases) + 32 * labels * (4 + 2 + place)
        assert counted["optimizer_bytes"] == 2 * 4 * (inner + 32 * labels + biases)
        assert counted["hours"] == pytest.approx(500 * counted["hours_per_epoch"])

    @pytest.mark.parametrize("dtype, label_bytes", [("bfloat16", 32 * 2), ("float8", 32 + 1)])
    def test_sgd_leaves_no_state_but_the_weights(self, dtype, label_bytes):
        options = "--features cascade --setup ffi-32 --json --bandwidth 10 --gflops 100"
        options += f" --weights-dtype {dtype} --optimizer sgd"
        (counted,) = json.loads(planned("amazon-670k", options).output)["plans"]
        labels = 670_091
        # Weights and 16-bit sources of 768 inputs, and a float32 bias.
        assert counted["parameter_bytes"] == labels * (label_bytes + 32 * 2 + 4)
        assert counted["optimizer_bytes"] == 0
        assert counted["parameter_bytes"] / GIB <= 0.10

    @pytest.mark.parametrize("optimizer", ["adam", "momentum", "sgd"])
    @pytest.mark.parametrize("pays", [False, True])
    @pytest.mark.parametrize("backend", EACH_BACKEND)
    def test_counted_bytes_are_those_of_a_trainer(
        self, tiny, monkeypatch, backend, pays, optimizer
    ):
        from fanin.backends import fused
        from fanin.backends.arrays import InitialArrays
        from fanin.backends.auxiliary import auxiliary_loss
        from fanin.backends.registry import make_trainer

        # Whatever CPU this is.
        monkeypatch.setattr(fused, "sorting_pays", lambda sources: pays)
        monkeypatch.setattr(estimate, "sorting_pays", lambda sources, cpu: pays)
        for execution in ("autograd", "fused"):
            kinds = ("dense", "bottleneck", "stratified", "sparse", "dense-stratified")
            cases = [
                *product(kinds, [None], [0, 0.1], ["float32"]),
                *product(kinds[2::2], [16], [0, 0.1], ["float32"]),
            ]
            if execution == "fused":
                cases += product(["stratified"], [None, 16], [0], ["float8"])
            for kind, group_size, head, dtype in cases:
                values = {"dataset": "tiny", "features": "slice", "execution": execution}
                values |= {"group_size": group_size, "head_fraction": head, "weights_dtype": dtype}
                if head and kind != "stratified":
                    values["head_connectivity"] = 12
                values["optimizer"] = optimizer
                if "str" in kind or "sparse" in kind:
                    values["connectivity"] = 8
                if kind == "dense-stratified":
                    values |= {"intermediate": 4096, "auxiliary_weight": 1.0}
                task = Task.model_validate({**values, "architecture": kind})
                setup = task.setup(512, 300)
                trainer = make_trainer(
                    backend,
                    setup,
                    InitialArrays(setup, 0),
                    execution=task.execution,
                    optimizer=task.optimizer_values,
                    storage=task.storage,
                    auxiliary=auxiliary_loss(
                        *(task.recipe_values, 100, np.empty((0, 512)), np.empty((0, 300))),
                        seed=0,
                        are_known=True,
                    ),
                )
                expected = plan.estimate(task, setup, backend, 2)
                counted = trainer.state_bytes()
                assert (expected.parameter_bytes, expected.optimizer_bytes) == counted, task.slug


@pytest.mark.parametrize(
    "keys",
    [
        {"architecture": "stratified", "connectivity": 32},
        {"architecture": "dense"},
        {"architecture": "stratified", "connectivity": 32, "head_fraction": 0.01},
    ],
    ids=["ffi", "dense", "head"],
)
def test_each_of_several_processes_needs_its_share(keys):
    task = Task.model_validate({"dataset": "d", "features": "f", "execution": "fused", **keys})
    setup = task.setup(512, 100_001)
    own = plan.share_of(setup, 4)
    assert sum(part.labels for part in own.parts) == own.labels
    assert 100_001 / 4 <= own.labels <= 100_001 / 4 + 2
    whole, share = (plan.estimate(task, each, "torch", 1) for each in (setup, own))
    for name in ("parameter_bytes", "optimizer_bytes"):
        assert getattr(share, name) == pytest.approx(getattr(whole, name) / 4, rel=1e-3)
    assert plan.share_of(setup, 1) is setup
