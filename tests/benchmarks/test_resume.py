"""Runs that are killed: what they leave behind, and that going on from it changes no number."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import scipy.sparse as sp

from fanin.backends import fused
from fanin.backends.arrays import InitialArrays, copied
from fanin.backends.interface import Storage
from fanin.backends.registry import BACKENDS, make_trainer
from fanin.backends.setup import FixedFanIn, LayerSetup
from fanin.benchmarks.harness import lock
from fanin.benchmarks.harness.checkpoint import Checkpoint
from fanin.benchmarks.harness.fit import fit
from fanin.benchmarks.records.files import remove_leftovers
from fanin.benchmarks.records.run import RunResult
from fanin.benchmarks.records.store import read_result, result_path
from fanin.benchmarks.records.task import Task, read_tasks
from fanin.datasets import Batches
from fanin.datasets.formats import write_labels

# More by hand: FANIN_KILLS=20 pytest tests/test_resume.py -k killed
KILLS = int(os.environ.get("FANIN_KILLS", "2"))
IDENTITY = {"task": "t", "code": "c"}


class KilledError(Exception):
    """Stands for a kill, within one process."""


FUSED = {"execution": "fused"}
HALF = {**FUSED, "weights_dtype": "bfloat16", "moments_dtype": "bfloat16"}
DEEP = {"architecture": "dense-stratified", "connectivity": 4, "rewire_interval": 3}


class Training:
    """A small training with rewiring, as a run would do it."""

    def __init__(self, backend: str, folder: Path, intermediate: int, values: dict) -> None:
        self.backend = backend
        self.folder = folder
        self.task = Task.model_validate(
            {"dataset": "d", "features": "f", "epochs": 7, **values, "intermediate": intermediate}
        )
        rng = np.random.default_rng(0)
        y = sp.csr_array(rng.random((70, 50)) < 0.05)
        x = (y @ rng.standard_normal((50, 20))).astype(np.float32)
        self.data = (x, y)

    def trainer(self):
        setup = self.task.setup(20, 50)
        return make_trainer(
            self.backend,
            setup,
            InitialArrays(setup, 3),
            execution=self.task.execution,
            storage=self.task.storage,
            device="cpu",
        )

    def __call__(self, killed_in: int | None = None, seconds: float = 0, identity=IDENTITY):
        """Train; killed in the middle of that epoch, if one is given."""
        trainer = self.trainer()
        checkpoint = Checkpoint(self.folder, identity, seconds)
        first = len(checkpoint.history) + 1

        steps = 0

        def on_step(loss):
            nonlocal steps
            steps += 1
            if killed_in and first + steps // 3 >= killed_in and steps % 3 == 2:
                raise KilledError

        batches = Batches(*self.data, 32, 0.1, 5)  # three steps an epoch
        done = fit(trainer, batches, self.data, self.task, 5, checkpoint, on_step)
        history = [
            e.model_dump(exclude={"train_seconds", "evaluate_seconds"}) for e in done.history
        ]
        return trainer, history, done.best_epoch, checkpoint


@pytest.mark.parametrize(
    "values, intermediate",
    [
        (DEEP, 16),
        ({**DEEP, "architecture": "dense-sparse"}, 16),
        ({**DEEP, **FUSED}, 16),
        ({**DEEP, **HALF}, 16),
        ({**DEEP, **FUSED}, 4096),  # sorted inside
        ({"architecture": "dense", **FUSED}, None),
    ],
    ids=["ffi", "unstructured", "ffi-fused", "ffi-bfloat16", "ffi-fused-sorted", "dense-fused"],
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_going_on_changes_no_bit(backend, values, intermediate, tmp_path, monkeypatch):
    # Whatever CPU this is.
    monkeypatch.setattr(fused, "sorting_pays", lambda sources: sources >= 4096)
    undisturbed = Training(backend, tmp_path / "undisturbed", intermediate, values)
    expected, history, best, _ = undisturbed(seconds=1e9)
    training = Training(backend, tmp_path / "killed", intermediate, values)
    for epoch in (1, 3, 4):
        with pytest.raises(KilledError):
            training(killed_in=epoch)
    found, found_history, found_best, checkpoint = training()
    assert checkpoint.resumed == 2  # nothing was there the first time
    assert (found_history, found_best) == (history, best)
    for (name, array), (_, other) in zip(found.arrays(), expected.arrays(), strict=True):
        np.testing.assert_array_equal(array, other, name)
    moments = copied(expected.optimizer_arrays())
    for name, array in found.optimizer_arrays():
        np.testing.assert_array_equal(array, moments[name], name)
    assert moments["steps"] == 3 * len(history)


class TestCheckpoint:
    @pytest.fixture
    def training(self, tmp_path):
        return Training("torch", tmp_path / "run.checkpoint", 16, DEEP)

    def test_at_most_one_state_and_the_best_weights_are_kept(self, training):
        with pytest.raises(KilledError):
            training(killed_in=5)
        state = json.loads((training.folder / "state.json").read_text())
        best = state["best_epoch"]
        assert len(state["history"]) == 4
        names = {path.name for path in training.folder.iterdir()}
        assert names == {"state.json", "weights-4", "moments-4", f"weights-{best}"}

    def test_a_kill_while_it_is_written_leaves_the_one_before(self, training, monkeypatch):
        expected = training(seconds=1e9)[1]
        real, left = np.save, 30

        def save(path, array):
            nonlocal left
            left -= 1
            if left < 0:
                Path(path).write_bytes(b"half")
                raise KilledError
            real(path, array)

        monkeypatch.setattr(np, "save", save)
        with pytest.raises(KilledError):
            training()
        (training.folder / ".state.json.abcd").write_text("half")
        monkeypatch.setattr(np, "save", real)
        checkpoint = Checkpoint(training.folder, IDENTITY, 0)
        assert 1 <= len(checkpoint.history) < 7
        last, best = len(checkpoint.history), checkpoint._state.best_epoch
        names = {path.name for path in training.folder.iterdir()}
        assert names == {"state.json", f"weights-{last}", f"moments-{last}", f"weights-{best}"}
        assert training()[1] == expected

    def test_another_identity_starts_anew(self, training):
        with pytest.raises(KilledError):
            training(killed_in=4)
        other = Checkpoint(training.folder, {**IDENTITY, "code": "other"}, 0)
        assert (other.history, other.resumed) == ([], 0)
        assert "of another code; starting anew" in other.note
        assert not training.folder.exists()

    def test_a_broken_state_starts_anew(self, training):
        with pytest.raises(KilledError):
            training(killed_in=4)
        for state in (b"{", b"\xff"):
            training.folder.mkdir(exist_ok=True)
            (training.folder / "state.json").write_bytes(state)
            assert "cannot be read; starting anew" in Checkpoint(training.folder, IDENTITY, 0).note

    @pytest.mark.parametrize("array", ["weights-3/output.bias", "moments-3/output.weights.v"])
    @pytest.mark.parametrize("damage", [Path.unlink, lambda path: os.truncate(path, 100)])
    def test_damaged_arrays_start_anew(self, training, array, damage):
        expected = training(seconds=1e9)[1]
        with pytest.raises(KilledError):
            training(killed_in=4)
        damage(training.folder / f"{array}.npy")
        _, history, _, checkpoint = training()
        assert f"{array}.npy is damaged; starting anew" in checkpoint.note
        assert (history, checkpoint.resumed) == (expected, 0)

    def test_none_before_its_time(self, training):
        with pytest.raises(KilledError):
            training(killed_in=6, seconds=1e9)
        assert Checkpoint(training.folder, IDENTITY, 0).history == []


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("execution", ["autograd", "fused"])
def test_arrays_come_one_at_a_time(backend, execution):
    """Reading or loading a model never needs a second one."""
    setup = LayerSetup(30, 20, FixedFanIn(4))
    trainer = make_trainer(
        backend, setup, InitialArrays(setup, 0), execution=execution, storage=Storage()
    )
    for arrays in (trainer.arrays(), trainer.optimizer_arrays()):
        assert iter(arrays) is arrays
    asked = []

    class Noted(dict):
        def __getitem__(self, name):
            asked.append(name)
            return super().__getitem__(name)

    state = Noted(copied(trainer.optimizer_arrays()))
    trainer.load_optimizer_arrays(state)
    assert sorted(asked) == sorted(state)


class TestLock:
    def test_the_second_is_told_who_has_it(self, tmp_path):
        path = tmp_path / "torch-0.lock"
        told = rf"torch-0: process {os.getpid()} is running this"
        with lock.locked(path), pytest.raises(lock.BusyError, match=told):
            lock._acquire(path, 0.0)
        assert not path.exists()
        with lock.locked(path, patience=0.0):
            pass

    def test_a_child_that_inherits_it_holds_it(self, tmp_path):
        path = tmp_path / "torch-0.lock"
        handle = lock._acquire(path, 0.0)
        with subprocess.Popen(["sleep", "60"], pass_fds=(handle,)) as child:
            os.close(handle)
            with pytest.raises(lock.BusyError), lock.locked(path, patience=0.0):
                pass
            child.kill()
        with lock.locked(path, patience=5.0):
            pass


def test_leftovers_of_writing_are_removed(tmp_path):
    path = tmp_path / "torch-1.json"
    others = [path, tmp_path / ".torch-10.json.x", tmp_path / ".torch-1.safetensors.part"]
    for file in (*others, tmp_path / ".torch-1.json.x"):
        file.touch()
    remove_leftovers(path)
    assert sorted(tmp_path.iterdir()) == sorted(others)


TASKS = {
    "defaults": {
        "dataset": "tiny", "features": "dense40", "epochs": 10 + 2 * KILLS, "learning_rate": 3e-4,
        "connectivity": 8, "intermediate": 64, "rewire_interval": 50,
    },
    "tasks": [
        {"architecture": "dense-stratified"},
        {"architecture": "dense-stratified", "execution": "fused"},
    ],
}  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("resume")
    (folder / "data" / "tiny").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for split, count in (("train", 3000), ("test", 500)):
        y = sp.csr_array(rng.random((count, 300)) < 0.01)
        x = (y @ np.random.default_rng(5).standard_normal((300, 40))).astype(np.float32)
        np.save(folder / "data" / "tiny" / f"{split}-dense40.npy", x)
        write_labels(folder / "data" / "tiny" / f"{split}-labels.txt", y, 40)
    (folder / "tasks.json").write_text(json.dumps(TASKS))
    return folder


def start(place: Path, results: str, *more: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [
            *(sys.executable, "-P", "-m", "fanin.benchmarks", "reproduce"),
            *("--dataset", "tiny", "--features", "dense40", "--data-dir", str(place / "data")),
            *("--tasks", str(place / "tasks.json"), "--results", str(place / results)),
            *("--backend", "torch", "--threads", "1", "--checkpoint-minutes", "0", *more),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def child_of(parent: subprocess.Popen[str]) -> psutil.Process | None:
    """The run's process; it stays the parent's only child."""
    with contextlib.suppress(psutil.Error):
        for child in psutil.Process(parent.pid).children():
            return child
    return None


def figures(result: RunResult) -> dict:
    """All of a result that must not depend on kills."""
    history = [e.model_dump(exclude={"train_seconds", "evaluate_seconds"}) for e in result.history]
    kept = result.model_dump(include={"task", "backend", "repeat", "status", "train", "test"})
    return {**kept, "history": history}


def table(output: str) -> list[str]:
    """Of each row: backend, setup, P@1, P@3, P@5."""
    rows = re.findall(r"^\| torch .*$", output, re.MULTILINE)
    return ["|".join(row.split("|")[1:6]) for row in rows]


@pytest.mark.slow
class TestKilled:
    def test_a_killed_run_ends_as_an_undisturbed_one(self, place):
        done = start(place, "undisturbed")
        expected, errors = done.communicate(timeout=600)
        assert done.returncode == 0, errors
        assert len(table(expected)) == 2
        rng = random.Random(7)
        kills = rounds = 0
        while kills < KILLS:
            rounds += 1
            assert rounds < 4 * KILLS
            process = start(place, "killed")
            while child_of(process) is None and process.poll() is None:
                time.sleep(0.01)
            # While it imports and reads, or else in the midst of the epochs and their checkpoints.
            if rng.random() < 0.7:
                while (line := process.stdout.readline()) and ": epoch" not in line:
                    pass
            time.sleep(rng.uniform(0.0, 4.0))
            child = child_of(process)  # the second task's by now, perhaps
            which = rng.choice(["parent", "child", "both"])
            if process.poll() is None and child and child.is_running():
                kills += 1
                if which != "parent":
                    with contextlib.suppress(psutil.Error):
                        child.kill()
            if which != "child":
                process.kill()
            elif rng.random() < 0.8:  # else the command goes on to the next task
                time.sleep(0.5)
                process.kill()
            process.communicate(timeout=600)
        last = start(place, "killed")
        output, errors = last.communicate(timeout=600)
        assert last.returncode == 0, errors
        if any(r.status == "failed" for r in self.results(place, "killed")):
            output, _ = start(place, "killed").communicate(timeout=600)
        assert table(output) == table(expected)
        pairs = [self.results(place, name) for name in ("killed", "undisturbed")]
        for found, wanted in zip(*pairs, strict=True):
            assert figures(found) == figures(wanted)
            assert wanted.resumed == 0
        print(f"{kills} kills, resumed {[r.resumed for r in pairs[0]]} times, {rounds} starts")
        assert sum(r.resumed for r in pairs[0]) > 0
        names = {path.name for path in (place / "killed" / "runs").rglob("*") if path.is_file()}
        assert names == {"torch-0.json", "torch-0.log"}

    def results(self, place, name):
        tasks = read_tasks(place / "tasks.json")
        return [read_result(result_path(place / name, task, "torch", 0)) for task in tasks]

    def test_a_checkpoint_that_is_of_no_use_is_said(self, place):
        process = start(place, "useless")
        assert process.stdout is not None
        assert "epoch 1" in process.stdout.readline()
        assert "epoch 2" in process.stdout.readline()  # the first one's checkpoint is written
        process.kill()
        process.communicate(timeout=60)
        again = start(place, "useless", "--threads", "2")
        assert "of another number of threads; starting anew" in again.stdout.readline()
        again.kill()
        again.communicate(timeout=60)

    @pytest.mark.parametrize("stopped", [False, True])
    def test_an_orphan_ends_and_writes_nothing(self, place, stopped):
        """Stopped: it notices only later, and meanwhile a second command waits for it."""
        name = f"orphan-{stopped}"
        process = start(place, name)
        assert process.stdout is not None
        assert "epoch 1" in process.stdout.readline()
        assert "epoch 2" in process.stdout.readline()  # the first one's checkpoint is written
        child = child_of(process)
        if stopped:
            child.suspend()
        process.kill()
        process.wait()
        if stopped:
            again = start(place, name)
            time.sleep(3.0)
            assert child_of(again) is None
            assert child.is_running()
            child.resume()
            assert "goes on after epoch" in again.stdout.readline()
            again.kill()
            again.communicate(timeout=60)
        child.wait(timeout=10)
        assert not list((place / name).rglob("torch-0.json"))
