"""Models of a head and a tail by the recipe "best", in both frameworks."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from planted import FAN_IN, INPUTS, LABELS, planted_data
from reference import Model
from reference import loss as reference_loss
from setups import setup_name, starting

from fanin.backends import gradients
from fanin.backends.arrays import InitialArrays, check_arrays, copied
from fanin.backends.head_and_tail import HeadAndTail
from fanin.backends.kinds import ORDER, Dense, FixedFanIn, GroupedFanIn
from fanin.backends.recipes import recipe_of
from fanin.backends.registry import make_trainer
from fanin.backends.setup import LayerSetup
from fanin.backends.starting import atoms_of, starting_arrays
from fanin.backends.training import Schedule, rewire, rewiring_seed, train_epoch
from fanin.datasets import Batch, Batches

HEAD = 20
PAIRS = [
    HeadAndTail(Dense(), FixedFanIn(FAN_IN), HEAD),
    HeadAndTail(FixedFanIn(12), GroupedFanIn(FAN_IN, 16), HEAD),
    HeadAndTail(GroupedFanIn(8, 8), FixedFanIn(FAN_IN), HEAD),
]
x, y = planted_data()
each_execution = pytest.mark.parametrize("execution", ["autograd", "fused"])
each_pair = pytest.mark.parametrize(
    "setup", [LayerSetup(INPUTS, LABELS, pair, loss="bce") for pair in PAIRS], ids=setup_name
)


def expected_plan(setup, part, arrays):
    """For each label of a layer, or each group: the slots of its smallest weights, and the inputs
    of largest gradient that it does not read, from the gradients of all scores."""
    scores = Model(setup, arrays).scores(x)
    _, grad_scores = reference_loss("bce", scores, *y.nonzero())
    values = grad_scores.T @ (x - x.mean(0, dtype=np.float64))
    values = np.abs(values[arrays[ORDER][part.positions]])
    weights = np.abs(arrays[part.weights].astype(np.float64))
    if size := part.kind.group_size:
        firsts = np.arange(0, part.labels, size)
        values = np.sqrt(np.add.reduceat(values**2, firsts))
        weights = np.add.reduceat(weights, firsts)
    count = part.kind.fan_in // 2
    plan = []
    for own, value, weight in zip(arrays[part.source_array], values, weights, strict=True):
        free = np.setdiff1d(np.arange(INPUTS), own)
        best = free[np.argsort(-value[free], kind="stable")[:count]]
        plan.append((set(np.argsort(weight, kind="stable")[:count]), set(best)))
    return plan


@each_execution
@each_pair
def test_each_layer_moves_towards_its_own_gradients(
    framework, device, setup, execution, monkeypatch
):
    monkeypatch.setattr(gradients, "ASKED_LABELS", LABELS)
    monkeypatch.setattr(gradients, "_SMALLEST", 0.0)
    recipe = replace(recipe_of("best", setup), rewire_fraction=0.5, rewire_decay="none")
    trainer = make_trainer(framework, setup, starting(setup, 1), device=device, execution=execution)
    # No source twice within a label, as in a layer whose sources the data chose.
    rng, arrays = np.random.default_rng(2), trainer.weights()
    for part in setup.chosen_parts:
        sources = arrays[part.source_array]
        sources[:] = np.argsort(rng.random((len(sources), INPUTS)))[:, : part.kind.fan_in]
        arrays[part.weights] = rng.standard_normal(arrays[part.weights].shape).astype(np.float32)
    trainer.load_weights(arrays)
    batches = Batches(x, y, 32, 0.0, 0)
    trainer.train(batches.epoch(0), 1e-4)
    before, moments = trainer.weights(), copied(trainer.optimizer_arrays())

    moved = rewire(trainer, batches, recipe, 7, 11)

    after, kept = trainer.weights(), copied(trainer.optimizer_arrays())
    plans = [(part, expected_plan(setup, part, before)) for part in setup.chosen_parts]
    for part, plan in plans:
        own = np.zeros(before[part.source_array].shape, bool)
        for place, (slots, inputs) in enumerate(plan):
            own[place, list(slots)] = True
            assert set(after[part.source_array][place][own[place]]) == inputs, (part.name, place)
        moved -= own.sum()
        assert (after[part.source_array] == before[part.source_array])[~own].all()
        own = np.repeat(own, part.kind.group_size or 1, axis=0)[: part.labels]
        before[part.weights][own] = 0
        for moment in "mv":
            moments[f"{part.weights}.{moment}"][own] = 0
        del before[part.source_array]
    assert moved == 0
    for name, array in before.items():
        np.testing.assert_array_equal(after[name], array, name)
    for name, array in moments.items():
        np.testing.assert_array_equal(kept[name], array, name)


@each_execution
@each_pair
def test_it_learns_the_labels_of_the_user(framework, device, setup, execution):
    """From the starting arrays on, frequent labels in the head, and with rewiring."""
    recipe = replace(recipe_of("best", setup), epochs=16)
    atoms = atoms_of(recipe, INPUTS, LABELS, setup.output.tail.fan_in)
    setup = replace(setup, scaled=True, atoms=atoms)
    arrays = InitialArrays(setup, 0, starting_arrays(x, y, recipe, setup.output, seed=3))
    check_arrays(setup, arrays)
    counts = np.bincount(y.indices, minlength=LABELS)[arrays[ORDER]]
    assert counts[:HEAD].min() >= counts[HEAD:].max()
    trainer = make_trainer(framework, setup, arrays, device=device, execution=execution)
    batches = Batches(x, y, 32, 0.0, 0)
    schedule, moved = Schedule(recipe, recipe.epochs * len(batches)), 0
    for epoch in range(1, recipe.epochs + 1):
        moved += train_epoch(trainer, batches, epoch, recipe, 0, schedule)[1]
    assert moved > 0
    known = np.flatnonzero(np.diff(y.indptr))
    best = trainer.top_k(x[known], 1)[:, 0]
    positives = y.toarray()[known]
    hits = positives[np.arange(len(known)), best].mean()
    # Far more than the most frequent label would give, which ids of others would not.
    assert hits > 4 * positives.mean(0).max()
    is_head = np.isin(best, arrays[ORDER][:HEAD])
    assert 0 < is_head.mean() < 1


def test_each_layer_has_random_numbers_of_its_own(framework):
    """Two layers of one shape that were rewired with one seed would read the same inputs."""
    setup = LayerSetup(INPUTS, 80, HeadAndTail(FixedFanIn(8), FixedFanIn(8), 40))
    trainer = make_trainer(framework, setup, starting(setup, 0), execution="fused")
    head, tail = trainer.plan_rewiring(0.5, rewiring_seed(0, 1))
    common = np.intersect1d(head.positions, tail.positions, return_indices=True)[1:]
    assert len(common[0]) > 40
    assert (head.sources[common[0]] == tail.sources[common[1]]).mean() < 0.3
    assert (head.layer, tail.layer) == ("head", "tail")
    assert trainer.rewire(0.5, 2**64 - 1) > 0


@pytest.mark.parametrize(
    ("instances", "label_ids", "message"),
    [
        ([0, 1], [1, 100], r"positive_labels\[1\] is 100, out of range for 100 labels"),
        ([0, 1], [-1, 3], r"positive_labels\[0\] is -1, out of range for 100 labels"),
        ([0, 4], [1, 2], r"positive_instances\[1\] is 4, out of range for a batch of 4"),
        ([-2, 0], [1, 2], r"positive_instances\[0\] is -2, out of range for a batch of 4"),
    ],
)
@each_pair
def test_refused_positives_change_neither_layer(framework, setup, instances, label_ids, message):
    trainer = make_trainer(framework, setup, starting(setup, 0), device="cpu", execution="fused")
    before = trainer.weights()
    positives = np.array(instances, np.int32), np.array(label_ids, np.int64)
    with pytest.raises(ValueError, match=message):
        trainer.train([Batch(x[:4], *positives)], 1e-2)
    for name, array in trainer.weights().items():
        np.testing.assert_array_equal(array, before[name], name)
