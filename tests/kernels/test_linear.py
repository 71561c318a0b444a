"""The kernels through their NumPy form, on every instruction set that this machine runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import reference
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_layers import INSTRUCTION_SETS

from fanin import kernels

# A float32 sum of n products of normal numbers: n * 2^-24 at worst, and some room for its size.
ROUNDING = {np.dtype(np.float32): 2.0**-22, np.dtype(np.float64): 2.0**-50}


def layer(rng, batch, inputs, labels, fan_in, dtype=np.float32, index=np.uint16):
    return (
        rng.standard_normal((batch, inputs)).astype(dtype),
        rng.integers(0, inputs, (labels, fan_in)).astype(index),
        rng.standard_normal((labels, fan_in)).astype(dtype),
        rng.standard_normal(labels).astype(dtype),
    )


def check(rng, x, indices, weights, bias, threads=0):
    """Forward and backward against the reference, with poisoned outputs."""
    batch, labels = len(x), len(indices)
    out = np.full((batch, labels), np.nan, x.dtype)
    assert kernels.fan_in_linear(x, indices, weights, bias, out=out, threads=threads) is out
    room = ROUNDING[x.dtype] * (indices.shape[1] + 8)
    assert not np.isnan(out).any()
    difference = np.abs(out - reference.scores(x, indices, weights, bias))
    assert difference.max(initial=0) <= 8 * room

    grad = rng.standard_normal((batch, labels)).astype(x.dtype)
    got = kernels.fan_in_linear_backward(grad, x, indices, weights, threads=threads)
    expected = reference.gradients(grad, x, indices, weights)
    # Longest sums: every label may add to one feature, every instance to a weight.
    largest = ROUNDING[x.dtype] * (8 + np.array([labels * indices.shape[1], batch, batch]))
    for name, a, b, limit in zip(
        ("features", "weights", "bias"), got, expected, largest, strict=True
    ):
        assert a.shape == b.shape
        assert np.abs(a - b).max(initial=0) <= 8 * limit, name


@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_random_shapes(instruction_set, data):
    kernels.set_instruction_set(instruction_set)
    inputs = data.draw(st.integers(1, 300), "inputs")
    shape = (
        data.draw(st.integers(0, 130), "batch"),
        inputs,
        data.draw(st.integers(1, 200), "labels"),
        data.draw(st.integers(1, min(inputs, 70)), "fan_in"),
    )
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32), "seed"))
    dtype = data.draw(st.sampled_from([np.float32, np.float64]))
    index = data.draw(st.sampled_from([np.uint16, np.uint32]))
    check(rng, *layer(rng, *shape, dtype, index), threads=data.draw(st.integers(0, 5)))


@pytest.mark.slow
@pytest.mark.parametrize(
    "shape",
    [
        (33, 70_000, 100, 130),
        (300, 1, 1, 1),
        (1, 65_536, 40_000, 3),
        (32, 768, 100_000, 32),
        (7, 130, 33, 130),
    ],
)
def test_large_shapes(shape):
    rng = np.random.default_rng(3)
    index = np.uint16 if shape[1] <= 65_536 else np.uint32
    check(rng, *layer(rng, *shape, index=index))


@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
@pytest.mark.parametrize("dtype, labels", [(np.float32, 40_011), (np.float64, 20_033)])
@pytest.mark.parametrize("offset", [0, 1, 6])
def test_large_scores_wherever_their_rows_begin(instruction_set, dtype, labels, offset):
    """Those are stored past the caches, line by line, and rows begin anywhere within a line. All
    elements are written, and nothing beside them."""
    kernels.set_instruction_set(instruction_set)
    rng = np.random.default_rng(offset)
    x, indices, weights, bias = layer(rng, 97, 50, labels, 2, dtype)
    size, line = 97 * labels, 64 // np.dtype(dtype).itemsize
    assert size * np.dtype(dtype).itemsize > 12 << 20
    memory = np.full(size + 4 * line, np.nan, dtype)
    begin = line - memory.ctypes.data % 64 // memory.itemsize + line + offset
    out = memory[begin : begin + size].reshape(97, labels)
    for threads in (1, 3):
        memory.fill(np.nan)
        kernels.fan_in_linear(x, indices, weights, bias, out=out, threads=threads)
        difference = np.abs(out - reference.scores(x, indices, weights, bias))
        assert difference.max() <= 80 * ROUNDING[np.dtype(dtype)]
        assert np.isnan(memory[:begin]).all()
        assert np.isnan(memory[begin + size :]).all()


def test_largest_index_of_each_type():
    x = np.zeros((2, 70_000), np.float32)
    x[:, 65_535], x[:, 69_999] = 2, 3
    ones = np.ones((1, 1), np.float32)
    narrow = np.array([[65_535]], np.uint16)
    wide = np.array([[69_999]], np.uint32)
    assert kernels.fan_in_linear(x, narrow, ones).tolist() == [[2], [2]]
    assert kernels.fan_in_linear(x, wide, ones).tolist() == [[3], [3]]


def test_a_source_named_twice_counts_twice():
    x = np.array([[5.0, 7.0]], np.float32)
    indices = np.array([[1, 1]], np.uint16)
    weights = np.array([[2.0, 3.0]], np.float32)
    assert kernels.fan_in_linear(x, indices, weights).item() == 35
    grad = np.ones((1, 1), np.float32)
    features, of_weights, bias = kernels.fan_in_linear_backward(grad, x, indices, weights)
    assert features.tolist() == [[0, 5]]
    assert of_weights.tolist() == [[7, 7]]
    assert bias.tolist() == [1]


def test_empty_batch_has_zero_gradients():
    rng = np.random.default_rng(0)
    x, indices, weights, bias = layer(rng, 0, 5, 4, 2)
    assert kernels.fan_in_linear(x, indices, weights, bias).shape == (0, 4)
    grads = kernels.fan_in_linear_backward(np.zeros((0, 4), np.float32), x, indices, weights)
    assert [g.shape for g in grads] == [(0, 5), (4, 2), (4,)]
    assert not grads[1].any()
    assert not grads[2].any()


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_deterministic_for_a_thread_count(threads):
    rng = np.random.default_rng(1)
    x, indices, weights, bias = layer(rng, 40, 300, 5000, 20)
    grad = rng.standard_normal((40, 5000)).astype(np.float32)
    first = kernels.fan_in_linear_backward(grad, x, indices, weights, threads=threads)
    for _ in range(5):
        again = kernels.fan_in_linear_backward(grad, x, indices, weights, threads=threads)
        assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))


def test_scores_do_not_depend_on_threads():
    rng = np.random.default_rng(1)
    x, indices, weights, bias = layer(rng, 33, 50, 1000, 7)
    one = kernels.fan_in_linear(x, indices, weights, bias, threads=1)
    assert np.array_equal(one, kernels.fan_in_linear(x, indices, weights, bias, threads=4))


def test_works_in_a_forked_child():
    """Where OpenMP's threads are gone."""
    program = """
import os, signal, sys
import numpy as np
from fanin import kernels
x, w = np.ones((4, 8), np.float32), np.ones((300, 2), np.float32)
i = np.zeros((300, 2), np.uint16)
assert (kernels.fan_in_linear(x, i, w, threads=2) == 2).all()
child = os.fork()
if not child:
    signal.alarm(20)
    os._exit(not (kernels.fan_in_linear(x, i, w, threads=2) == 2).all())
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    assert subprocess.run([sys.executable, "-P", "-c", program], check=False).returncode == 0


def test_instruction_sets_agree():
    rng = np.random.default_rng(2)
    x, indices, weights, bias = layer(rng, 45, 500, 3000, 33)
    results = []
    for name in INSTRUCTION_SETS:
        kernels.set_instruction_set(name)
        assert kernels.build_info()["instruction_set"] == name
        results.append(kernels.fan_in_linear(x, indices, weights, bias))
    for other in results[1:]:
        assert np.abs(results[0] - other).max() < 2e-5


def test_the_setting_chooses_the_instruction_set():
    command = "import json; from fanin.kernels import build_info; print(json.dumps(build_info()))"
    for name in INSTRUCTION_SETS:
        done = subprocess.run(
            [sys.executable, "-P", "-c", command],
            env={**os.environ, "FANIN_INSTRUCTION_SET": name},
            capture_output=True,
            check=True,
        )
        assert json.loads(done.stdout)["instruction_set"] == name


def test_an_unknown_setting_is_an_error_that_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"unknown instruction set 'sse9'; there are .*baseline"):
        kernels.set_instruction_set("sse9")


def good(**changes):
    arrays = {
        "features": np.ones((3, 8), np.float32),
        "indices": np.zeros((5, 2), np.uint16),
        "weights": np.ones((5, 2), np.float32),
        "bias": np.zeros(5, np.float32),
    }
    return {**arrays, **changes}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"features": np.ones((3, 8, 1), np.float32)}, r"features must be \[batch, inputs\]"),
        (
            {"features": np.ones((3, 8), np.float16)},
            "features must be float32 or float64, got float16",
        ),
        ({"features": np.ones((3, 8), np.int64)}, "features must be float32 or float64, got int64"),
        ({"features": np.ones((8, 3), np.float32).T}, r"features \[3, 8\] is not contiguous"),
        ({"features": np.ones((3, 16), np.float32)[:, ::2]}, "features .* is not contiguous"),
        ({"features": np.ones((3, 1), np.float32)}, "fan_in 2 is larger than the 1 inputs"),
        ({"features": np.ones((3, 0), np.float32)}, "inputs must be at least 1"),
        ({"indices": np.zeros((5, 2), np.int64)}, "indices must be uint16 or uint32, got int64"),
        ({"indices": np.zeros((5, 2), np.int32)}, "indices must be uint16 or uint32, got int32"),
        ({"indices": np.zeros((5, 3), np.uint16)}, "fan_in is 2 here but 3 in indices"),
        ({"indices": np.zeros((2, 5), np.uint16).T}, "indices .* is not contiguous"),
        ({"indices": np.full((5, 2), 8, np.uint16)}, r"indices\[0, 0\] is 8, out of range for 8"),
        ({"weights": np.ones((5, 2), np.float64)}, "weights is float64 but features is float32"),
        ({"weights": np.ones((4, 2), np.float32)}, "labels is 4 here but 5 in indices"),
        ({"bias": np.zeros(4, np.float32)}, "labels is 4 here but 5 in indices"),
        ({"bias": np.zeros((5, 1), np.float32)}, r"bias must be \[labels\]"),
        ({"out": np.zeros((3, 4), np.float32)}, "labels is 4 here but 5 in indices"),
        ({"out": np.zeros((3, 5), np.float64)}, "scores is float64 but features is float32"),
        ({"threads": -1}, r"threads must be 0 \(all\) or 1 to 1024, got -1"),
        ({"threads": 1025}, r"threads must be 0 \(all\) or 1 to 1024, got 1025"),
        (
            {
                "indices": np.zeros((0, 2), np.uint16),
                "weights": np.ones((0, 2), np.float32),
                "bias": None,
            },
            "labels must be at least 1",
        ),
        (
            {"indices": np.zeros((5, 0), np.uint16), "weights": np.ones((5, 0), np.float32)},
            "fan_in must be at least 1",
        ),
    ],
)
def test_bad_arguments_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        kernels.fan_in_linear(**good(**changes))
    assert kernels.fan_in_linear(**good()).shape == (3, 5)


@pytest.mark.parametrize("label", [0, 31, 32, 4999])
@pytest.mark.parametrize("index", [np.uint16, np.uint32])
@pytest.mark.parametrize("fan_in, at", [(9, 4), (73, 0), (73, 40), (73, 72)])
def test_a_bad_index_is_found_wherever_it_is(label, index, fan_in, at):
    rng = np.random.default_rng(0)
    x, indices, weights, bias = layer(rng, 33, 100, 5000, fan_in, index=index)
    indices[label, at] = 100
    message = rf"indices\[{label}, {at}\] is 100, out of range for 100 inputs"
    with pytest.raises(ValueError, match=message):
        kernels.fan_in_linear(x, indices, weights, bias)
    with pytest.raises(ValueError, match=message):
        kernels.fan_in_linear_backward(np.zeros((33, 5000), np.float32), x, indices, weights)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("at", [(0, 0), (32, 99), (40, 50)])
def test_a_feature_that_is_not_finite_is_found(value, at):
    rng = np.random.default_rng(0)
    x, indices, weights, bias = layer(rng, 41, 100, 50, 9)
    x[at] = value
    with pytest.raises(ValueError, match=rf"features\[{at[0]}, {at[1]}\] is -?(NaN|inf)"):
        kernels.fan_in_linear(x, indices, weights, bias)


def test_a_missing_library_says_how_to_build_it():
    done = subprocess.run(
        [sys.executable, "-P", "-c", "from fanin.kernels import build_info; build_info()"],
        env={**os.environ, "FANIN_LIBRARY": "/nowhere/libfanin.so"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "/nowhere/libfanin.so" in done.stderr


def test_the_processor_is_named_with_its_generation(monkeypatch):
    one = "processor\t: 0\ncpu family\t: 25\nmodel\t\t: 17\nmodel name\t: AMD EPYC\n\n"
    monkeypatch.setattr(Path, "read_text", lambda self: one + one.replace("17", "18"))
    assert kernels.processor() == "AMD EPYC (family 25, model 17)"
    monkeypatch.setattr(Path, "read_text", lambda self: "nothing of this kind\n")
    monkeypatch.setattr("platform.processor", lambda: "x86")
    assert kernels.processor() == "x86"
