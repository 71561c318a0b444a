"""Weights in float8: what a byte means, how rows are rounded, and the steps and predictions of
layers that have them, on every instruction set that this machine runs."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_layers import (
    ANY_SHAPE,
    INSTRUCTION_SETS,
    make_batch,
    make_layer,
    make_setup,
    near,
    rate_of,
    step_both,
)

from fanin import kernels
from fanin.backends.optimizer import ADAM, Optimizer

KINDS = ("fixed fan-in", "grouped")
OPTIMIZERS = [ADAM, Optimizer("sgd", weight_decay=1e-5), Optimizer("momentum", l2=1e-5)]
BYTES = np.arange(256, dtype=np.uint8)
NUMBERS = BYTES.view(ml_dtypes.float8_e4m3fn).astype(np.float32)
NONE = (np.empty(0, np.int32), np.empty(0, np.int64))


def scales(rows):
    return 2.0 ** (rows[:, -1:].astype(int) - 127)


def units(values, rows):
    """From one number to the next at each of these values, in the scale of its row."""
    exponent = np.frexp(np.abs(values) / scales(rows))[1] - 1
    return scales(rows) * 2.0 ** (np.maximum(exponent, -6) - 3)


def connections_of(kind, labels, fan_in):
    """Every label reads the inputs 0 to fan_in - 1."""
    group_size = 8 if kind == "grouped" else 0
    rows = -(-labels // group_size) if group_size else labels
    return {
        "indices": np.arange(fan_in, dtype=np.uint16)[None].repeat(rows, 0),
        "group_size": group_size,
    }


def decay(kind, rows, share, step=1, seed=0):
    """A step without gradients: each weight loses this share, and rows are rounded."""
    rows = rows.copy()
    fan_in = rows.shape[1] - 1
    sgd = kernels.OptimizerStep(step, 1.0, kind="sgd", weight_decay=share, seed=seed)
    x = np.zeros((1, fan_in), np.float32)
    given = (kernels.Trained(rows), None, *NONE, sgd)
    kernels.step(x, *given, **connections_of(kind, len(rows), fan_in))
    return rows


def random_rows(rng, labels, fan_in):
    """Of sizes from 1e-6 to 1e3, and within a row from 1 to 1e-4 of its largest."""
    sizes = 10.0 ** rng.uniform(-6, 3, (labels, 1)) * 10.0 ** rng.uniform(-4, 0, (labels, fan_in))
    return (rng.choice([-1, 1], (labels, fan_in)) * sizes).astype(np.float32)


def test_the_nearest_number_is_that_of_ml_dtypes():
    rng = np.random.default_rng(0)
    weights = np.concatenate([random_rows(rng, 3000, 33), np.zeros((1, 33), np.float32)])
    weights[7, :3] = NUMBERS[[9, 11, 8]] + NUMBERS[1] / 2  # ties go to the even byte
    weights[7, 3:] = 448
    rows = kernels.to_float8(weights)
    scaled = (weights / scales(rows)).astype(np.float32)
    np.testing.assert_array_equal(
        rows[:, :-1], scaled.astype(ml_dtypes.float8_e4m3fn).view(np.uint8)
    )
    largest = np.abs(scaled).max(1)[:-1]
    assert ((largest > 224) & (largest <= 448)).all()
    np.testing.assert_array_equal(
        kernels.from_float8(rows), NUMBERS[rows[:, :-1]] * scales(rows).astype(np.float32)
    )


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_becomes_nan(bad):
    weights = np.array([[1, bad, 2]], np.float32)
    assert np.isnan(kernels.from_float8(kernels.to_float8(weights))[0, 1])


def test_a_row_of_tiny_weights_stays_a_row_of_numbers():
    weights = np.array([[1e-38, -1e-45], [2.0**-100, 0]], np.float32)
    read = kernels.from_float8(kernels.to_float8(weights))
    np.testing.assert_array_equal(read, [[0, 0], [2.0**-100, 0]])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
def test_prediction_reads_every_byte(instruction_set, kind):
    kernels.set_instruction_set(instruction_set)
    check_every_byte(kind)


def check_every_byte(kind, scales=(27, 100, 127, 140), batches=(1, 3, 8, 16, 33)):
    """Labels with one connection to an input that is 1: a score is the weight. For few instances
    and for many, which are scored in other ways."""
    for scale in scales:
        rows = np.stack([BYTES, np.full_like(BYTES, scale)], 1)
        right = NUMBERS * np.float32(2.0 ** (scale - 127))
        np.testing.assert_array_equal(kernels.from_float8(rows)[:, 0], right)
        for batch in batches:
            x = np.ones((batch, 1), np.float32)
            scores, ids = kernels.top_k(x, rows, None, 256, **connections_of(kind, 256, 1))
            for best, labels in zip(scores, ids, strict=True):
                np.testing.assert_array_equal(best, right[labels])
                np.testing.assert_array_equal(np.sort(labels), BYTES)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
def test_what_does_not_change_is_not_rounded(instruction_set, kind):
    kernels.set_instruction_set(instruction_set)
    check_no_change(kind)


def check_no_change(kind, fan_ins=(2, 33)):
    """Every byte, beside a number that keeps the scale. With one NaN, a label's score is NaN, and
    so are all its weights then."""
    for fan_in in fan_ins:
        rows = np.full((256, fan_in + 1), 0x7E, np.uint8)
        rows[:, 0], rows[:, -1] = BYTES, 130
        after = decay(kind, rows, 0.0)
        is_number = ~np.isnan(NUMBERS)
        before = kernels.from_float8(rows)
        np.testing.assert_array_equal(kernels.from_float8(after)[is_number], before[is_number])
        assert np.isnan(kernels.from_float8(after)[~is_number]).all()
        is_number[0x80] = False  # -0, of which a step makes 0
        np.testing.assert_array_equal(after[is_number], rows[is_number])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fan_in", [1, 32, 45])
def test_rounding_is_stochastic_and_right_on_average(kind, fan_in):
    """Each weight becomes one of its two neighbours, in the smallest scale of its row, up as often
    as down; all instruction sets round alike, and another seed rounds otherwise."""
    rng = np.random.default_rng(fan_in)
    rows = kernels.to_float8(random_rows(rng, 6000, fan_in))
    exact = kernels.from_float8(rows).astype(np.float64) * (1 - 2.0**-5)
    results = []
    for instruction_set in INSTRUCTION_SETS:
        kernels.set_instruction_set(instruction_set)
        results.append(decay(kind, rows, 2.0**-5))
    after = results[0]
    for other in results[1:]:
        np.testing.assert_array_equal(after, other)
    assert (decay(kind, rows, 2.0**-5, seed=1) != after).any()
    largest = np.abs(exact).max(1) / scales(after)[:, 0]
    assert ((largest > 224) & (largest <= 448)).all()
    errors = (kernels.from_float8(after) - exact) / units(exact, after)
    assert np.abs(errors).max() < 1
    assert (errors > 0).mean() > 0.1 and (errors < 0).mean() > 0.1
    assert abs(errors.mean()) < 4 * errors.std() / np.sqrt(errors.size)


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda each: each.kind)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
def test_step_follows_the_reference(instruction_set, kind, optimizer):
    kernels.set_instruction_set(instruction_set)
    rng = np.random.default_rng(7)
    check_step(rng, kind, 32, 50, 70, 32, "squared_hinge", optimizer)
    check_step(rng, kind, 33, 50, 1100, 7, "bce", optimizer)
    check_step(rng, kind, 100, 800, 300, 9, "bce", optimizer)  # some groups at a time
    check_step(rng, kind, 32, 50, 70, 45, "bce", optimizer, moments=ml_dtypes.bfloat16)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(kind=st.sampled_from(KINDS), optimizer=st.sampled_from(OPTIMIZERS), **ANY_SHAPE)
def test_step_of_any_shape(seed, kind, batch, inputs, labels, fan_in, loss, optimizer, threads):
    rng, fan_in = np.random.default_rng(seed), min(fan_in, inputs)
    check_step(rng, kind, batch, inputs, labels, fan_in, loss, optimizer, threads)


def check_step(
    rng, kind, size, inputs, labels, fan_in, loss, optimizer, threads=0, moments=np.float32
):
    """One step from the same weights as those of the reference, and prediction after it."""
    setup = make_setup(kind, inputs, labels, fan_in, loss)
    rate = rate_of(optimizer, size, labels)
    model, layer = make_layer(rng, setup, kind, optimizer=optimizer, moments=moments)
    rows = kernels.to_float8(layer.weights.values)
    layer.weights = kernels.Trained(rows, layer.weights.m, layer.weights.v)
    model.arrays["output.weights"] = kernels.from_float8(rows).astype(np.float64)
    batch = make_batch(rng, size, inputs, labels)
    step_both(model, layer, batch, rate, threads=threads)
    exact = model.arrays["output.weights"]
    off = np.abs(kernels.from_float8(rows) - exact)
    # What Adam makes of a gradient that is all but 0 is mostly rounding (`adam_rounding`).
    room = units(exact, rows) * (1 + 1e-5) + 2e-5 * np.abs(exact).max()
    unclear = 0.005 if optimizer.kind == "adam" else 0
    assert (off > room).mean() <= unclear and (off <= room + 2 * rate).all(), off.max()

    model.arrays["output.weights"] = kernels.from_float8(rows).astype(np.float64)
    for instances in (1, 5, size):
        x = batch.features[:instances]
        scores, ids = kernels.top_k(
            x, rows, layer.bias.values, min(labels, 5), threads=threads, **layer.connections
        )
        all_scores = model.scores(x)
        best = -np.sort(-all_scores, axis=1)[:, : ids.shape[1]]
        near(scores, best, 1e-5)
        near(np.take_along_axis(all_scores, ids, 1), best, 1e-5)


def test_a_thousand_steps_of_small_changes_are_not_lost():
    """Each is far below half a unit. Their sum is what all of them together would have done."""
    rows = kernels.to_float8(np.ones((2000, 4), np.float32))
    for step in range(1, 1001):
        rows = decay("fixed fan-in", rows, 2.0**-11, step)
    expected = (1 - 2.0**-11) ** 1000
    mean = kernels.from_float8(rows).mean()
    assert abs(mean - expected) < 0.01
    assert expected < 0.62


@pytest.mark.parametrize(
    "shape, arguments, message",
    [
        ((18, 4), {}, r"fan_in \+ 1 is 4 here but 5 in indices"),
        ((18, 6), {}, r"fan_in \+ 1 is 6 here but 5 in indices"),
        ((17, 5), {}, "labels is 17 here but 18 in indices"),
        ((18, 20), {"indices": None}, "weights must be float32 or bfloat16, got uint8"),
        ((18, 4), {"tile_labels": np.zeros((18, 4), np.uint16)}, "float32 or bfloat16, got uint8"),
        ((72,), {"starts": np.arange(19, dtype=np.int32) * 4, "indices": np.zeros(72, np.uint16)},
         "float32 or bfloat16, got uint8"),
    ],
)  # fmt: skip
def test_rows_that_make_no_layer(shape, arguments, message):
    rows = np.zeros(shape, np.uint8)
    layer = {"indices": np.zeros((18, 4), np.uint16), **arguments}
    x, sgd = np.ones((2, 20), np.float32), kernels.OptimizerStep(1, kind="sgd")
    with pytest.raises(ValueError, match=message):
        kernels.step(x, kernels.Trained(rows), None, *NONE, sgd, **layer)
    with pytest.raises(ValueError, match=message):
        kernels.top_k(x, rows, None, 3, **layer)


@pytest.mark.parametrize(
    "array", [[1.0], np.zeros(3, np.float32), np.zeros((3, 2)), np.zeros((3, 0), np.float32)]
)
def test_what_is_no_matrix_of_weights(array):
    with pytest.raises(ValueError, match="must be"):
        kernels.to_float8(array)
    with pytest.raises(ValueError, match="must be"):
        kernels.from_float8(array)


def test_a_step_starts_from_the_stored_weights():
    """A float32 layer of the same numbers has the same loss and gradient of the features."""
    rng = np.random.default_rng(1)
    rows = kernels.to_float8(rng.standard_normal((100, 20), np.float32))
    indices = rng.integers(0, 40, (100, 20)).astype(np.uint16)
    batch = make_batch(rng, 40, 40, 100)
    positives = (batch.positive_instances, batch.positive_labels)
    sgd = kernels.OptimizerStep(1, kind="sgd")
    plain = kernels.Trained(kernels.from_float8(rows))
    results = [
        kernels.step(batch.features, weights, None, *positives, sgd, indices=indices)
        for weights in (kernels.Trained(rows), plain)
    ]
    assert results[0][0] == results[1][0]
    np.testing.assert_array_equal(results[0][1], results[1][1])
