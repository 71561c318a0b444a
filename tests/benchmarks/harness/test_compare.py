"""The backends in lockstep: how they are compared, and what is excused."""

from __future__ import annotations

import os

import made_results
import numpy as np
import pytest
import scipy.sparse as sp
from fakes import arguments, command, make_task, write_dataset

from fanin.backends import training
from fanin.backends.arrays import copied, initial_arrays
from fanin.backends.kinds import Dense
from fanin.backends.registry import make_trainer
from fanin.backends.setup import LayerSetup
from fanin.benchmarks.harness import compare as lockstep
from fanin.benchmarks.harness import side
from fanin.benchmarks.harness.request import Options, Request
from fanin.benchmarks.records.store import read_lockstep
from fanin.benchmarks.records.task_files import read_tasks
from fanin.datasets import Batches


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

    @pytest.mark.parametrize("execution", ["autograd", "fused"])
    def test_backends_agree_on_an_auxiliary_loss(self, place, execution):
        chosen = make_task(
            dataset="tiny",
            features="dense40",
            architecture="dense-stratified",
            connectivity=8,
            intermediate=64,
            epochs=1,
            execution=execution,
            auxiliary_weight=0.6,
            auxiliary_clusters=6,
            auxiliary_until=1.0,
        )
        options = Options(results=place / "clusters", data_dir=place / "data")
        done = lockstep.compare(chosen, options, 12)
        assert done.agreed
        if execution == "autograd":
            return  # what it changes is in tests/conformance/test_auxiliary.py, of both
        plain = chosen.model_copy(update={"auxiliary_weight": 0.0})
        before = lockstep.compare(plain, options, 2).steps
        assert done.steps[0].losses == before[0].losses
        assert done.steps[1].losses != before[1].losses

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

    def test_labels_that_share_their_sources(self, place):
        """With rewiring, at random and towards gradients."""
        options = Options(results=place / "grouped", data_dir=place / "data")
        chosen = {"dataset": "tiny", "features": "dense40", "architecture": "stratified"}
        chosen |= {"connectivity": 8, "group_size": 8, "rewire_interval": 3}
        for values in ({}, {"recipe": "best", "rewire_until": 1, "grouping": "meaning"}):
            task = make_task(**chosen, **values)
            assert lockstep.compare(task, options, 7).agreed

    def test_heads_and_tails(self, place):
        """With rewiring of both, at random and towards gradients."""
        options = Options(results=place / "heads", data_dir=place / "data")
        chosen = {"dataset": "tiny", "features": "dense40", "architecture": "stratified"}
        chosen |= {"connectivity": 8, "head_fraction": 0.2, "rewire_interval": 3}
        chosen["head_connectivity"] = 12
        for values in ({"group_size": 8}, {"recipe": "best", "rewire_until": 1}):
            task = make_task(**chosen, **values)
            assert lockstep.compare(task, options, 7).agreed

    def test_drift_fails(self, place, monkeypatch):
        """With no room for rounding at all, two frameworks cannot agree."""
        monkeypatch.setattr(lockstep, "WEIGHT_TOLERANCE", 0.0)
        monkeypatch.setattr(lockstep, "LOSS_TOLERANCE", 0.0)
        options = Options(results=place / "drift", data_dir=place / "data")
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
        assert lockstep.excuse_kinks(sides, (weights, bias), x) == 1
        assert np.load(sides[1].folder / "units.npy").tolist() == [2]
        assert [side.asked for side in sides] == [["give"], ["take"]]
        bias[2] += 0.1
        assert lockstep.excuse_kinks(sides, (weights, bias), x) == 0

    @pytest.mark.torch
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
        for name, array in side.unit_arrays(one).items():
            np.save(tmp_path / f"given.{name}.npy", array)
        np.save(tmp_path / "units.npy", np.array([1, 3]))
        side.take_units(two, tmp_path)
        after, given = two.array("intermediate.weights"), one.array("intermediate.weights")
        assert np.array_equal(after[:, [1, 3]], given[:, [1, 3]])
        assert np.array_equal(after[:, [0, 2, 4]], before[:, [0, 2, 4]])
        moments, theirs = (copied(trainer.optimizer_arrays()) for trainer in (two, one))
        name = "intermediate.bias.v"
        assert np.array_equal(moments[name][[1, 3]], theirs[name][[1, 3]])
        assert not np.array_equal(moments[name][[0, 2]], theirs[name][[0, 2]])

    def test_a_relative_difference_is_by_size(self):
        one = np.array([1.0, -4.0])
        apart = lockstep.difference(one, np.array([1.0, -4.001]))
        assert apart.absolute == pytest.approx(1e-3)
        assert apart.relative == pytest.approx(1e-3 / 4)
        assert lockstep.difference(np.zeros(3), np.zeros(3)).relative == 0


class TestSide:
    """The parent's end of `compare`, with a child that ends when it is told to."""

    @pytest.mark.parametrize("last_words", ["", '{"val'])
    def test_a_child_that_died_is_reported_with_its_log(self, tmp_path, monkeypatch, last_words):
        module = f"import os, sys; os.write(int(sys.argv[1]), {last_words.encode()!r})\n"
        (tmp_path / "dying.py").write_text(module)
        monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
        monkeypatch.setattr(lockstep, "_SIDE", "dying")
        request = Request(task=make_task(), backend="torch", repeat=0, options=Options())
        child = lockstep.SideChild(request, tmp_path, tmp_path / "x.log")
        child._child.process.wait()
        with pytest.raises(lockstep.LockstepError, match=r"torch: its process ended: see .*x\.log"):
            child.ask("step")
        child.close()

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

        monkeypatch.setattr(lockstep, "SideChild", Side)
        chosen = make_task(dataset="tiny", features="dense40")
        with pytest.raises(
            lockstep.LockstepError, match=r"output\.weights is not finite after step"
        ):
            lockstep.compare(chosen, Options(results=tmp_path, data_dir=tmp_path), 1)

    def test_each_step_has_the_rate_of_the_schedule(self, tmp_path, monkeypatch):
        """Two steps an epoch, four in all; the linear schedule changes the rate at step 3."""
        write_dataset(tmp_path)
        rates = {"torch": [], "tensorflow": []}

        class Side:
            def __init__(self, request, *_):
                self.backend = request.backend

            def answer(self): ...
            def close(self): ...

            def ask(self, do, learning_rate=None, **_):
                if do == "step":
                    rates[self.backend].append(learning_rate)
                return 1.0 if do == "step" else made_results.lockstep().sides[self.backend]

            def read(self, name):
                return np.ones(1)

        monkeypatch.setattr(lockstep, "SideChild", Side)
        monkeypatch.setattr(training, "RATE_STEPS", 2)
        chosen = {"dataset": "tiny", "features": "dense40", "epochs": 2, "learning_rate": 0.5}
        quarter = 0.25 * (1 + np.sqrt(0.5))  # of a half cosine
        for schedule, warm_up, expected in (
            ("linear", 0, [0.5, 0.5, 0.25]),
            ("plateau", 0, [0.5] * 3),
            ("cosine", 0, [0.5, pytest.approx(quarter), pytest.approx(0.25)]),
            ("plateau", 0.5, [0.25, 0.5, 0.5]),
        ):
            task = make_task(**chosen, schedule=schedule, warm_up=float(warm_up))
            lockstep.compare(task, Options(results=tmp_path, data_dir=tmp_path), 3)
            assert rates == {"torch": expected, "tensorflow": expected}
            for seen in rates.values():
                seen.clear()
