"""The op in TensorFlow beside what both frameworks have: traces, derivatives, kernels, devices."""

from __future__ import annotations

import importlib.resources
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import reference
import tensorflow as tf
from near import assert_near
from tensorflow.python.framework import kernels as registered_kernels

from fanin.backends.tensorflow import fan_in_linear
from fanin.backends.tensorflow.ops import ops
from fanin.kernels import library

pytestmark = pytest.mark.tensorflow

SUPPORT = Path(__file__).parents[2] / "support"


def random_layer(values=np.float32, batch=5):
    """Features [batch, 20], indices [7, 3], weights [7, 3], bias [7]."""
    rng = np.random.default_rng(0)
    return (
        rng.standard_normal((batch, 20)).astype(values),
        rng.integers(0, 20, (7, 3), np.uint16),
        rng.standard_normal((7, 3)).astype(values),
        rng.standard_normal(7).astype(values),
    )


def test_numpy_arrays_and_variables_are_taken():
    x, indices, weights, bias = random_layer()
    expected = fan_in_linear(*map(tf.constant, (x, indices, weights, bias))).numpy()
    assert_near(fan_in_linear(x, indices, tf.Variable(weights), bias), expected, 0)


def test_one_trace_serves_all_batch_sizes():
    arrays = random_layer(batch=50)
    _, indices, weights, bias = map(tf.constant, arrays)
    traces = []

    @tf.function(input_signature=[tf.TensorSpec([None, 20])])
    def forward(x):
        traces.append(x.shape)
        scores = fan_in_linear(x, indices, weights, bias)
        assert scores.shape.as_list() == [None, 7]
        return scores

    expected = reference.scores(*arrays)
    for batch in (50, 0, 1, 33):
        assert_near(forward(arrays[0][:batch]), expected[:batch], 2e-5)
    assert len(traces) == 1


@pytest.mark.parametrize("known", [None, (None, None)], ids=["rank unknown", "sizes unknown"])
def test_shapes_unknown_while_tracing_are_checked_by_the_kernel(known):
    arrays = random_layer()[:3]
    specs = [tf.TensorSpec(known, array.dtype) for array in arrays]
    forward = tf.function(fan_in_linear, input_signature=specs)
    assert_near(forward(*arrays), reference.scores(*arrays), 2e-5)
    with pytest.raises(tf.errors.InvalidArgumentError, match="fan_in 3 is larger than the 2 in"):
        forward(arrays[0][:, :2], *arrays[1:])


@pytest.mark.parametrize("backward", [False, True])
def test_a_traced_function_works_on_after_an_error(backward):
    x, indices, weights, _ = random_layer()

    @tf.function
    def run(x, indices):
        weights_tensor = tf.constant(weights)
        with tf.GradientTape() as tape:
            tape.watch(weights_tensor)
            scores = fan_in_linear(x, indices, weights_tensor)
        return tape.gradient(scores, weights_tensor) if backward else scores

    bad_indices, bad_x = indices.copy(), x.copy()
    bad_indices[4, 1], bad_x[3, 2] = 20, np.nan
    for given, message in (
        ((x, bad_indices), r"indices\[4, 1\] is 20, out of range for 20 inputs"),
        ((bad_x, indices), r"features\[3, 2\] is NaN; all features must be"),
    ):
        with pytest.raises(tf.errors.InvalidArgumentError, match=message):
            run(*map(tf.constant, given))
    assert np.isfinite(run(tf.constant(x), tf.constant(indices))).all()  # alive
    assert run.experimental_get_tracing_count() == 1


def test_only_wanted_gradients_are_computed():
    x, indices, weights, bias = map(tf.constant, random_layer())

    @tf.function
    def gradient():
        with tf.GradientTape() as tape:
            tape.watch(weights)
            scores = fan_in_linear(x, indices, weights, bias)
        return tape.gradient(scores, weights)

    graph = gradient.get_concrete_function().graph
    (op,) = (op for op in graph.get_operations() if op.type == "Fanin>FanInLinearGrad")
    wanted = [op.get_attr(f"want_{name}") for name in ("features", "weights", "bias")]
    assert wanted == [False, True, False]
    assert [output.shape.as_list() for output in op.outputs] == [[0], [7, 3], [0]]


@pytest.mark.parametrize("traced", [False, True])
def test_second_derivatives_agree_with_those_of_a_gather(traced):
    arrays = random_layer(np.float64)
    arrays[1][:, 1] = arrays[1][:, 0]  # inputs that a label names twice
    x, indices, weights, bias = map(tf.constant, arrays)

    def gather(x, indices, weights, bias):
        sources = tf.gather(x, tf.cast(indices, tf.int32), axis=1)
        return tf.einsum("blk,lk->bl", sources, weights) + bias

    def second(forward):
        forward = tf.function(forward) if traced else forward
        with tf.GradientTape() as outer:
            outer.watch([x, weights, bias])
            with tf.GradientTape() as inner:
                inner.watch([x, weights, bias])
                total = tf.reduce_sum(forward(x, indices, weights, bias) ** 3)
            first = inner.gradient(total, [x, weights, bias])
            size = tf.add_n([tf.reduce_sum(gradient**2) for gradient in first])
        return outer.gradient(size, [x, weights, bias])

    for ours, expected in zip(second(fan_in_linear), second(gather), strict=True):
        assert_near(ours, expected, 1e-12)


def test_a_persistent_tape_takes_first_derivatives_of_a_function():
    arrays = random_layer()
    x, indices, weights, bias = map(tf.constant, arrays)
    with tf.GradientTape(persistent=True) as tape:
        tape.watch([x, weights])
        total = tf.reduce_sum(tf.function(fan_in_linear)(x, indices, weights, bias))
    expected, *_ = reference.gradients(np.ones((5, 7)), *arrays[:3])
    assert_near(tape.gradient(total, x), expected, 2e-5)
    assert tape.gradient(total, weights).shape == (7, 3)


TRAINED = {"weights", "weights_m", "weights_v"}
BIAS = {"bias", "bias_m", "bias_v"}
OPTIMIZER = {"optimizer", "learning_rate", "step"}


@pytest.mark.parametrize(
    "op, in_host_memory",
    [
        ("FanInLinear", set()),
        ("FanInLinearGrad", set()),
        ("FusedStep", {*TRAINED, *OPTIMIZER, *BIAS}),
        ("DenseRelu", set()),
        ("DenseReluUpdate", {*TRAINED, *OPTIMIZER, *BIAS}),
        ("SparseRelu", set()),
        ("SparseReluUpdate", {*TRAINED, *OPTIMIZER, *BIAS}),
        ("TopK", {"k"}),
        ("Rewire", {*TRAINED, "indices", "inputs", "fraction", "seed", "moved"}),
    ],
)
def test_kernels_are_registered_for_both_devices(op, in_host_memory):
    ops()
    kernels = {
        kernel.device_type: kernel
        for kernel in registered_kernels.get_registered_kernels_for_op(f"Fanin>{op}").kernel
    }
    assert set(kernels) == {"CPU", "GPU"}
    assert set(kernels["GPU"].host_memory_arg) == in_host_memory
    assert not kernels["CPU"].host_memory_arg
    assert not any(kernel.constraint for kernel in kernels.values())  # for all types of the op


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32", "float32", "bfloat16"])
@pytest.mark.parametrize("op", ["VarHandleOp", "AssignVariableOp", "ReadVariableOp"])
def test_tensorflow_has_variables_of_our_types_on_any_device(op, dtype):
    """Those for a GPU are these, where it has none of its own."""
    assert any(
        kernel.device_type == "DEFAULT"
        and all(
            tf.as_dtype(dtype).as_datatype_enum in constraint.allowed_values.list.type
            for constraint in kernel.constraint
        )
        for kernel in registered_kernels.get_registered_kernels_for_op(op).kernel
    )


@pytest.mark.slow
def test_gpu_kernels_agree_with_those_of_the_cpu(tmp_path):
    """Where there is no GPU, on a stand-in for one; in a process of its own, for which it stays."""
    environment = dict(os.environ)
    command = [sys.executable, "-P", str(SUPPORT / "tensorflow_on_gpu.py")]
    if not tf.config.list_physical_devices("GPU"):
        stand_in = str(tmp_path / "stand_in.so")
        (tmp_path / "libfanin.so").symlink_to(library.library_path().resolve())
        include = importlib.resources.files("fanin.kernels") / "include"
        compile_command = [
            *("g++", "-shared", "-fPIC", *tf.sysconfig.get_compile_flags(), f"-I{include}"),
            *(str(SUPPORT / "gpu_stand_in.cpp"), "-o", stand_in),
            *(f"-L{tmp_path}", "-Wl,--no-as-needed", "-lfanin", f"-Wl,-rpath,{tmp_path}", "-ldl"),
        ]
        subprocess.run(compile_command, check=True)
        command.append(stand_in)
        environment["FANIN_LIBRARY"] = stand_in
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.endswith("the GPU agrees with the CPU\n")
