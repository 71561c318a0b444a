"""Losses over sparse positives, and checks of these: no dense [batch, labels] target is ever made.

Each returns the loss and its gradient by the scores, written down rather than recorded, so that few
[batch, labels] arrays are alive at a time. All pairs are first taken as negatives; the positives,
which are few, are then put right.
"""

from __future__ import annotations

from typing import Any

import numpy as np
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


def _mean(losses: tf.Tensor) -> tf.Tensor:
    # float64 from the instances on.
    total = tf.reduce_sum(tf.cast(tf.reduce_sum(losses, axis=1), tf.float64))
    mean = total / tf.cast(tf.size(losses, out_type=tf.int64), tf.float64)
    return tf.cast(mean, losses.dtype)


LOSSES = {"squared_hinge": squared_hinge, "bce": binary_cross_entropy}


def known_positives(
    positive_instances: Any, positive_labels: Any, batch: int | None, labels: int
) -> tuple[tf.Tensor, tf.Tensor]:
    """The positives' instances, int32, and labels, int64; ValueError for types and shapes that name
    no positives. What is out of range is an InvalidArgumentError here, where the numbers are at
    hand, or found by the op that reads them."""
    instances = tf.convert_to_tensor(positive_instances)
    label_ids = tf.convert_to_tensor(positive_labels)
    named = (("positive_instances", instances), ("positive_labels", label_ids))
    for name, values in named:
        # An empty list is float32.
        if not values.dtype.is_integer and values.shape.num_elements() != 0:
            raise ValueError(f"{name} must be integers, got {values.dtype.name}")
    vectors = instances.shape.is_compatible_with([None])
    if not (vectors and label_ids.shape.is_compatible_with(instances.shape)):
        raise ValueError(
            "positive_instances and positive_labels must be two vectors of one length, got "
            f"{instances.shape} and {label_ids.shape}"
        )
    limits = ((batch, f"a batch of {batch}"), (labels, f"{labels} labels"))
    for (name, values), (limit, meaning) in zip(named, limits, strict=True):
        at_hand = not tf.is_symbolic_tensor(values) and "CPU" in values.device
        if at_hand and limit is not None:
            numbers = values.numpy()
            bad = np.flatnonzero((numbers < 0) | (numbers >= limit))
            if bad.size:
                message = f"{name}[{bad[0]}] is {numbers[bad[0]]}, out of range for {meaning}"
                raise tf.errors.InvalidArgumentError(None, None, message)
    if instances.dtype != tf.int32:  # in which larger ones would wrap around
        largest = tf.constant(tf.int32.max, tf.int64)
        clipped = tf.clip_by_value(tf.cast(instances, tf.int64), -1, largest)
        instances = tf.cast(clipped, tf.int32)
    return instances, tf.cast(label_ids, tf.int64)
