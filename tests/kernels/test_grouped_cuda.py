"""Labels that share their sources, on the emulated GPU: the products of tensor cores, sizes that
fill no whole block of them, types, and what is not finite or names nothing. `test_cuda.py` has them
among the other kinds of connections."""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import test_group_linear
from kernel_layers import check_steps, make_batch, trained
from numpy.ctypeslib import ndpointer
from test_grouped import make_layers

from fanin import kernels

# slow: the kernels are compiled first
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("on_the_gpu")]

ROOT = Path(__file__).parents[2]
HALF = ml_dtypes.bfloat16


@pytest.fixture(scope="module")
def multiply(tmp_path_factory):
    library = tmp_path_factory.mktemp("products") / "products.so"
    folders = ("tests/kernels/cuda_emulator", "kernels/src", "kernels/include")
    command = ["g++", "-std=c++17", "-O1", "-shared", "-fPIC", "-DFANIN_EMULATED_CUDA"]
    command += [f"-I{ROOT / folder}" for folder in folders]
    command += ["-o", str(library), str(ROOT / "tests/kernels/cuda_emulator/products.cpp")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    function = ctypes.CDLL(str(library)).multiply
    array = ndpointer(np.float32, flags="C")
    function.argtypes = [array] * 3 + [ctypes.c_int] * 3 + [ctypes.c_bool] * 2
    function.restype = None
    return function


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("exact", [False, True])
def test_products_have_the_digits_of_a_float(multiply, exact, apart):
    """All but 2^-22 of each product, and the rounding of the sums."""
    rng = np.random.default_rng(1)
    for rows, depth, columns in ((16, 8, 8), (32, 512, 24)):
        left = rng.standard_normal((rows, depth), np.float32) + 2  # so that sums grow one way
        if exact:
            left = left.astype(HALF).astype(np.float32)
        right = rng.standard_normal((depth, columns), np.float32) + 2
        out = np.full((rows, columns), np.nan, np.float32)
        multiply(left, right, out, rows, depth, columns, exact, apart)
        wide, other = left.astype(np.float64), right.astype(np.float64)
        error = np.abs(out - wide @ other) / (np.abs(wide) @ np.abs(other))
        assert error.max() < 2.0**-21


@pytest.mark.parametrize(
    ("group_size", "loss"), [(2, "bce"), (16, "squared_hinge"), (33, "squared_hinge"), (64, "bce")]
)
def test_step_of_each_group_size(group_size, loss):
    """A last group that is full or not or all there is; sources that fill no square, and more
    squares than are kept; one lane group and several; both types of indices."""
    rng = np.random.default_rng(group_size)
    for batch, inputs, labels, fan_in, steps in (
        (33, 90, 150, 31, 1),
        (3, 66_000, 2 * group_size, 40, 2),
        (100, 400, group_size + 1, 300, 1),
        (1, 5, 1, 1, 2),
    ):
        check_steps(rng, "grouped", batch, inputs, labels, fan_in, loss, steps, 0, group_size)


def stepped(weights, moments, connections, loss="squared_hinge"):
    """A step on the same batch each time: loss, gradient of the features, arrays."""
    layer = trained(weights, weights.dtype, moments)
    bias = trained(np.linspace(-1, 1, len(weights), dtype=np.float32))
    batch = make_batch(np.random.default_rng(2), 40, 50, len(weights))
    positives = (batch.positive_instances, batch.positive_labels)
    step = kernels.OptimizerStep(1, learning_rate=0.01, seed=3)
    value, grad = kernels.step(
        batch.features, layer, bias, *positives, step, loss=loss, **connections
    )
    return value, grad, (layer.values, layer.m, layer.v, bias.values)


@pytest.mark.parametrize("weights_type", [np.float32, HALF])
@pytest.mark.parametrize("moments", [np.float32, HALF])
def test_a_step_is_that_of_a_layer_whose_labels_repeat_the_sources(weights_type, moments):
    """Of each type of weights and moments; rounding is by the same random bits."""
    weights, grouped, plain = make_layers(np.random.default_rng(1), 100, 50, 45, 24, weights_type)
    for loss in ("squared_hinge", "bce"):
        value, grad, arrays = stepped(weights, moments, grouped, loss)
        right, right_grad, right_arrays = stepped(weights, moments, plain, loss)
        assert value == pytest.approx(right, rel=2e-6)
        np.testing.assert_allclose(grad, right_grad, rtol=0, atol=2e-6 * np.abs(right_grad).max())
        for array, wanted in zip(arrays, right_arrays, strict=True):
            off = np.abs(array.astype(np.float64) - wanted.astype(np.float64))
            room = 2e-5 * np.abs(wanted.astype(np.float64)).max()
            if array.dtype == HALF:
                # A difference in the last bits of a float rounds a few values the other way.
                assert (off > room).mean() < 0.01
                room = 2.0**-7 * np.abs(wanted.astype(np.float64))
            assert (off <= room + 1e-12).mean() > 0.999, array.dtype


@pytest.mark.parametrize("dtype", [np.float32, HALF])
@pytest.mark.parametrize("group_size", [8, 30, 64])
def test_top_k_is_that_of_a_layer_whose_labels_repeat_the_sources(group_size, dtype):
    rng = np.random.default_rng(3)
    for inputs, fan_in, labels in ((60, 33, 301), (70_000, 200, 70), (9, 9, 5)):
        weights, grouped, plain = make_layers(rng, labels, inputs, fan_in, group_size, dtype)
        bias = rng.standard_normal(labels, np.float32)
        for batch in (1, 33):
            x = rng.standard_normal((batch, inputs), np.float32)
            scores, ids = kernels.top_k(x, weights, bias, 5, **grouped)
            right, right_ids = kernels.top_k(x, weights, bias, 5, **plain)
            np.testing.assert_array_equal(ids, right_ids)
            np.testing.assert_allclose(scores, right, rtol=0, atol=1e-6 * np.abs(right).max())


def test_what_is_not_finite_gives_the_scores_that_it_gives_without_tensor_cores():
    """They would make NaN of infinity, and NaN ranks last."""
    rng = np.random.default_rng(4)
    weights, grouped, plain = make_layers(rng, 70, 30, 20, 16)
    x = rng.standard_normal((40, 30), np.float32)
    x[3, 7], x[4, 8], x[5, 9], weights[20, 3] = np.inf, -np.inf, np.nan, np.inf
    results = [kernels.top_k(x, weights, None, 70, **layer) for layer in (grouped, plain)]
    assert {np.inf, -np.inf} <= {*results[1][0].reshape(-1).tolist()}
    for ours, right in zip(*results, strict=True):
        np.testing.assert_allclose(ours, right, rtol=2e-5, atol=1e-4)
    most = np.finfo(np.float32).max  # which tf32 rounds to infinity
    x, weights = np.full((1, 30), most), np.full((1, 20), np.float32(2.0**-10))
    scores, _ = kernels.top_k(x, weights, None, 1, indices=grouped["indices"][:1], group_size=16)
    assert scores[0, 0] == pytest.approx(20 * 2.0**-10 * float(most), rel=1e-6)


def test_a_bad_index_spoils_its_group_alone():
    """The loss is NaN and the group stays as it was; in prediction its labels rank last."""
    weights, grouped, plain = make_layers(np.random.default_rng(6), 70, 50, 20, 16)
    _, _, right = stepped(weights, np.float32, grouped)
    grouped["indices"][2, 19] = 50
    value, _, arrays = stepped(weights, np.float32, grouped)
    assert np.isnan(value)
    of_group = np.arange(70) // 16 == 2
    np.testing.assert_array_equal(arrays[0][of_group], weights[of_group])
    for array, wanted in zip(arrays, right, strict=True):
        np.testing.assert_array_equal(array[~of_group], wanted[~of_group])
    x = np.ones((3, 50), np.float32)
    _, ids = kernels.top_k(x, weights, None, 70, **grouped)
    assert (of_group[ids] == (np.arange(70) >= 54)).all()


def test_a_batch_whose_gradients_do_not_fit_shared_memory():
    check_steps(np.random.default_rng(7), "grouped", 32 * 9, 20, 70, 5, "bce", 1, 0, 64)


@pytest.mark.parametrize("index", [np.uint16, np.uint32])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_op_follows_the_reference(dtype, index):
    """Groups that are cut where a tile of 32 labels ends; features and sums that a block keeps in
    shared memory, and others."""
    rng = np.random.default_rng(9)
    for batch, inputs, labels, fan_in, group_size in (
        (33, 50, 70, 7, 12),
        (5, 40, 300, 33, 64),
        (1, 1, 1, 1, 2),
        (40, 3000, 64, 40, 32),
    ):
        layer = test_group_linear.Layer(rng, inputs, labels, fan_in, group_size, dtype, index)
        test_group_linear.check(rng, layer, batch, inputs, 0)


def test_a_bad_index_makes_its_tile_of_the_op_nan():
    rng = np.random.default_rng(10)
    layer = test_group_linear.Layer(rng, 20, 100, 5, 24, np.float32, np.uint16)
    layer.indices[1, 4] = 20  # of the labels from 24 to 47, and so of two tiles
    x, grad = rng.standard_normal((33, 20), np.float32), np.ones((33, 100), np.float32)
    scores = kernels.fan_in_linear(x, layer.indices, layer.weights, layer.bias, group_size=24)
    bad = np.arange(100) < 64
    np.testing.assert_array_equal(np.isnan(scores), np.broadcast_to(bad, scores.shape))
    _, of_weights, of_bias = kernels.fan_in_linear_backward(
        grad, x, layer.indices, layer.weights, group_size=24
    )
    np.testing.assert_array_equal(np.isnan(of_bias), bad)
    np.testing.assert_array_equal(np.isnan(of_weights).all(1), bad)
