"""The op of labels that share their sources in groups: forward and backward pass, and what is
refused."""

from __future__ import annotations

import numpy as np
import pytest
import reference
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_layers import INSTRUCTION_SETS

from fanin import kernels
from fanin.kernels import library, numpy_ops, params

# As in test_linear.py: what rounding may do to a sum of n products of normal numbers, for each n.
ROUNDING = {np.dtype(np.float32): 2.0**-22, np.dtype(np.float64): 2.0**-50}


class Layer:
    """A grouped layer, and the indices that it would have if each label had its own row."""

    def __init__(self, rng, inputs, labels, fan_in, group_size, dtype, index):
        rows = -(-labels // group_size)
        self.indices = rng.integers(0, inputs, (rows, fan_in)).astype(index)
        self.indices_of_labels = self.indices.repeat(group_size, axis=0)[:labels]
        self.weights = rng.standard_normal((labels, fan_in)).astype(dtype)
        self.bias = rng.standard_normal(labels).astype(dtype)
        self.group_size = group_size


def check(rng, layer, batch, inputs, threads):
    """Forward and backward pass against float64, with poisoned outputs."""
    dtype = layer.weights.dtype
    labels, fan_in = layer.weights.shape
    x = rng.standard_normal((batch, inputs)).astype(dtype)
    grad = rng.standard_normal((batch, labels)).astype(dtype)
    out = np.full((batch, labels), np.nan, dtype)
    options = {"group_size": layer.group_size, "threads": threads}
    kernels.fan_in_linear(x, layer.indices, layer.weights, layer.bias, out=out, **options)
    right = reference.scores(x, layer.indices_of_labels, layer.weights, layer.bias)
    assert not np.isnan(out).any()
    assert np.abs(out - right).max(initial=0) <= 8 * ROUNDING[dtype] * (fan_in + 8)

    got = kernels.fan_in_linear_backward(grad, x, layer.indices, layer.weights, **options)
    expected = reference.gradients(grad, x, layer.indices_of_labels, layer.weights)
    for a, b, terms in zip(got, expected, (labels * fan_in, batch, batch), strict=True):
        assert a.shape == b.shape
        assert np.abs(a - b).max(initial=0) <= 8 * ROUNDING[dtype] * (8 + terms)
    return x, grad, got


@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**32 - 1),
    batch=st.integers(0, 100),
    inputs=st.integers(1, 300),
    labels=st.integers(1, 300),
    fan_in=st.integers(1, 130),
    group_size=st.integers(2, 64),
    dtype=st.sampled_from([np.float32, np.float64]),
    index=st.sampled_from([np.uint16, np.uint32]),
    threads=st.integers(0, 4),
)
def test_any_group(
    instruction_set, seed, batch, inputs, labels, fan_in, group_size, dtype, index, threads
):
    kernels.set_instruction_set(instruction_set)
    rng = np.random.default_rng(seed)
    layer = Layer(rng, inputs, labels, min(fan_in, inputs), group_size, dtype, index)
    check(rng, layer, batch, inputs, threads)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
def test_results_that_are_written_past_the_caches(instruction_set, dtype):
    """Scores and gradients of weights of more than 12 MiB, and more features than a core's cache
    holds, whose gradients are computed in a pass of their own."""
    kernels.set_instruction_set(instruction_set)
    rng = np.random.default_rng(0)
    labels = 400_004 // np.dtype(dtype).itemsize
    layer = Layer(rng, 7000, labels, 33, 48, dtype, np.uint16)
    check(rng, layer, 33, 7000, 3)


@pytest.mark.parametrize("absent", ["grad_features", "grad_weights", "grad_bias"])
def test_gradients_that_are_not_wanted(absent):
    """The others are the same."""
    rng = np.random.default_rng(1)
    layer = Layer(rng, 40, 100, 9, 24, np.float32, np.uint16)
    x, grad, right = check(rng, layer, 40, 40, 1)
    names = ("grad_features", "grad_weights", "grad_bias")
    got = {name: np.full_like(a, np.nan) for name, a in zip(names, right, strict=True)}
    wanted = {name: a for name, a in got.items() if name != absent}
    arrays = {"grad_scores": grad, "features": x, "indices": layer.indices, **wanted}
    arguments = params.BackwardParams(
        weights=numpy_ops._describe(layer.weights, "weights"),
        **{name: numpy_ops._describe(array, name) for name, array in arrays.items()},
        **{absent: library.absent()},
        group_size=24,
        threads=1,
    )
    library.call(arguments, numpy_ops._allocate)
    for name, array in zip(names, right, strict=True):
        if name != absent:
            np.testing.assert_array_equal(got[name], array)


def test_scores_do_not_depend_on_threads_nor_gradients_on_the_run():
    rng = np.random.default_rng(2)
    layer = Layer(rng, 300, 5000, 20, 30, np.float32, np.uint16)
    x = rng.standard_normal((40, 300), np.float32)
    grad = rng.standard_normal((40, 5000), np.float32)
    arrays = (x, layer.indices, layer.weights)
    one, four = (
        kernels.fan_in_linear(*arrays, layer.bias, group_size=30, threads=n) for n in (1, 4)
    )
    np.testing.assert_array_equal(one, four)
    runs = [kernels.fan_in_linear_backward(grad, *arrays, group_size=30, threads=3) for _ in "abc"]
    for run in runs[1:]:
        assert all(np.array_equal(a, b) for a, b in zip(run, runs[0], strict=True))


@pytest.mark.parametrize("label_group", [0, 1, 20, 166])
@pytest.mark.parametrize("fan_in, at", [(9, 4), (73, 72)])
def test_a_bad_index_is_found_wherever_it_is(label_group, fan_in, at):
    rng = np.random.default_rng(0)
    layer = Layer(rng, 100, 5000, fan_in, 30, np.float32, np.uint16)
    layer.indices[label_group, at] = 100
    x = rng.standard_normal((33, 100), np.float32)
    message = rf"indices\[{label_group}, {at}\] is 100, out of range for 100 inputs"
    arrays = (x, layer.indices, layer.weights)
    for threads in (1, 3):
        with pytest.raises(ValueError, match=message):
            kernels.fan_in_linear(*arrays, group_size=30, threads=threads)
        with pytest.raises(ValueError, match=message):
            grad = np.zeros((33, 5000), np.float32)
            kernels.fan_in_linear_backward(grad, *arrays, group_size=30, threads=threads)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"group_size": 1}, "group_size must be 2 to 64, got 1"),
        ({"group_size": 65}, "group_size must be 2 to 64, got 65"),
        ({"group_size": -8}, "group_size must be 2 to 64, got -8"),
        ({"group_size": 2**64 + 8}, f"group_size must be 2 to 64, got {2**64 + 8}"),
        ({"group_size": 9}, "indices have 3 rows but must have 2, one for each group of 9 of the"),
        ({"group_size": 0}, "labels is 18 here but 3 in indices"),
        ({"indices": np.zeros((2, 4), np.uint16)}, "indices have 2 rows but must have 3"),
        ({"indices": np.zeros((3, 5), np.uint16)}, "fan_in is 4 here but 5 in indices"),
        ({"weights": np.zeros((25, 4), np.float32)}, "indices have 3 rows but must have 4"),
    ],
)
def test_groups_that_make_no_layer(changes, message):
    layer = {
        "features": np.ones((2, 20), np.float32),
        "indices": np.zeros((3, 4), np.uint16),
        "weights": np.zeros((18, 4), np.float32),
        "group_size": 8,
        **changes,
    }
    with pytest.raises(ValueError, match=message):
        kernels.fan_in_linear(**layer)
    with pytest.raises(ValueError, match=message):
        kernels.fan_in_linear_backward(np.ones((2, len(layer["weights"])), np.float32), **layer)
