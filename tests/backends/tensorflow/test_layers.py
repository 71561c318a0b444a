"""The Keras layer `FixedFanIn` beside what the layers of both frameworks have."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import reference
import tensorflow as tf
from near import assert_near

from fanin.backends.arrays import plan_rewiring
from fanin.backends.tensorflow import FixedFanIn

pytestmark = pytest.mark.tensorflow


def keras_model(**options):
    return keras.Sequential(
        [keras.Input((20,)), keras.layers.Dense(30, "relu"), FixedFanIn(50, 8, **options)]
    )


def some_data():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((100, 20)).astype(np.float32)
    return x, x @ rng.standard_normal((20, 50)).astype(np.float32)


@pytest.mark.slow
@pytest.mark.parametrize(("use_bias", "group_size"), [(True, None), (False, None), (True, 16)])
def test_fit_save_and_load(tmp_path, use_bias, group_size):
    x, y = some_data()
    options = {"use_bias": use_bias, "group_size": group_size}
    model = keras_model(**options)
    if group_size:
        order = np.random.default_rng(0).permutation(50)
        model.layers[-1].order.assign(order)
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
    other = keras_model(**options)
    assert np.abs(other.predict(x, verbose=0) - expected).max() > 0.1
    other.load_weights(tmp_path / "model.weights.h5")
    assert_near(other.predict(x, verbose=0), expected, 0)
    if group_size:
        np.testing.assert_array_equal(loaded.layers[-1].order, order)
        weights = other.layers[-1].get_weights()
        at = next(
            i for i, each in enumerate(weights) if each.shape == (50,) and each.dtype.kind == "u"
        )
        weights[at] = np.roll(weights[at], 1)
        weights[at][3] = weights[at][4]
        with pytest.raises(ValueError, match=r"output\.order must have each label once"):
            other.layers[-1].set_weights(weights)

    model.export(tmp_path / "exported", verbose=False)
    exported = tf.saved_model.load(tmp_path / "exported")
    assert_near(exported.serve(x), expected, 1e-6)


def test_layer_computes_its_formula():
    x, _ = some_data()
    layer = FixedFanIn(50, 8, seed=3, bias_initializer="ones")
    outputs = layer(x)
    expected = reference.scores(x, layer.indices.numpy(), layer.kernel.numpy()) + 1
    assert_near(outputs, expected, 2e-5)
    np.testing.assert_array_equal(FixedFanIn(50, 8, seed=3)(x).shape, (100, 50))
    assert len(layer.trainable_weights) == 2 and len(layer.non_trainable_weights) == 1
    limit = np.sqrt(3 / (50 * 8))
    assert 0.9 * limit < np.abs(layer.kernel.numpy()).max() <= limit


def test_seeds():
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
def test_precision_policies(policy):
    x, _ = some_data()
    layer = FixedFanIn(50, 8, seed=3, dtype=policy)
    outputs = layer(x)
    assert layer.kernel.dtype == ("float64" if policy == "float64" else "float32")
    assert outputs.dtype.name == policy.removeprefix("mixed_")
    given = tf.cast(tf.cast(x, outputs.dtype), tf.float64).numpy()
    expected = reference.scores(given, layer.indices.numpy(), layer.kernel.numpy())
    digits = {"mixed_float16": 1e-3, "mixed_bfloat16": 8e-3, "float64": 1e-12}
    assert_near(tf.cast(outputs, tf.float64), expected, digits[policy])


def test_mixed_precision_reads_the_weights_in_float32():
    layer = FixedFanIn(1, 2, dtype="mixed_float16")
    layer.build((None, 2))
    layer.indices.assign([[0, 1]])
    layer.kernel.assign([[1 + 2**-13, -1]])  # in float16 the two cancel
    assert layer(np.ones((1, 2), np.float32)).numpy() == 2**-13


def test_inputs_of_higher_rank():
    x, _ = some_data()
    layer = FixedFanIn(50, 8)
    flat = layer(x).numpy()
    assert_near(layer(x.reshape(5, 4, 5, 20)), flat.reshape(5, 4, 5, 50), 1e-6)
    assert layer(keras.Input((None, 20))).shape == (None, None, 50)
    assert layer.compute_output_shape((None, 4, 20)) == (None, 4, 50)


def test_bad_values():
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


def test_rewire():
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
    positions = plan.positions
    assert 90 <= moved == len(positions) <= 100
    indices.reshape(-1)[positions] = plan.sources
    np.testing.assert_array_equal(layer.indices.numpy(), indices)
    np.testing.assert_array_equal(layer.kernel.numpy(), kernel)
    for moment, old in zip(moments, before, strict=True):
        old.reshape(-1)[positions] = 0
        np.testing.assert_array_equal(moment.numpy(), old)
    # The compiled training step sees the new connections.
    expected = reference.scores(model.layers[0](x).numpy(), indices, kernel, layer.bias.numpy())
    assert_near(model.predict(x, verbose=0), expected, 2e-5)


def test_rewire_where_there_is_nothing_to_reset():
    """Before the optimizer's first step, and with one that keeps scalars only."""
    layer = FixedFanIn(50, 8)
    layer.build((None, 20))
    plain = keras.optimizers.SGD()
    plain.build(layer.trainable_variables)
    for optimizer in (keras.optimizers.Adam(), plain):
        assert 90 <= layer.rewire(0.25, optimizer) <= 100
