"""A head above words that a model of a person's own reads through Keras' layers."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import scipy.sparse as sp
import tensorflow as tf

from fanin.backends.tensorflow import FixedFanIn, FusedFanIn

pytestmark = pytest.mark.tensorflow

rng = np.random.default_rng(0)
X = sp.random_array((4, 60), density=0.1, format="csr", dtype=np.float32, rng=rng)


def test_embedding_sums_below_a_fused_head():
    """As README.md shows: sums of rows are the product with the matrix, the gradient has the rows
    of words that occur, and the head learns with them."""
    embedding = keras.layers.Embedding(60, 16, embeddings_initializer="glorot_uniform")
    head = FusedFanIn(labels=40, fan_in=4, learning_rate=1e-2)
    optimizer = keras.optimizers.Adam(1e-2, epsilon=1e-7)
    instance_of = np.repeat(np.arange(4), np.diff(X.indptr))
    losses = []
    for _ in range(40):
        with tf.GradientTape() as tape:
            rows = X.data[:, None] * embedding(X.indices)
            sums = tf.math.unsorted_segment_sum(rows, instance_of, 4)
            loss = head.training_step(tf.nn.relu(sums), [0, 1, 2, 3], [3, 7, 11, 3])
        if not losses:
            before = embedding.embeddings.numpy()
            np.testing.assert_allclose(sums, X @ before, atol=1e-5)
        losses.append(float(loss))
        gradient = tape.gradient(loss, embedding.embeddings.value)
        assert isinstance(gradient, tf.IndexedSlices)
        assert set(gradient.indices.numpy()) == set(X.indices)
        optimizer.apply_gradients([(gradient, embedding.embeddings)])
    changed = (embedding.embeddings.numpy() != before).any(1)
    assert set(np.flatnonzero(changed)) <= set(X.indices) and changed.any()
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize("layer", [FusedFanIn, FixedFanIn])
def test_a_scipy_matrix_is_refused_with_what_to_do(layer):
    head = layer(labels=40, fan_in=4)
    message = r"inputs must be a dense tensor, got a SciPy csr_array: .* sums of embeddings"
    with pytest.raises(ValueError, match=message):
        head(X)
    if layer is FusedFanIn:
        with pytest.raises(ValueError, match=message):
            head.training_step(X, [0], [1])
