"""Losses over sparse positives: no dense [batch, labels] target is ever made.

Each returns the loss and its gradient by the scores, written down rather than recorded, so that few
[batch, labels] arrays are alive at a time. All pairs are first taken as negatives; the positives,
which are few, are then put right.
"""

from __future__ import annotations

import tensorflow as tf


def squared_hinge(
    scores: tf.Tensor, positive_instances: tf.Tensor, positive_labels: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Mean over labels, then over the batch, of max(0, 1 - y s)^2; y = +1 for positives, else -1.

    scores [batch, labels]; positive_instances int32 and positive_labels int64 [positives]; a pair
    that stands twice counts once. Returns the loss, a scalar, and its gradient [batch, labels].
    """
    positives = _pairs(positive_instances, positive_labels)
    negative = tf.nn.relu(1 + scores)
    positive = tf.nn.relu(1 - tf.gather_nd(scores, positives))
    loss = _mean(tf.tensor_scatter_nd_update(tf.square(negative), positives, tf.square(positive)))
    scale = 2 * _per_pair(scores)
    return loss, tf.tensor_scatter_nd_update(scale * negative, positives, -scale * positive)


def binary_cross_entropy(
    scores: tf.Tensor, positive_instances: tf.Tensor, positive_labels: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Mean over labels, then over the batch, of log(1 + exp(s)) - s [positive]; arguments and
    results as in `squared_hinge`."""
    positives = _pairs(positive_instances, positive_labels)
    positive_scores = tf.gather_nd(scores, positives)
    loss = _mean(
        tf.tensor_scatter_nd_update(
            tf.nn.softplus(scores), positives, tf.nn.softplus(-positive_scores)
        )
    )
    scale = _per_pair(scores)
    return loss, tf.tensor_scatter_nd_update(
        scale * tf.sigmoid(scores), positives, -scale * tf.sigmoid(-positive_scores)
    )


def _pairs(positive_instances: tf.Tensor, positive_labels: tf.Tensor) -> tf.Tensor:
    return tf.stack([tf.cast(positive_instances, tf.int64), positive_labels], axis=1)


def _per_pair(scores: tf.Tensor) -> tf.Tensor:
    return 1 / tf.cast(tf.size(scores, out_type=tf.int64), scores.dtype)


def _mean(of_pairs: tf.Tensor) -> tf.Tensor:
    # float64 from the instances on.
    total = tf.reduce_sum(tf.cast(tf.reduce_sum(of_pairs, axis=1), tf.float64))
    mean = total / tf.cast(tf.size(of_pairs, out_type=tf.int64), tf.float64)
    return tf.cast(mean, of_pairs.dtype)


LOSSES = {"squared_hinge": squared_hinge, "bce": binary_cross_entropy}
