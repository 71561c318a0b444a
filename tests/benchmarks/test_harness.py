"""The harness: tasks, metrics, the training loop, runs in child processes, the command line."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import scipy.sparse as sp
from numpy.linalg import _umath_linalg  # a shared library that is there everywhere
from pydantic import ValidationError
from typer.testing import CliRunner

from fanin.backends.arrays import copied, initial_arrays, plan_rewiring
from fanin.backends.registry import make_trainer
from fanin.backends.setup import Dense, FixedFanIn, LayerSetup, Unstructured
from fanin.benchmarks.cli import app as cli
from fanin.benchmarks.cli.app import _tasks as chosen_tasks
from fanin.benchmarks.cli.app import app
from fanin.benchmarks.harness import child as run
from fanin.benchmarks.harness import compare as lockstep
from fanin.benchmarks.harness import fit, plan
from fanin.benchmarks.harness import parent as runner
from fanin.benchmarks.harness.checkpoint import Checkpoint
from fanin.benchmarks.harness.child import Events, Request, begun, failed
from fanin.benchmarks.harness.parent import Options, child_environment
from fanin.benchmarks.harness.plan import TooLargeError
from fanin.benchmarks.measuring import measure
from fanin.benchmarks.measuring.metrics import precision, precision_at
from fanin.benchmarks.records.base import Failure, Machine, Precision
from fanin.benchmarks.records.run import Epoch
from fanin.benchmarks.records.store import (
    ResultError,
    check_folder,
    read_lockstep,
    read_result,
    result_path,
    write_result,
)
from fanin.benchmarks.records.task import Task, TaskError, files_of, read_tasks, task_files
from fanin.datasets import Batches, DataError, load
from fanin.datasets.formats import write_labels
from fanin.kernels import library


def task(**values) -> Task:
    return Task.model_validate({"dataset": "d", "features": "f", "architecture": "dense", **values})


class TestTasks:
    @pytest.mark.parametrize("name", task_files())
    def test_every_task_file_is_valid(self, name):
        path = task_files()[name]
        tasks = read_tasks(path)
        entries = json.loads(path.read_text())["tasks"]
        assert len({t.slug for t in tasks}) == len(tasks) == len(entries)
        assert {f"{t.dataset}/{t.features}" for t in tasks} == {name.removesuffix("-ablations")}

    def test_files_of_a_data_set(self):
        assert [p.stem for p in files_of("Amazon670k")] == ["cascade", "slice"]
        assert [p.stem for p in files_of("amazon-670k", "slice")] == ["slice"]
        assert files_of("amazon-670k", "other") == files_of("mine") == []

    def test_the_original_files_load_unchanged(self, tmp_path):
        """A file in the shape of the original's: 0 for none, its names, a task listed twice."""
        hidden = {"connectivity": 32, "intermediate": 16384, "architecture": "dense-stratified"}
        plain = {"connectivity": 32, "intermediate": 0}
        content = {
            "defaults": {
                "repeat": 1, "dropout": 0.2, "learning_rate": 1e-3, "rewire_interval": 1000,
                "rewire_fraction": 0.1, "features": "cascade", "dataset": "Wikipedia-500K",
                "loss_fn": "squared_hinge",
            },
            "tasks": [
                {**hidden, "dropout": 0.2},
                {**hidden, "repeat": 3},
                {**hidden, "dropout": 0.1},
                hidden,
                {"connectivity": 0, "intermediate": 0, "architecture": "dense", "repeat": 5},
                {**plain, "architecture": "stratified"},
                {**plain, "architecture": "sparse"},
                {**plain, "architecture": "sparse", "rewire_fraction": 0.1},
                {"connectivity": 0, "intermediate": 64, "architecture": "bottleneck"},
            ],
        }  # fmt: skip
        path = tmp_path / "t.json"
        path.write_text(json.dumps(content))
        tasks = read_tasks(path)
        assert {(t.dataset, t.features) for t in tasks} == {("wiki-500k", "cascade")}
        assert [(t.slug.removesuffix("_dropout=0.2"), t.repeat) for t in tasks] == [
            ("ffi-32-16384", 3), ("ffi-32-16384", 1), ("dense", 5), ("ffi-32", 1),
            ("unstructured-32", 1), ("unstructured-32_dropout=0.2_rewire_fraction=0.1", 1),
            ("bottleneck-64", 1),
        ]  # fmt: skip
        # Only what the entry or the command line says about it counts for `sparse`.
        assert [t.rewire_fraction for t in tasks[3:6]] == [0.1, 0.01, 0.1]
        assert {t.rewire_fraction for t in read_tasks(path, {"rewire_fraction": 0.3})} == {0.3}
        assert (tasks[2].connectivity, tasks[2].intermediate) == (None, None)

    @pytest.mark.parametrize(
        ("name", "canonical"),
        [
            ("Amazon670k", "amazon-670k"), ("Wikipedia-500K", "wiki-500k"),
            ("Amazon-3M", "amazon-3m"), ("My-Own", "My-Own"),
        ],
    )  # fmt: skip
    def test_names_of_data_sets_become_the_catalogues(self, name, canonical):
        assert task(dataset=name).dataset == canonical

    def test_original_names_are_understood(self, tmp_path):
        path = tmp_path / "t.json"
        path.write_text(
            json.dumps(
                {
                    "defaults": {"dataset": "amazon-670k", "features": "slice", "repeat": 5},
                    "tasks": [
                        {"connectivity": 512, "architecture": "dense"},
                        {"connectivity": 64, "intermediate": 64, "architecture": "bottleneck"},
                        {"connectivity": 32, "architecture": "sparse", "repeat": 1},
                        {
                            "connectivity": 32,
                            "intermediate": 16384,
                            "architecture": "dense-stratified",
                            "rewire_interval": -1,
                            "rewire_fraction": 0.3,
                            "learning_rate": 0.001,
                            "dropout": 0.2,
                            "loss_fn": "bce",
                        },
                    ],
                }
            )
        )
        dense, bottleneck, sparse, ffi = read_tasks(path)
        assert (dense.connectivity, dense.repeat, dense.slug) == (None, 5, "dense")
        assert (bottleneck.intermediate, bottleneck.slug) == (64, "bottleneck-64")
        assert (sparse.rewire_fraction, sparse.repeat) == (0.01, 1)
        assert ffi.slug == (
            "ffi-32-16384_dropout=0.2_loss_fn=bce_rewire_fraction=0.3_rewire_interval=-1"
        )
        assert read_tasks(path, {"epochs": 3})[0].epochs == 3

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ("{", r"t\.json:1: not JSON"),
            ("[" * 200_000, r"t\.json: not usable as JSON: maximum recursion depth"),
            ('{"tasks": [' + "1" * 5000 + "]}", r"t\.json: not usable as JSON: Exceeds the limit"),
            (b"\xff\xfe", "not UTF-8"),
            (None, "cannot be read: Is a directory"),
            ('{"tasks": [{"epochs": 3, "epochs": 4}]}', "key 'epochs' stands twice"),
            ("[]", "expected"),
            ('{"tasks": []}', "`tasks` is empty"),
            ('{"tasks": [1]}', r"tasks\[0\]: expected an object"),
            ('{"task": [], "tasks": [{}]}', r"unknown keys \['task'\]"),
            ('{"tasks": [{"architecture": "dense"}]}', r"tasks\[0\]: dataset: Field required"),
            ('{"defaults": {"dataset": "../x", "features": "f"}, "tasks": [{"architecture": '
             '"dense"}]}', r"dataset: .*'\.\./x'"),
            ('{"defaults": {"dataset": "d", "features": "f"}, "tasks": [{"architecture": '
             '"desne"}]}', r"architecture: .*desne"),
            ('{"defaults": {"dataset": "d", "features": "f"}, "tasks": [{"architecture": '
             '"dense", "learning_rat": 1}]}', "learning_rat: .*known keys: .*learning_rate"),
            ('{"defaults": {"dataset": "d", "features": "f"}, "tasks": [{"architecture": '
             '"dense", "dropout": 1.0}]}', r"dropout: .*less than 1 \(got 1\.0\)"),
            ('{"defaults": {"dataset": "d", "features": "f"}, "tasks": [{"architecture": '
             '"stratified"}]}', "needs `connectivity`"),
            ('{"defaults": {"dataset": "d", "features": "f"}, "tasks": [{"architecture": '
             '"stratified", "connectivity": 32, "intermediate": 5}]}', "no intermediate layer"),
            ('{"defaults": {"dataset": "d", "features": "f"}, "tasks": [{"architecture": '
             '"dense-stratified", "connectivity": 32, "intermediate": 5}]}',
             "connectivity 32 is larger than the 5 inputs"),
            ('{"defaults": {"dataset": "d", "features": "f", "connectivity": 0}, "tasks": '
             '[{"architecture": "stratified"}]}', "needs `connectivity`"),
            ('{"defaults": {"dataset": "d", "features": "f", "intermediate": 0}, "tasks": '
             '[{"architecture": "bottleneck"}]}', "needs `intermediate`"),
            *(
                ('{"defaults": {"dataset": "d", "features": "f", "architecture": "stratified"}, '
                 f'"tasks": [{{"connectivity": 8, "{key}": {value}}}]}}', f"{key}: .*{message}")
                for key, value, message in (
                    ("learning_rate", "Infinity", r"finite number \(got inf\)"),
                    ("learning_rate", "1e400", r"finite number \(got inf\)"),
                    ("dropout", "NaN", r"\(got nan\)"),
                    ("batch_size", "true", r"valid integer \(got True\)"),
                    ("batch_size", '"8"', r"valid integer \(got '8'\)"),
                    ("intermediate", "false", r"valid integer \(got False\)"),
                    ("learning_rate", "true", r"valid number \(got True\)"),
                )
            ),
        ],
    )  # fmt: skip
    def test_errors_name_file_task_and_key(self, tmp_path, content, message):
        path = tmp_path / "t.json"
        if content is None:
            path.mkdir()
        else:
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
        with pytest.raises(TaskError, match=message) as caught:
            read_tasks(path)
        assert str(path) in str(caught.value)

    def test_connectivity_must_fit_the_data(self):
        message = "^d, f features, setup ffi-32: connectivity 32 is larger than the 8 inputs"
        with pytest.raises(TaskError, match=message):
            task(architecture="stratified", connectivity=32).setup(8, 5)

    @pytest.mark.parametrize("value", [np.inf, np.nan])
    def test_nothing_is_written_that_json_has_no_word_for(self, value):
        usual = {"backend": "torch", "repeat": 0, "path": "x", "task": task()}
        Request(**usual)
        with pytest.raises(ValidationError, match="finite number"):
            Request(**usual, checkpoint_minutes=value)
        with pytest.raises(ValidationError, match="finite number"):
            Precision(at_1=0.0, at_3=value, at_5=0.0)

    def test_a_task_cannot_be_changed(self):
        with pytest.raises(ValidationError):
            task().dropout = 0.5


class TestPrecision:
    labels = sp.csr_array(
        np.array([[1, 0, 1, 0, 0, 0], [0, 0, 0, 0, 0, 0], [0, 1, 1, 1, 1, 1]], bool)
    )

    def test_worked_example(self):
        top = np.array([[0, 1, 2, 3, 4], [5, 4, 3, 2, 1], [1, 0, 2, 3, 4]])
        # Hits: first 1, 2 of 3, 2 of 5; second none; third 1, 2 of 3, 4 of 5.
        assert precision_at(self.labels, top, 1) == pytest.approx(2 / 3)
        assert precision_at(self.labels, top, 3) == pytest.approx((2 + 2) / 9)
        at = precision(self.labels, top)
        assert at.at_5 == pytest.approx((2 + 4) / 15)

    def test_fewer_labels_than_k(self):
        labels = sp.csr_array(np.array([[1, 1, 0]], bool))
        at = precision(labels, np.array([[2, 0, 1]]))
        assert (at.at_1, at.at_3, at.at_5) == (0, 2 / 3, 2 / 5)

    @pytest.mark.parametrize(
        ("top", "message"),
        [
            (np.zeros((2, 5), int), r"top must be \[3, >= 1\], got \[2, 5\]"),
            (np.full((3, 1), 6), r"label ids in top must be in 0\.\.5"),
            (np.full((3, 1), -1), r"label ids in top must be in 0\.\.5"),
        ],
    )
    def test_bad_input(self, top, message):
        with pytest.raises(ValueError, match=message):
            precision_at(self.labels, top, 1)

    def test_a_label_named_twice_is_an_error(self):
        with pytest.raises(ValueError, match="names a label twice"):
            precision_at(self.labels, np.array([[0, 0, 2]] * 3), 3)

    def test_against_counting_by_hand(self):
        rng = np.random.default_rng(0)
        dense = rng.random((40, 30)) < 0.1
        top = np.stack([rng.permutation(30)[:5] for _ in range(40)])
        for k in (1, 3, 5):
            hits = sum(dense[i, label] for i in range(40) for label in top[i, :k])
            assert precision_at(sp.csr_array(dense), top, k) == pytest.approx(hits / (40 * k))


class TestRewiring:
    def test_takes_strictly_below_the_threshold(self):
        weights = np.array([[0.5, -0.1, 0.2], [0.1, -0.3, 0.4]], np.float32)
        moves = plan_rewiring(weights, 0.34, 100, 0)
        # Two of six; sorted magnitudes .1 .1 .2: the threshold is .2.
        assert moves.positions.tolist() == [1, 3]
        assert moves.threshold == pytest.approx(0.2)
        # With equal values at the threshold fewer are taken.
        assert not len(plan_rewiring(np.ones(10), 0.5, 9, 0).positions)

    def test_a_slots_new_source_does_not_depend_on_the_others(self):
        weights = np.random.default_rng(1).standard_normal(1000)
        few = plan_rewiring(weights, 0.1, 50, 7)
        many = plan_rewiring(weights, 0.2, 50, 7)
        found = dict(zip(many.positions, many.sources, strict=True))
        assert len(few.positions) == 100
        assert [found[s] for s in few.positions] == few.sources.tolist()
        assert many.sources.max() < 50

    def test_fraction_out_of_range(self):
        with pytest.raises(ValueError, match="fraction must be"):
            plan_rewiring(np.ones(5), 1.0, 5, 0)

    def test_when_it_is_due(self):
        def steps(interval):
            return [s for s in range(1, 11) if fit.rewire_due(s, interval, steps_per_epoch=4)]

        assert steps(3) == [1, 4, 7, 10]
        assert steps(-1) == [1, 5, 9]
        assert steps(0) == []


class TestInitialArrays:
    def test_limits(self):
        arrays = initial_arrays(LayerSetup(50, 400, FixedFanIn(8), intermediate=100), 0)
        sparse, hidden = arrays["output.weights"], arrays["intermediate.weights"]
        for weights, limit in ((sparse, (3 / 3200) ** 0.5), (hidden, (6 / 150) ** 0.5)):
            assert 0.98 * limit < np.abs(weights).max() <= limit
            assert abs(weights.mean()) < 0.05 * limit
        assert arrays["output.indices"].dtype == np.uint16
        assert not arrays["output.bias"].any()

    def test_equal_seeds_are_equal(self):
        setup = LayerSetup(20, 30, Unstructured(4))
        one, two, three = (initial_arrays(setup, seed) for seed in (1, 1, 2))
        assert all(np.array_equal(one[k], two[k]) for k in one)
        assert not np.array_equal(one["output.weights"], three["output.weights"])
        assert (np.diff(one["output.rows"]) >= 0).all()


class FakeTrainer:
    """Notes what the loop asks of it."""

    def __init__(self):
        self.setup = LayerSetup(1, 5, Dense())
        self.epoch = 0
        self.rates = []
        self.loaded = None
        self.device = SimpleNamespace(synchronize=lambda: None)

    def train(self, batches, learning_rate, on_step=None):
        self.epoch += 1
        self.rates.append(learning_rate)
        return np.ones(sum(1 for _ in batches))

    def arrays(self):
        return ((name, np.full(1, self.epoch)) for name in self.setup.array_shapes())

    def load_weights(self, arrays):
        self.loaded = {k: int(v[0]) for k, v in arrays.items()}


@pytest.fixture
def run_fit(monkeypatch, tmp_path):
    """Train with a validation P@3 per epoch that is given."""

    def run(values):
        trainer = FakeTrainer()

        def evaluate(trainer, x, y):
            value = values[trainer.epoch - 1]
            return Precision(at_1=value, at_3=value, at_5=value)

        monkeypatch.setattr(fit, "evaluate", evaluate)
        y = sp.csr_array(np.ones((70, 5), bool))
        x = np.zeros((70, 1), np.float32)
        checkpoint = Checkpoint(tmp_path / "run.checkpoint", {}, 60)
        chosen = task(epochs=len(values))
        done = fit.fit(trainer, Batches(x, y), (x, y), chosen, 0, checkpoint)
        return trainer, done

    return run


class TestFit:
    def test_halves_the_rate_after_two_epochs_without_a_rise_of_a_thousandth(self, run_fit):
        trainer, _ = run_fit([0.1, 0.1009, 0.1009, 0.2, 0.3, 0.3, 0.3, 0.4])
        assert trainer.rates == [1e-3, 1e-3, 1e-3, 5e-4, 5e-4, 5e-4, 5e-4, 2.5e-4]

    def test_the_rate_has_a_floor(self, run_fit):
        # Rises by more than 5e-5 an epoch, so training goes on; by less than 1e-3 in twelve.
        trainer, done = run_fit([0.1 + 6e-5 * i for i in range(12)])
        assert len(done.history) == 12
        assert trainer.rates[-1] == 1e-4
        assert sorted(trainer.rates, reverse=True) == trainer.rates

    def test_stops_after_four_epochs_without_a_rise_and_restores_the_best(self, run_fit):
        trainer, done = run_fit([0.1, 0.2, 0.3, 0.3, 0.29, 0.3, 0.28, 0.33, 0.33])
        assert len(done.history) == 7
        assert done.best_epoch == 3
        assert trainer.loaded == {"output.weights": 3, "output.bias": 3}

    def test_last_epoch_best_needs_no_restoring(self, run_fit):
        trainer, done = run_fit([0.1, 0.2])
        assert (trainer.loaded, done.best_epoch) == (None, 2)


def write_dataset(folder: Path, instances=60, inputs=40, labels=50, name="tiny") -> Path:
    """A small learnable data set in the folder layout users bring."""
    rng = np.random.default_rng(0)
    (folder / name).mkdir(parents=True)
    for split, count in (("train", instances), ("test", 20)):
        y = rng.random((count, labels)) < 0.05
        y[np.arange(count), rng.integers(0, labels, count)] = True
        x = (y @ np.random.default_rng(5).standard_normal((labels, inputs))).astype(np.float32)
        np.save(folder / name / f"{split}-dense40.npy", x)
        write_labels(folder / name / f"{split}-labels.txt", sp.csr_array(y), inputs)
    return folder


TASKS = {
    "defaults": {"dataset": "tiny", "features": "dense40", "epochs": 2},
    "tasks": [
        {"architecture": "dense"},
        {"architecture": "sparse", "connectivity": 8},
        {"architecture": "stratified", "connectivity": 8},
        {"architecture": "dense-sparse", "connectivity": 8, "intermediate": 64},
        {"architecture": "dense-stratified", "connectivity": 8, "intermediate": 64},
        {"architecture": "bottleneck", "intermediate": 16},
    ],
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with data and tasks."""
    folder = tmp_path_factory.mktemp("harness")
    write_dataset(folder / "data")
    (folder / "tasks.json").write_text(json.dumps(TASKS))
    return folder


def command(*arguments, **options):
    return subprocess.run(
        [sys.executable, "-P", "-m", "fanin.benchmarks", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        **options,
    )


def arguments(place, results, *more):
    return (
        *("--dataset", "tiny", "--features", "dense40", "--data-dir", place / "data"),
        *("--tasks", place / "tasks.json", "--results", place / results, *more),
    )


@pytest.fixture(scope="module")
def reproduced(place):
    """All setups in both backends, once."""
    return command("reproduce", *arguments(place, "all", "--json"))


@pytest.mark.slow
class TestReproduce:
    def test_all_setups_in_both_backends(self, place, reproduced):
        assert reproduced.returncode == 0, reproduced.stderr
        answer = json.loads(reproduced.stdout)
        assert len(answer["results"]) == 12
        assert Path(answer["report"]).is_file()
        for result in answer["results"]:
            assert result["status"] == "finished"
            assert len(result["history"]) == 2
            assert result["machine"]["framework"].startswith(result["backend"])
            memory = result["memory"]
            assert memory["host_peak_rss_bytes"] >= memory["host_baseline_rss_bytes"] > 0
            assert memory["nvml_device_delta_bytes"] is None or result["machine"]["gpu"]
            assert memory["parameter_bytes"] > 0

    def test_backends_agree_on_what_they_learned(self, reproduced):
        losses = {}
        for result in json.loads(reproduced.stdout)["results"]:
            key = (result["task"]["architecture"], result["task"]["connectivity"])
            losses.setdefault(key, []).append([e["loss"] for e in result["history"]])
        for pair in losses.values():
            assert np.allclose(*pair, rtol=1e-5)

    def test_finished_runs_are_skipped(self, place, reproduced):
        again = command("reproduce", *arguments(place, "all", "--setup", "dense"))
        assert again.returncode == 0
        assert again.stdout.count("finished before, skipped") == 2
        assert re.search(r"torch +\| Dense", again.stdout)

    def test_both_executions_beside_each_other(self, place, reproduced):
        setups = ("--setup", "dense", "--setup", "ffi-8-64")
        ways = ("--execution", "autograd", "--execution", "fused")
        done = command("reproduce", *arguments(place, "all", *setups, *ways, "--json"))
        assert done.returncode == 0, done.stderr
        assert done.stderr.count("finished before, skipped") == 4
        results = json.loads(done.stdout)["results"]
        assert len(results) == 8
        losses = {}
        for result in results:
            losses.setdefault(result["task"]["architecture"], []).append(
                [e["loss"] for e in result["history"]]
            )
        for of_setup in losses.values():
            assert np.allclose(of_setup[0], of_setup, rtol=1e-5)
        table = (place / "all" / "report" / "index.html").read_text()
        assert "FFI 8-64, fused" in table

    def test_bfloat16_is_refused_without_the_fused_execution(self, place):
        done = command("reproduce", *arguments(place, "half", "--weights-dtype", "bfloat16"))
        assert done.returncode == 2
        assert "weights_dtype and moments_dtype other than float32 need execution" in done.stderr

    def test_failed_runs_are_recorded_and_tried_again(self, place):
        spoiled = write_dataset(place / "spoiled")
        x = np.load(spoiled / "tiny" / "train-dense40.npy")
        x[3, 5] = np.nan
        np.save(spoiled / "tiny" / "train-dense40.npy", x)
        bad = [
            *("reproduce", "--dataset", "tiny", "--features", "dense40", "--setup", "dense"),
            *("--tasks", place / "tasks.json", "--results", place / "retry", "--backend", "torch"),
        ]
        failed = command(*bad, "--data-dir", spoiled)
        assert failed.returncode == 2  # the data are to blame
        assert "row 3, column 5" in failed.stdout
        path = result_path(place / "retry", read_tasks(place / "tasks.json")[0], "torch", 0)
        result = read_result(path)
        assert result.status == "failed"
        assert result.failure.kind == "DataError"
        mended = command(*bad, "--data-dir", place / "data")
        assert mended.returncode == 0, mended.stdout
        assert read_result(path).status == "finished"

    def test_ctrl_c_keeps_what_is_finished(self, place):
        data = place / "long"
        write_dataset(data, instances=20_000, labels=300)
        results = place / "stopped"
        process = subprocess.Popen(
            [
                *(sys.executable, "-P", "-m", "fanin.benchmarks", "reproduce", "--epochs"),
                *("90", "--dataset", "tiny", "--features", "dense40", "--data-dir", str(data)),
                *("--tasks", str(place / "tasks.json"), "--results", str(results)),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # Whoever runs the tests in the background may have SIGINT ignored; children inherit it.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        assert process.stdout is not None
        line = process.stdout.readline()  # the first epoch of the first run is done
        assert "epoch 1" in line
        (child,) = psutil.Process(process.pid).children()
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 130, errors
        assert "fanin: stopped; what has finished is kept" in errors
        assert not list(results.rglob("*.json"))
        assert not child.is_running()

    def test_ctrl_c_before_anything_is_loaded(self, tmp_path):
        """Whenever in the first seconds it comes, there is no traceback."""
        for seconds in (0.1, 0.3, 0.6, 1.0):
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "fanin.benchmarks", "report", "--results", tmp_path],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )
            time.sleep(seconds)
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=60)
            # -2: in Python's own start, before any of its code could say something.
            assert process.returncode in (130, -signal.SIGINT, 2), errors
            assert "Traceback" not in errors

    def test_holdout_never_sees_the_test_set(self, place):
        write_dataset(place / "holdout", instances=66)
        done = command(
            "reproduce",
            *("--dataset", "tiny", "--features", "dense40", "--data-dir", place / "holdout"),
            *("--tasks", place / "tasks.json", "--results", place / "held"),
            *("--setup", "dense", "--backend", "torch", "--protocol", "holdout", "--json"),
        )
        assert done.returncode == 0, done.stderr
        (result,) = json.loads(done.stdout)["results"]
        for epoch in result["history"]:
            assert epoch["steps"] == 2  # 60 of 66 instances, which would be 3
            sixths = 6 * epoch["validation"]["at_1"]
            assert sixths == pytest.approx(round(sixths))

    def test_saved_weights_load_in_the_other_backend(self, place):
        from safetensors.numpy import load_file

        done = command(
            "reproduce",
            *arguments(place, "weights", "--setup", "ffi-8-64", "--backend", "tensorflow"),
            *("--save-weights", "--epochs", "1"),
        )
        assert done.returncode == 0, done.stdout
        (path,) = (place / "weights").rglob("*.safetensors")
        arrays = load_file(path)
        setup = LayerSetup(40, 50, FixedFanIn(8), intermediate=64)
        trainer = make_trainer("torch", setup, initial_arrays(setup, 9), device="cpu")
        trainer.load_weights(arrays)
        assert np.array_equal(trainer.array("output.indices"), arrays["output.indices"])


def test_threads_wait_shortly_unless_it_is_said_how(monkeypatch):
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    assert child_environment()["GOMP_SPINCOUNT"] == "5000"
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    assert child_environment()["GOMP_SPINCOUNT"] == "7"
    monkeypatch.delenv("GOMP_SPINCOUNT")
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    assert "GOMP_SPINCOUNT" not in child_environment()


@pytest.mark.slow
class TestCompare:
    def test_backends_agree_step_by_step(self, place):
        done = command(
            "compare",
            *arguments(place, "compared", "--steps", "12", "--setup", "ffi-8-64"),
            *("--setup", "unstructured-8", "--json"),
        )
        assert done.returncode == 0, done.stdout + done.stderr
        results = list(read_lockstep(place / "compared"))
        assert [len(r.steps) for r in results] == [12, 12]
        for result in results:
            assert result.agreed
            assert set(result.sides) == {"torch", "tensorflow"}
            apart = [d.absolute for s in result.steps for d in s.arrays.values()]
            assert 0 < max(apart) < 1e-5

    def test_both_executions_beside_each_other(self, place):
        ways = ("--execution", "fused", "--execution", "autograd", "--execution", "fused")
        done = command(
            "compare",
            *arguments(place, "both-ways", "--steps", "2", "--setup", "ffi-8-64", *ways),
        )
        assert done.returncode == 0, done.stdout + done.stderr
        executions = {r.task.execution for r in read_lockstep(place / "both-ways")}
        assert executions == {"autograd", "fused"}
        assert "[1/2] tiny ffi-8-64 fused: agree" in done.stdout
        assert "[2/2] tiny ffi-8-64: agree" in done.stdout

    def test_drift_fails(self, place, monkeypatch):
        """With no room for rounding at all, two frameworks cannot agree."""
        monkeypatch.setattr(lockstep, "WEIGHT_TOLERANCE", 0.0)
        monkeypatch.setattr(lockstep, "LOSS_TOLERANCE", 0.0)
        options = lockstep.Options(place / "drift", place / "data")
        chosen = read_tasks(place / "tasks.json")[0]
        assert not lockstep.compare(chosen, options, 5).agreed

    def test_only_units_at_the_kink_are_taken_over(self, tmp_path):
        """Three units differ; for one of them the input to ReLU was within rounding of 0."""
        rng = np.random.default_rng(0)
        x = rng.standard_normal((4, 6)).astype(np.float32)
        weights = rng.standard_normal((6, 5)).astype(np.float32)
        bias = np.ones(5, np.float32)
        bias[2] = -(x[3] @ weights[:, 2])  # instance 3 finds unit 2 at 0

        class Side:
            def __init__(self, name, off):
                self.folder = tmp_path / name
                self.folder.mkdir()
                self.asked = []
                self.arrays = {
                    "intermediate.weights": weights + off * np.array([0, 1, 1, 0, 1], np.float32),
                    "intermediate.bias": bias,
                }

            def read(self, name):
                return self.arrays[name]

            def ask(self, do, **arguments):
                self.asked.append(do)

        sides = [Side("first", 0.0), Side("second", 0.01)]
        assert lockstep._excuse_kinks(sides, (weights, bias), x) == 1
        assert np.load(sides[1].folder / "units.npy").tolist() == [2]
        assert [side.asked for side in sides] == [["give"], ["take"]]
        bias[2] += 0.1
        assert lockstep._excuse_kinks(sides, (weights, bias), x) == 0

    def test_a_unit_is_taken_over_with_its_moments(self, tmp_path):
        setup = LayerSetup(6, 9, Dense(), intermediate=5)
        one, two = (
            make_trainer("torch", setup, initial_arrays(setup, seed), device="cpu")
            for seed in (1, 2)
        )
        x = np.random.default_rng(0).standard_normal((4, 6)).astype(np.float32)
        batches = Batches(x, sp.csr_array(np.eye(4, 9, dtype=bool)), 4)
        for trainer in (one, two):
            trainer.train(batches.epoch(0), 1e-2)
        before = two.array("intermediate.weights")
        for name, array in lockstep._unit_arrays(one).items():
            np.save(tmp_path / f"given.{name}.npy", array)
        np.save(tmp_path / "units.npy", np.array([1, 3]))
        lockstep._take_units(two, tmp_path)
        after, given = two.array("intermediate.weights"), one.array("intermediate.weights")
        assert np.array_equal(after[:, [1, 3]], given[:, [1, 3]])
        assert np.array_equal(after[:, [0, 2, 4]], before[:, [0, 2, 4]])
        moments, theirs = (copied(side.optimizer_arrays()) for side in (two, one))
        name = "intermediate.bias.v"
        assert np.array_equal(moments[name][[1, 3]], theirs[name][[1, 3]])
        assert not np.array_equal(moments[name][[0, 2]], theirs[name][[0, 2]])

    def test_a_relative_difference_is_by_size(self):
        one = np.array([1.0, -4.0])
        found = lockstep.difference(one, np.array([1.0, -4.001]))
        assert found.absolute == pytest.approx(1e-3)
        assert found.relative == pytest.approx(1e-3 / 4)
        assert lockstep.difference(np.zeros(3), np.zeros(3)).relative == 0


class TestSide:
    """The parent's end of `compare`, with a child that ends when it is told to."""

    @pytest.mark.parametrize("last_words", ["", '{"val'])
    def test_a_child_that_died_is_reported_with_its_log(self, tmp_path, monkeypatch, last_words):
        def start_child(module, log):
            child = subprocess.Popen(["true"], stdin=subprocess.PIPE, text=True)
            child.wait()
            return child, io.StringIO(last_words)

        monkeypatch.setattr(lockstep, "start_child", start_child)
        request = Request(task=task(), backend="torch", repeat=0, path=tmp_path / "x.json")
        side = lockstep._Side(request, tmp_path, tmp_path / "x.log")
        with pytest.raises(lockstep.LockstepError, match=r"torch: its process ended: see .*x\.log"):
            side.ask("step")
        side.close()

    def test_weights_that_are_not_finite_are_no_result(self, tmp_path, monkeypatch):
        write_dataset(tmp_path)

        class Side:
            backend = "torch"

            def __init__(self, *_): ...
            def answer(self): ...
            def close(self): ...

            def ask(self, do, **_):
                return 1.0

            def read(self, name):
                return np.array([1.0, np.inf])

        monkeypatch.setattr(lockstep, "_Side", Side)
        chosen = task(dataset="tiny", features="dense40")
        with pytest.raises(
            lockstep.LockstepError, match=r"output\.weights is not finite after step"
        ):
            lockstep.compare(chosen, Options(tmp_path, tmp_path), 1)


class Noting:
    """A display that notes what it is told."""

    def __init__(self):
        self.told = []

    def begin(self, *_): ...

    def event(self, event):
        self.told.append(event["text"])

    def end(self, result, skipped):
        self.told.append("skipped" if skipped else result.status)


class TestRunAll:
    @pytest.fixture
    def run_all(self, tmp_path, monkeypatch):
        """Run tasks in one backend; each ends as `failures` has it, by its data set."""

        def run_tasks(tasks, failures=None, **options):
            def run_one(request, display, lock):
                kind = (failures or {}).get(request.task.dataset)
                result = begun(request)
                if kind:
                    failed(result, kind, "so it is", "")
                write_result(request.path, result)
                return result

            monkeypatch.setattr(runner, "run_one", run_one)
            given = Options(tmp_path, **options)
            display = Noting()
            runner.run_all(runner.requests(tasks, ["torch"], given), given, display)
            return display.told

        return run_tasks

    def test_unusable_data_are_tried_once(self, run_all):
        setups = [{"loss_fn": "bce"}, {"loss_fn": "squared_hinge"}]
        tasks = [task(dataset=name, **values) for values in setups for name in ("bad", "good")]
        assert run_all(tasks[-1:]) == ["finished"]
        bad = {"bad": "DataError"}
        assert run_all(tasks, bad) == ["failed", "finished", "skipped"]
        assert run_all(tasks, {"bad": "OSError"}) == ["failed", "skipped", "failed", "skipped"]
        other = task(dataset="bad", features="other")
        assert run_all([tasks[0], other], bad) == ["failed", "failed"]

    def test_a_finished_run_without_the_weights_asked_for_runs_again(self, run_all, tmp_path):
        assert run_all([task()]) == ["finished"]
        told = ["finished before without its weights, and runs again to save them", "finished"]
        failing = {task().dataset: "OSError"}
        assert run_all([task()], failing, save_weights=True) == [told[0], "failed"]
        assert run_all([task()]) == ["skipped"]  # what it measured is still there
        assert run_all([task()], save_weights=True) == told
        result_path(tmp_path, task(), "torch", 0).with_suffix(".safetensors").touch()
        assert run_all([task()], save_weights=True) == ["skipped"]
        # A shape profile has no weights to keep.
        for expected in ("finished", "skipped"):
            assert run_all([task()], save_weights=True, profile="shapes") == [expected]

    def test_what_may_be_out_of_date_is_skipped_with_a_word(self, run_all, tmp_path, monkeypatch):
        data = write_dataset(tmp_path / "data")
        of_tiny = task(dataset="tiny", features="f")
        result = begun(Request(task=of_tiny, backend="torch", repeat=0, path=Path("x")))
        info = run.dataset_info(load("tiny", None, data))
        device = {"system": "s", "processor": "p", "cores": 2, "memory_bytes": 1, "gpu": None}
        device |= {"python": "3", "packages": {}, "framework": "torch", "device": "cpu"}
        result.dataset = info
        kernels = f"fanin 0.1.0 {library.build_info()['instruction_set']}"
        result.machine = Machine(**device, kernels=kernels, threads=2, code=None)
        result.started = datetime.now(UTC)
        write_result(result_path(tmp_path, of_tiny, "torch", 0), result)

        def told(**options):
            *said, last = run_all([of_tiny], **options)
            assert last == "skipped" and all(line.endswith("--force repeats it") for line in said)
            return " ".join(said)

        assert told(data_dir=data) == told(data_dir=data, device="cpu") == ""
        assert f"it read {info.source}, and no --data-dir is given" in told()
        assert "it ran on cpu, and --device cuda is asked for" in told(device="cuda")
        other = {"instruction_set": "other"}
        monkeypatch.setattr(runner, "build_info", lambda: other)
        assert f"it ran with {kernels}, and other is what would run now" in told(data_dir=data)
        other["instruction_set"] = kernels.split()[-1]
        (data / "tiny" / "a-link").symlink_to("nowhere")
        moved = data.rename(tmp_path / "moved")
        assert f"it read {info.source}, and {moved / 'tiny'} is asked for" in told(data_dir=moved)
        labels = moved / "tiny" / "train-labels.txt"
        os.utime(labels, (time.time() + 5, time.time() + 5))
        assert f"{labels} has changed since" in told(data_dir=moved)


@pytest.mark.parametrize(
    ("rate", "then"), [(1e-3, 5e-4), (1.5e-4, 1e-4), (1e-4, 1e-4), (1e-6, 1e-6)]
)
def test_the_schedule_never_raises_the_learning_rate(rate, then):
    schedule = fit.Schedule(rate)
    epoch = Epoch(
        **{"epoch": 1, "steps": 1, "loss": 1, "learning_rate": rate, "rewired": 0},
        **{"train_seconds": 1, "evaluate_seconds": 1},
        validation=Precision(at_1=0.5, at_3=0.5, at_5=0.5),
    )
    for _ in range(3):
        schedule.observe(epoch)
    assert schedule.rate == then


@pytest.mark.parametrize(
    ("asked", "setting", "expected"),
    [(3, "1", 3), (0, "1", 1), (0, " 5,2", 5), (0, None, None), (0, "many", None), (0, "0", None)],
)
def test_threads_are_what_was_asked_for_or_the_setting(asked, setting, expected, monkeypatch):
    if setting is None:
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    else:
        monkeypatch.setenv("OMP_NUM_THREADS", setting)
    assert measure.threads(asked) == (expected or len(os.sched_getaffinity(0)))


def test_a_model_that_cannot_be_held_is_not_begun(tmp_path, monkeypatch):
    """Else the system would kill the process, or others."""
    monkeypatch.setattr(run, "available_bytes", lambda: 1000)
    of = task(dataset="tiny", features="dense40")
    request = Request(
        task=of,
        backend="torch",
        repeat=0,
        path=tmp_path / "x.json",
        data_dir=write_dataset(tmp_path),
    )
    result = begun(request)
    with pytest.raises(
        TooLargeError, match=r"state alone are 0\.0 GiB, and 0\.0 GiB are available"
    ):
        run.run(request, Events(io.StringIO()), result)
    assert result.dataset.labels == 50 and result.memory is None


@pytest.mark.parametrize(("instances", "kept"), [(1, None), (2, 1), (40, 36)])
def test_holdout_leaves_some_to_train_on(tmp_path, instances, kept):
    data = load("tiny", None, write_dataset(tmp_path, instances=instances))
    chosen = task(protocol="holdout")
    if kept is None:
        with pytest.raises(DataError, match="1 training instance, but protocol holdout"):
            run.split(data, chosen)
    else:
        (x, _), (held, _) = run.split(data, chosen)
        assert (len(x), len(held)) == (kept, instances - kept)


def in_process(*arguments, **options):
    """The command line without a process of its own."""
    return CliRunner().invoke(app, [*map(str, arguments)], **options)


class TestUsage:
    """What is wrong is said in one line, before anything runs."""

    @pytest.fixture
    def spoiled(self, tmp_path):
        """Results of one run, and the file of another that cannot be read."""
        write_dataset(tmp_path / "data")
        (tmp_path / "tasks.json").write_text(json.dumps(TASKS))
        done, broken = read_tasks(tmp_path / "tasks.json")[:2]
        request = Request(task=done, backend="torch", repeat=0, path=Path("x"))
        write_result(result_path(tmp_path / "all", done, "torch", 0), begun(request))
        path = result_path(tmp_path / "all", broken, "torch", 0)
        path.parent.mkdir()
        path.write_bytes(b"\xff")
        return tmp_path

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            (("reproduce", "--checkpoint-minutes", "inf"), "inf is not a number below 1e12"),
            (("plan", "--memory", "inf"), "inf is not a number below"),
            (("plan", "--bandwidth", "1e300"), "1e.300 is not a number below"),
            (("plan", "--gflops", "inf"), "inf is not a number below"),
            (("reproduce", "--device", "gpu"), "unknown 'gpu'; there are cpu, cuda, auto"),
            (("compare", "--device", "gpu"), "unknown 'gpu'"),
            (("plan", "--data-dir", "nowhere"), "'nowhere' does not exist"),
            (("reproduce", "--data-dir", "."), "--data-dir . needs --dataset too, or --tasks"),
            (("reproduce", "--data-dir", ".", "--profile", "shapes"), "needs --dataset too"),
            (("report", "--out", __file__), "is a file"),
            (("reproduce", "--results", f"{__file__}/x"), f"{__file__}/x: Not a directory"),
            (("compare", "--results", f"{__file__}/x"), f"{__file__}/x: Not a directory"),
        ],
    )
    def test_wrong_options(self, given, message):
        done = in_process(*given, env={"TERMINAL_WIDTH": "1000"})
        assert done.exit_code == 2
        assert re.search(message, done.output)
        assert isinstance(done.exception, SystemExit)

    @pytest.mark.parametrize("command", ["plan", "compare"])
    def test_a_setup_that_does_not_fit_the_data(self, tmp_path, command):
        write_dataset(tmp_path / "data")
        wide = {"dataset": "tiny", "features": "dense40", "connectivity": 41}
        content = {"tasks": [{**wide, "architecture": "stratified"}]}
        (tmp_path / "tasks.json").write_text(json.dumps(content))
        options = (
            ["--bandwidth", 1, "--gflops", 1] if command == "plan" else ["--results", tmp_path]
        )
        places = ("--data-dir", tmp_path / "data", "--tasks", tmp_path / "tasks.json")
        done = in_process(command, *places, *options)
        assert done.exit_code == 2
        assert done.output.startswith(
            "fanin: tiny, dense40 features, setup ffi-41: connectivity 41"
        )
        assert done.output.count("\n") == 1

    @pytest.mark.parametrize("command", ["reproduce", "compare", "report"])
    def test_results_are_read_before_anything_runs(self, spoiled, monkeypatch, command):
        monkeypatch.setattr(cli, "run_all", None)
        monkeypatch.setattr(cli.lockstep, "compare", None)
        options = ["--setup", "dense", *arguments(spoiled, "all")]
        if command == "report":
            options = ["--results", spoiled / "all"]
        done = in_process(command, *options)
        assert done.exit_code == 2
        assert re.search(r"unstructured-8_epochs=2/torch-0\.json: not UTF-8", done.output)

    def test_what_is_run_again_need_not_be_readable(self, spoiled, monkeypatch):
        def run_all(todo, options, display):
            (request,) = todo
            result = begun(request)
            write_result(request.path, result)
            return [result]

        monkeypatch.setattr(cli, "run_all", run_all)
        again = ("--setup", "unstructured-8", "--backend", "torch", "--force")
        done = in_process("reproduce", *arguments(spoiled, "all"), *again)
        assert done.exit_code == 0, done.output

    def test_failures_are_known_by_the_names_of_exceptions(self):
        for error, asked in (
            (DataError, "is_of_data"),
            (DataError, "is_of_input"),
            (TaskError, "is_of_input"),
            (TooLargeError, "is_too_large"),
        ):
            assert getattr(Failure(kind=error.__name__, message="", traceback=""), asked)
        other = Failure(kind="ValueError", message="", traceback="")
        assert not (other.is_of_data or other.is_of_input or other.is_too_large)

    @pytest.mark.parametrize(
        ("kinds", "more", "code"),
        [
            (["DataError"], (), 2),
            (["TaskError", "ProcessDied"], (), 2),
            (["ProcessDied"], (), 1),
            (["TooLargeError"], (), 1),
            (["TooLargeError"], ("--profile", "shapes", "--dataset", "amazon-3m"), 0),
        ],
    )
    def test_exit_code(self, tmp_path, monkeypatch, kinds, more, code):
        def run_all(todo, options, display):
            made = []
            for request, kind in zip(todo, kinds, strict=False):
                made.append(failed(begun(request), kind, "so it is", ""))
                write_result(request.path, made[-1])
            return made

        monkeypatch.setattr(cli, "run_all", run_all)
        done = in_process("reproduce", "--results", tmp_path, "--json", *more)
        assert done.exit_code == code
        assert re.search(r"\d+ more runs on unusable data were not tried", done.output)

    def test_a_results_folder_that_is_no_folder_of_files(self, tmp_path):
        path = result_path(tmp_path, task(), "torch", 0)
        path.mkdir(parents=True)
        with pytest.raises(ResultError, match=r"torch-0\.json: cannot be read: Is a directory"):
            check_folder(tmp_path)

    @pytest.mark.parametrize(
        ("path", "message"),
        [
            ("/nope.so", "/nope.so: no such file; correct FANIN_LIBRARY or unset it"),
            (__file__, f"{__file__}: "),  # the rest is the system's
            (_umath_linalg.__file__, f"{_umath_linalg.__file__} is no library of fanin"),
        ],
        ids=["missing", "no library", "another library"],
    )
    def test_says_why_the_library_cannot_be_used(self, monkeypatch, path, message):
        monkeypatch.setattr(library, "load", library.load.__wrapped__)
        done = in_process("info", env={"FANIN_LIBRARY": path})
        assert done.exit_code == 2
        assert done.output.startswith(f"fanin: the kernels cannot be used: {message}")
        amazon = ("--dataset", "amazon-670k", "--execution", "fused")
        monkeypatch.setattr(plan, "sorting_pays", lambda sources, cpu: True)  # in tiles it knows
        done = in_process("plan", *amazon, env={"FANIN_LIBRARY": path})
        assert done.exit_code == 2
        assert done.output.startswith(f"fanin: {message}")

    @pytest.mark.slow
    def test_info_says_that_an_instruction_set_does_not_exist(self):
        done = command("info", env={**os.environ, "FANIN_INSTRUCTION_SET": "avx9"})
        assert done.returncode == 2
        assert "cannot be used: unknown instruction set 'avx9'; there are " in done.stderr

    @pytest.mark.parametrize(
        ("name", "found"),
        [
            ("FFI 32-16k", ["ffi-32-16384"]),
            ("ffi 32-16384", ["ffi-32-16384"]),
            ("FFI-32", ["ffi-32"]),
            ("dense", ["dense"]),
            ("Dense", ["dense"]),
            ("Unstructured 32-32k", ["unstructured-32-32768"]),
        ],
    )
    def test_a_setup_by_its_name_in_the_table(self, name, found):
        tasks = chosen_tasks(["amazon-670k"], "slice", None, None, [name], {"execution": "fused"})
        assert [t.slug.removesuffix("_execution=fused") for t in tasks] == found
        label = f"{name}, fused"
        if name == "FFI 32-16k":
            assert (
                chosen_tasks(["amazon-670k"], "slice", None, None, [label], {"execution": "fused"})
                == tasks
            )


@pytest.mark.slow
class TestCommandLine:
    @pytest.mark.parametrize("name", ["reproduce", "compare", "report", "plan", "info"])
    def test_help(self, name):
        done = command(name, "--help")
        assert done.returncode == 0
        assert len(done.stdout) > 300

    def test_info_for_a_program(self):
        answer = json.loads(command("info", "--json").stdout)
        assert answer["backends"] == {"torch": True, "tensorflow": True}
        assert "wordnet-small" in answer["datasets"]
        assert answer["kernels"]["instruction_set"] in answer["kernels"]["instruction_sets"]

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            (("--backend", "jax"), "unknown 'jax'; there are torch, tensorflow"),
            (("--execution", "fuse"), "unknown 'fuse'; there are autograd, fused"),
            (("--setup", "ffi-33"), "no setup 'ffi-33' .* there are bottleneck-64, dense"),
            (("--dataset", "nowhere"), "no data set named 'nowhere'; fanin comes with wordnet"),
            (("--dataset", "nowhere", "--features", "bow"), "no data set named 'nowhere'"),
            (("--dataset", ""), "no data set named ''"),
            (
                ("--weights-dtype", "bfloat16"),
                r"tasks\[0\] with .*weights_dtype=bfloat16.*: weights_dtype and .* need execution",
            ),
            (("--tasks", "/nowhere.json"), "/nowhere.json: no such task file"),
            (("--tasks", "amazon-670k"), "no such task file; fanin's own are .*amazon-670k/slice"),
        ],
    )
    def test_wrong_usage_is_one_line_and_code_2(self, tmp_path, given, message):
        done = command("reproduce", *given, "--results", tmp_path)
        assert done.returncode == 2
        assert re.search(message, done.stderr)
        assert "Traceback" not in done.stderr

    def test_tasks_of_a_data_set_by_any_of_its_names(self):
        def named(dataset, features=None, file=None, data_dir=None):
            return chosen_tasks([dataset], features, data_dir, file, None, {})

        def kinds(tasks):
            return {(t.dataset, t.features) for t in tasks}

        both = named("Amazon670k")
        assert kinds(both) == {("amazon-670k", "cascade"), ("amazon-670k", "slice")}
        assert not any("=" in t.slug for t in both)  # no ablations
        assert named("amazon-670k", "slice") == [t for t in both if t.features == "slice"]
        assert kinds(named(None)) == {("wordnet-small", "tfidf-svd512")}

        ablations = Path("wiki-500k/slice-ablations")
        assert kinds(named(None, file=ablations)) == {("wiki-500k", "slice")}
        assert all("=" in t.slug for t in named(None, file=ablations))
        assert kinds(named("wiki-500k", "mine", file=ablations)) == {("wiki-500k", "mine")}

    def test_only_the_features_that_are_there(self, tmp_path):
        (tmp_path / "Amazon670k").mkdir()
        (tmp_path / "Amazon670k" / "train-slice.npy").touch()
        tasks = chosen_tasks(["amazon-670k"], None, tmp_path, None, None, {})
        assert {t.features for t in tasks} == {"slice"}

    def test_ones_own_data_take_the_usual_setups(self, tmp_path):
        def named(dataset, features=None):
            return chosen_tasks([dataset], features, tmp_path, None, None, {})

        (tmp_path / "mine").mkdir()
        usual = [t.slug for t in read_tasks(task_files()["wordnet/tfidf-svd512"])]
        assert [t.slug for t in named("mine", "bert")] == usual
        assert {(t.dataset, t.features) for t in named("wordnet", "bert")} == {("wordnet", "bert")}
        # The only features that are there need not be named.
        (tmp_path / "mine" / "train-bert.npy").touch()
        assert {(t.dataset, t.features) for t in named("mine")} == {("mine", "bert")}
        (tmp_path / "mine" / "train-lsa.npy").touch()
        done = command("reproduce", "--dataset", "mine", "--data-dir", tmp_path)
        assert done.returncode == 2
        assert r"name --features (bert, lsa) or --tasks" in done.stderr

    def test_a_report_of_nothing(self, tmp_path):
        done = command("report", "--results", tmp_path)
        assert done.returncode == 2
        assert str(tmp_path) in done.stderr

    def test_a_broken_result_file_is_named(self, tmp_path):
        path = result_path(tmp_path, task(), "torch", 0)
        path.parent.mkdir(parents=True)
        path.write_text('{"schema_version": 1}')
        with pytest.raises(ResultError, match="not a result file of schema 1"):
            read_result(path)
        done = command("report", "--results", tmp_path)
        assert done.returncode == 2
        assert str(path) in done.stderr

    def test_a_missing_backend_says_what_to_install(self, tmp_path):
        """A finder that hides TensorFlow stands in for a machine without it."""
        (tmp_path / "sitecustomize.py").write_text(
            "import sys\n"
            "class Hide:\n"
            "    def find_spec(self, name, path=None, target=None):\n"
            "        if name.partition('.')[0] == 'tensorflow':\n"
            "            raise ModuleNotFoundError(name, name=name)\n"
            "sys.meta_path.insert(0, Hide())\n"
            "import importlib.util as u\n"
            "real = u.find_spec\n"
            "u.find_spec = lambda n, p=None: None if n == 'tensorflow' else real(n, p)\n"
        )
        path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
        done = command("reproduce", "--results", tmp_path, env={**os.environ, "PYTHONPATH": path})
        assert done.returncode == 2
        assert "'tensorflow' was asked for but is not installed: pip install" in done.stderr
