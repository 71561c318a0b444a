"""The trainer in both frameworks and both executions, against float64 NumPy."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from near import assert_near
from reference import Model
from reference import loss as reference_loss
from setups import (
    every_setup,
    random_batch,
    rewired,
    rewirings,
    scaled_weights,
    setup_name,
    starting,
)

from fanin.backends import autograd, fused
from fanin.backends.arrays import Rewiring, copied, initial_arrays
from fanin.backends.kinds import ORDER, Dense, FixedFanIn, Unstructured
from fanin.backends.registry import make_trainer
from fanin.backends.setup import LayerSetup
from fanin.datasets import Batch

SETUPS = every_setup(12, 40, 9)
REWIRED = [setup for setup in SETUPS if setup.is_rewired]
EXECUTIONS = ("autograd", "fused")

each_setup = pytest.mark.parametrize("setup", SETUPS, ids=setup_name)
each_execution = pytest.mark.parametrize("execution", EXECUTIONS)


def start(framework, setup, device="cpu", execution="autograd", seed=0):
    """A trainer, and the arrays that it starts with."""
    arrays = starting(setup, seed)
    scaled_weights(setup, arrays, 0.3)
    return make_trainer(framework, setup, arrays, device=device, execution=execution), arrays


def assert_arrays(trainer, expected, tolerance):
    arrays = trainer.weights()
    assert list(arrays) == list(trainer.setup.array_shapes())
    for name, array in arrays.items():
        if array.dtype == np.float32:
            assert_near(array, expected[name], tolerance)
        else:
            np.testing.assert_array_equal(array, expected[name])


@each_execution
@pytest.mark.parametrize("loss", ["squared_hinge", "bce"])
@each_setup
def test_training_steps_agree_with_the_reference(framework, device, setup, loss, execution):
    setup = replace(setup, loss=loss)
    trainer, arrays = start(framework, setup, device, execution)
    kept = {name: array.copy() for name, array in arrays.items()}
    model = Model(setup, arrays)
    # The last batch is smaller; the learning rate changes in between.
    batches = [random_batch(setup, size, seed) for seed, size in enumerate([32, 32, 32, 7])]
    seen = []
    ours = trainer.train(batches[:1], 1e-2, lambda loss: seen.append(float(loss)))
    assert_near(ours, [model.step(batches[0], 1e-2)], 1e-6)
    assert_arrays(trainer, model.arrays, 3e-6)
    ours = trainer.train(iter(batches[1:]), 3e-3, lambda loss: seen.append(float(loss)))
    assert_near(ours, [model.step(batch, 3e-3) for batch in batches[1:]], 1e-5)
    assert_arrays(trainer, model.arrays, 3e-6)
    assert ours.dtype == np.float64 and len(seen) == 4
    np.testing.assert_array_equal(seen[1:], ours)
    for name, array in arrays.items():  # what the trainer was given is not its own memory
        np.testing.assert_array_equal(array, kept[name])


@each_execution
@pytest.mark.parametrize(
    "setup",
    [
        *every_setup(20, 30, 16),
        LayerSetup(20, 30, Dense(), intermediate=8),
        LayerSetup(20, 30, FixedFanIn(4), intermediate=16, loss="bce"),
    ],
    ids=setup_name,
)
def test_many_steps_follow_the_reference(framework, device, setup, execution):
    arrays = starting(setup, 1)
    trainer = make_trainer(framework, setup, arrays, device=device, execution=execution)
    model = Model(setup, arrays)
    batches = [random_batch(setup, 7, seed) for seed in range(25)]
    losses = trainer.train(batches, 1e-2)
    assert np.abs(losses - [model.step(batch, 1e-2) for batch in batches]).max() < 1e-5
    for name, array in trainer.weights().items():
        assert array.dtype == arrays[name].dtype
        assert np.abs(array - model.arrays[name]).max() < 1e-4, name


@each_execution
def test_a_batch_without_positives(framework, device, execution):
    trainer, arrays = start(framework, SETUPS[0], device, execution)
    batch = random_batch(trainer.setup, 4, 0)
    batch = Batch(batch.features, batch.positive_instances[:0], batch.positive_labels[:0])
    expected = Model(trainer.setup, arrays).step(batch, 1e-3)
    assert_near(trainer.train([batch], 1e-3), [expected], 1e-6)


def test_a_loss_that_is_not_finite_names_the_step(framework):
    """Of autograd, where features are not looked at."""
    trainer, _ = start(framework, SETUPS[0])
    good, bad = (random_batch(trainer.setup, 4, 0) for _ in range(2))
    bad.features[0, 0] = np.inf
    trainer.train([good] * 3, 1e-3)
    with pytest.raises(FloatingPointError, match="the loss of step 5 is"):
        trainer.train([good, bad, good], 1e-3)


@each_execution
@each_setup
def test_top_k(framework, device, setup, execution, monkeypatch):
    trainer, arrays = start(framework, setup, device, execution)
    x = np.random.default_rng(5).standard_normal((50, setup.inputs)).astype(np.float32)
    # Labels that read units which are all 0 have equal scores: the lower id first.
    expected = np.argsort(-Model(setup, arrays).scores(x), axis=1, kind="stable")[:, :5]
    executor = type(trainer._executor)
    for most_scores in (getattr(executor, "most_scores", None), setup.labels * 7):
        if issubclass(executor, autograd.AutogradExecutor):  # the second splits the blocks
            monkeypatch.setattr(executor, "most_scores", most_scores)
        ids = trainer.top_k(x, 5)
        assert ids.dtype == np.int64
        np.testing.assert_array_equal(ids, expected)
    assert trainer.top_k(x[:0], 3).shape == (0, 3)
    for k in (0, 41):
        with pytest.raises(ValueError, match=rf"k must be in 1\.\.40 .*{k}"):
            trainer.top_k(x, k)


@each_execution
def test_top_k_gives_ties_to_the_lower_id(framework, device, execution):
    trainer, arrays = start(framework, SETUPS[0], device, execution)
    arrays["output.weights"][:] = 0
    arrays["output.bias"][[30, 7, 12]] = 1
    trainer.load_weights(arrays)
    ids = trainer.top_k(np.ones((2, 12), np.float32), 5)
    np.testing.assert_array_equal(ids, [[7, 12, 30, 0, 1]] * 2)


@each_execution
@pytest.mark.parametrize("setup", [s for s in SETUPS if len(s.parts) > 1], ids=setup_name)
def test_ties_across_output_layers_go_to_the_lower_id(framework, device, execution, setup):
    """Whichever layers the labels are in, and wherever they stand."""
    trainer, arrays = start(framework, setup, device, execution)
    order, (head, tail) = arrays[ORDER], setup.parts
    for part in setup.parts:
        arrays[part.weights][:] = 0
        arrays[part.outside("output.bias")][:] = -1
    # The last two positions of the head and the first three of the tail.
    arrays[head.outside("output.bias")][-2:] = 1
    arrays[tail.outside("output.bias")][:3] = 1
    trainer.load_weights(arrays)
    equal = np.sort(order[head.labels - 2 : head.labels + 3])
    others = np.setdiff1d(order, equal)
    ids = trainer.top_k(np.ones((2, 12), np.float32), 40)
    np.testing.assert_array_equal(ids, [[*equal, *others]] * 2)
    for k in (1, 3, head.labels + 1):  # as many as the head has, and more
        np.testing.assert_array_equal(trainer.top_k(np.ones((2, 12), np.float32), k), ids[:, :k])


@each_execution
def test_top_k_is_exact_among_ties(framework, device, execution):
    setup = LayerSetup(2, 9, Dense())
    arrays = initial_arrays(setup, 0)
    arrays["output.weights"] = np.array(
        [[1, 3, 3, 2, 3, 0, 1, 1, 1], [0, 0, 0, 0, 0, 0, 0, 0, 0]], np.float32
    )
    trainer = make_trainer(framework, setup, arrays, device=device, execution=execution)
    x = np.array([[1, 0], [0, 1], [-1, 0]], np.float32)
    top = trainer.top_k(x, 5)
    assert top.tolist() == [[1, 2, 4, 3, 0], [0, 1, 2, 3, 4], [5, 0, 6, 7, 8]]
    with pytest.raises(ValueError, match=r"k must be in 1\.\.9"):
        trainer.top_k(x, 10)


@each_execution
@pytest.mark.parametrize("setup", REWIRED, ids=setup_name)
def test_apply_rewiring(framework, device, setup, execution):
    trainer, arrays = start(framework, setup, device, execution)
    model = Model(setup, arrays)
    batches = [random_batch(setup, 32, seed) for seed in range(6)]
    for batch in batches[:3]:
        trainer.train([batch], 1e-2)
        model.step(batch, 1e-2)
    before = trainer.weights()
    plans = rewirings(setup, before, 0.2, 0)

    for part, plan, _ in plans:
        count = model.arrays[part.source_array].size
        assert 0.1 * count <= len(plan.positions) <= 0.2 * count
        trainer.apply_rewiring(plan)

    rewired(
        plans, model.arrays, {f"{name}.{k}": a for k in "mv" for name, a in vars(model)[k].items()}
    )
    moments = copied(trainer.optimizer_arrays())
    for part, _, moved in plans:
        np.testing.assert_array_equal(trainer.array(part.weights), before[part.weights])
        source_array = part.source_array
        np.testing.assert_array_equal(trainer.array(source_array), model.arrays[source_array])
        for key in (f"{part.weights}.m", f"{part.weights}.v"):
            assert not moments[key].reshape(-1)[moved].any()
            assert moments[key].any()
    # Moments that were not zeroed, or sources that the step does not see, show in what follows.
    for batch in batches[3:]:
        assert_near(trainer.train([batch], 1e-2), [model.step(batch, 1e-2)], 1e-5)
    assert_arrays(trainer, model.arrays, 3e-6)
    nothing = Rewiring(np.empty(0, np.int64), np.empty(0, np.uint32), 0.0)
    trainer.apply_rewiring(replace(nothing, layer=plans[0][0].name))


@each_execution
@pytest.mark.parametrize("setup", REWIRED, ids=setup_name)
def test_rewire_follows_the_plan(framework, device, setup, execution):
    trainer, _ = start(framework, setup, device, execution)
    trainer.train([random_batch(setup, 32, seed) for seed in range(3)], 1e-2)
    before, moments = trainer.weights(), copied(trainer.optimizer_arrays())
    plans = rewirings(setup, before, 0.2, 11)

    assert trainer.rewire(0.2, 11) == sum(len(plan.positions) for _, plan, _ in plans)

    assert all(len(plan.positions) for _, plan, _ in plans)
    rewired(plans, before, moments)
    for key, array in trainer.weights().items():
        np.testing.assert_array_equal(array, before[key], key)
    for key, array in copied(trainer.optimizer_arrays()).items():
        np.testing.assert_array_equal(array, moments[key], key)


@each_execution
@pytest.mark.parametrize("setup", [s for s in SETUPS if not s.is_rewired], ids=setup_name)
def test_errors_are_the_same_whoever_is_asked(framework, setup, execution):
    trainer, _ = start(framework, setup, execution=execution)
    rewiring = Rewiring(np.array([0]), np.array([0]), 0.0)
    for rewire in (lambda: trainer.apply_rewiring(rewiring), lambda: trainer.rewire(0.1, 0)):
        with pytest.raises(ValueError, match="Dense has no connections to rewire"):
            rewire()
    x = np.ones((2, setup.inputs), np.float32)
    for k in (0, 41):
        with pytest.raises(ValueError, match=rf"k must be in 1\.\.40 \(the labels\), got {k}"):
            trainer.top_k(x, k)
    first = next(iter(setup.array_shapes())).partition(".")[0]
    with pytest.raises(KeyError, match=f"'elsewhere' is none of {first}"):
        trainer.array("elsewhere")


@each_execution
@each_setup
def test_weights_go_from_one_trainer_to_another(framework, device, setup, execution):
    first, _ = start(framework, setup, device, execution, seed=1)
    first.train([random_batch(setup, 32, 0)], 1e-2)
    arrays = first.weights()
    second, initial = start(framework, setup, device, execution, seed=2)
    second.load_weights(arrays)
    for name, array in second.weights().items():
        assert array.dtype == initial[name].dtype
        np.testing.assert_array_equal(array, arrays[name])
    batch = random_batch(setup, 32, 1)
    scores = Model(setup, arrays).scores(batch.features)
    positives = (batch.positive_instances, batch.positive_labels)
    expected, _ = reference_loss("squared_hinge", scores, *positives)
    assert_near(second.train([batch], 1e-2), [expected], 1e-5)
    last = setup.parts[-1]
    bias, size = last.outside("output.bias"), last.labels
    arrays[bias] = arrays[bias][:-1]
    with pytest.raises(ValueError, match=rf"{bias} must be \[{size}\], got \[{size - 1}\]"):
        second.load_weights(arrays)
    with pytest.raises(KeyError, match="'elsewhere' is none of"):
        first.array("elsewhere")


@each_execution
@each_setup
def test_a_run_goes_on_in_another_trainer(framework, device, setup, execution):
    first, _ = start(framework, setup, device, execution, seed=1)
    first.train([random_batch(setup, 32, seed) for seed in range(5)], 1e-2)
    second, _ = start(framework, setup, device, execution, seed=2)
    second.load_weights(first.weights())
    state = copied(first.optimizer_arrays())
    second.load_optimizer_arrays(state)
    assert state["steps"] == 5 and state["steps"].dtype == np.int64
    later = [random_batch(setup, 32, seed) for seed in range(9, 14)]
    np.testing.assert_array_equal(first.train(later, 1e-2), second.train(later, 1e-2))
    assert_arrays(second, first.weights(), 1e-6)
    for part in setup.parts:
        assert state[f"{part.weights}.m"].shape == setup.array_shapes()[part.weights]
    theirs = copied(second.optimizer_arrays())
    for name, array in copied(first.optimizer_arrays()).items():
        assert not np.array_equal(array, state[name])  # what was given is a copy
        assert_near(theirs[name], array, 1e-6)


@each_execution
def test_load_weights_checks_what_it_gets(framework, execution):
    fixed, unstructured = (LayerSetup(20, 30, kind(4)) for kind in (FixedFanIn, Unstructured))
    arrays = initial_arrays(fixed, 0)
    trainer = make_trainer(framework, fixed, arrays, device="cpu", execution=execution)
    indices = arrays["output.indices"]
    out_of_range = r"output.indices has values .* must be in 0\.\.19"
    for changed, message in (
        ({"output.bias": np.zeros(3, np.float32)}, r"output.bias must be \[30\], got \[3\]"),
        ({"output.indices": indices + np.uint16(20)}, out_of_range),
        ({"output.indices": indices + 0.5}, r"output.indices must be integers, got float64"),
    ):
        other = {**initial_arrays(fixed, 1), **changed}
        with pytest.raises(ValueError, match=message):
            trainer.load_weights(other)
    with pytest.raises(ValueError, match=r"missing \['output.bias'\]"):
        trainer.load_weights({k: v for k, v in arrays.items() if k != "output.bias"})
    for name, array in trainer.weights().items():  # nothing of it was taken
        np.testing.assert_array_equal(array, arrays[name])
    arrays = initial_arrays(unstructured, 0)
    trainer = make_trainer(framework, unstructured, arrays, device="cpu", execution=execution)
    with pytest.raises(ValueError, match=r"output.rows must ascend"):
        trainer.load_weights({**arrays, "output.rows": arrays["output.rows"][::-1].copy()})


def test_counted_bytes(framework, monkeypatch):
    def counted(setup, execution):
        return start(framework, setup, execution=execution)[0].state_bytes()

    large, small = LayerSetup(512, 1000, FixedFanIn(32)), LayerSetup(12, 40, FixedFanIn(4))
    for execution in EXECUTIONS:
        monkeypatch.setattr(fused, "sorting_pays", lambda inputs: False)
        numbers = 1000 * 32 + 1000
        assert counted(large, execution) == (numbers * 4 + 1000 * 32 * 2, 2 * numbers * 4)
        trained = 4 * (40 * 4 + 40)  # float32
        assert counted(small, execution) == (trained + 2 * 40 * 4, 2 * trained)  # uint16
    monkeypatch.setattr(fused, "sorting_pays", lambda inputs: True)
    # Each connection's label in its tile, and its slot.
    assert counted(small, "fused") == (trained + (2 + 2 + 1) * 40 * 4, 2 * trained)


@each_execution
def test_asking_for_another_device(framework, execution):
    with pytest.raises(ValueError, match="device must be one of cpu, cuda, auto, got 'tpu'"):
        start(framework, SETUPS[0], "tpu", execution)
