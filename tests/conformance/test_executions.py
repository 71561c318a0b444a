"""The fused execution held against autograd's, in both frameworks."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from near import difference
from setups import PAIRS, random_batch, random_batches, rewired, rewirings, setup_name, trainer

from fanin.backends import fused
from fanin.backends.arrays import copied, initial_arrays
from fanin.backends.head_and_tail import HeadAndTail
from fanin.backends.interface import Storage
from fanin.backends.kinds import Dense, FixedFanIn, GroupedFanIn, Unstructured
from fanin.backends.setup import LayerSetup
from fanin.datasets import Batch

SORTED = 3073  # inputs
SETUPS = [
    LayerSetup(20, 300, Dense()),
    LayerSetup(20, 300, Unstructured(4)),
    LayerSetup(20, 300, FixedFanIn(4)),
    LayerSetup(20, 300, Unstructured(4), intermediate=64),
    LayerSetup(20, 300, FixedFanIn(4), intermediate=64),
    LayerSetup(20, 300, Dense(), intermediate=8),
    LayerSetup(20, 300, FixedFanIn(4), intermediate=64, loss="bce"),
    LayerSetup(SORTED, 300, FixedFanIn(5)),
    LayerSetup(20, 300, GroupedFanIn(5, 16)),
    LayerSetup(20, 300, GroupedFanIn(5, 8), intermediate=64, loss="bce"),
    *(LayerSetup(20, 300, pair) for pair in PAIRS),
    *(LayerSetup(20, 300, pair, intermediate=64, loss="bce") for pair in PAIRS),
    *(LayerSetup(SORTED, 300, pair) for pair in PAIRS[:2]),
]
each_setup = pytest.mark.parametrize("setup", SETUPS, ids=setup_name)
each_execution = pytest.mark.parametrize("execution", ["autograd", "fused"])


@pytest.fixture(autouse=True)
def connections_are_sorted(monkeypatch):
    """From `SORTED` inputs on, whatever CPU this is."""
    monkeypatch.setattr(fused, "sorting_pays", lambda inputs: inputs >= SORTED)


@pytest.mark.slow
@each_setup
def test_many_steps_follow_autograd(framework, setup):
    """With rewiring, at every step. Whether a ReLU input within rounding of 0 is active is chance,
    and from there on two models part (`compare` excuses such units one by one): where there is a
    ReLU, the second takes over the first's state every 50 steps."""
    one, other = trainer(framework, setup), trainer(framework, setup, execution="fused")
    steps = 1000 if setup is SETUPS[2] else 200  # drift would grow in all of them alike
    for step in range(steps):
        batch = random_batch(setup, 32, [0, step], 0.01)
        if setup.is_rewired and step in (0, 2 * steps // 5):
            # As the first decides: a |weight| beside the threshold may be on either side of it.
            for _, plan, _ in rewirings(setup, one.weights(), 0.1, step):
                one.apply_rewiring(plan)
                other.apply_rewiring(plan)
        if setup.intermediate and step % 50 == 0:
            other.load_weights(one.weights())
            other.load_optimizer_arrays(copied(one.optimizer_arrays()))
        losses = [t.train([batch], 1e-3)[0] for t in (one, other)]
        assert losses[1] == pytest.approx(losses[0], rel=1e-5), step
        if step % 50 == 49 and (not setup.intermediate or step == steps - 1):
            weights, moments = one.weights(), copied(one.optimizer_arrays())
            for name, array in other.weights().items():
                assert array.dtype == weights[name].dtype
                assert difference(array, weights[name]) < 1e-4, (name, step)
            for name, array in copied(other.optimizer_arrays()).items():
                assert difference(array, moments[name]) < 1e-4, (name, step)
    block = random_batch(setup, 32, 5).features
    np.testing.assert_array_equal(one.top_k(block, 3), other.top_k(block, 3))


@each_setup
def test_state_moves_between_executions(framework, device, setup):
    """Arrays come out as they went in, and training goes on from them in either execution."""
    source = trainer(framework, setup, device=device)
    source.train(random_batches(setup, 5), 1e-2)
    target = trainer(framework, setup, seed=2, device=device, execution="fused")
    target.train(random_batches(setup, 2), 1e-2)
    target.load_weights(source.weights())
    target.load_optimizer_arrays(copied(source.optimizer_arrays()))
    weights, moments = target.weights(), copied(target.optimizer_arrays())
    for name, array in source.weights().items():
        np.testing.assert_array_equal(weights[name], array, name)
        np.testing.assert_array_equal(target.array(name), array, name)
    for name, array in copied(source.optimizer_arrays()).items():
        np.testing.assert_array_equal(moments[name], array, name)
    losses = [t.train(random_batches(setup, 5, 3), 1e-2) for t in (source, target)]
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)


@pytest.mark.parametrize("setup", [s for s in SETUPS if s.is_rewired], ids=setup_name)
def test_rewire_follows_the_plan(framework, device, setup):
    """Of sorted connections, too."""
    one = trainer(framework, setup, device=device, execution="fused")
    one.train(random_batches(setup, 3), 1e-2)
    before, moments = one.weights(), copied(one.optimizer_arrays())
    plans = rewirings(setup, before, 0.2, 11)

    assert one.rewire(0.2, 11) == sum(len(plan.positions) for _, plan, _ in plans) > 0

    rewired(plans, before, moments)
    for key, array in one.weights().items():
        np.testing.assert_array_equal(array, before[key], key)
    for key, array in copied(one.optimizer_arrays()).items():
        np.testing.assert_array_equal(array, moments[key], key)


def test_top_k_in_blocks(framework, device):
    setup = SETUPS[4]
    one = trainer(framework, setup, device=device, execution="fused")
    one.train(random_batches(setup, 5), 1e-2)
    x = random_batch(setup, 70, 9).features
    whole = one.top_k(x, 5)
    np.testing.assert_array_equal(one.top_k(x[:33], 5), whole[:33])
    assert one.top_k(x[:0], 5).shape == (0, 5)


@pytest.mark.parametrize("kind", [FixedFanIn(32), HeadAndTail(Dense(), FixedFanIn(32), 30)])
def test_rounded_weights_train_as_well(framework, device, kind):
    setup = LayerSetup(200, 300, kind)
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((300, 200)).astype(np.float32)
    stream = []
    for _ in range(600):
        label_ids = rng.integers(0, 300, 32)
        noise = rng.standard_normal((32, 200))
        x = (centres[label_ids] + 0.3 * noise).astype(np.float32)
        stream.append(Batch(x, np.arange(32, dtype=np.int32), label_ids))
    reached = {}
    has_float8 = isinstance(kind, FixedFanIn)
    for dtype in ("float32", "bfloat16", "float8")[: 3 if has_float8 else 2]:
        moments = "bfloat16" if dtype == "float8" else dtype
        options = {"device": device, "execution": "fused", "storage": Storage(dtype, moments)}
        one = trainer(framework, setup, **options)
        one.train(stream, 1e-2)
        hits = one.top_k(centres, 1)[:, 0] == np.arange(300)
        reached[dtype] = hits.mean()
        counted = one.state_bytes()
        assert counted[1] == 2 * (setup.connections() * (4 if dtype == "float32" else 2) + 300 * 4)
        for name, array in one.weights().items():
            is_index = setup.index_arrays().get(name)
            assert array.dtype == (is_index.dtype if is_index else np.float32)
        other = trainer(framework, setup, seed=5, **options)
        other.load_weights(one.weights())
        for part in setup.parts:
            np.testing.assert_array_equal(other.array(part.weights), one.array(part.weights))
    assert reached["float32"] > 0.9
    assert all(abs(reached["float32"] - each) < 0.05 for each in reached.values())


FLOAT8_SETUPS = [setup for setup in SETUPS if setup.output.fan_in and not setup.intermediate]
each_float8_setup = pytest.mark.parametrize("setup", FLOAT8_SETUPS, ids=setup_name)


@each_float8_setup
def test_float8_is_within_its_rounding_of_float32(framework, setup):
    """After a step from the same weights; connections that would be sorted as well. Arrays come out
    as they went in, and a step is the same in a trainer that has taken them over."""
    storage = Storage("float8", "bfloat16")
    one = trainer(framework, setup, execution="fused", storage=storage)
    plain = trainer(framework, setup, execution="fused")
    plain.load_weights(one.weights())
    batch = random_batch(setup, 32, 1)
    assert one.train([batch], 1e-2) == pytest.approx(plain.train([batch], 1e-2), rel=1e-5)
    weights, exact = one.array("output.weights"), plain.array("output.weights")
    assert weights.dtype == np.float32
    # From one number to the next is at most an eighth of it, or of the largest in its row.
    assert (np.abs(weights - exact) <= np.abs(exact).max(1, keepdims=True) / 8).all()
    assert (weights != exact).any()
    labels, fan_in = setup.labels, setup.output.fan_in
    parameters, moments = one.state_bytes()
    assert parameters - plain.state_bytes()[0] <= labels * (fan_in + 1) - 4 * labels * fan_in
    assert moments == 2 * (2 * labels * fan_in + 4 * labels)

    other = trainer(framework, setup, seed=5, execution="fused", storage=storage)
    other.load_weights(one.weights())
    other.load_optimizer_arrays(copied(one.optimizer_arrays()))
    batch = random_batch(setup, 32, 2)
    np.testing.assert_array_equal(one.train([batch], 1e-2), other.train([batch], 1e-2))
    for name, array in other.weights().items():
        np.testing.assert_array_equal(array, one.array(name), name)


@each_float8_setup
def test_rewiring_in_float8_keeps_what_does_not_move(framework, setup):
    one = trainer(framework, setup, execution="fused", storage=Storage("float8"))
    one.train(random_batches(setup, 3), 1e-2)
    before = one.weights()
    ((_, plan, moved),) = rewirings(setup, before, 0.2, 11)
    assert one.rewire(0.2, 11) == len(plan.positions) > 0
    np.testing.assert_array_equal(one.array("output.weights"), before["output.weights"])
    one.apply_rewiring(replace(plan, weight=0.0))
    before["output.weights"].reshape(-1)[moved] = 0
    np.testing.assert_array_equal(one.array("output.weights"), before["output.weights"])


@pytest.mark.parametrize("setup", [SETUPS[0], SETUPS[1], SETUPS[4], SETUPS[9]], ids=setup_name)
def test_float8_is_for_a_fixed_fan_in_of_features(framework, setup):
    with pytest.raises(ValueError, match="float8 are for a fixed fan-in layer that reads features"):
        trainer(framework, setup, execution="fused", storage=Storage("float8"))


def test_rounded_weights_need_the_fused_execution(framework):
    for dtype in ("bfloat16", "float8"):
        with pytest.raises(ValueError, match="weights or moments need execution 'fused'"):
            trainer(framework, SETUPS[2], storage=Storage(dtype))


def test_a_loss_that_is_not_finite_names_the_step(framework):
    setup = SETUPS[2]
    one = trainer(framework, setup, execution="fused")
    arrays = initial_arrays(setup, 0)
    arrays["output.weights"][7, 2] = np.nan
    one.train(random_batches(setup, 2), 1e-2)
    one.load_weights(arrays)
    with pytest.raises(FloatingPointError, match="the loss of step 3 is nan"):
        one.train(random_batches(setup, 1), 1e-2)


@each_execution
@each_setup
def test_the_loss_is_named_before_what_it_leads_to(framework, execution, setup):
    """The weights after a step whose loss is NaN are none to compute with: an intermediate layer
    would hand NaN on as features."""
    one = trainer(framework, setup, execution=execution)
    one.train(random_batches(setup, 2), 1e-3)
    with pytest.raises(FloatingPointError, match=r"the loss of step \d is (nan|inf)"):
        one.train(random_batches(setup, 5), 1e30)


@each_execution
def test_only_steps_that_were_made_count(framework, on_cpu, execution):
    setup = SETUPS[2]
    one = trainer(framework, setup, execution=execution)
    good = random_batch(setup, 32, 0)
    one.train([good], 1e-2)
    bad = Batch(good.features * np.nan, good.positive_instances, good.positive_labels)
    with pytest.raises(on_cpu.data_error, match="NaN"):
        one.train([bad], 1e-2)
    assert dict(one.optimizer_arrays())["steps"] == 1
    # Adam's bias correction in what follows is that of step 2.
    other = trainer(framework, setup, execution=execution)
    other.train([good], 1e-2)
    np.testing.assert_array_equal(one.train([good], 1e-2), other.train([good], 1e-2))
    for name, array in one.weights().items():
        np.testing.assert_array_equal(array, other.array(name), name)


@each_execution
def test_wrong_arrays_change_nothing(framework, execution):
    setup = SETUPS[2]
    one = trainer(framework, setup, execution=execution)
    before, arrays = one.weights(), initial_arrays(setup, 3)
    with pytest.raises(ValueError, match=r"output.bias must be \[300\], got \[3\]"):
        one.load_weights({**arrays, "output.bias": np.zeros(3, np.float32)})
    for name, array in one.weights().items():
        np.testing.assert_array_equal(array, before[name], name)
