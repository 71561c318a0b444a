"""The layers in Keras do what Dense does, or say why not."""

from __future__ import annotations

import subprocess
import sys

import keras
import numpy as np
import pytest
import scipy.sparse as sp
import tensorflow as tf
from near import assert_near

from fanin.backends.tensorflow import FixedFanIn, FusedFanIn

pytestmark = pytest.mark.tensorflow

EACH_LAYER = [
    pytest.param(lambda **o: FixedFanIn(10, 4, **o), id="fixed"),
    pytest.param(lambda **o: FixedFanIn(10, 4, recipe="best", **o), id="fixed best"),
    pytest.param(lambda **o: FusedFanIn(10, 4, **o), id="fused"),
]
each_layer = pytest.mark.parametrize("make", EACH_LAYER)

X = np.random.default_rng(0).standard_normal((6, 20)).astype(np.float32)

LOAD = """
import sys
import numpy as np
import tensorflow as tf
import fanin.backends.tensorflow

folder = sys.argv[1]
x, expected = np.load(folder + "/x.npy"), np.load(folder + "/expected.npy")
exported = tf.saved_model.load(folder + "/exported")
saved = tf.saved_model.load(folder + "/saved").signatures["serving_default"]
for scores in (exported.serve(x), saved(tf.constant(x))["output_0"]):
    assert np.abs(scores.numpy() - expected).max() < 1e-6
"""


@pytest.mark.slow
def test_exported_models_are_served_by_another_process(tmp_path):
    """Which does no more than import this package."""
    layers = [keras.layers.Dense(20), FixedFanIn(20, 4, recipe="best"), FusedFanIn(10, 4)]
    model = keras.Sequential([keras.Input((20,)), *layers])
    model.export(tmp_path / "exported", verbose=False)
    tf.saved_model.save(model, str(tmp_path / "saved"))
    np.save(tmp_path / "x.npy", X)
    np.save(tmp_path / "expected.npy", model(X).numpy())
    command = [sys.executable, "-P", "-c", LOAD, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@each_layer
def test_sparse_inputs(make):
    sparse, layer = tf.sparse.from_dense(np.maximum(X, 0)), make()
    dense = layer(np.maximum(X, 0))
    assert_near(layer(sparse), dense, 1e-6)
    assert_near(tf.function(layer)(sparse), dense, 1e-6)
    assert_near(keras.Sequential([keras.Input((20,), sparse=True), layer])(sparse), dense, 1e-6)
    if isinstance(layer, FusedFanIn):
        loss = layer.evaluate_loss(sparse, [0, 1], [2, 3])
        assert_near(loss, layer.evaluate_loss(np.maximum(X, 0), [0, 1], [2, 3]), 1e-6)
        assert_near(layer.training_step(sparse, [0, 1], [2, 3]), loss, 1e-6)
        assert layer.top_k(sparse, 2)[0].shape == (6, 2)


def test_a_model_is_trained_on_a_sparse_matrix():
    matrix, targets = sp.csr_array(np.maximum(X, 0)), np.ones((6, 10), np.float32)
    model = keras.Sequential([FixedFanIn(10, 4)])
    model.compile("sgd", "mse")
    losses = model.fit(matrix, targets, batch_size=3, epochs=3, verbose=0).history["loss"]
    assert losses[2] < losses[0]
    assert_near(model.predict(matrix, verbose=0), model(matrix.toarray()), 1e-6)


@each_layer
@pytest.mark.parametrize("kind", [np.array, np.ndarray.tolist, tf.Variable, keras.Variable])
def test_call_takes_what_becomes_a_tensor(make, kind):
    layer = make()
    expected = layer(X)
    assert_near(layer.call(kind(X)), expected, 1e-6)
    assert layer.call(kind(np.ones((2, 3, 20), int))).shape == (2, 3, 10)


@each_layer
def test_what_is_no_array_of_real_numbers_is_named(make):
    layer, ragged = make(), tf.RaggedTensor.from_tensor(np.ones((2, 3, 20), np.float32))
    layer.build((None, 20))
    for inputs, message in (
        (X.astype(np.complex64), "inputs must be real numbers, got complex64"),
        (np.full((6, 20), "a"), "inputs must be real numbers, got string"),
        (ragged, "inputs must not be a tf.RaggedTensor; make it padded first"),
    ):
        with pytest.raises(ValueError, match=message):
            layer(inputs)


@each_layer
@pytest.mark.parametrize("shape", [(0, 20), (2, 0, 20), (2, 3, 20), (2, 1, 3, 1, 2, 20)])
def test_inputs_of_any_rank(make, shape):
    layer, x = make(), np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    scores = layer(x)
    assert scores.shape == layer.compute_output_shape(shape) == (*shape[:-1], 10)
    assert_near(tf.reshape(scores, [-1, 10]), layer(x.reshape(-1, 20)), 1e-6)
    assert layer(keras.Input(shape[1:])).shape == (None, *shape[1:-1], 10)


def test_training_is_for_a_batch():
    for method in ("training_step", "evaluate_loss"):
        with pytest.raises(ValueError, match=r"inputs must be \[batch, 20\], got \(2, 3, 20\)"):
            getattr(FusedFanIn(10, 4), method)(np.ones((2, 3, 20), np.float32), [0], [1])


@each_layer
@pytest.mark.filterwarnings("error:.*does not support masking")
def test_a_mask_is_handed_on(make):
    """To a layer that leaves out what is masked."""
    x = np.ones((1, 3, 20), np.float32)
    x[0, 2] = 0
    layer = make()
    model = keras.Sequential([keras.layers.Masking(), layer, keras.layers.GlobalAveragePooling1D()])
    assert_near(model(x), tf.reduce_mean(layer(x)[:, :2], axis=1), 1e-6)


@each_layer
@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "float64"])
def test_symbolic_outputs_have_the_type_of_real_ones(make, policy):
    layer = make(dtype=policy)
    symbolic = layer(keras.Input((20,)))
    assert symbolic.dtype == layer(X).dtype.name == policy.removeprefix("mixed_")
    assert layer.compute_output_spec(keras.KerasTensor((3, 20))).dtype == symbolic.dtype


@each_layer
def test_xla_is_left_out_or_refused(make):
    model = keras.Sequential([keras.Input((20,)), make()])
    with pytest.warns(UserWarning, match="Model doesn't support `jit_compile=True`"):
        model.compile("sgd", "mse", jit_compile=True)
    model.evaluate(X, np.ones((6, 10), np.float32), verbose=0)
    with pytest.raises(tf.errors.InvalidArgumentError, match="Fanin>FanInLinear"):
        tf.function(model, jit_compile=True)(X)


@each_layer
def test_derivatives_and_maps_of_tensorflow(make):
    layer, x = make(), tf.constant(X)
    layer.build((None, 20))
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(x)
        scores = layer(x)
    expected = np.zeros((6, 10, 20))
    for label, (sources, weights) in enumerate(
        zip(layer.indices.numpy(), layer.kernel.numpy(), strict=True)
    ):
        np.add.at(expected[:, label], (slice(None), sources), weights)
    assert_near(tape.batch_jacobian(scores, x), expected, 1e-6)
    with tf.autodiff.ForwardAccumulator(x, x) as accumulator:
        scores = layer(x)
    assert_near(accumulator.jvp(scores), layer(x) - layer(tf.zeros_like(x)), 1e-5)
    assert_near(tf.vectorized_map(layer, tf.stack([x, 2 * x]))[1], layer(2 * x), 1e-5)
