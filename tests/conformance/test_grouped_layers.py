"""Labels that share their sources, in the layers for a user's own model, in both frameworks."""

from __future__ import annotations

import numpy as np
import pytest
import reference
import scipy.sparse as sp
from near import assert_near
from reference import Model
from setups import random_batch

from fanin.backends.arrays import plan_rewiring
from fanin.backends.kinds import GroupedFanIn
from fanin.backends.setup import LayerSetup


def features(*shape):
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def test_an_ordinary_layer(on_device, tmp_path):
    """In groups of 16 and a last one of 2, in the order of their frequency."""
    layer = on_device.fixed_layer(20, 50, 8, seed=3, group_size=16)
    rng = np.random.default_rng(0)
    positives = sp.csr_array(rng.random((100, 50)) < np.linspace(0.01, 0.3, 50))
    x = features(100, 20)
    assert layer.indices.shape == (4, 8) and layer.order.tolist() == [*range(50)]
    layer.start_from(x, positives)
    counts = positives.toarray().sum(0)[layer.order]
    assert (np.diff(counts) <= 0).all() and counts[0] > counts[-1]

    def expected(layer):
        own = np.repeat(layer.indices, 16, axis=0)[:50]
        by_position = reference.scores(x, own, layer.weights, layer.bias)
        return by_position[:, np.argsort(layer.order)]

    optimizer = layer.adam()  # which makes a step: the biases differ then
    assert_near(layer(x), expected(layer), 2e-5)
    other = on_device.fixed_layer(20, 50, 8, seed=4, group_size=16)
    layer.save(tmp_path)
    other.load(tmp_path)
    np.testing.assert_array_equal(other(x), layer(x))

    weights, before = layer.weights, layer.indices
    groups = [slice(first, first + 16) for first in range(0, 50, 16)]
    means = np.stack([np.abs(weights[group]).mean(0) for group in groups])
    seed = int(np.random.default_rng(1).integers(2**64, dtype=np.uint64))
    plan = plan_rewiring(means, 0.3, 20, seed)
    assert layer.rewire(0.3, optimizer, np.random.default_rng(1)) == len(plan.positions) > 5
    np.testing.assert_array_equal(layer.weights, weights)
    before.reshape(-1)[plan.positions] = plan.sources
    np.testing.assert_array_equal(layer.indices, before)
    moves = np.zeros(means.shape, bool)
    moves.reshape(-1)[plan.positions] = True
    of_labels = np.repeat(moves, 16, axis=0)[:50]
    for moment in layer.moments(optimizer):
        assert not moment[of_labels].any() and moment[~of_labels].any()
    assert_near(layer(x), expected(layer), 2e-5)
    weights, before = layer.weights, layer.indices
    moved = layer.rewire_towards_gradients(x, positives, 0.25, optimizer, rng=3)
    changed = layer.indices != before
    assert (changed.sum(1) == 2).all() and moved == 8  # a quarter of each group's sources
    of_labels = np.repeat(changed, 16, axis=0)[:50]
    assert not layer.weights[of_labels].any()
    np.testing.assert_array_equal(layer.weights[~of_labels], weights[~of_labels])
    for group, after in zip(groups, layer.indices, strict=True):
        sums = np.abs(weights[group]).sum(0)
        old = before[groups.index(group)]
        assert set(old[np.argsort(sums)[2:]]) <= set(after)


@pytest.mark.parametrize(("size", "message"), [(7, r"in 8\.\.64, got 7"), (1.5, "whole number")])
def test_groups_that_are_none(on_cpu, size, message):
    with pytest.raises(ValueError, match=f"group_size must be .*{message}"):
        on_cpu.fixed_layer(20, 50, 8, group_size=size)
    with pytest.raises(ValueError, match=f"group_size must be .*{message}"):
        on_cpu.fused_layer(20, 50, 8, group_size=size)


@pytest.mark.parametrize("loss", ["squared_hinge", "bce"])
def test_a_layer_that_trains_itself(on_device, tmp_path, loss):
    setup = LayerSetup(20, 50, GroupedFanIn(8, 16), loss=loss)
    layer = on_device.fused_layer(20, 50, 8, seed=3, group_size=16, loss=loss, learning_rate=1e-2)
    data = [random_batch(setup, 32, seed) for seed in range(4)]
    ones = np.ones(len(data[0].positive_labels), bool)
    y = sp.csr_array((ones, (data[0].positive_instances, data[0].positive_labels)), (32, 50))
    layer.start_from(data[0].features, y)  # an order by frequency

    def model_of(layer):
        arrays = layer.arrays()
        return Model(setup, {n: arrays[n.removeprefix("output.")] for n in setup.array_shapes()})

    model = model_of(layer)
    assert model.order().tolist() != [*range(50)]
    for batch in data:
        given = (batch.features, batch.positive_instances, batch.positive_labels)
        expected = model.scores(batch.features)
        assert_near(layer(batch.features), expected, 1e-5)
        scores, ids = layer.top_k(batch.features, 5)
        np.testing.assert_array_equal(ids, np.argsort(-expected, axis=1)[:, :5])
        assert_near(scores, -np.sort(-expected, axis=1)[:, :5], 1e-5)
        before = layer.loss("evaluate_loss", *given)
        assert_near(layer.loss("training_step", *given), before, 1e-5)
        assert_near(model.step(batch, 1e-2), before, 1e-5)
    assert_near(model_of(layer).arrays["output.weights"], model.arrays["output.weights"], 1e-4)

    other = on_device.fused_layer(20, 50, 8, seed=4, group_size=16, loss=loss)
    layer.save(tmp_path)
    other.load(tmp_path)
    np.testing.assert_array_equal(other(batch.features), layer(batch.features))
    indices = layer.arrays()["indices"]
    moved = layer.rewire(0.3, 5)
    assert moved == 9  # of 4 * 8 sources
    assert 0 < (layer.arrays()["indices"] != indices).sum() <= moved
    expected = model_of(layer).scores(batch.features)
    assert_near(layer(batch.features), expected, 1e-5)
