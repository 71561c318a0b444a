"""Checkpoints: what a kill leaves behind, and that going on from it changes no number."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
from damage import DAMAGES
from frameworks import EACH_BACKEND

from fanin.backends import fused
from fanin.backends.arrays import InitialArrays, copied
from fanin.backends.auxiliary import auxiliary_loss
from fanin.backends.interface import Storage
from fanin.backends.kinds import FixedFanIn
from fanin.backends.registry import make_trainer
from fanin.backends.setup import LayerSetup
from fanin.backends.starting import starting_arrays
from fanin.benchmarks.harness.checkpoint import Checkpoint, DamagedError
from fanin.benchmarks.harness.fit import fit
from fanin.benchmarks.records.task import Task
from fanin.datasets import Batches

IDENTITY = {"task": "t", "code": "c"}


class KilledError(Exception):
    """Stands for a kill, within one process."""


FUSED = {"execution": "fused"}
HALF = {**FUSED, "weights_dtype": "bfloat16", "moments_dtype": "bfloat16"}
FLOAT8 = {**FUSED, "weights_dtype": "float8"}
DEEP = {"architecture": "dense-stratified", "connectivity": 4, "rewire_interval": 3}
GROUPED = {**DEEP, "group_size": 16, "rewired_weights": "zero"}
PLAIN = {"architecture": "stratified", "connectivity": 8, "rewire_interval": 3}
BEST = {"architecture": "stratified", "connectivity": 8, "recipe": "best"}
WORDS = {**DEEP, "features": "bow"}
CLUSTERS = {"auxiliary_weight": 0.5, "auxiliary_clusters": 7, "auxiliary_until": 0.6}


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
        self.is_sparse = self.task.features == "bow"
        if self.is_sparse:
            x = sp.csr_array(np.where(x > 1, x, 0))
        self.data = (x, y)

    def trainer(self):
        setup = self.task.setup(20, 50, self.is_sparse)
        given = {}
        is_first = not (self.folder / "state.json").exists()  # which has them
        if is_first and (setup.scaled or self.task.group_size):
            given = starting_arrays(*self.data, self.task.recipe_values, setup.output)
        auxiliary = auxiliary_loss(
            self.task.recipe_values,
            3 * self.task.epochs,
            *self.data,
            seed=3,
            are_known=(self.folder / "state.json").exists(),
        )
        return make_trainer(
            self.backend,
            setup,
            InitialArrays(setup, 3, given),
            execution=self.task.execution,
            storage=self.task.storage,
            optimizer=self.task.optimizer_values,
            device="cpu",
            auxiliary=auxiliary,
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
        ({**DEEP, **HALF, "optimizer": "sgd", "learning_rate": 1.0}, 16),
        ({**DEEP, "optimizer": "momentum", "learning_rate": 0.1, "l2": 1e-5}, 16),
        ({**WORDS, **FUSED, "weight_decay": 0.1}, 16),
        ({**DEEP, **FUSED, "feature_scaling": "unit_variance"}, 16),
        ({**GROUPED, **FUSED, "feature_scaling": "unit_variance"}, 16),
        (GROUPED, 16),
        ({**BEST, **FUSED}, None),
        (BEST, None),
        (WORDS, 16),
        ({**WORDS, **FUSED, "moments": "row"}, 16),
        ({**BEST, **FLOAT8}, None),
        ({**PLAIN, **FLOAT8, "group_size": 16, "optimizer": "sgd", "learning_rate": 1.0}, None),
        ({**DEEP, **FUSED, "schedule": "cosine", "warm_up": 0.3}, 16),
        ({**DEEP, **CLUSTERS}, 16),
        ({**DEEP, **FUSED, **CLUSTERS, "optimizer": "momentum", "learning_rate": 0.1}, 16),
    ],
    ids=[
        *("ffi", "unstructured", "ffi-fused", "ffi-bfloat16", "ffi-fused-sorted", "dense-fused"),
        *("ffi-bfloat16-sgd", "ffi-momentum", "words-fused-decay"),
        *("ffi-fused-scaled", "grouped-fused", "grouped", "ffi-fused-best", "ffi-best"),
        *("words", "words-fused-row", "ffi-float8-best", "grouped-float8-sgd"),
        *("ffi-fused-cosine", "ffi-clusters", "ffi-fused-clusters"),
    ],
)
@pytest.mark.parametrize(
    "backend",
    [
        pytest.param("torch", marks=pytest.mark.torch),
        pytest.param("tensorflow", marks=[pytest.mark.tensorflow, pytest.mark.slow]),
    ],
)
def test_going_on_changes_no_bit(backend, values, intermediate, tmp_path, monkeypatch):
    # Whatever CPU this is.
    monkeypatch.setattr(fused, "sorting_pays", lambda sources: sources >= 4096)
    undisturbed = Training(backend, tmp_path / "undisturbed", intermediate, values)
    expected, history, best, _ = undisturbed(seconds=1e9)
    training = Training(backend, tmp_path / "killed", intermediate, values)
    for epoch in (1, 3, 4):
        with pytest.raises(KilledError):
            training(killed_in=epoch)
    resumed, resumed_history, resumed_best, checkpoint = training()
    assert checkpoint.resumed == 2  # nothing was there the first time
    assert (resumed_history, resumed_best) == (history, best)
    for (name, array), (_, other) in zip(resumed.arrays(), expected.arrays(), strict=True):
        np.testing.assert_array_equal(array, other, name)
    moments = copied(expected.optimizer_arrays())
    for name, array in resumed.optimizer_arrays():
        np.testing.assert_array_equal(array, moments[name], name)
    assert moments["steps"] == 3 * len(history)


@pytest.mark.torch
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

    def test_a_changed_state_starts_anew(self, training):
        with pytest.raises(KilledError):
            training(killed_in=4)
        state = training.folder / "state.json"
        good = state.read_text()
        for before, after in (
            ('"best_epoch": 3', '"best_epoch": 2'),
            ('"loss": ', '"loss": 1'),
            ('"resumed": 0', '"resumed": 4'),
            ('"checksum": "', '"checksum": "0'),
            ('moments-3/output.bias.m.npy"', 'moments-3/output.bias.n.npy"'),
        ):
            assert before in good
            training.folder.mkdir(exist_ok=True)
            state.write_text(good.replace(before, after))
            note = Checkpoint(training.folder, IDENTITY, 0).note
            assert note == f"{state} is damaged; starting anew"

    @pytest.mark.parametrize("array", ["weights-3/output.bias", "moments-3/output.weights.v"])
    @pytest.mark.parametrize("damage", DAMAGES)
    def test_damaged_arrays_start_anew(self, training, array, damage):
        expected = training(seconds=1e9)[1]
        with pytest.raises(KilledError):
            training(killed_in=4)
        damage(training.folder / f"{array}.npy")
        _, history, _, checkpoint = training()
        assert f"{array}.npy is damaged; starting anew" in checkpoint.note
        assert (history, checkpoint.resumed) == (expected, 0)

    @pytest.mark.parametrize("damage", DAMAGES)
    def test_a_damaged_state_starts_anew(self, training, damage):
        expected = training(seconds=1e9)[1]
        with pytest.raises(KilledError):
            training(killed_in=4)
        damage(training.folder / "state.json")
        _, history, _, checkpoint = training()
        assert checkpoint.note.endswith("; starting anew")
        assert (history, checkpoint.resumed) == (expected, 0)

    def test_a_file_in_place_of_the_folder_starts_anew(self, training):
        training.folder.write_text("a file")
        history = training()[1]
        assert len(history) == 7

    def test_what_does_not_belong_to_it_is_not_read(self, training):
        expected = training(seconds=1e9)[1]
        with pytest.raises(KilledError):
            training(killed_in=4)
        np.save(training.folder / "weights-3" / "output.other.npy", np.ones(3))
        _, history, _, checkpoint = training()
        assert (history, checkpoint.resumed) == (expected, 1)

    @pytest.mark.parametrize("damage", DAMAGES)
    def test_best_weights_that_were_damaged_meanwhile_are_not_taken(self, training, damage):
        trainer = training.trainer()
        checkpoint = Checkpoint(training.folder, IDENTITY, 1e9)
        checkpoint.keep_best(trainer, 1)
        checkpoint.restore_best(trainer)
        damage(training.folder / "weights-1" / "output.weights.npy")
        with pytest.raises(
            DamagedError, match=r"output\.weights\.npy is damaged: start the command"
        ):
            checkpoint.restore_best(trainer)

    def test_none_before_its_time(self, training):
        with pytest.raises(KilledError):
            training(killed_in=6, seconds=1e9)
        assert Checkpoint(training.folder, IDENTITY, 0).history == []


@pytest.mark.parametrize("backend", EACH_BACKEND)
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
