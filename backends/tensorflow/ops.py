"""The ops of both executions in TensorFlow: `fan_in_linear` with its gradients, `top_k`, `rewire`.

Shapes and types are checked here, by the kernel library, so that an error has the same text as in
every other binding and appears while tracing already. An index out of range, or a feature that is
not finite, is found by the kernel when the op runs.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from fanin.backends.tensorflow.native.build import compiled_ops
from fanin.kernels import library, params

Variables = Sequence[tf.Variable]


@functools.cache
def ops() -> Any:
    """The op module, whose symbols come from libfanin: that one is loaded first. ImportError where
    it cannot be compiled or loaded."""
    library.load()
    path = compiled_ops()
    try:
        return tf.load_op_library(str(path))
    except tf.errors.OpError as error:  # compiled on another machine, say, that shares the cache
        raise ImportError(
            f"{path}: cannot be loaded ({error.message}); remove it, and it is compiled anew"
        ) from error


def on_host() -> Any:
    """Where an op's scalars are made: the host reads them, and to fetch them from a GPU it would
    have to wait for it."""
    return tf.device("/CPU:0")


def _describe(tensor: tf.Tensor) -> params.Tensor:
    """Shape and type as known now; sizes not known while tracing are -1.

    The device is always given as one and the same: TensorFlow moves inputs to where it runs an op.
    """
    shape = [-1 if size is None else size for size in tensor.shape]
    strides = [math.prod(shape[d + 1 :]) for d in range(len(shape))]  # row-major, as ever
    return library.describe(None, tensor.dtype.name, shape, strides)


def fan_in_linear(
    features: Any, indices: Any, weights: Any, bias: Any = None, *, threads: int = 0
) -> tf.Tensor:
    """scores[b, l] = bias[l] + sum_k weights[l, k] * features[b, indices[l, k]].

    features [batch, inputs] float32 or float64, finite; indices [labels, fan_in] uint16 or uint32,
    each below inputs; weights [labels, fan_in] and bias [labels] (or None) like features; tensors,
    variables or what tf.convert_to_tensor takes. threads: CPU threads, 0 for all. Returns
    [batch, labels]. Works eagerly and in a tf.function; differentiable in features, weights and
    bias.

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
                threads=threads,
            )
        )
    scores: tf.Tensor = ops().fanin_fan_in_linear(
        features=features, indices=indices, weights=weights, bias=biases, threads=threads
    )
    return scores


def _backward(
    wanted: tuple[bool, bool, bool],
    grad_scores: tf.Tensor,
    features: tf.Tensor,
    indices: tf.Tensor,
    weights: tf.Tensor,
    threads: int,
) -> list[tf.Tensor | None]:
    """Gradients of features, weights and bias; None for those that are not wanted."""
    grads = ops().fanin_fan_in_linear_grad(
        grad_scores=grad_scores,
        features=features,
        indices=indices,
        weights=weights,
        want_features=wanted[0],
        want_weights=wanted[1],
        want_bias=wanted[2],
        threads=threads,
    )
    return [grad if want else None for grad, want in zip(grads, wanted, strict=True)]


def _gradient(op: tf.Operation, grad_scores: tf.Tensor) -> list[tf.Tensor | None]:
    features, indices, weights, *biases = op.inputs
    # A GradientTape names the inputs whose gradient nobody asked for; tf.gradients does not. The
    # gradient of features needs scratch memory of its own, so it is worth leaving out.
    skipped = getattr(op, "skip_input_indices", None) or ()
    wanted = (0 not in skipped, 2 not in skipped, bool(biases) and 3 not in skipped)
    grad_features, grad_weights, grad_bias = _backward(
        wanted, grad_scores, features, indices, weights, op.get_attr("threads")
    )
    return [grad_features, None, grad_weights, *([grad_bias] if biases else [])]


def _second_gradient(op: tf.Operation, *grads: tf.Tensor) -> list[tf.Tensor | None]:
    """Scores are linear in features and in weights, so the gradient of each gradient is the layer
    itself, or its gradient, with what came from above in the place of features or weights."""
    grad_scores, features, indices, weights = op.inputs
    threads = op.get_attr("threads")
    of_features, of_weights, of_bias = (
        grad if op.get_attr(f"want_{name}") else None
        for name, grad in zip(("features", "weights", "bias"), grads, strict=True)
    )
    terms, for_features, for_weights = [], None, None
    if of_features is not None:
        terms.append(fan_in_linear(of_features, indices, weights, threads=threads))
        _, for_weights, _ = _backward(
            (False, True, False), grad_scores, of_features, indices, weights, threads
        )
    if of_weights is not None:
        terms.append(fan_in_linear(features, indices, of_weights, threads=threads))
        for_features, _, _ = _backward(
            (True, False, False), grad_scores, features, indices, of_weights, threads
        )
    if of_bias is not None:
        terms.append(tf.broadcast_to(of_bias, tf.shape(grad_scores)))
    return [tf.add_n(terms) if terms else None, for_features, None, for_weights]


tf.RegisterGradient("Fanin>FanInLinear")(_gradient)
tf.RegisterGradient("Fanin>FanInLinearGrad")(_second_gradient)


def connection_lists(connections: dict[str, Any]) -> dict[str, Any]:
    names = ("indices", "starts", "tile_labels")
    return {name: [connections[name]] if name in connections else [] for name in names}


def top_k(
    features: Any,
    connections: dict[str, Any],
    weights: Any,
    bias: Any,
    k: Any,
    *,
    threads: int = 0,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Scores and ids [batch, k] of the best labels, best first, equal scores in order of their
    label; all scores are never held. See `fanin.kernels.top_k`."""
    with on_host():
        k = tf.cast(k, tf.int64)
    scores, ids = ops().fanin_top_k(
        features=features,
        **connection_lists(connections),
        weights=weights,
        bias=[] if bias is None else [bias],
        k=k,
        threads=threads,
    )
    return scores, ids


def rewire(
    indices: tf.Variable,
    weights: Variables,
    inputs: int,
    fraction: float,
    seed: int,
    *,
    threads: int = 0,
) -> int:
    """Rewire in place, see `fanin.kernels.rewire`; how many connections moved."""
    signed = int(np.uint64(seed).astype(np.int64))
    values, m, v = (array.handle for array in weights)
    with on_host():
        scalars = {
            "inputs": tf.constant(inputs, tf.int64),
            "fraction": tf.constant(fraction, tf.float64),
            "seed": tf.constant(signed, tf.int64),
        }
    moved = ops().fanin_rewire(
        indices=indices.handle,
        weights=values,
        weights_m=m,
        weights_v=v,
        **scalars,
        threads=threads,
    )
    return int(moved)
