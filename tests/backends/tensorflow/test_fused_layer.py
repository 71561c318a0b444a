"""`FusedFanIn` in Keras beside what the layers of both frameworks have."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from fanin.backends.tensorflow import FusedFanIn

pytestmark = pytest.mark.tensorflow


def positives():
    rng = np.random.default_rng(1)
    pairs = np.unique(np.stack([rng.integers(0, 20, 60), rng.integers(0, 300, 60)]), axis=1)
    return pairs[0], pairs[1]


def test_a_step_is_traced_once():
    """The step's number and the learning rate are read when it runs."""
    layer, plain = (FusedFanIn(300, 7, seed=0, learning_rate=1e-2) for _ in range(2))
    for each in (layer, plain):
        each.build((None, 40))
    plain.set_weights(layer.get_weights())
    x = tf.constant(np.random.default_rng(0).standard_normal((20, 40)), tf.float32)

    def step(trained, x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            loss = trained.training_step(x, *positives())
        return loss, tape.gradient(loss, x)

    run = tf.function(lambda x: step(layer, x))
    for number in range(1, 4):
        for ours, expected in zip(run(x), step(plain, x), strict=True):
            assert np.array_equal(ours.numpy(), expected.numpy())
        assert int(layer.steps.numpy()) == number
    assert np.array_equal(layer.kernel.numpy(), plain.kernel.numpy())
    layer.learning_rate = 0.0
    before = layer.kernel.numpy()
    run(x)
    assert np.array_equal(layer.kernel.numpy(), before)
    assert run.experimental_get_tracing_count() == 1


@pytest.mark.parametrize("compiled", [False, True])
def test_has_no_second_derivative(compiled):
    """Which would be wrong, as in torch."""
    layer = FusedFanIn(300, 7, seed=0)

    def twice(x):
        with tf.GradientTape() as outer:
            outer.watch(x)
            with tf.GradientTape() as inner:
                inner.watch(x)
                loss = layer.training_step(x, *positives()) * tf.reduce_sum(x)
            once = inner.gradient(loss, x)
        return outer.gradient(once, x)

    layer.build((None, 40))
    with pytest.raises(NotImplementedError, match="has no second derivative"):
        (tf.function(twice) if compiled else twice)(tf.ones((20, 40)))


def test_a_value_that_was_read_stays():
    """The op writes in place, but not into what somebody read before."""
    layer = FusedFanIn(300, 7, seed=0)
    layer.build((None, 40))
    values = layer.kernel.value.read_value()
    before = values.numpy()
    layer.training_step(np.ones((20, 40), np.float32), *positives())
    assert np.array_equal(values.numpy(), before)
    assert not np.array_equal(layer.kernel.numpy(), before)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_is_saved_whole(tmp_path, dtype):
    model = keras.Sequential(
        [
            keras.Input((12,)),
            keras.layers.Dense(40),
            FusedFanIn(300, 7, kernel_dtype=dtype, moments_dtype=dtype),
        ]
    )
    x, given = np.ones((20, 40), np.float32), positives()
    layer = model.layers[-1]
    for _ in range(3):
        layer.training_step(x, *given)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras").layers[-1]
    assert loaded.kernel.dtype == dtype
    for _ in range(3):
        ours, theirs = (each.training_step(x, *given) for each in (layer, loaded))
        assert float(ours) == float(theirs)
    assert np.array_equal(layer.indices.numpy(), loaded.indices.numpy())
    assert layer.trainable_variables == []


def test_learning_rate_is_set_as_an_optimizers_before_the_layer_is_built():
    layer, x = FusedFanIn(300, 7), np.ones((20, 40), np.float32)
    layer.learning_rate = 0.0
    assert layer.learning_rate == 0.0
    layer.training_step(x, *positives())
    before = layer.kernel.numpy()
    layer.learning_rate = 0.5
    assert float(layer.learning_rate) == 0.5
    np.testing.assert_array_equal(layer.kernel.numpy(), before)
    layer.training_step(x, *positives())
    assert not np.array_equal(layer.kernel.numpy(), before)


def test_fit_says_that_it_does_not_train():
    model = keras.Sequential([keras.Input((40,)), FusedFanIn(300, 7)])
    model.compile(loss="mse")
    x, y = np.ones((20, 40), np.float32), np.ones((20, 300), np.float32)
    model.predict(x, verbose=0)
    with pytest.warns(UserWarning, match="nothing trains it but its method `training_step`"):
        model.fit(x, y, verbose=0)


def test_the_type_of_the_kernel_is_named():
    with pytest.raises(ValueError, match="kernel_dtype must be float32 or bfloat16"):
        FusedFanIn(300, 7, kernel_dtype="float16")


@pytest.mark.parametrize("method", ["training_step", "evaluate_loss"])
@pytest.mark.parametrize("instances, label_ids", [([0, 2**32], [2, 3]), ([0, 1], [2, 300])])
def test_bad_positives_are_found_while_a_graph_runs(method, instances, label_ids):
    layer, x = FusedFanIn(300, 7, seed=0), np.ones((20, 40), np.float32)
    layer.build((None, 40))
    run = tf.function(lambda *positives: getattr(layer, method)(x, *positives))
    with pytest.raises(tf.errors.InvalidArgumentError):
        run(tf.constant(instances, tf.int64), tf.constant(label_ids, tf.int64))


def test_threads_that_make_no_layer():
    for threads, message in (
        (1.5, "threads must be a whole number, got 1.5"),
        (2000, r"threads must be in 0\.\.1024, got 2000"),
    ):
        with pytest.raises(ValueError, match=message):
            FusedFanIn(10, 2, threads=threads)


@pytest.mark.slow
def test_k_may_be_a_tensor():
    layer, x = FusedFanIn(np.int64(300), 7), np.ones((20, 40), np.float32)
    best = tf.function(lambda k: layer.top_k(x, k))
    assert best(tf.constant(3))[1].shape == (20, 3)
    for k in (0, 301, 2**62):  # which would be memory for so many
        with pytest.raises(tf.errors.InvalidArgumentError, match=rf"k must be in .* got {k}"):
            best(tf.constant(k, tf.int64))


def test_indices_of_a_wider_layer_are_not_set():
    """Keras would make uint16 of them, and others."""
    wide, layer = FusedFanIn(90, 7), FusedFanIn(90, 7)
    wide.build((None, 70_000))
    layer.build((None, 300))
    wide.set_weights(wide.get_weights())
    before = layer.get_weights()
    with pytest.raises(ValueError, match=r"indices\[\d+, \d+\] is \d+, out of range for 300"):
        layer.set_weights(wide.get_weights())
    for array, old in zip(layer.get_weights(), before, strict=True):
        np.testing.assert_array_equal(array, old)


def test_only_steps_that_were_made_count_where_shapes_are_not_known():
    layer, x = FusedFanIn(300, 7, seed=0), np.ones((20, 40), np.float32)
    instances, label_ids = positives()
    layer.build((None, 40))
    unknown = [tf.TensorSpec([None, None]), *(2 * [tf.TensorSpec([None], tf.int64)])]
    train = tf.function(layer.training_step, input_signature=unknown)
    train(x, instances, label_ids)
    kernel = layer.kernel.numpy()
    wide = np.ones((20, 50), np.float32)
    bad_features, bad_labels = (x * np.nan, instances, label_ids), (x, instances, label_ids + 300)
    for bad in (bad_features, bad_labels, (wide, instances, label_ids)):
        with pytest.raises((ValueError, tf.errors.InvalidArgumentError)):
            train(*bad)
    assert int(layer.steps.numpy()) == 1
    assert np.array_equal(layer.kernel.numpy(), kernel)
    train(x, instances, label_ids)
    assert int(layer.steps.numpy()) == 2
