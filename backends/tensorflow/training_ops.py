"""The ops that train a layer in TensorFlow.

They update variables (weights and moments) in place, as TensorFlow's own optimiser ops do.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from fanin.backends.optimizer import Optimizer
from fanin.backends.tensorflow.ops import Variables, connection_lists, handles, on_host, ops
from fanin.kernels import params


def optimizer_inputs(optimizer: Optimizer, learning_rate: Any, step: Any) -> dict[str, Any]:
    """The inputs of an op that trains. learning_rate, step: numbers or tensors."""
    with on_host():
        return {
            "optimizer": tf.constant(optimizer.numbers, tf.float64),
            # The hint keeps a Python float from being rounded to float32 on the way.
            "learning_rate": tf.cast(
                tf.convert_to_tensor(learning_rate, dtype_hint=tf.float64), tf.float64
            ),
            "step": tf.cast(step, tf.int64),
        }


def layer_inputs(weights: Variables, bias: Variables) -> dict[str, Any]:
    """The variables of a layer as the inputs of an op that trains it."""
    if not bias:
        return {**handles("weights", weights), "bias": [], "bias_m": [], "bias_v": []}
    of_bias = handles("bias", bias)
    return {**handles("weights", weights), **of_bias, "bias": [of_bias["bias"]]}


def fused_step(
    features: Any,
    connections: dict[str, Any],
    weights: Variables,
    bias: Variables,
    positive_instances: Any,
    positive_labels: Any,
    loss: str,
    optimizer: Optimizer,
    learning_rate: Any,
    step: Any,
    *,
    seed: int = 0,
    want_grad: bool = True,
    group_size: int = 0,
    mean_labels: int = 0,
    threads: int = 0,
) -> tuple[tf.Tensor, tf.Tensor]:
    """One training step of an output layer; see `fanin.kernels.step`.

    weights, bias: each the variables of values, m and v, None for those that the optimizer does
    not keep, updated in place (bias may be empty).
    connections: `indices`, `starts` (but uint32), `tile_labels` as there; others are ignored.
    Returns the loss, a scalar, and its gradient by the features, empty where not wanted. What is
    wrong raises tf.errors.InvalidArgumentError.
    """
    value, grad = ops().fanin_fused_step(
        features=features,
        **connection_lists(connections),
        **layer_inputs(weights, bias),
        positive_instances=positive_instances,
        positive_labels=positive_labels,
        **optimizer_inputs(optimizer, learning_rate, step),
        loss_kind=params.LOSSES[loss],
        seed=seed,
        want_grad=want_grad,
        group_size=group_size,
        mean_labels=mean_labels,
        threads=threads,
    )
    return value, grad
