"""Runs on sparse features: from files to results, plans, profiles and comparisons."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse as sp
from fakes import command, in_process, make_task, write_dataset
from frameworks import EACH_BACKEND

from fanin.backends.arrays import InitialArrays, copied, initial_arrays
from fanin.backends.estimate import Sizes
from fanin.backends.interface import Storage
from fanin.backends.kinds import Dense
from fanin.backends.registry import make_trainer
from fanin.backends.setup import LayerSetup
from fanin.benchmarks.harness import compare as lockstep
from fanin.benchmarks.harness import plan, side
from fanin.benchmarks.harness import profile as shapes
from fanin.benchmarks.harness.child import Events, run
from fanin.benchmarks.harness.fit import predict
from fanin.benchmarks.harness.prepare import build, make_batches, setup_for, split
from fanin.benchmarks.harness.request import Options, Request, begun
from fanin.benchmarks.harness.speed import Speed
from fanin.benchmarks.records.statistics import GIB
from fanin.benchmarks.records.store import read_lockstep, read_results
from fanin.benchmarks.records.task import TaskError
from fanin.benchmarks.records.task_files import USUAL_SPARSE_TASKS, read_tasks
from fanin.datasets import PUBLISHED, Batches, load
from fanin.datasets.catalogue import Words
from fanin.kernels.threads import thread_count
from fanin.reports.tables.counts import counts_table

TASK = {"dataset": "tiny", "features": "bow", "connectivity": 4, "intermediate": 16, "epochs": 2}
DEEP = {**TASK, "architecture": "dense-stratified"}
SPEED = Speed(1e10, 1e11)


@pytest.fixture(scope="module")
def words_place(tmp_path_factory):
    """The folder of `place`, with sparse features: those of `dense40` that are large."""
    folder = tmp_path_factory.mktemp("words")
    write_dataset(folder / "data")
    for each in ("train", "test"):
        path = folder / "data" / "tiny" / f"{each}-dense40.npy"
        x = np.load(path)
        path.unlink()
        x[x < 1] = 0
        sp.save_npz(folder / "data" / "tiny" / f"{each}-bow.npz", sp.csr_array(x))
    (folder / "tasks.json").write_text(json.dumps({"tasks": [DEEP]}))
    return folder


def request_for(place, backend="torch", **values):
    options = Options(data_dir=place / "data", results=place / "none", device="cpu", threads=1)
    task = make_task(**{**DEEP, **values})
    return Request(task=task, backend=backend, repeat=0, options=options)


def result_of(request):
    result = begun(request)
    run(request, Events(lambda event: None), result)
    return result


class TestRuns:
    @pytest.mark.parametrize("moments", ["full", "row"])
    @pytest.mark.parametrize("backend", EACH_BACKEND)
    def test_both_executions_learn_the_same(self, words_place, backend, moments):
        """At a bottleneck, since rewiring may differ by rounding."""
        values = {"architecture": "bottleneck", "moments": moments, "learning_rate": 0.01}
        one, two = (
            result_of(request_for(words_place, backend, execution=each, **values))
            for each in ("autograd", "fused")
        )
        assert one.dataset is not None
        x = load("tiny", "bow", words_place / "data").train_x
        assert one.dataset.train_stored == x.nnz
        (row,) = counts_table([one], []).rows
        assert row[1].text == f"bow, sparse: {x.nnz / 60:.1f} values an instance"
        for first, second in zip(one.history, two.history, strict=True):
            assert first.loss == pytest.approx(second.loss, rel=1e-4)
        assert one.history[1].loss < one.history[0].loss
        assert one.memory is not None and two.memory is not None
        assert one.memory.optimizer_state_bytes == two.memory.optimizer_state_bytes

    @pytest.mark.parametrize("backend", EACH_BACKEND)
    def test_sparse_features_are_trained_as_dense_ones_are(self, words_place, backend):
        """One step: later ones differ, since the rows of absent words are left alone."""
        weights = []
        for features in ("bow", "bow-dense"):
            request = request_for(words_place, backend, features=features, dropout=0.0)
            data = load("tiny", features, words_place / "data")
            given = initial_arrays(setup_for(request.task, data), 1)
            given["intermediate.weights"] = np.full((40, 16), 0.01, np.float32)
            trainer = build(request, setup_for(request.task, data), given=given)
            batches = make_batches(request.task, split(data, request.task)[0], 0)
            trainer.train([next(batches.epoch(0))], 1e-3)
            weights.append((trainer.weights(), predict(trainer, data.test_x)))
        (one, top), (two, same_top) = weights
        for name, array in one.items():
            np.testing.assert_allclose(array, two[name], atol=2e-6, err_msg=name)
        np.testing.assert_array_equal(top, same_top)

    @pytest.mark.torch
    def test_holdout_splits_words_off(self, words_place):
        data = load("tiny", "bow", words_place / "data")
        task = make_task(**DEEP, protocol="holdout")
        train, validation = split(data, task)
        assert (train.x.shape, validation.x.shape) == ((54, 40), (6, 40))
        dense = split(load("tiny", "bow-dense", words_place / "data"), task)
        for one, two in zip((train, validation), dense, strict=True):
            np.testing.assert_array_equal(one.x.toarray(), two.x)
        assert result_of(request_for(words_place, protocol="holdout")).test is not None

    def test_who_cannot_read_words_is_told_what_can(self, words_place, tmp_path):
        task = make_task(**{**TASK, "intermediate": None}, architecture="stratified")
        with pytest.raises(
            TaskError, match=r"^tiny, bow features, setup ffi-4: sparse .*bow-svd512"
        ):
            task.setup(40, 50, sparse_features=True)
        assert task.setup(40, 50).sparse_features is False
        rows = make_task(**DEEP, moments="row")
        with pytest.raises(TaskError, match="moments 'row' are for sparse features, and these are"):
            rows.setup(40, 50)
        assert rows.setup(40, 50, sparse_features=True).sparse_features is True
        tasks = tmp_path / "tasks.json"
        tasks.write_text(json.dumps({"tasks": [task.model_dump(mode="json")]}))
        places = ("--data-dir", words_place / "data", "--tasks", tasks, "--results", tmp_path)
        done = command("reproduce", *places, "--backend", "torch")
        assert done.returncode == 2
        text = " ".join(done.stdout.split())
        assert "such as ffi-32-512, or the dense features bow-svd512" in text

    def test_the_usual_setups_and_the_recipe(self, words_place):
        usual = read_tasks(USUAL_SPARSE_TASKS)
        assert len({task.slug for task in usual}) == len(usual) == 5
        for task in usual:
            assert task.setup(51_420, 64_902, sparse_features=True).intermediate
        done = in_process(
            *("plan", "--data-dir", words_place / "data", "--dataset", "tiny", "--json"),
            *("--bandwidth", 10, "--gflops", 50, "--backend", "torch", "--setup", "ffi-32-512"),
        )
        assert done.exit_code == 0, done.output
        (planned,) = json.loads(done.stdout)["plans"]
        assert planned["task"]["features"] == "bow" and planned["task"]["recipe"] == "best"
        assert planned["task"]["feature_scaling"] == "none"  # words are weighed already


class TestPlan:
    @pytest.mark.parametrize("moments", ["full", "row"])
    @pytest.mark.parametrize("execution", ["autograd", "fused"])
    @pytest.mark.parametrize("backend", EACH_BACKEND)
    def test_counted_bytes_are_those_of_a_trainer(self, backend, execution, moments):
        for architecture in ("dense-stratified", "bottleneck", "dense-sparse"):
            values = {**TASK, "architecture": architecture, "execution": execution}
            task = make_task(**values, moments=moments)
            setup = task.setup(500, 300, sparse_features=True)
            trainer = make_trainer(
                backend,
                setup,
                InitialArrays(setup, 0),
                execution=task.execution,
                storage=task.storage,
            )
            expected = plan.estimate(task, setup, backend, 2, words=10)
            counted = trainer.state_bytes()
            assert (expected.parameter_bytes, expected.optimizer_bytes) == counted, task.slug

    def test_what_words_change(self):
        """135,909 words of which an instance has 75, 1,024 units."""
        sizes = Sizes(
            135_909, 670_091, 490_449, 153_025, words=75.0, data_bytes=300, train_bytes=200
        )

        def planned(available=1 << 40, sizes=sizes, **values):
            usual = {"architecture": "dense-stratified", "connectivity": 32, "intermediate": 1024}
            task = make_task(**usual, **{"execution": "fused", **values})
            return plan.Plan.of(task, "torch", sizes, SPEED, available, threads=2)

        inner = 135_909 * 1024
        full, row = planned().expected, planned(moments="row").expected
        assert full.optimizer_bytes - row.optimizer_bytes == 4 * (2 * inner - 135_909)
        assert full.parameter_bytes == row.parameter_bytes
        # Rows of words that occur, and not all: a step moves a small part of the model.
        touched = 32 * 75 * 1024
        assert full.moved_bytes - row.moved_bytes == 4 * 4 * touched
        twice = planned(sizes=replace(sizes, words=150.0)).expected
        assert twice.moved_bytes - full.moved_bytes == (3 + 4) * 4 * touched
        assert twice.flops - full.flops == 2 * 32 * 3 * (2 * 75 * 1024 // 3)
        dense = planned(sizes=replace(sizes, words=None)).expected
        assert dense.moved_bytes - full.moved_bytes == (3 + 4) * 4 * (inner - touched)
        # The gradient of the framework's own execution has these rows alone.
        slow = planned(execution="autograd").expected
        assert slow.gradient_bytes == 4 * (670_091 * 33 + 1024)
        # The data count where it is asked whether all fits.
        peak = full.peak_bytes
        assert planned().data_bytes == 300 and planned(protocol="holdout").data_bytes == 500
        assert planned(peak + 300).fits and not planned(peak + 299).fits

    def test_measured_peaks(self):
        """GiB of shape profiles of 135,909 words, 75 a text, with 1,024 units, on an AMD
        EPYC with one thread, in the order of the loops."""
        measured = iter((2.29, 1.24, 2.82, 1.59, 1.85, 1.04, 1.97, 1.59))
        for execution in ("autograd", "fused"):
            for backend in ("torch", "tensorflow"):
                for moments in ("full", "row"):
                    usual = {"connectivity": 32, "intermediate": 1024, "execution": execution}
                    values = {**DEEP, **usual, "moments": moments}
                    task = make_task(**values)
                    setup = task.setup(135_909, 670_091, sparse_features=True)
                    expected = plan.estimate(task, setup, backend, 1, words=75.0).peak_bytes
                    assert expected / GIB == pytest.approx(next(measured), rel=0.15)

    def test_instances_cost_something(self):
        few, many = (
            plan.Plan.of(
                make_task(**{**DEEP, "execution": "fused"}),
                "torch",
                Sizes(1000, 50, instances, 20, words=5.0),
                SPEED,
                1 << 40,
                threads=1,
            ).expected.temporary_bytes
            for instances in (1000, 1_001_000)
        )
        assert many - few > 8 * 1_000_000

    def test_sizes_of_a_twin_and_of_files(self, words_place):
        given = ("--bandwidth", 10, "--gflops", 50, "--backend", "torch", "--json", "--execution")
        done = in_process(
            *("plan", "--dataset", "amazon-670k", "--features", "bow", *given, "fused")
        )
        assert done.exit_code == 0, done.output
        plans = {each["task"]["intermediate"]: each for each in json.loads(done.stdout)["plans"]}
        assert plans[1024]["parameters"] == 135_909 * 1024 + 1024 + 670_091 * 33
        # Ids and values of 75 words, and of 5.45 labels, for 643,474 instances.
        expected = 643_474 * (75 * 8 + 4 + 5.45 * 5 + 4)
        assert plans[1024]["data_bytes"] == pytest.approx(expected, rel=1e-3)
        tasks = ("--data-dir", words_place / "data", "--tasks", words_place / "tasks.json")
        done = in_process("plan", *tasks, *given, "fused")
        (planned,) = json.loads(done.stdout)["plans"]
        data = load("tiny", "bow", words_place / "data")
        assert planned["data_bytes"] == data.memory_bytes > 8 * data.train_x.nnz


class TestProfile:
    @pytest.mark.torch
    def test_of_a_bag_of_words(self, tmp_path, tiny, monkeypatch):
        entry = replace(PUBLISHED["tiny"], words=Words(400, 12.0))
        monkeypatch.setitem(PUBLISHED, "tiny", entry)
        task = make_task(**{**DEEP, "execution": "fused", "recipe": "paper", "moments": "row"})
        options = Options(results=tmp_path, profile="shapes", steps=4)
        request = Request(task=task, backend="torch", repeat=0, options=options)
        result = begun(request)
        shapes.profile(request, Events(lambda event: None), result)
        assert result.dataset is not None and result.extrapolation is not None
        assert (result.dataset.inputs, result.dataset.train_stored) == (400, 12_000)
        assert result.memory is not None
        weights = 4 * (400 * 16 + 16 + 3_000 * 5)
        assert result.memory.parameter_bytes == weights + 2 * 3_000 * 4
        moments = 4 * 400 + 2 * 4 * (16 + 3_000 * 5)
        assert result.memory.optimizer_state_bytes == moments
        setup = task.setup(400, 3_000, sparse_features=True)
        expected = plan.estimate(task, setup, "torch", thread_count(0), words=12.0)
        assert result.extrapolation.expected_peak_bytes == expected.peak_bytes


class TestCompare:
    @pytest.mark.slow
    def test_backends_agree_on_words(self, words_place, tmp_path):
        tasks = [{**DEEP, "execution": "fused", "moments": "row"}, DEEP]
        (tmp_path / "tasks.json").write_text(json.dumps({"tasks": tasks}))
        places = ("--data-dir", words_place / "data", "--tasks", tmp_path / "tasks.json")
        done = command("compare", *places, "--steps", "8", "--results", tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
        results = list(read_lockstep(tmp_path))
        assert [len(r.steps) for r in results] == [8, 8]
        for result in results:
            assert result.agreed
            apart = [d.absolute for s in result.steps for d in s.arrays.values()]
            assert max(apart) < 1e-5
        assert {r.task.moments for r in results} == {"full", "row"}

    def test_kinks_of_sparse_features_are_found(self, tmp_path):
        """A unit whose input is within rounding of 0 for an instance is excused, another is not."""
        rng = np.random.default_rng(0)
        x = sp.random_array((4, 6), density=0.5, format="csr", dtype=np.float32, rng=rng)
        weights = rng.standard_normal((6, 3)).astype(np.float32)
        bias = np.ones(3, np.float32)
        bias[2] = -(x @ weights)[3, 2]
        asked = []

        class Side:
            def __init__(self, name, off):
                self.folder = tmp_path / name
                self.folder.mkdir()
                shift = off * np.array([0, 1, 1], np.float32)
                self.arrays = {"intermediate.weights": weights + shift, "intermediate.bias": bias}

            def read(self, name):
                return self.arrays[name]

            def ask(self, do, **arguments):
                asked.append(do)

        sides = [Side("first", 0.0), Side("second", 0.01)]
        assert lockstep.excuse_kinks(sides, (weights, bias), x) == 1
        assert np.load(sides[1].folder / "units.npy").tolist() == [2]
        assert asked == ["give", "take"]

    @pytest.mark.torch
    def test_moments_by_rows_are_taken_over_whole(self, tmp_path):
        """As many words as units: nothing tells them apart but the kind of moments."""
        setup = LayerSetup(5, 9, Dense(), intermediate=5, sparse_features=True)
        one, two = (
            make_trainer(
                "torch",
                setup,
                initial_arrays(setup, seed),
                storage=Storage(row_moments=True),
                device="cpu",
            )
            for seed in (1, 2)
        )
        x = sp.csr_array(np.random.default_rng(0).random((4, 5), np.float32))
        batches = Batches(x, sp.csr_array(np.eye(4, 9, dtype=bool)), 4)
        for trainer in (one, two):
            trainer.train(batches.epoch(0), 1e-2)
        for name, array in side.unit_arrays(one).items():
            np.save(tmp_path / f"given.{name}.npy", array)
        np.save(tmp_path / "units.npy", np.array([1, 3]))
        before = two.array("intermediate.weights").copy()
        side.take_units(two, tmp_path)
        moments, theirs = (copied(trainer.optimizer_arrays()) for trainer in (two, one))
        np.testing.assert_array_equal(
            moments["intermediate.weights.v"], theirs["intermediate.weights.v"]
        )
        assert not np.array_equal(moments["intermediate.bias.v"], theirs["intermediate.bias.v"])
        after, given = two.array("intermediate.weights"), one.array("intermediate.weights")
        assert np.array_equal(after[:, [1, 3]], given[:, [1, 3]])
        assert np.array_equal(after[:, [0, 2, 4]], before[:, [0, 2, 4]])


@pytest.mark.slow
def test_saved_weights_of_words_load_in_numpy(words_place, tmp_path):
    from safetensors.numpy import load_file

    places = ("--data-dir", words_place / "data", "--tasks", words_place / "tasks.json")
    more = ("--save-weights", "--backend", "torch", "--results", tmp_path)
    done = command("reproduce", *places, *more)
    assert done.returncode == 0, done.stdout + done.stderr
    (result,) = read_results(tmp_path)
    (path,) = tmp_path.rglob("*.safetensors")
    arrays = load_file(path)
    x = load("tiny", "bow", words_place / "data").test_x
    outputs = np.maximum(x @ arrays["intermediate.weights"] + arrays["intermediate.bias"], 0)
    read = outputs[:, arrays["output.indices"]]
    scores = np.einsum("blk,lk->bl", read, arrays["output.weights"]) + arrays["output.bias"]
    y = load("tiny", "bow", words_place / "data").test_y.toarray()
    hits = y[np.arange(len(scores)), scores.argmax(1)]
    assert result.test.at_1 == pytest.approx(hits.mean())
