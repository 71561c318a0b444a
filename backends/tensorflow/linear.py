"""`fan_in_linear`, the fixed fan-in function, with its derivatives.

Shapes and types are checked here, by the kernel library, so that an error has the same text as in
every other binding and appears while tracing already. An index out of range, or a feature that is
not finite, is found by the kernel when the op runs.
"""

from __future__ import annotations

import math
from typing import Any

import tensorflow as tf

from fanin.backends.tensorflow.ops import ops
from fanin.kernels import library, params


def _describe(tensor: tf.Tensor) -> params.Tensor:
    """Shape and type as known now; sizes not known while tracing are -1.

    The device is always given as one and the same: TensorFlow moves inputs to where it runs an op.
    """
    shape = [-1 if size is None else size for size in tensor.shape]
    strides = [math.prod(shape[d + 1 :]) for d in range(len(shape))]  # row-major, as ever
    return library.describe(None, tensor.dtype.name, shape, strides)


def fan_in_linear(
    features: Any,
    indices: Any,
    weights: Any,
    bias: Any = None,
    *,
    group_size: int = 0,
    threads: int = 0,
) -> tf.Tensor:
    """scores[b, l] = bias[l] + sum_k weights[l, k] * features[b, indices[l, k]].

    features [batch, inputs] float32 or float64, finite; indices [labels, fan_in] uint16 or uint32,
    each below inputs; weights [labels, fan_in] and bias [labels] (or None) like features; tensors,
    variables or what tf.convert_to_tensor takes. group_size: so many labels, one after the other,
    share a row of indices, which are [label groups, fan_in] then: indices[l // group_size, k]; 0
    for none. threads: CPU threads, 0 for all. Returns [batch, labels]. Works eagerly and in a
    tf.function; differentiable in features, weights and bias.

    Raises ValueError for a wrong type or shape, at the call or while tracing. An index out of range
    and, on a CPU, a feature that is not finite raise tf.errors.InvalidArgumentError when the op
    runs; on a GPU, where nothing may wait, the scores concerned are NaN.
    """
    features, indices, weights = map(tf.convert_to_tensor, (features, indices, weights))
    biases = [] if bias is None else [tf.convert_to_tensor(bias)]
    if all(tensor.shape.rank is not None for tensor in (features, indices, weights, *biases)):
        library.check(
            params.ForwardParams(
                features=_describe(features),
                indices=_describe(indices),
                weights=_describe(weights),
                bias=_describe(biases[0]) if biases else library.absent(),
                scores=library.absent(),
                group_size=group_size,
                threads=threads,
            )
        )
    scores: tf.Tensor = ops().fanin_fan_in_linear(
        features=features,
        indices=indices,
        weights=weights,
        bias=biases,
        group_size=group_size,
        threads=threads,
    )
    return scores


def _backward(
    wanted: tuple[bool, bool, bool],
    grad_scores: tf.Tensor,
    features: tf.Tensor,
    indices: tf.Tensor,
    weights: tf.Tensor,
    numbers: dict[str, int],
) -> list[tf.Tensor | None]:
    """Gradients of features, weights and bias; None for those that are not wanted. numbers: of the
    op, `_numbers`."""
    grads = ops().fanin_fan_in_linear_grad(
        grad_scores=grad_scores,
        features=features,
        indices=indices,
        weights=weights,
        want_features=wanted[0],
        want_weights=wanted[1],
        want_bias=wanted[2],
        **numbers,
    )
    return [grad if want else None for grad, want in zip(grads, wanted, strict=True)]


def _numbers(op: tf.Operation) -> dict[str, int]:
    return {name: op.get_attr(name) for name in ("group_size", "threads")}


def _gradient(op: tf.Operation, grad_scores: tf.Tensor) -> list[tf.Tensor | None]:
    features, indices, weights, *biases = op.inputs
    # A GradientTape names the inputs whose gradient nobody asked for; tf.gradients does not. The
    # gradient of features needs scratch memory of its own, so it is worth leaving out.
    skipped = getattr(op, "skip_input_indices", None) or ()
    wanted = (0 not in skipped, 2 not in skipped, bool(biases) and 3 not in skipped)
    grad_features, grad_weights, grad_bias = _backward(
        wanted, grad_scores, features, indices, weights, _numbers(op)
    )
    return [grad_features, None, grad_weights, *([grad_bias] if biases else [])]


def _second_gradient(op: tf.Operation, *grads: tf.Tensor) -> list[tf.Tensor | None]:
    """Scores are linear in features and in weights, so the gradient of each gradient is the layer
    itself, or its gradient, with what came from above in the place of features or weights."""
    grad_scores, features, indices, weights = op.inputs
    numbers = _numbers(op)
    of_features, of_weights, of_bias = (
        grad if op.get_attr(f"want_{name}") else None
        for name, grad in zip(("features", "weights", "bias"), grads, strict=True)
    )
    terms, for_features, for_weights = [], None, None
    if of_features is not None:
        terms.append(fan_in_linear(of_features, indices, weights, **numbers))
        _, for_weights, _ = _backward(
            (False, True, False), grad_scores, of_features, indices, weights, numbers
        )
    if of_weights is not None:
        terms.append(fan_in_linear(features, indices, of_weights, **numbers))
        for_features, _, _ = _backward(
            (True, False, False), grad_scores, features, indices, of_weights, numbers
        )
    if of_bias is not None:
        terms.append(tf.broadcast_to(of_bias, tf.shape(grad_scores)))
    return [tf.add_n(terms) if terms else None, for_features, None, for_weights]


tf.RegisterGradient("Fanin>FanInLinear")(_gradient)
tf.RegisterGradient("Fanin>FanInLinearGrad")(_second_gradient)
