"""Each optimizer in both frameworks and both executions, against float64 NumPy."""

from __future__ import annotations

import numpy as np
import pytest
from near import assert_near
from reference import Model
from setups import every_setup, random_batch, setup_name

from fanin.backends import fused
from fanin.backends.arrays import copied, initial_arrays
from fanin.backends.interface import Storage
from fanin.backends.optimizer import ADAM, Optimizer
from fanin.backends.registry import make_trainer
from fanin.backends.setup import FixedFanIn, LayerSetup

SORTED = 20  # inputs
WORDS = LayerSetup(60, 40, FixedFanIn(4), intermediate=9, sparse_features=True)
SETUPS = [*every_setup(12, 40, 9), LayerSetup(SORTED, 40, FixedFanIn(4)), WORDS]
OPTIMIZERS = [Optimizer(weight_decay=0.5), Optimizer(l2=0.01), Optimizer(0.3, 0.003)]

each_setup = pytest.mark.parametrize("setup", SETUPS, ids=setup_name)
each_execution = pytest.mark.parametrize("execution", ["autograd", "fused"])
each_optimizer = pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=str)


@pytest.fixture(autouse=True)
def connections_are_sorted(monkeypatch):
    """From `SORTED` inputs on, whatever CPU this is."""
    monkeypatch.setattr(fused, "sorting_pays", lambda inputs: inputs >= SORTED)


def start(framework, setup, execution, optimizer, device="cpu", seed=0, **options):
    """A trainer, and the arrays that it starts with."""
    arrays = initial_arrays(setup, seed)
    # As large as after some training, so that the scores matter, and biases too.
    arrays["output.weights"] *= np.float32(0.3 / np.abs(arrays["output.weights"]).max())
    arrays["output.bias"] += np.float32(0.3)
    options |= {"device": device, "execution": execution, "optimizer": optimizer}
    return make_trainer(framework, setup, arrays, **options), arrays


@each_optimizer
@each_execution
@each_setup
def test_each_step_follows_the_reference(framework, device, setup, execution, optimizer):
    trainer, arrays = start(framework, setup, execution, optimizer, device)
    model = Model(setup, arrays, optimizer=optimizer)
    for step in range(20):
        rate = 3e-3 if step < 10 else 1e-3
        batch = random_batch(setup, 32, step)
        assert_near(trainer.train([batch], rate), [model.step(batch, rate)], 1e-5)
        for name, array in trainer.arrays():
            assert np.abs(array - model.arrays[name]).max() < 1e-4, (name, step)
    for key, array in trainer.optimizer_arrays():
        name, _, moment = key.rpartition(".")
        expected = getattr(model, moment)[name] if name else model.steps
        assert_near(array, expected, 1e-4)


@each_execution
@pytest.mark.parametrize("optimizer", OPTIMIZERS[:2], ids=str)
def test_row_moments_beside_decay(framework, device, execution, optimizer):
    storage = Storage(row_moments=True)
    trainer, arrays = start(framework, WORDS, execution, optimizer, device, storage=storage)
    model = Model(WORDS, arrays, row_moments=True, optimizer=optimizer)
    for step in range(20):
        batch = random_batch(WORDS, 32, step)
        assert_near(trainer.train([batch], 3e-3), [model.step(batch, 3e-3)], 1e-5)
    for name, array in trainer.arrays():
        assert np.abs(array - model.arrays[name]).max() < 1e-4, name
    assert_near(
        dict(trainer.optimizer_arrays())["intermediate.weights.v"],
        model.v["intermediate.weights"],
        1e-4,
    )


@each_optimizer
@each_execution
def test_only_rows_of_words_in_the_batch_decay(framework, device, execution, optimizer):
    """`torch.optim.SparseAdam` has no decay at all."""
    trainer, arrays = start(framework, WORDS, execution, optimizer, device)
    batch = random_batch(WORDS, 8, 0)
    trainer.train([batch], 1e-2)
    used = np.unique(batch.features.indices)
    others = np.setdiff1d(np.arange(60), used)
    assert used.size and others.size
    before, after = arrays["intermediate.weights"], trainer.array("intermediate.weights")
    np.testing.assert_array_equal(after[others], before[others])
    assert (after[used] != before[used]).any(1).all()


@each_optimizer
@each_execution
@each_setup
def test_a_run_goes_on_in_another_trainer(framework, device, setup, execution, optimizer):
    first, _ = start(framework, setup, execution, optimizer, device)
    first.train([random_batch(setup, 32, seed) for seed in range(3)], 1e-2)
    weights, state = first.weights(), copied(first.optimizer_arrays())
    later = [random_batch(setup, 32, seed) for seed in range(9, 12)]
    losses = first.train(later, 1e-2)
    for other in ("autograd", "fused"):
        second, _ = start(framework, setup, other, optimizer, device, seed=2)
        second.load_weights(weights)
        second.load_optimizer_arrays(state)
        theirs = second.train(later, 1e-2)
        if other == execution:
            np.testing.assert_array_equal(theirs, losses)
        assert_near(theirs, losses, 1e-5)


@each_execution
def test_no_decay_changes_no_bit(framework, device, execution):
    results = []
    for optimizer in (ADAM, Optimizer(weight_decay=0.0, l2=0)):
        trainer, _ = start(framework, WORDS, execution, optimizer, device)
        trainer.train([random_batch(WORDS, 32, seed) for seed in range(5)], 1e-2)
        results.append(trainer.weights())
    for name, array in results[0].items():
        np.testing.assert_array_equal(array, results[1][name], name)


@pytest.mark.parametrize("name", ["weight_decay", "l2"])
@pytest.mark.parametrize("wrong", [-0.1, np.nan, np.inf, "0.1x", True])
def test_numbers_that_are_none(framework, name, wrong):
    with pytest.raises(ValueError, match=rf"{name} must be finite and at least 0, got"):
        Optimizer(**{name: wrong})
