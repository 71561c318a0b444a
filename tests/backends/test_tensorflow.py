"""The TensorFlow side: the op, the Keras layer and the trainer against float64 NumPy.

The numerics are those of reference.py; dense matrices, no care for speed.
"""

from __future__ import annotations

import concurrent.futures
import importlib.resources
import os
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import Model
from reference import loss as reference_loss
from tensorflow.python.framework import kernels as registered_kernels

from fanin.backends import setup as kinds
from fanin.backends.arrays import Rewiring, copied, initial_arrays, plan_rewiring
from fanin.backends.registry import make_trainer
from fanin.backends.setup import Dense, LayerSetup, Unstructured
from fanin.backends.tensorflow import FixedFanIn, fan_in_linear, losses, trainer
from fanin.backends.tensorflow.native import build
from fanin.backends.tensorflow.ops import ops
from fanin.kernels import library

TOLERANCE = {np.float32: 2e-5, np.float64: 1e-12}


# The reference ----------------------------------------------------------------------------------


def dense_matrix(indices: np.ndarray, weights: np.ndarray, inputs: int) -> np.ndarray:
    """[inputs, labels]; an input that a label names twice counts twice."""
    matrix = np.zeros((inputs, len(indices)))
    for k in range(indices.shape[1]):
        np.add.at(matrix, (indices[:, k], np.arange(len(indices))), weights[:, k])
    return matrix


def assert_near(actual, expected, tolerance):
    """|actual - expected| <= tolerance * the largest |expected|, everywhere; no NaN passes."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape
    if expected.size:
        difference = np.abs(actual.astype(np.float64) - expected).max()
        assert difference <= tolerance * max(1e-30, np.abs(expected).max())


# The op -----------------------------------------------------------------------------------------


@dataclass
class Layer:
    x: np.ndarray
    indices: np.ndarray
    weights: np.ndarray
    bias: np.ndarray

    def tensors(self):
        return [tf.constant(a) for a in (self.x, self.indices, self.weights, self.bias)]


def random_layer(batch, inputs, labels, fan_in, values=np.float32, index=np.uint16, seed=0):
    rng = np.random.default_rng(seed)
    return Layer(
        rng.standard_normal((batch, inputs)).astype(values),
        rng.integers(0, inputs, (labels, fan_in), index),
        rng.standard_normal((labels, fan_in)).astype(values),
        rng.standard_normal(labels).astype(values),
    )


@st.composite
def layers(draw):
    # The kernels work on 32 instances and 32 labels at a time: sizes around these are drawn often.
    batch = draw(st.sampled_from([0, 1, 2, 31, 32, 33, 64, 100]))
    labels = draw(st.sampled_from([1, 2, 31, 32, 33, 65, 300]))
    inputs = draw(st.sampled_from([1, 2, 17, 130, 700]))
    fan_in = draw(st.integers(1, min(inputs, 130)))
    values = draw(st.sampled_from([np.float32, np.float64]))
    index = draw(st.sampled_from([np.uint16, np.uint32]))
    return random_layer(batch, inputs, labels, fan_in, values, index, draw(st.integers(0, 99)))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(layers(), st.booleans(), st.booleans())
def test_op_and_gradients_agree_with_the_reference(layer, traced, with_bias):
    x, indices, weights, bias = layer.tensors()
    bias = bias if with_bias else None
    rng = np.random.default_rng(1)
    grad = rng.standard_normal((len(layer.x), len(layer.indices))).astype(layer.x.dtype)

    def scores_and_gradients():
        wanted = [x, weights] + ([bias] if with_bias else [])
        with tf.GradientTape() as tape:
            tape.watch(wanted)
            scores = fan_in_linear(x, indices, weights, bias)
        return scores, tape.gradient(scores, wanted, output_gradients=tf.constant(grad))

    scores, grads = (tf.function(scores_and_gradients) if traced else scores_and_gradients)()

    matrix = dense_matrix(layer.indices, layer.weights, layer.x.shape[1])
    tolerance = TOLERANCE[layer.x.dtype.type]
    assert_near(scores, layer.x @ matrix + (layer.bias if with_bias else 0), tolerance)
    assert_near(grads[0], grad @ matrix.T, tolerance)
    sources, label = layer.indices, np.arange(len(layer.indices))[:, None]
    assert_near(grads[1], (layer.x.T.astype(np.float64) @ grad)[sources, label], tolerance)
    if with_bias:
        assert_near(grads[2], grad.sum(0, dtype=np.float64), tolerance)


@pytest.mark.parametrize("inputs, index", [(65_536, np.uint16), (70_000, np.uint32)])
def test_the_last_input_of_either_index_type(inputs, index):
    layer = random_layer(3, inputs, 40, 5, index=index)
    layer.indices[:] = inputs - 1 - layer.indices % 2
    matrix = dense_matrix(layer.indices, layer.weights, inputs)
    assert_near(fan_in_linear(*layer.tensors()), layer.x @ matrix + layer.bias, 2e-5)


def test_numpy_arrays_and_variables_are_taken():
    layer = random_layer(5, 20, 7, 3)
    expected = fan_in_linear(*layer.tensors()).numpy()
    weights = tf.Variable(layer.weights)
    assert_near(fan_in_linear(layer.x, layer.indices, weights, layer.bias), expected, 0)


def test_one_trace_serves_all_batch_sizes():
    layer = random_layer(50, 20, 7, 3)
    _, indices, weights, bias = layer.tensors()
    traces = []

    @tf.function(input_signature=[tf.TensorSpec([None, 20])])
    def forward(x):
        traces.append(x.shape)
        scores = fan_in_linear(x, indices, weights, bias)
        assert scores.shape.as_list() == [None, 7]
        return scores

    expected = layer.x @ dense_matrix(layer.indices, layer.weights, 20) + layer.bias
    for batch in (50, 0, 1, 33):
        assert_near(forward(layer.x[:batch]), expected[:batch], 2e-5)
    assert len(traces) == 1


@pytest.mark.parametrize("known", [None, (None, None)], ids=["rank unknown", "sizes unknown"])
def test_shapes_unknown_while_tracing_are_checked_by_the_kernel(known):
    layer = random_layer(5, 20, 7, 3)
    specs = [tf.TensorSpec(known, a.dtype) for a in (layer.x, layer.indices, layer.weights)]
    forward = tf.function(fan_in_linear, input_signature=specs)
    expected = layer.x @ dense_matrix(layer.indices, layer.weights, 20)
    assert_near(forward(layer.x, layer.indices, layer.weights), expected, 2e-5)
    with pytest.raises(tf.errors.InvalidArgumentError, match="fan_in 3 is larger than the 2 in"):
        forward(layer.x[:, :2], layer.indices, layer.weights)


def test_only_wanted_gradients_are_computed():
    layer = random_layer(5, 20, 7, 3)
    x, indices, weights, bias = layer.tensors()

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
    layer = random_layer(5, 20, 7, 3, np.float64)
    layer.indices[:, 1] = layer.indices[:, 0]  # inputs that a label names twice
    x, indices, weights, bias = layer.tensors()

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
    layer = random_layer(5, 20, 7, 3)
    x, indices, weights, bias = layer.tensors()
    with tf.GradientTape(persistent=True) as tape:
        tape.watch([x, weights])
        total = tf.reduce_sum(tf.function(fan_in_linear)(x, indices, weights, bias))
    matrix = dense_matrix(layer.indices, layer.weights, 20)
    assert_near(tape.gradient(total, x), np.ones((5, 7)) @ matrix.T, 2e-5)
    assert tape.gradient(total, weights).shape == (7, 3)


TRAINED = {"weights", "weights_m", "weights_v"}
ADAM = {"learning_rate", "beta1", "beta2", "epsilon", "step"}


@pytest.mark.parametrize(
    "op, in_host_memory",
    [
        ("FanInLinear", set()),
        ("FanInLinearGrad", set()),
        ("FusedStep", {*TRAINED, *ADAM, "bias"}),
        ("DenseRelu", set()),
        ("DenseReluUpdate", {*TRAINED, *ADAM, "bias"}),
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
    here, environment = Path(__file__).parents[1] / "support", dict(os.environ)
    command = [sys.executable, "-P", str(here / "tensorflow_on_gpu.py")]
    if not tf.config.list_physical_devices("GPU"):
        stand_in = str(tmp_path / "stand_in.so")
        (tmp_path / "libfanin.so").symlink_to(library.library_path().resolve())
        include = importlib.resources.files("fanin.kernels") / "include"
        compile_command = [
            *("g++", "-shared", "-fPIC", *tf.sysconfig.get_compile_flags(), f"-I{include}"),
            *(str(here / "support" / "gpu_stand_in.cpp"), "-o", stand_in),
            *(f"-L{tmp_path}", "-Wl,--no-as-needed", "-lfanin", f"-Wl,-rpath,{tmp_path}", "-ldl"),
        ]
        subprocess.run(compile_command, check=True)
        command.append(stand_in)
        environment["FANIN_LIBRARY"] = stand_in
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.endswith("the GPU agrees with the CPU\n")


@pytest.mark.parametrize(
    "change, message",
    [
        (
            lambda a: {"indices": a.indices.astype(np.int64)},
            "indices must be uint16 or uint32, got",
        ),
        (
            lambda a: {"x": a.x.astype(np.float16)},
            "features must be float32 or float64, got float16",
        ),
        (
            lambda a: {"weights": a.weights.astype(float)},
            "weights is float64 but features is float32",
        ),
        (lambda a: {"x": a.x[:, :2]}, "fan_in 3 is larger than the 2 inputs"),
        (lambda a: {"x": a.x[0]}, r"features must be \[batch, inputs\], got 1 dimensions"),
        (lambda a: {"weights": a.weights[:, :2]}, r"weights \[7, 2\] must be \[labels, fan_in\]"),
        (lambda a: {"bias": a.bias[:6]}, r"bias \[6\] must be \[labels\]"),
        (lambda a: {"indices": a.indices[:, :0], "weights": a.weights[:, :0]}, "fan_in must be at"),
    ],
)
@pytest.mark.parametrize("traced", [False, True])
def test_what_shapes_and_types_tell_is_a_value_error(change, message, traced):
    layer = random_layer(5, 20, 7, 3)
    bad = replace(layer, **change(layer))
    arguments = bad.tensors()
    with pytest.raises(ValueError, match=message):
        if traced:
            tf.function(fan_in_linear).get_concrete_function(*arguments)
        else:
            fan_in_linear(*arguments)
    assert np.isfinite(fan_in_linear(*layer.tensors())).all()  # alive


@pytest.mark.parametrize("traced", [False, True])
@pytest.mark.parametrize("backward", [False, True])
def test_what_the_data_tells_is_an_invalid_argument(traced, backward):
    def run(x, indices):
        weights = tf.constant(layer.weights)
        with tf.GradientTape() as tape:
            tape.watch(weights)
            scores = fan_in_linear(x, indices, weights)
        return tape.gradient(scores, weights) if backward else scores

    if traced:
        run = tf.function(run)
    layer = random_layer(5, 20, 7, 3)
    layer.indices[4, 1] = 20
    with pytest.raises(
        tf.errors.InvalidArgumentError, match=r"indices\[4, 1\] is 20, out of range for 20 inputs"
    ):
        run(layer.x, layer.indices)
    layer = random_layer(5, 20, 7, 3)
    layer.x[3, 2] = np.nan
    with pytest.raises(
        tf.errors.InvalidArgumentError, match=r"features\[3, 2\] is NaN; all features must be"
    ):
        run(layer.x, layer.indices)
    layer = random_layer(5, 20, 7, 3)
    assert np.isfinite(run(layer.x, layer.indices)).all()  # alive


def test_the_compiled_op_is_cached_and_a_missing_compiler_is_named(monkeypatch, tmp_path):
    compiled = build.compiled_ops()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert build.compiled_ops() == compiled
    monkeypatch.setenv("FANIN_CACHE", str(tmp_path / "empty"))
    with pytest.raises(ImportError, match=r"needs g\+\+.*apt install g\+\+"):
        build.compiled_ops()


def test_a_failing_compiler_is_quoted(monkeypatch, tmp_path):
    compiler = tmp_path / "g++"
    compiler.write_text("#!/bin/sh\necho 'ops.cc:1: error: no such luck' >&2\nexit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("FANIN_CACHE", str(tmp_path / "cache"))
    with pytest.raises(ImportError, match="no such luck"):
        build.compiled_ops()
    assert not list((tmp_path / "cache").iterdir())


def test_two_that_compile_at_once_leave_one_whole_file(monkeypatch, tmp_path):
    """With a compiler that writes the known result slowly and in two steps."""
    whole = build.compiled_ops()
    compiler = tmp_path / "g++"
    compiler.write_text(
        '#!/bin/sh\nwhile [ "$1" != -o ]; do shift; done\n'
        f'head -c 999 {whole} >"$2"; sleep 0.5; cat {whole} >"$2"\n'
    )
    compiler.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("FANIN_CACHE", str(tmp_path / "cache"))
    target = tmp_path / "cache" / whole.name
    with concurrent.futures.ThreadPoolExecutor() as pool:
        running = [pool.submit(build.compiled_ops) for _ in range(2)]
        while not all(future.done() for future in running):
            assert not target.exists() or target.stat().st_size == whole.stat().st_size
    assert [future.result() for future in running] == [target, target]
    assert list((tmp_path / "cache").iterdir()) == [target]


# The Keras layer --------------------------------------------------------------------------------


def keras_model(**options):
    return keras.Sequential(
        [keras.Input((20,)), keras.layers.Dense(30, "relu"), FixedFanIn(50, 8, **options)]
    )


def some_data():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((100, 20)).astype(np.float32)
    return x, x @ rng.standard_normal((20, 50)).astype(np.float32)


@pytest.mark.slow
@pytest.mark.parametrize("use_bias", [True, False])
def test_keras_fit_save_and_load(tmp_path, use_bias):
    x, y = some_data()
    model = keras_model(use_bias=use_bias)
    model.compile("adam", "mse")
    losses = model.fit(x, y, epochs=3, batch_size=32, verbose=0).history["loss"]
    assert losses[2] < losses[1] < losses[0]
    expected = model.predict(x, verbose=0)

    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert_near(loaded.predict(x, verbose=0), expected, 0)
    assert loaded.layers[-1].indices.dtype == "uint16"
    loaded.fit(x, y, verbose=0)  # with the optimiser's state

    model.save_weights(tmp_path / "model.weights.h5")
    other = keras_model(use_bias=use_bias)
    assert np.abs(other.predict(x, verbose=0) - expected).max() > 0.1
    other.load_weights(tmp_path / "model.weights.h5")
    assert_near(other.predict(x, verbose=0), expected, 0)

    model.export(tmp_path / "exported", verbose=False)
    exported = tf.saved_model.load(tmp_path / "exported")
    assert_near(exported.serve(x), expected, 1e-6)


def test_keras_layer_computes_its_formula():
    x, _ = some_data()
    layer = FixedFanIn(50, 8, seed=3, bias_initializer="ones")
    outputs = layer(x)
    matrix = dense_matrix(layer.indices.numpy(), layer.kernel.numpy(), 20)
    assert_near(outputs, x @ matrix + 1, 2e-5)
    np.testing.assert_array_equal(FixedFanIn(50, 8, seed=3)(x).shape, (100, 50))
    assert len(layer.trainable_weights) == 2 and len(layer.non_trainable_weights) == 1
    limit = np.sqrt(3 / (50 * 8))
    assert 0.9 * limit < np.abs(layer.kernel.numpy()).max() <= limit


def test_keras_seeds():
    def indices(seed):
        layer = FixedFanIn(50, 8, seed=seed)
        layer.build((None, 20))
        return layer.indices.numpy().tolist()

    assert indices(3) == indices(3) != indices(4)
    keras.utils.set_random_seed(1)
    first, second = indices(None), indices(None)
    keras.utils.set_random_seed(1)
    assert first == indices(None) != second


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "float64"])
def test_keras_precision_policies(policy):
    x, _ = some_data()
    layer = FixedFanIn(50, 8, seed=3, dtype=policy)
    outputs = layer(x)
    assert layer.kernel.dtype == ("float64" if policy == "float64" else "float32")
    assert outputs.dtype.name == policy.removeprefix("mixed_")
    given = tf.cast(tf.cast(x, outputs.dtype), tf.float64).numpy()
    matrix = dense_matrix(layer.indices.numpy(), layer.kernel.numpy(), 20)
    digits = {"mixed_float16": 1e-3, "mixed_bfloat16": 8e-3, "float64": 1e-12}
    assert_near(tf.cast(outputs, tf.float64), given @ matrix, digits[policy])


def test_keras_mixed_precision_reads_the_weights_in_float32():
    layer = FixedFanIn(1, 2, dtype="mixed_float16")
    layer.build((None, 2))
    layer.indices.assign([[0, 1]])
    layer.kernel.assign([[1 + 2**-13, -1]])  # in float16 the two cancel
    assert layer(np.ones((1, 2), np.float32)).numpy() == 2**-13


def test_keras_inputs_of_higher_rank():
    x, _ = some_data()
    layer = FixedFanIn(50, 8)
    flat = layer(x).numpy()
    assert_near(layer(x.reshape(5, 4, 5, 20)), flat.reshape(5, 4, 5, 50), 1e-6)
    assert layer(keras.Input((None, 20))).shape == (None, None, 50)
    assert layer.compute_output_shape((None, 4, 20)) == (None, 4, 50)


def test_keras_bad_values():
    for arguments in ((0, 3), (3, 0)):
        with pytest.raises(ValueError, match="must be at least 1, got 0"):
            FixedFanIn(*arguments)
    with pytest.raises(ValueError, match="fan_in 30 is larger than the 20 inputs"):
        FixedFanIn(50, 30)(np.zeros((2, 20), np.float32))
    layer = FixedFanIn(50, 8)
    with pytest.raises(ValueError, match="not built"):
        layer.rewire(0.1)
    layer(np.zeros((2, 20), np.float32))
    with pytest.raises(ValueError, match="expected axis -1"):
        layer(np.zeros((2, 21), np.float32))
    with pytest.raises(ValueError, match="fraction must be"):
        layer.rewire(1.0)
    indices, other = layer.indices.numpy(), FixedFanIn(50, 8)
    adam = keras.optimizers.Adam(name="another")  # Keras numbers those without a name
    other.build((None, 20))
    adam.build(other.trainable_variables)
    with pytest.raises(ValueError, match=r"another does not train .*/kernel"):
        layer.rewire(0.1, adam)
    np.testing.assert_array_equal(layer.indices.numpy(), indices)


def test_keras_rewire():
    x, y = some_data()
    model = keras_model()
    optimizer = keras.optimizers.Adam()
    model.compile(optimizer, "mse")
    model.fit(x, y, verbose=0)
    layer = model.layers[-1]
    kernel, indices = layer.kernel.numpy(), layer.indices.numpy()
    moments = [v for v in optimizer.variables if "fixed_fan_in" in v.name and v.shape == (50, 8)]
    before = [moment.numpy() for moment in moments]
    assert len(moments) == 2

    moved = layer.rewire(0.25, optimizer, 7)

    seed = int(np.random.default_rng(7).integers(2**64, dtype=np.uint64))
    plan = plan_rewiring(kernel, 0.25, 30, seed)
    slots = plan.positions
    assert 90 <= moved == len(slots) <= 100
    indices.reshape(-1)[slots] = plan.sources
    np.testing.assert_array_equal(layer.indices.numpy(), indices)
    np.testing.assert_array_equal(layer.kernel.numpy(), kernel)
    for moment, old in zip(moments, before, strict=True):
        old.reshape(-1)[slots] = 0
        np.testing.assert_array_equal(moment.numpy(), old)
    # The compiled training step sees the new connections.
    matrix = dense_matrix(indices, kernel, 30)
    hidden = model.layers[0](x).numpy()
    assert_near(model.predict(x, verbose=0), hidden @ matrix + layer.bias.numpy(), 2e-5)


def test_keras_rewire_where_there_is_nothing_to_reset():
    """Before the optimizer's first step, and with one that keeps scalars only."""
    layer = FixedFanIn(50, 8)
    layer.build((None, 20))
    plain = keras.optimizers.SGD()
    plain.build(layer.trainable_variables)
    for optimizer in (keras.optimizers.Adam(), plain):
        assert 90 <= layer.rewire(0.25, optimizer) <= 100


# The trainer ------------------------------------------------------------------------------------

SETUPS = [
    LayerSetup(12, 40, Dense()),
    LayerSetup(12, 40, Dense(), intermediate=6),
    LayerSetup(12, 40, Unstructured(4)),
    LayerSetup(12, 40, Unstructured(4), intermediate=9),
    LayerSetup(12, 40, kinds.FixedFanIn(4)),
    LayerSetup(12, 40, kinds.FixedFanIn(4), intermediate=9),
]


def every_setup(function):
    return pytest.mark.parametrize(
        "setup", SETUPS, ids=lambda setup: f"{setup.output}-{setup.intermediate}"
    )(function)


@dataclass
class Batch:
    features: np.ndarray
    positive_instances: np.ndarray
    positive_labels: np.ndarray


def random_batch(setup, size, seed):
    rng = np.random.default_rng(seed)
    rows, labels = np.nonzero(rng.random((size, setup.labels)) < 0.1)
    features = rng.standard_normal((size, setup.inputs)).astype(np.float32)
    return Batch(features, rows.astype(np.int32), labels.astype(np.int64))


def start(setup, seed=0):
    arrays = initial_arrays(setup, seed)
    # As large as after some training, so that the scores matter.
    arrays["output.weights"] *= np.float32(0.3 / np.abs(arrays["output.weights"]).max())
    return make_trainer("tensorflow", setup, arrays, device="cpu"), arrays


def assert_arrays(trainer, expected, tolerance):
    arrays = trainer.weights()
    assert list(arrays) == list(trainer.setup.array_shapes())
    for name, array in arrays.items():
        if array.dtype == np.float32:
            assert_near(array, expected[name], tolerance)
        else:
            np.testing.assert_array_equal(array, expected[name])


@pytest.mark.parametrize("loss", ["squared_hinge", "bce"])
@every_setup
def test_training_steps_agree_with_the_reference(setup, loss):
    setup = replace(setup, loss=loss)
    trainer, arrays = start(setup)
    kept = {name: array.copy() for name, array in arrays.items()}
    reference = Model(setup, arrays)
    # The last batch is smaller; the learning rate changes in between.
    batches = [random_batch(setup, size, seed) for seed, size in enumerate([32, 32, 32, 7])]
    seen = []
    ours = trainer.train(batches[:1], 1e-2, lambda loss: seen.append(float(loss)))
    assert_near(ours, [reference.step(batches[0], 1e-2)], 1e-6)
    assert_arrays(trainer, reference.arrays, 3e-6)
    ours = trainer.train(iter(batches[1:]), 3e-3, lambda loss: seen.append(float(loss)))
    assert_near(ours, [reference.step(batch, 3e-3) for batch in batches[1:]], 1e-5)
    assert_arrays(trainer, reference.arrays, 3e-6)
    assert ours.dtype == np.float64 and len(seen) == 4
    np.testing.assert_array_equal(seen[1:], ours)
    for name, array in arrays.items():  # what the trainer was given is not its own memory
        np.testing.assert_array_equal(array, kept[name])


def test_steps_are_traced_once():
    trainer, _ = start(SETUPS[-1])
    for size, rate in ((32, 1e-3), (5, 1e-4), (1, 0.5)):
        trainer.train([random_batch(trainer.setup, size, size)], rate)
    assert trainer._step_function.experimental_get_tracing_count() == 1


@pytest.mark.parametrize("loss", ["squared_hinge", "bce"])
def test_losses_agree_with_the_reference_at_large_scores(loss):
    batch = random_batch(SETUPS[0], 33, 0)
    scores = np.random.default_rng(0).standard_normal((33, 40)).astype(np.float32) * 20
    value, gradient = losses.LOSSES[loss](
        tf.constant(scores), batch.positive_instances, batch.positive_labels
    )
    with np.errstate(over="ignore"):
        expected = reference_loss(
            loss, scores.astype(np.float64), batch.positive_instances, batch.positive_labels
        )
    assert_near(value, expected[0], 1e-6)
    assert_near(gradient, expected[1], 1e-6)


def test_a_batch_without_positives():
    trainer, arrays = start(SETUPS[0])
    batch = random_batch(trainer.setup, 4, 0)
    batch = Batch(batch.features, batch.positive_instances[:0], batch.positive_labels[:0])
    expected = Model(trainer.setup, arrays).step(batch, 1e-3)
    assert_near(trainer.train([batch], 1e-3), [expected], 1e-6)


def test_a_loss_that_is_not_finite_names_the_step():
    trainer, _ = start(SETUPS[0])
    good, bad = (random_batch(trainer.setup, 4, 0) for _ in range(2))
    bad.features[0, 0] = np.inf
    trainer.train([good] * 3, 1e-3)
    with pytest.raises(FloatingPointError, match="step 5 "):
        trainer.train([good, bad, good], 1e-3)


@every_setup
def test_top_k(setup, monkeypatch):
    model, arrays = start(setup)
    x = np.random.default_rng(5).standard_normal((50, setup.inputs)).astype(np.float32)
    expected = np.argsort(-Model(setup, arrays).scores(x), axis=1)[:, :5]
    for limit in (trainer._SCORES_BYTES, 4 * setup.labels * 7):  # the second splits the blocks
        monkeypatch.setattr(trainer, "_SCORES_BYTES", limit)
        ids = model.top_k(x, 5)
        assert ids.dtype == np.int64
        np.testing.assert_array_equal(ids, expected)
    assert model.top_k(x[:0], 3).shape == (0, 3)
    for k in (0, 41):
        with pytest.raises(ValueError, match=rf"k must be in 1\.\.40 .*{k}"):
            model.top_k(x, k)


def test_top_k_gives_ties_to_the_lower_id():
    trainer, arrays = start(SETUPS[0])
    arrays["output.weights"][:] = 0
    arrays["output.bias"][[30, 7, 12]] = 1
    trainer.load_weights(arrays)
    ids = trainer.top_k(np.ones((2, 12), np.float32), 5)
    np.testing.assert_array_equal(ids, [[7, 12, 30, 0, 1]] * 2)


@every_setup
def test_rewire(setup):
    trainer, arrays = start(setup)
    if not setup.is_rewired:
        with pytest.raises(ValueError, match="no connections"):
            trainer.apply_rewiring(Rewiring(np.array([0]), np.array([0]), 0.0))
        return
    reference = Model(setup, arrays)
    batches = [random_batch(setup, 32, seed) for seed in range(6)]
    for batch in batches[:3]:
        trainer.train([batch], 1e-2)
        reference.step(batch, 1e-2)
    plan = plan_rewiring(trainer.array("output.weights"), 0.2, setup.output_inputs, 0)
    kept = trainer.array("output.weights")

    trainer.apply_rewiring(plan)

    assert 20 <= len(plan.positions) <= 32
    np.testing.assert_array_equal(trainer.array("output.weights"), kept)
    connections = (
        "output.indices" if isinstance(setup.output, kinds.FixedFanIn) else "output.columns"
    )
    reference.arrays[connections].reshape(-1)[plan.positions] = plan.sources
    np.testing.assert_array_equal(trainer.array(connections), reference.arrays[connections])
    for moments in (reference.m, reference.v):
        moments["output.weights"].reshape(-1)[plan.positions] = 0
    # Moments that were not zeroed, or sources that the step does not see, show in what follows.
    for batch in batches[3:]:
        assert_near(trainer.train([batch], 1e-2), [reference.step(batch, 1e-2)], 1e-5)
    assert_arrays(trainer, reference.arrays, 3e-6)
    trainer.apply_rewiring(Rewiring(np.empty(0, np.int64), np.empty(0, np.uint32), 0.0))


@every_setup
def test_weights_go_from_one_trainer_to_another(setup):
    first, _ = start(setup, seed=1)
    first.train([random_batch(setup, 32, 0)], 1e-2)
    arrays = first.weights()
    second, initial = start(setup, seed=2)
    second.load_weights(arrays)
    for name, array in second.weights().items():
        assert array.dtype == initial[name].dtype
        np.testing.assert_array_equal(array, arrays[name])
    batch = random_batch(setup, 32, 1)
    scores = Model(setup, arrays).scores(batch.features)
    expected, _ = reference_loss(
        "squared_hinge", scores, batch.positive_instances, batch.positive_labels
    )
    assert_near(second.train([batch], 1e-2), [expected], 1e-5)
    arrays["output.bias"] = arrays["output.bias"][:-1]
    with pytest.raises(ValueError, match=r"output.bias must be \[40\], got \[39\]"):
        second.load_weights(arrays)
    with pytest.raises(KeyError, match="'elsewhere' is none of"):
        first.array("elsewhere")


@every_setup
def test_a_run_goes_on_in_another_trainer(setup):
    first, _ = start(setup, seed=1)
    first.train([random_batch(setup, 32, seed) for seed in range(3)], 1e-2)
    second, _ = start(setup, seed=2)
    second.load_weights(first.weights())
    state = copied(first.optimizer_arrays())
    second.load_optimizer_arrays(state)
    assert state["steps"] == 3 and state["steps"].dtype == np.int64
    later = random_batch(setup, 32, 9)
    np.testing.assert_array_equal(first.train([later], 1e-2), second.train([later], 1e-2))
    assert_arrays(second, first.weights(), 1e-6)
    assert state["output.weights.m"].shape == setup.array_shapes()["output.weights"]
    for name, array in copied(first.optimizer_arrays()).items():
        assert not np.array_equal(array, state[name])  # what was given is a copy
        assert_near(copied(second.optimizer_arrays())[name], array, 1e-6)


def test_state_bytes_are_counted():
    trained = 4 * (40 * 4 + 40)  # float32
    assert start(SETUPS[4])[0].state_bytes() == (trained + 2 * 40 * 4, 2 * trained)  # uint16
    # TensorFlow's sparse tensors take two int64 a connection.
    assert start(SETUPS[2])[0].state_bytes() == (trained + 16 * 40 * 4, 2 * trained)


def test_description_and_device():
    trainer, arrays = start(SETUPS[0])
    trainer.device.synchronize()
    assert trainer.device.description() == {
        "framework": f"tensorflow {tf.__version__}",
        "device": "cpu",
    }
    assert set(trainer.device.memory().values()) == {None}
    with pytest.raises(ValueError, match="device must be"):
        make_trainer("tensorflow", SETUPS[0], arrays, device="tpu")
    if not tf.config.list_physical_devices("GPU"):
        with pytest.raises(RuntimeError, match="TensorFlow sees none here"):
            make_trainer("tensorflow", SETUPS[0], arrays, device="cuda")
