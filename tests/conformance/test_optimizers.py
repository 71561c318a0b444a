"""Each optimizer in both frameworks and both executions, against float64 NumPy."""

from __future__ import annotations

import numpy as np
import pytest
from near import assert_near
from reference import Model
from setups import (
    every_setup,
    random_batch,
    rewired,
    rewirings,
    scaled_weights,
    setup_name,
    starting,
)

from fanin.backends import fused
from fanin.backends.arrays import copied
from fanin.backends.interface import Storage
from fanin.backends.kinds import FixedFanIn
from fanin.backends.optimizer import ADAM, Optimizer
from fanin.backends.registry import make_trainer
from fanin.backends.setup import LayerSetup
from fanin.datasets import Batch

SORTED = 20  # inputs
WORDS = LayerSetup(60, 40, FixedFanIn(4), intermediate=9, sparse_features=True)
SETUPS = [*every_setup(12, 40, 9), LayerSetup(SORTED, 40, FixedFanIn(4)), WORDS]
DECAYS = [Optimizer(weight_decay=0.5), Optimizer(l2=0.01)]
WITHOUT_ADAM = [
    Optimizer("sgd"),
    Optimizer("sgd", weight_decay=1e-4, l2=1e-4),
    Optimizer("momentum", l2=1e-4, momentum=0.7),
]
OPTIMIZERS = [*DECAYS, *WITHOUT_ADAM]

each_setup = pytest.mark.parametrize("setup", SETUPS, ids=setup_name)
each_execution = pytest.mark.parametrize("execution", ["autograd", "fused"])
each_optimizer = pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=str)


@pytest.fixture(autouse=True)
def connections_are_sorted(monkeypatch):
    """From `SORTED` inputs on, whatever CPU this is."""
    monkeypatch.setattr(fused, "sorting_pays", lambda inputs: inputs >= SORTED)


def start(framework, setup, execution, optimizer, device="cpu", seed=0, **options):
    """A trainer, and the arrays that it starts with."""
    arrays = starting(setup, seed)
    scaled_weights(setup, arrays, 0.3)
    for part in setup.parts:
        arrays[part.outside("output.bias")] += np.float32(0.3)
    options |= {"device": device, "execution": execution, "optimizer": optimizer}
    return make_trainer(framework, setup, arrays, **options), arrays


def rate_of(optimizer, setup):
    """A rate that changes the weights visibly. Losses are divided by batch and labels, and Adam
    alone divides a gradient by its size."""
    return 3e-3 if optimizer.kind == "adam" else 3e-3 * 32 * setup.labels


@each_optimizer
@each_execution
@each_setup
def test_each_step_follows_the_reference(framework, device, setup, execution, optimizer):
    trainer, arrays = start(framework, setup, execution, optimizer, device)
    model = Model(setup, arrays, optimizer=optimizer)
    for step in range(12):
        rate = rate_of(optimizer, setup) / (1 if step < 6 else 3)
        batch = random_batch(setup, 32, step)
        assert_near(trainer.train([batch], rate), [model.step(batch, rate)], 1e-5)
        for name, array in trainer.arrays():
            assert np.abs(array - model.arrays[name]).max() < 1e-4, (name, step)
    for key, array in trainer.optimizer_arrays():
        name, _, moment = key.rpartition(".")
        expected = getattr(model, moment)[name] if name else model.steps
        assert_near(array, expected, 1e-4)


@each_execution
@pytest.mark.parametrize("optimizer", DECAYS, ids=str)
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
    trainer.train([batch], rate_of(optimizer, WORDS))
    used = np.unique(batch.features.indices)
    others = np.setdiff1d(np.arange(60), used)
    assert used.size and others.size
    before, after = arrays["intermediate.weights"], trainer.array("intermediate.weights")
    np.testing.assert_array_equal(after[others], before[others])
    assert (after[used] != before[used]).any(1).all()


@pytest.mark.parametrize("optimizer", [DECAYS[0], WITHOUT_ADAM[1], WITHOUT_ADAM[2]], ids=str)
@each_execution
@pytest.mark.parametrize("setup", [SETUPS[2], SETUPS[4], WORDS], ids=setup_name)
def test_a_run_goes_on_in_another_trainer(framework, device, setup, execution, optimizer):
    first, _ = start(framework, setup, execution, optimizer, device)
    rate = rate_of(optimizer, setup)
    first.train([random_batch(setup, 32, seed) for seed in range(3)], rate)
    weights, state = first.weights(), copied(first.optimizer_arrays())
    later = [random_batch(setup, 32, seed) for seed in range(9, 12)]
    losses = first.train(later, rate)
    for other in ("autograd", "fused"):
        second, _ = start(framework, setup, other, optimizer, device, seed=2)
        second.load_weights(weights)
        second.load_optimizer_arrays(state)
        theirs = second.train(later, rate)
        if other == execution:
            np.testing.assert_array_equal(theirs, losses)
        assert_near(theirs, losses, 1e-5)


@each_execution
def test_a_negligible_decay_changes_no_bit(framework, device, execution):
    """Both terms are far below the last place of any weight and gradient."""
    results = []
    for optimizer in (ADAM, Optimizer(weight_decay=1e-30, l2=1e-35)):
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


@pytest.mark.parametrize(
    "options, message",
    [
        ({"kind": "adagrad"}, "optimizer must be one of adam, sgd, momentum, got 'adagrad'"),
        ({"momentum": 1.0}, r"momentum must be above 0 and below 1, got 1\.0"),
        ({"momentum": 0.0}, r"momentum must be above 0 and below 1, got 0\.0"),
        ({"momentum": np.nan}, "momentum must be finite and at least 0, got nan"),
    ],
)
def test_optimizers_that_are_none(framework, options, message):
    with pytest.raises(ValueError, match=message):
        Optimizer(**options)


@pytest.mark.parametrize("kind", ["sgd", "momentum"])
def test_row_moments_are_those_of_adam(framework, kind):
    with pytest.raises(ValueError, match=f"row moments are of optimizer 'adam', and '{kind}' has"):
        start(framework, WORDS, "fused", Optimizer(kind), storage=Storage(row_moments=True))


@each_execution
def test_only_moments_of_the_optimizer_take_memory(framework, execution):
    setup = SETUPS[2]
    trained = sum(setup.count(name) for name in ("output.weights", "output.bias"))
    for kind, moments in (("adam", 2), ("momentum", 1), ("sgd", 0)):
        trainer, _ = start(framework, setup, execution, Optimizer(kind))
        assert trainer.state_bytes()[1] == moments * 4 * trained
        assert len(copied(trainer.optimizer_arrays())) == 2 * moments + 1  # and `steps`


@each_execution
def test_moments_of_another_optimizer_are_refused(framework, execution):
    one, other = (start(framework, SETUPS[2], execution, Optimizer(k))[0] for k in ("adam", "sgd"))
    with pytest.raises(ValueError, match="arrays of another model or storage: missing"):
        one.load_optimizer_arrays(copied(other.optimizer_arrays()))


@pytest.mark.parametrize("optimizer", WITHOUT_ADAM, ids=str)
@each_execution
def test_rewiring_clears_the_moments_that_are_kept(framework, device, execution, optimizer):
    for setup in (each for each in SETUPS if each.is_rewired):
        trainer, _ = start(framework, setup, execution, optimizer, device)
        rate = rate_of(optimizer, setup)
        trainer.train([random_batch(setup, 32, seed) for seed in range(3)], rate)
        before, moments = trainer.weights(), copied(trainer.optimizer_arrays())
        plans = rewirings(setup, before, 0.2, 11)
        assert trainer.rewire(0.2, 11) == sum(len(plan.positions) for _, plan, _ in plans) > 0
        for part in setup.parts:
            np.testing.assert_array_equal(trainer.array(part.weights), before[part.weights])
        rewired(plans, before, moments)
        for key, array in trainer.optimizer_arrays():
            np.testing.assert_array_equal(array, moments[key], key)


@pytest.mark.parametrize("kind", ["sgd", "momentum"])
def test_bfloat16_without_adam(framework, device, kind):
    """Updates far below a weight's last place are right on average: what is lost by rounding down
    is made up for by rounding up."""
    setup, optimizer = LayerSetup(200, 300, FixedFanIn(32)), Optimizer(kind)
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((300, 200)).astype(np.float32)
    stream = []
    for _ in range(600):
        label_ids = rng.integers(0, 300, 32)
        x = (centres[label_ids] + 0.3 * rng.standard_normal((32, 200))).astype(np.float32)
        stream.append(Batch(x, np.arange(32, dtype=np.int32), label_ids))
    reached = {}
    for dtype in ("float32", "bfloat16"):
        options = {"device": device, "storage": Storage(dtype, dtype)}
        trainer, _ = start(framework, setup, "fused", optimizer, **options)
        trainer.train(stream, 6.0 if kind == "sgd" else 1.0)
        reached[dtype] = (trainer.top_k(centres, 1)[:, 0] == np.arange(300)).mean()
        width = 4 if dtype == "float32" else 2
        of_moments = len(optimizer.keeps) * (width * 300 * 32 + 4 * 300)
        # Besides, of each sorted connection a source (uint16), its label in the tile and its slot.
        of_parameters = width * 300 * 32 + 4 * 300 + (2 + 2 + 1) * 300 * 32
        assert trainer.state_bytes() == (of_parameters, of_moments)
    assert reached["float32"] > 0.9
    assert abs(reached["float32"] - reached["bfloat16"]) < 0.05
