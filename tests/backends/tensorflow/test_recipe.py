"""Layers of the recipe "best" in Keras beside what the layers of both frameworks have."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf
from near import assert_near
from planted import FAN_IN, INPUTS, LABELS, planted_data

from fanin.backends.tensorflow import FixedFanIn, FusedFanIn

pytestmark = pytest.mark.tensorflow

KINDS = [FusedFanIn, FixedFanIn]
every_kind = pytest.mark.parametrize("kind", KINDS)
x, y = planted_data()


def make(kind, **options):
    layer = kind(LABELS, FAN_IN, recipe="best", seed=0, **options)
    layer.start_from(x, y)  # builds it, too
    return layer


def names(layer):
    return [variable.name for variable in layer.weights]


@every_kind
def test_the_papers_layer_is_as_ever(kind):
    paper = kind(LABELS, FAN_IN, seed=0)
    paper.build((None, INPUTS))
    assert names(make(kind)) == [*names(paper), "feature_scale", "feature_dictionary"]
    config = paper.get_config()
    del config["recipe"]  # as it was saved before there were recipes
    older = kind.from_config(config)
    older.build((None, INPUTS))
    assert older.recipe == "paper" and names(older) == names(paper)
    older.set_weights(paper.get_weights())
    np.testing.assert_array_equal(older(x), paper(x))


@every_kind
def test_a_model_is_saved_and_loaded(tmp_path, kind):
    layer = make(kind)
    model = keras.Sequential([keras.Input((INPUTS,)), layer])
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded(x), model(x))
    other = loaded.layers[-1]
    assert other.recipe == "best"
    for one, same in zip(layer.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(one, same)
    if kind is FusedFanIn:
        assert (other.loss, float(other.learning_rate)) == ("bce", pytest.approx(3e-3))
    model.export(tmp_path / "exported", verbose=False)
    exported = tf.saved_model.load(tmp_path / "exported")
    assert_near(exported.serve(x), model(x), 1e-6)


@every_kind
def test_nothing_of_it_is_trained_by_an_optimizer(kind):
    trained = [variable.name for variable in make(kind).trainable_variables]
    assert trained == (["kernel", "bias"] if kind is FixedFanIn else [])


@every_kind
def test_what_cannot_be_taken_builds_nothing(kind):
    for recipe, features, labels, message in (
        ("paper", x, y, "does not look at data"),
        ("best", x, y[:, 1:], r"labels must be \[instances, 100\]"),
        ("best", x[:, :4].copy(), y, "fan_in 6 is larger than the 4 inputs"),
    ):
        layer = kind(LABELS, FAN_IN, recipe=recipe)
        with pytest.raises(ValueError, match=message):
            layer.start_from(features, labels)
        assert not layer.built
    with pytest.raises(ValueError, match="the layer is not built yet, so there is nothing to rew"):
        kind(LABELS, FAN_IN).rewire_towards_gradients(x, y)


@every_kind
def test_gradient_of_the_features(kind):
    layer, grad = make(kind), np.random.default_rng(0).standard_normal((7, LABELS))
    matrix = np.zeros((layer.feature_dictionary.shape[1], LABELS))
    sources = layer.indices.numpy().T.astype(int)
    np.add.at(matrix, (sources, np.arange(LABELS)), layer.kernel.numpy().T)
    expected = grad @ matrix.T @ layer.feature_dictionary.numpy().T * layer.feature_scale.numpy()

    def gradient(features):
        with tf.GradientTape() as tape:
            tape.watch(features)
            scores = layer(features)
        return tape.gradient(scores, features, output_gradients=tf.constant(grad, tf.float32))

    for run in (gradient, tf.function(gradient)):
        assert_near(run(tf.constant(x[:7])).numpy(), expected, 1e-4)


@every_kind
def test_mixed_precision(kind):
    """Scale and dictionary stay in float32."""
    layer = make(kind, dtype=keras.DTypePolicy("mixed_bfloat16"))
    assert layer.feature_dictionary.dtype == "float32"
    scores, half = layer(x), tf.cast(x, tf.bfloat16)
    assert scores.dtype == tf.bfloat16
    plain = make(kind)
    expected = tf.cast(plain(tf.cast(half, tf.float32)), tf.bfloat16)
    np.testing.assert_array_equal(tf.cast(scores, tf.float32), tf.cast(expected, tf.float32))


def test_in_a_graph_of_any_batch():
    layer, eager = make(FusedFanIn), make(FusedFanIn)
    signature = [
        tf.TensorSpec([None, None]),
        *(tf.TensorSpec([None], tf.int64) for _ in range(2)),
    ]
    step = tf.function(layer.training_step, input_signature=signature)
    best = tf.function(layer.top_k, input_signature=[signature[0], tf.TensorSpec([], tf.int64)])
    for size in (20, 13):
        instances, label_ids = (each.astype(np.int64) for each in y[:size].nonzero())
        loss = step(tf.constant(x[:size]), instances, label_ids)
        assert float(loss) == pytest.approx(
            float(eager.training_step(x[:size], instances, label_ids)), rel=1e-6
        )
    np.testing.assert_array_equal(best(tf.constant(x), 5)[1], eager.top_k(x, 5)[1])


def test_bfloat16_weights():
    layer = make(FusedFanIn, kernel_dtype="bfloat16", moments_dtype="bfloat16")
    assert layer.kernel.dtype == "bfloat16"
    layer.training_step(x[:20], *y[:20].nonzero())
    assert layer.rewire_towards_gradients(x, y, 0.5, rng=0) > 0
    assert np.isfinite(layer(x)).all()
