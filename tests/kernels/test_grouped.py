"""Labels that share their sources: the fused step and prediction at many sizes of groups, and what
is refused. `test_step.py` and `test_top_k.py` have them among the other kinds."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_layers import (
    ANY_SHAPE,
    INSTRUCTION_SETS,
    check_steps,
    make_batch,
    make_layer,
    make_setup,
    trained,
)

from fanin import kernels


@pytest.mark.parametrize("group_size", [2, 7, 8, 16, 32, 48, 63, 64])
@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
def test_step_of_each_group_size(instruction_set, group_size):
    """A last group that is not full, one that is, and a layer that is less than a group."""
    kernels.set_instruction_set(instruction_set)
    rng = np.random.default_rng(group_size)
    for batch, labels, fan_in in ((32, 150, 16), (70, 2 * group_size, 33), (5, 1, 3)):
        check_steps(rng, "grouped", batch, 90, labels, fan_in, "bce", 2, 0, group_size)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(group_size=st.integers(2, 64), **ANY_SHAPE | {"fan_in": st.integers(1, 130)})
def test_step_of_any_group(seed, batch, inputs, labels, fan_in, group_size, loss, threads):
    rng, fan_in = np.random.default_rng(seed), min(fan_in, inputs)
    check_steps(rng, "grouped", batch, inputs, labels, fan_in, loss, 2, threads, group_size)


def make_layers(rng, labels, inputs, fan_in, group_size, dtype=np.float32):
    """The same layer twice: with groups, and with indices for each label."""
    rows = -(-labels // group_size)
    kind = np.uint16 if inputs <= 65536 else np.uint32
    indices = rng.integers(0, inputs, (rows, fan_in)).astype(kind)
    weights = rng.standard_normal((labels, fan_in), np.float32).astype(dtype)
    grouped = {"indices": indices, "group_size": group_size}
    return weights, grouped, {"indices": indices.repeat(group_size, axis=0)[:labels]}


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
@pytest.mark.parametrize("group_size", [8, 30, 64])
@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
def test_top_k_is_that_of_a_layer_whose_labels_repeat_the_sources(
    instruction_set, group_size, dtype
):
    """For few instances, which the kernels score in another way, and for many."""
    kernels.set_instruction_set(instruction_set)
    rng = np.random.default_rng(3)
    for inputs, fan_in, labels in ((60, 33, 1001), (70_000, 16, 64), (9, 9, 5)):
        weights, grouped, plain = make_layers(rng, labels, inputs, fan_in, group_size, dtype)
        bias = rng.standard_normal(labels, np.float32)
        for batch in (1, 2, 8, 9, 33):
            x = rng.standard_normal((batch, inputs), np.float32)
            for threads in (1, 3):
                scores, ids = kernels.top_k(x, weights, bias, 5, threads=threads, **grouped)
                right, right_ids = kernels.top_k(x, weights, bias, 5, **plain)
                np.testing.assert_array_equal(ids, right_ids)
                np.testing.assert_allclose(scores, right, rtol=0, atol=1e-5 * np.abs(right).max())


def test_top_k_of_few_instances_puts_nan_last():
    weights = np.array([np.nan, 1, -np.inf, 3, np.inf, 0, 0, 0, 0], np.float32)[:, None]
    indices = np.zeros((5, 1), np.uint16)
    for batch in (1, 3, 8, 9):
        x = np.ones((batch, 1), np.float32)
        _, ids = kernels.top_k(x, weights, None, 9, indices=indices, group_size=2)
        np.testing.assert_array_equal(ids, [[4, 3, 1, 5, 6, 7, 8, 2, 0]] * batch)


def test_a_bfloat16_step_starts_from_the_stored_weights():
    """The loss and the gradient of the features are those of a float32 layer of the same values."""
    results = []
    for dtype in (ml_dtypes.bfloat16, np.float32):
        weights, grouped, _ = make_layers(np.random.default_rng(1), 100, 40, 20, 16)
        layer = trained(weights.astype(ml_dtypes.bfloat16), dtype)
        batch = make_batch(np.random.default_rng(2), 40, 40, 100)
        args = (batch.features, layer, None, batch.positive_instances, batch.positive_labels)
        results.append(kernels.step(*args, kernels.OptimizerStep(1), **grouped))
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-6)
    np.testing.assert_allclose(results[0][1], results[1][1], rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"group_size": 1}, "group_size must be 2 to 64, got 1"),
        ({"group_size": 65}, "group_size must be 2 to 64, got 65"),
        ({"group_size": -8}, "group_size must be 2 to 64, got -8"),
        ({"group_size": 9}, "indices have 3 rows but must have 2, one for each group of 9 of the"),
        ({"indices": np.zeros((2, 4), np.uint16)}, "indices have 2 rows but must have 3"),
        ({"indices": np.zeros((3, 5), np.uint16)}, "fan_in"),
        ({"indices": np.full((3, 4), 20, np.uint16)}, "20"),
        ({"starts": np.zeros(4, np.int32)}, "group"),
        ({"tile_labels": np.zeros((3, 4), np.uint16)}, "either grouped or sorted"),
        ({"indices": None}, "group_size"),
    ],
)
def test_groups_that_make_no_layer(arguments, message):
    weights = np.zeros((18, 4), np.float32)
    layer = {"indices": np.zeros((3, 4), np.uint16), "group_size": 8, **arguments}
    x, none = np.ones((2, 20), np.float32), (np.empty(0, np.int32), np.empty(0, np.int64))
    with pytest.raises(ValueError, match=message):
        kernels.step(x, trained(weights), None, *none, kernels.OptimizerStep(1), **layer)
    with pytest.raises(ValueError, match=message):
        kernels.top_k(x, weights, None, 3, **layer)


def test_no_result_depends_on_how_threads_divide_groups():
    """Gradients of weights and scores do not; the sum over labels may, in its last bits."""
    setup = make_setup("grouped", 50, 500, 16)
    results = []
    for threads in (1, 2, 5):
        _, layer = make_layer(np.random.default_rng(4), setup, "grouped")
        batch = make_batch(np.random.default_rng(5), 64, 50, 500)
        positives = (batch.positive_instances, batch.positive_labels)
        args = (batch.features, layer.weights, layer.bias, *positives, kernels.OptimizerStep(1))
        kernels.step(*args, threads=threads, **layer.connections)
        results.append(layer.weights.values)
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])
