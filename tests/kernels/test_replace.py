"""Replacing sources by gradients: the kernel in its NumPy form, on every instruction set of this
machine."""

from __future__ import annotations

from itertools import pairwise

import choose_reference
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_layers import INSTRUCTION_SETS, trained

from fanin import kernels

HALF = ml_dtypes.bfloat16
# Few, so that many are equal; the smallest float and what is no number are among them.
SOME_VALUES = np.array([0, -0.0, 1, -1, 2, -2.5, 1e-45, np.inf, -np.inf, np.nan], np.float32)


def layer(values, dtype=np.float32, moments=None):
    """Weights with moments that are not 0."""
    weights = trained(np.asarray(values), dtype, moments or dtype)
    weights.m[:], weights.v[:] = 3, 5
    return weights


def check(rng, labels, inputs, fan_in, replaced, *, half, half_moments, index, threads=0):
    """Hold the result on random rows against the reference, whether weights are kept or not."""
    gradients = rng.choice(SOME_VALUES, (labels, inputs))
    few = rng.random(labels) < 0.2  # with fewer inputs to take than connections to move
    gradients[few[:, None] & (rng.random((labels, inputs)) < 0.9)] = 0
    sources = rng.permuted(np.tile(np.arange(inputs), (labels, 1)), axis=1)[:, :fan_in]
    values = rng.choice(SOME_VALUES, (labels, fan_in)).astype(HALF if half else np.float32)
    known = choose_reference.replacements(gradients, sources, values, replaced)
    moves = [(np.full(len(slots), label), slots, new) for label, (slots, new) in enumerate(known)]
    at, slots, new = (np.concatenate(part).astype(int) for part in zip(*moves, strict=True))
    for keep in (False, True):
        weights = layer(values, values.dtype, HALF if half_moments else np.float32)
        indices, moved = sources.astype(index), np.full(labels, -9, np.int32)
        options = {"keep_weights": keep, "moved": moved, "threads": threads}
        kernels.replace_sources(gradients, indices, weights, replaced, **options)
        np.testing.assert_array_equal(moved, np.bincount(at, minlength=labels))
        expected = {"indices": sources.copy(), "values": values.astype(np.float32)}
        expected |= {"m": np.full(sources.shape, 3), "v": np.full(sources.shape, 5)}
        expected["indices"][at, slots] = new
        for name in ("m", "v") if keep else ("m", "v", "values"):
            expected[name][at, slots] = 0
        np.testing.assert_array_equal(indices, expected.pop("indices"))
        for name, array in expected.items():
            np.testing.assert_array_equal(getattr(weights, name).astype(np.float32), array, name)


@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_random_shapes(instruction_set, data):
    kernels.set_instruction_set(instruction_set)
    labels = data.draw(st.integers(1, 150), "labels")
    inputs = data.draw(st.integers(1, 150), "inputs")
    fan_in = data.draw(st.sampled_from([1, inputs, (inputs + 1) // 2]), "fan_in")
    replaced = data.draw(st.integers(0, fan_in), "replaced")
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32), "seed"))
    check(
        *(rng, labels, inputs, fan_in, replaced),
        half=data.draw(st.booleans(), "bfloat16 weights"),
        half_moments=data.draw(st.booleans(), "bfloat16 moments"),
        index=data.draw(st.sampled_from([np.uint16, np.uint32]), "index"),
        threads=data.draw(st.integers(0, 2), "threads"),
    )


def test_what_moves_and_where_to():
    """One label: slots 1 and 3 are the weakest, inputs 0 and 6 have the largest gradients among
    those that are no sources."""
    gradients = np.array([[-3, 0, 9, 1, np.nan, 9, 2, 2]], np.float32)
    indices = np.array([[5, 2, 4, 7]], np.uint16)
    weights = layer([[2, -0.5, np.nan, 0.5]])
    moved = np.zeros(1, np.int32)
    kernels.replace_sources(gradients, indices, weights, 2, moved=moved)
    assert indices.tolist() == [[5, 0, 4, 6]]
    np.testing.assert_array_equal(weights.values, [[2, 0, np.nan, 0]])
    assert weights.m.tolist() == [[3, 0, 3, 0]] and weights.v.tolist() == [[5, 0, 5, 0]]
    assert moved.tolist() == [2]
    # Now 2, 3 and 7 are left, and 3 of 4 can move: the NaN stays.
    kernels.replace_sources(gradients, indices, weights, 4, keep_weights=True, moved=moved)
    assert indices.tolist() == [[2, 3, 4, 7]] and moved.tolist() == [3]
    np.testing.assert_array_equal(weights.values, [[2, 0, np.nan, 0]])


def test_a_label_depends_on_nothing_but_its_rows():
    rng = np.random.default_rng(1)
    gradients = rng.standard_normal((700, 300)).astype(np.float32)
    sources = rng.permuted(np.tile(np.arange(300, dtype=np.uint16), (700, 1)), axis=1)[:, :20]
    values = rng.standard_normal((700, 20))
    results = []
    for bounds, threads in (([0, 700], 1), ([0, 700], 2), ([0, 1, 64, 500, 700], 0)):
        indices, weights = sources.copy(), layer(values)
        for start, end in pairwise(bounds):
            rows = slice(start, end)
            block = kernels.Trained(weights.values[rows], weights.m[rows], weights.v[rows])
            kernels.replace_sources(gradients[rows], indices[rows], block, 7, threads=threads)
        results.append(np.hstack([indices, weights.values, weights.m, weights.v]))
    assert (results[0][:, :20] != sources).sum() == 7 * 700
    for other in results[1:]:
        np.testing.assert_array_equal(other, results[0])


def test_wide_indices_name_inputs_beyond_65536():
    gradients = np.zeros((1, 70_000), np.float32)
    gradients[0, [69_999, 65_536, 5]] = 1, -3, 2
    indices = np.array([[65_536, 65_537, 0]], np.uint32)
    kernels.replace_sources(gradients, indices, layer([[1, 2, 3]]), 3)
    assert indices.tolist() == [[5, 69_999, 0]]


@pytest.mark.parametrize("index", [np.uint16, np.uint32])
def test_a_label_with_an_index_out_of_range_is_named_and_stays(index):
    gradients = np.ones((3, 6), np.float32)
    indices, weights = np.array([[0, 1], [0, 6], [4, 5]], index), layer(np.ones((3, 2)))
    with pytest.raises(ValueError, match=r"indices\[1, 1\] is 6, out of range for 6 inputs"):
        kernels.replace_sources(gradients, indices, weights, 1)
    assert indices[1].tolist() == [0, 6]
    assert weights.values[1].tolist() == [1, 1] and weights.m[1].tolist() == [3, 3]


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("gradients", np.zeros((3, 6)), "gradients must be float32, got float64"),
        ("gradients", np.zeros((4, 6), np.float32), "labels is 3 here but 4 in gradients"),
        ("gradients", np.zeros((6, 3), np.float32).T, "not contiguous"),
        ("gradients", np.zeros((3, 1), np.float32), "fan_in 2 is larger than the 1 inputs"),
        ("gradients", np.zeros((3, 65_537), np.float32), "65537 do not fit indices of type uint16"),
        ("indices", np.zeros((3, 2), np.int64), "indices must be uint16 or uint32, got int64"),
        ("indices", None, "indices is missing"),
        ("weights", layer(np.zeros((3, 3))), "fan_in is 3 here but 2 in indices"),
        ("weights", layer(np.zeros((3, 2)), np.float64), "weights must be float32 or bfloat16"),
        ("weights", np.zeros((3, 2)), "weights must be a Trained, got ndarray"),
        ("moved", np.zeros(3), "moved must be int32, got float64"),
        ("moved", np.zeros(2, np.int32), "labels is 2 here but 3 in gradients"),
        ("replaced", 3, r"replaced must be in 0..2 \(fan_in\), got 3"),
        ("replaced", -1, r"replaced must be in 0..2 \(fan_in\), got -1"),
        ("replaced", 2**63, "replaced must be at least 0 and below"),
        ("threads", -1, "threads must be 0"),
    ],
)
def test_wrong_arguments(name, value, message):
    arguments = {
        "gradients": np.zeros((3, 6), np.float32),
        "indices": np.zeros((3, 2), np.uint16),
        "weights": layer(np.ones((3, 2))),
        "replaced": 1,
    }
    kernels.replace_sources(**arguments)
    with pytest.raises(ValueError, match=message):
        kernels.replace_sources(**{**arguments, name: value})


def test_shared_memory():
    values = np.ones((3, 3), np.float32)
    with pytest.raises(ValueError, match="share memory"):
        weights = kernels.Trained(values, values.copy(), values.copy())
        kernels.replace_sources(values, np.zeros((3, 3), np.uint16), weights, 1)
