"""The fused step, held against `reference.Model`, float64 NumPy, on every instruction set that this
machine runs; and how it rounds."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from kernel_layers import (
    ANY_SHAPE,
    GROUP_SIZE,
    INSTRUCTION_SETS,
    KINDS,
    arrays_of,
    check_steps,
    make_batch,
    make_layer,
    make_setup,
    step_of,
    trained,
)

from fanin import kernels
from fanin.backends.optimizer import Optimizer


@pytest.mark.parametrize("loss", ["squared_hinge", "bce"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
def test_step_follows_the_reference(instruction_set, kind, loss):
    kernels.set_instruction_set(instruction_set)
    rng = np.random.default_rng(7)
    check_steps(rng, kind, 32, 50, 70, 32, loss)
    check_steps(rng, kind, 33, 50, 4100, 7, loss, steps=2)
    if kind == "fixed fan-in":  # some groups at a time: three and one, then one by one
        check_steps(rng, kind, 100, 800, 300, 9, loss, steps=2)
        check_steps(rng, kind, 75, 1600, 270, 33, loss, steps=2)


OPTIMIZERS = [
    Optimizer(weight_decay=3.0),
    Optimizer(l2=0.02),
    Optimizer(weight_decay=0.5, l2=0.01),
    Optimizer("sgd"),
    Optimizer("momentum", momentum=0.7),
    Optimizer("sgd", l2=1e-4),
    Optimizer("momentum", weight_decay=1e-4),
]


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
def test_each_optimizer(instruction_set, kind, optimizer):
    """With decay of weights, and none of biases."""
    kernels.set_instruction_set(instruction_set)
    rng = np.random.default_rng(8)
    check_steps(rng, kind, 32, 50, 70, 32, "bce", optimizer=optimizer)
    check_steps(rng, kind, 45, 50, 4100, 7, "squared_hinge", steps=2, optimizer=optimizer)
    if kind == "fixed fan-in":  # some groups at a time
        check_steps(rng, kind, 100, 800, 300, 9, "bce", steps=2, optimizer=optimizer)


# The same shapes in every run: the loss of a handful of scores, which nothing averages, is at times
# 2 to 4e-6 off by the rounding of their sums alone, in one of some hundreds of such shapes.
@settings(max_examples=60, deadline=None, derandomize=True)
@given(kind=st.sampled_from(KINDS), **ANY_SHAPE)
@example(14115823, "dense", 35, 153, 30, 1, "squared_hinge", 0)  # a gradient of 2e-6 of the others
@example(1, "dense", 1, 140, 2, 1, "bce", 0)  # a saturated positive
def test_step_of_any_shape(seed, kind, batch, inputs, labels, fan_in, loss, threads):
    rng = np.random.default_rng(seed)
    check_steps(rng, kind, batch, inputs, labels, min(fan_in, inputs), loss, 2, threads)


@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
@pytest.mark.parametrize("score", [-20, -12, -1, 0, 1, 12, 20])
def test_gradients_of_saturated_scores_have_all_digits(instruction_set, score):
    """sigmoid(s) - 1 in float32 would leave few of them to confident positives."""
    kernels.set_instruction_set(instruction_set)
    weights = trained(np.array([[score], [score]]))
    one, labels = np.ones((1, 1), np.float32), np.array([1])
    kernels.step(
        one, weights, None, np.zeros(1, np.int32), labels, kernels.OptimizerStep(1), loss="bce"
    )
    expected = np.array([1 / (1 + np.exp(-score)), -1 / (1 + np.exp(score))]) / 2
    np.testing.assert_allclose(weights.m[:, 0], 0.1 * expected, rtol=2e-6)


@pytest.mark.parametrize("dtypes", [("bfloat16", "float32"), ("float32", "bfloat16")])
@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_is_right_on_average(kind, dtypes):
    """One step in bfloat16 from the same numbers: each value is one of the two neighbours of the
    float32 result, and their mean error is small against the rounding of one."""
    rng = np.random.default_rng(5)
    setup = make_setup(kind, 60, 3000, 32)
    weights_type, moments_type = (np.dtype(getattr(ml_dtypes, d, d)) for d in dtypes)
    model, layer = make_layer(rng, setup, kind, dtype=weights_type, moments=moments_type)
    exact = layer.original(layer.weights.values).astype(np.float64)  # as it was rounded
    model.arrays["output.weights"] = exact
    batch = make_batch(rng, 32, 60, 3000)
    model.step(batch, 0.01)
    kernels.step(
        batch.features,
        layer.weights,
        layer.bias,
        batch.positive_instances,
        batch.positive_labels,
        kernels.OptimizerStep(1, learning_rate=0.01, seed=9),
        **layer.connections,
    )
    results = {
        "values": (layer.weights.values, model.arrays["output.weights"], dtypes[0]),
        "m": (layer.weights.m, model.m["output.weights"], dtypes[1]),
        "v": (layer.weights.v, model.v["output.weights"], dtypes[1]),
    }
    for name, (got, expected, dtype) in results.items():
        got = layer.original(got).astype(np.float64)
        large = np.abs(expected) > np.median(np.abs(expected))  # not what cancelled to nearly 0
        error = (got - expected)[large] / np.abs(expected[large])
        room = 1e-4 if dtype == "float32" else 2.0**-7  # one unit in the last place
        assert np.abs(error).max() <= room, name
        if dtype == "bfloat16":
            assert np.abs(error).mean() > 2.0**-11, name  # it was rounded at all
            assert abs(error.mean()) < 2.0**-13, name  # and up as often as down


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
def test_a_mean_over_more_labels_than_the_layer_has(instruction_set, kind):
    kernels.set_instruction_set(instruction_set)
    check_mean_labels(kind)


def check_mean_labels(kind):
    """Over four times as many, loss and gradient are a quarter, and so is a step of SGD."""
    setup, results = make_setup(kind, 40, 90, 8), []
    for mean_labels in (0, 90, 360):
        rng = np.random.default_rng(1)
        _, layer = make_layer(rng, setup, kind, optimizer=Optimizer("sgd"))
        batch, before = make_batch(rng, 45, 40, 90), layer.bias.values.copy()
        positives = batch.positive_instances, batch.positive_labels
        loss, grad = kernels.step(
            *(batch.features, layer.weights, layer.bias, *positives),
            step_of(Optimizer("sgd"), 1, 100.0),
            mean_labels=mean_labels,
            **layer.connections,
        )
        results.append((loss, grad, layer.bias.values - before))
    for plain, same, quarter in zip(*results, strict=True):
        np.testing.assert_array_equal(plain, same)
        np.testing.assert_allclose(quarter, plain / 4, rtol=1e-4, atol=1e-7)
        assert np.abs(plain).max() > 1e-3


def test_rounding_depends_on_step_and_seed():
    rng = np.random.default_rng(0)
    setup = make_setup("fixed fan-in", 30, 200, 8)
    batch = make_batch(rng, 32, 30, 200)

    def run(step, seed):
        _, layer = make_layer(
            np.random.default_rng(1), setup, "fixed fan-in", dtype=ml_dtypes.bfloat16
        )
        adam = kernels.OptimizerStep(step, seed=seed)
        args = (
            batch.features,
            layer.weights,
            layer.bias,
            batch.positive_instances,
            batch.positive_labels,
            adam,
        )
        kernels.step(*args, **layer.connections)
        return layer.weights.values.astype(np.float32)

    np.testing.assert_array_equal(run(3, 1), run(3, 1))
    assert (run(3, 1) != run(3, 2)).any()


def test_seeds_round_independently():
    """Also neighbouring ones, at neighbouring steps."""

    def rounded_up(seed, step):
        weights = trained(np.full((1000, 4), 0.5), ml_dtypes.bfloat16)
        none = (np.empty(0, np.int32), np.empty(0, np.int64))
        adam = kernels.OptimizerStep(step, 1e-4, seed=seed)
        indices = np.random.default_rng(0).integers(0, 64, (1000, 4)).astype(np.uint16)
        kernels.step(np.ones((8, 64), np.float32), weights, None, *none, adam, indices=indices)
        return weights.values.ravel().astype(np.float32) == 0.5

    streams = [rounded_up(seed, step) for seed in (0, 1, 2) for step in (1, 2, 3)]
    assert all(0.1 < stream.mean() < 0.99 for stream in streams)
    correlation = np.corrcoef(streams) - np.eye(len(streams))
    assert abs(correlation).max() < 0.1


def part_of(layer, first, end):
    """The labels from first to end - 1 as a layer of their own: weights, bias, connections."""
    connections, weights = dict(layer.connections), slice(first, end)
    if (starts := connections.get("starts")) is not None:
        weights = slice(starts[first], starts[end])
        connections["starts"] = starts[first : end + 1] - starts[first]
        connections["indices"] = connections["indices"][weights]
    elif size := connections.get("group_size"):
        connections["indices"] = connections["indices"][first // size : -(-end // size)]
    else:
        connections = {name: array[first:end] for name, array in connections.items()}
    cut = [
        kernels.Trained(*(array[where].copy() for array in arrays_of(trained)))
        for trained, where in ((layer.weights, weights), (layer.bias, slice(first, end)))
    ]
    return *cut, connections


def check_parts(kind, weights, moments):
    """Two parts of a layer that are trained alone have bit for bit the values of the whole."""
    rng, inputs, fan_in = np.random.default_rng(3), 40, 9
    border = kernels.sorted_labels(inputs, 10**6) if kind == "sorted" else 2 * GROUP_SIZE
    labels = border + 31
    stored = {"dtype": ml_dtypes.bfloat16} if weights == "bfloat16" else {}
    setup, moments = make_setup(kind, inputs, labels, fan_in), np.dtype(moments)
    _, layer = make_layer(rng, setup, kind, moments=moments, **stored)
    per_label = inputs if kind == "dense" else fan_in
    begin = layer.connections["starts"][border] if kind == "unstructured" else border * per_label
    if weights == "float8":
        rows = kernels.to_float8(layer.weights.values)
        layer.weights = kernels.Trained(rows, layer.weights.m, layer.weights.v)
    parts = [(0, *part_of(layer, 0, border)), (border, *part_of(layer, border, labels))]
    for step in (1, 2):
        batch, adam = make_batch(rng, 45, inputs, labels), kernels.OptimizerStep(step, 0.01, seed=9)
        positives = batch.positive_instances, batch.positive_labels
        kernels.step(
            *(batch.features, layer.weights, layer.bias, *positives, adam), **layer.connections
        )
        for first, own_weights, own_bias, connections in parts:
            own = positives[1] - first
            kept = (own >= 0) & (own < len(own_bias.values))
            kernels.step(
                *(batch.features, own_weights, own_bias, positives[0][kept], own[kept], adam),
                mean_labels=labels,
                first_weight=int(begin) if first else 0,
                **connections,
            )
    together = [np.concatenate(a) for a in zip(*(arrays_of(p[1]) for p in parts), strict=True)]
    for found, expected in zip(together, arrays_of(layer.weights), strict=True):
        np.testing.assert_array_equal(found.view(np.uint8), expected.view(np.uint8))


STORED = [("float32", "bfloat16"), ("bfloat16", "float32"), ("bfloat16", "bfloat16")]
STORED_FLOAT8 = [("float8", "float32"), ("float8", "bfloat16")]


@pytest.mark.parametrize(
    ("kind", "stored"),
    [
        *((kind, stored) for kind in KINDS for stored in STORED),
        *((kind, stored) for kind in ("fixed fan-in", "grouped") for stored in STORED_FLOAT8),
    ],
)
@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
def test_parts_are_rounded_as_the_whole(instruction_set, kind, stored):
    """Whose random numbers follow from positions in the whole layer."""
    kernels.set_instruction_set(instruction_set)
    check_parts(kind, *stored)


def test_random_numbers_repeat_after_all_of_their_positions():
    """4,294,967,296 weights further on they begin anew; one weight further on they are others."""

    def rounded(first_weight):
        weights = trained(np.full((50, 4), 0.5), ml_dtypes.bfloat16)
        none = (np.empty(0, np.int32), np.empty(0, np.int64))
        kernels.step(
            *(np.ones((8, 4), np.float32), weights, None, *none, kernels.OptimizerStep(1, 1e-4)),
            first_weight=first_weight,
        )
        return weights.values.ravel().astype(np.float32)

    np.testing.assert_array_equal(rounded(2**32 + 7), rounded(7))
    np.testing.assert_array_equal(rounded(4)[:-4], rounded(0)[4:])
    assert (rounded(1) != rounded(0)).any()
