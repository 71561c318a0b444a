"""The fixed fan-in layer for a user's own model, in both frameworks."""

from __future__ import annotations

import re

import numpy as np
import pytest
import reference
from near import assert_near

from fanin.backends.arrays import plan_rewiring


def features(*shape, dtype=np.float32):
    return np.random.default_rng(0).standard_normal(shape).astype(dtype)


def scores(layer, x):
    return reference.scores(x, layer.indices, layer.weights, layer.bias)


def test_computes_its_formula(on_device):
    layer, x = on_device.fixed_layer(20, 50, 8, seed=3), features(100, 20)
    assert_near(layer(x), scores(layer, x), 2e-5)


def test_values_that_make_no_layer(on_cpu):
    for sizes in ((20, 0, 3), (20, 3, 0)):
        with pytest.raises(ValueError, match="must be at least 1, got 0"):
            on_cpu.fixed_layer(*sizes)
    for fan_in, inputs in ((9, 8), (30, 20)):
        with pytest.raises(ValueError, match=f"fan_in {fan_in} is larger than the {inputs} inputs"):
            on_cpu.fixed_layer(inputs, 50, fan_in)


def test_index_type_follows_the_inputs(on_device):
    assert on_device.fixed_layer(65_536, 3, 2).indices.dtype == np.uint16
    assert on_device.fixed_layer(65_537, 3, 2).indices.dtype == np.uint32


def test_initial_weights_are_near_zero_as_published(on_device):
    layer = on_device.fixed_layer(512, 2000, 32)
    limit = (3 / (2000 * 32)) ** 0.5
    assert 0.95 * limit < np.abs(layer.weights).max() <= limit
    assert not layer.bias.any()
    assert len(np.unique(layer.indices)) == 512


def test_seeds_make_it_repeatable(on_device):
    one, two, other = (on_device.fixed_layer(40, 70, 7, seed=seed) for seed in (5, 5, 6))
    np.testing.assert_array_equal(one.indices, two.indices)
    np.testing.assert_array_equal(one.weights, two.weights)
    assert not np.array_equal(one.indices, other.indices)


def test_features_of_higher_rank(on_device):
    layer, x = on_device.fixed_layer(20, 50, 8), features(100, 20)
    flat = layer(x)
    assert_near(layer(x.reshape(5, 4, 5, 20)), flat.reshape(5, 4, 5, 50), 1e-6)
    assert layer(x[:0]).shape == (0, 50)


def test_double(on_device):
    layer, x = on_device.fixed_layer(40, 70, 7, dtype="float64"), features(5, 40, dtype=np.float64)
    assert layer.indices.dtype == np.uint16
    assert layer.weights.dtype == layer(x).dtype == np.float64
    assert_near(layer(x), scores(layer, x), 1e-12)


def test_state_round_trip(on_device, tmp_path):
    layer, other, x = *(on_device.fixed_layer(40, 70, 7) for _ in "ab"), features(5, 40)
    layer.save(tmp_path)
    assert not np.array_equal(other(x), layer(x))
    other.load(tmp_path)
    np.testing.assert_array_equal(other(x), layer(x))


def test_rewire_moves_the_smallest_and_resets_their_moments(on_device):
    layer = on_device.fixed_layer(500, 70, 10)
    optimizer = layer.adam()
    weights, indices = layer.weights, layer.indices
    before = layer.moments(optimizer)
    assert len(before) == 2
    rng = np.random.default_rng(0)
    seed = int(np.random.default_rng(0).integers(2**64, dtype=np.uint64))
    plan = plan_rewiring(weights, 0.2, 500, seed)

    assert layer.rewire(0.2, optimizer, rng) == len(plan.positions) == 140

    np.testing.assert_array_equal(layer.weights, weights)
    small = np.zeros(700, bool)
    small[np.abs(weights).reshape(-1).argsort()[:140]] = True
    same = layer.indices.reshape(-1) == indices.reshape(-1)
    assert same[~small].all()
    assert same[small].mean() < 0.1  # a random source may be the old one
    indices.reshape(-1)[plan.positions] = plan.sources
    np.testing.assert_array_equal(layer.indices, indices)
    for moment, old in zip(layer.moments(optimizer), before, strict=True):
        old.reshape(-1)[plan.positions] = 0
        np.testing.assert_array_equal(moment, old)
        assert moment.any()
    x = features(5, 500)
    assert_near(layer(x), scores(layer, x), 2e-5)  # it sees the new connections


def test_rewire_takes_only_an_optimizer_that_trains_it(on_device):
    layer = on_device.fixed_layer(40, 70, 7)
    indices = layer.indices
    with pytest.raises(ValueError, match=on_device.not_trained):
        layer.rewire(0.2, layer.other_adam())
    np.testing.assert_array_equal(layer.indices, indices)
    with pytest.raises(ValueError, match="fraction must be"):
        layer.rewire(1.0)
    # One that has made no step has nothing to reset.
    assert layer.rewire(0.2, layer.adam(untrained=True), rng=3) == 98


def test_rewire_by_generator_or_seed(on_device):
    layers = [on_device.fixed_layer(40, 70, 7, seed=5) for _ in "ab"]
    for layer, rng in zip(layers, (3, np.random.default_rng(3)), strict=True):
        assert layer.rewire(0.2, rng=rng) == 98
    np.testing.assert_array_equal(*(layer.indices for layer in layers))


@pytest.mark.parametrize("shape", [(3, 41), (3, 39), (2, 3, 41)])
def test_width_is_that_of_the_layer(on_cpu, shape):
    layer = on_cpu.fixed_layer(40, 70, 7)
    named = re.escape(on_cpu.width_text(40, shape, called=True))
    with pytest.raises(ValueError, match=named):
        layer(features(*shape))


def test_learns(on_device):
    rng = np.random.default_rng(0)
    x, targets = features(64, 30), rng.integers(0, 20, 64)
    assert on_device.fixed_layer(100, 20, 16, seed=0).learn(x, targets) > 0.95
