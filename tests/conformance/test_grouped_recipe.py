"""Labels that share their sources, trained by the recipe "best" in both frameworks."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from planted import FAN_IN, INPUTS, LABELS, planted_data

from fanin.backends import gradients
from fanin.backends.arrays import InitialArrays, copied
from fanin.backends.gradients import plan_towards_gradients
from fanin.backends.kinds import GroupedFanIn
from fanin.backends.recipes import recipe_of
from fanin.backends.registry import make_trainer
from fanin.backends.setup import LayerSetup
from fanin.backends.starting import atoms_of, starting_arrays
from fanin.backends.training import (
    Schedule,
    output_layer,
    rewire,
    rewire_fraction,
    rewiring_seed,
    train_epoch,
)
from fanin.datasets import Batches

GROUP_SIZE = 16
x, y = planted_data()
each_execution = pytest.mark.parametrize("execution", ["autograd", "fused"])


@pytest.fixture
def start(framework, device):
    """A trainer, its batches and its recipe."""

    def started(execution, **changes):
        setup = LayerSetup(INPUTS, LABELS, GroupedFanIn(FAN_IN, GROUP_SIZE), loss="bce")
        recipe = replace(recipe_of("best", setup), **changes)
        setup = replace(setup, scaled=True, atoms=atoms_of(recipe, INPUTS, LABELS, FAN_IN))
        given = starting_arrays(x, y, recipe, GroupedFanIn(FAN_IN, GROUP_SIZE), seed=3)
        arrays = InitialArrays(setup, 0, given)
        trainer = make_trainer(framework, setup, arrays, device=device, execution=execution)
        return trainer, Batches(x, y, 32, 0.0, 0), recipe

    return started


@each_execution
def test_slots_move_for_their_whole_group(start, execution, monkeypatch):
    monkeypatch.setattr(gradients, "ASKED_LABELS", 5)  # so that it matters which they are
    trainer, batches, recipe = start(execution, rewire_fraction=0.4)
    trainer.train(batches.epoch(0), 3e-3)
    before, moments = copied(trainer.arrays()), copied(trainer.optimizer_arrays())
    step = len(batches) + 1
    fraction = rewire_fraction(step, recipe, len(batches))
    layer, _ = output_layer(trainer, trainer.setup.parts[0])
    plan = plan_towards_gradients(x, y, layer, fraction, seed=rewiring_seed(7, step))
    assert rewire(trainer, batches, recipe, 7, step) == len(plan.positions) >= 7

    groups, slots = np.divmod(plan.positions, FAN_IN)
    moved = np.zeros((LABELS, FAN_IN), bool)
    for group, slot in zip(groups, slots, strict=True):
        moved[group * GROUP_SIZE : (group + 1) * GROUP_SIZE, slot] = True
    before["output.indices"].reshape(-1)[plan.positions] = plan.sources
    before["output.weights"][moved] = 0
    after = copied(trainer.arrays())
    for name, array in before.items():
        np.testing.assert_array_equal(after[name], array, name)
    for name, array in trainer.optimizer_arrays():
        expected = moments[name]
        if expected.shape == moved.shape:
            assert expected[moved].any()
            expected[moved] = 0
        np.testing.assert_array_equal(array, expected, name)


@each_execution
def test_it_learns_the_labels_of_the_user(start, execution):
    """Far more than the most frequent label would give, which ids of others would not."""
    trainer, batches, recipe = start(execution, epochs=8)
    schedule = Schedule(recipe, recipe.epochs * len(batches))
    for epoch in range(1, recipe.epochs + 1):
        train_epoch(trainer, batches, epoch, recipe, 0, schedule)
    known = np.flatnonzero(np.diff(y.indptr))
    best = trainer.top_k(x[known], 1)[:, 0]
    positives = y.toarray()[known]
    hits = positives[np.arange(len(known)), best].mean()
    assert hits > 4 * positives.mean(0).max()
