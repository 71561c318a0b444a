"""The ops on NumPy arrays, for tests, tools and frameworks without an adapter of their own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from fanin.kernels import library, params

_DEVICE = "cpu"  # tests set it to "cuda", for kernels that an emulated GPU runs


def _describe(array: np.ndarray | None, name: str, *, written: bool = False) -> params.Tensor:
    """The array as the C interface has it. ValueError for anything else than an array, since its
    memory would be gone before it is read, and for a read-only array that is to be `written`."""
    if array is None:
        return library.absent()
    if not isinstance(array, np.ndarray):
        raise ValueError(f"{name} must be a NumPy array, got {type(array).__name__}")
    if not array.dtype.isnative:
        raise ValueError(f"{name} must be in this machine's byte order; copy it so")
    if written and not array.flags.writeable:
        raise ValueError(f"{name} is updated in place and must be writeable, got a read-only array")
    size = array.dtype.itemsize or 1
    # Strides count elements. Where that is no whole number (records), -1 makes the library refuse.
    strides = [s // size if s % size == 0 else -1 for s in array.strides]
    return library.describe(array.ctypes.data, array.dtype.name, array.shape, strides, _DEVICE)


def _length(array: Any) -> int:
    """The length of an argument that has not been checked yet; 0 where it has none."""
    return int(np.shape(array)[0]) if np.ndim(array) else 0


def _allocate(size: int) -> tuple[int, Any]:
    memory = np.empty(size, np.uint8)
    return memory.ctypes.data, memory


def fan_in_linear(
    features: np.ndarray,
    indices: np.ndarray,
    weights: np.ndarray,
    bias: np.ndarray | None = None,
    *,
    group_size: int = 0,
    out: np.ndarray | None = None,
    threads: int = 0,
) -> np.ndarray:
    """scores[b, l] = bias[l] + sum_k weights[l, k] * features[b, indices[l, k]].

    features [batch, inputs] float32 or float64, finite; indices [labels, fan_in] uint16 or
    uint32, each below inputs; weights [labels, fan_in] and bias [labels] like features; out
    [batch, labels], overwritten (errors call it scores); all C-contiguous. With `group_size` (2 to
    64) so many labels, one after the other, are a group and share a row of indices, which are then
    [label groups, fan_in]. threads: CPU threads, 0 for all. Returns the scores [batch, labels].
    Raises ValueError, which names the wrong argument.
    """
    arguments = params.ForwardParams(
        features=_describe(features, "features"),
        indices=_describe(indices, "indices"),
        weights=_describe(weights, "weights"),
        bias=_describe(bias, "bias"),
        scores=_describe(out, "out", written=True),
        group_size=group_size,
        threads=threads,
    )
    library.check(arguments)
    if out is None:
        out = np.empty((features.shape[0], weights.shape[0]), features.dtype)
        arguments.scores = _describe(out, "out", written=True)
    library.call(arguments, _allocate)
    return out


def fan_in_linear_backward(
    grad_scores: np.ndarray,
    features: np.ndarray,
    indices: np.ndarray,
    weights: np.ndarray,
    *,
    group_size: int = 0,
    threads: int = 0,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Gradients of `fan_in_linear`, given grad_scores [batch, labels].

    Returns the gradients of features [batch, inputs], weights [labels, fan_in] and bias [labels].
    Where a label names a source twice, each of the two weights gets its own (equal) gradient.
    """
    grads = (
        np.empty(np.shape(features), np.asarray(features).dtype),
        np.empty(np.shape(weights), np.asarray(weights).dtype),
        np.empty(_length(weights), np.asarray(weights).dtype),
    )
    arguments = params.BackwardParams(
        grad_scores=_describe(grad_scores, "grad_scores"),
        features=_describe(features, "features"),
        indices=_describe(indices, "indices"),
        weights=_describe(weights, "weights"),
        grad_features=_describe(grads[0], "grad_features"),
        grad_weights=_describe(grads[1], "grad_weights"),
        grad_bias=_describe(grads[2], "grad_bias"),
        group_size=group_size,
        threads=threads,
    )
    library.call(arguments, _allocate)
    return grads


@dataclass(frozen=True)
class Trained:
    """An array that is trained, with the moments that its optimiser keeps: Adam m and v, momentum
    m, plain gradient descent none. All are updated in place.

    values is float32 or bfloat16 (ml_dtypes); m and v too, both of one type; all have one shape.
    Of labels with a fixed fan-in, grouped ones too, values may be rows in float8, uint8
    [labels, fan_in + 1] (`to_float8`).
    `sparse_update` with Adam also takes None for m, with one number a row for v.
    """

    values: np.ndarray
    m: np.ndarray | None = None
    v: np.ndarray | None = None


@dataclass(frozen=True)
class OptimizerStep:
    """One step of an optimiser. kind "adam": Adam as Keras has it, epsilon added before the bias
    correction: w -= learning_rate sqrt(1 - beta2^step) / (1 - beta1^step) * m / (sqrt(v) + epsilon)
    (Kingma & Ba, 2015, end of section 2). "sgd": w -= learning_rate * gradient. "momentum": m =
    momentum * m + gradient, w -= learning_rate * m. step counts from 1. seed is that of the
    stochastic rounding of bfloat16 and float8 arrays, which differs from step to step.

    Of weights, not of biases: l2 adds l2 * w to the gradient, before it reaches the moments;
    weight_decay takes learning_rate * weight_decay * w away beside the step (AdamW; Loshchilov &
    Hutter, 2019). Both read w as it is before the step, and `sparse_update` applies both to the
    rows of the batch's words alone."""

    step: int
    learning_rate: float = 1e-3
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-7
    seed: int = 0
    weight_decay: float = 0.0
    l2: float = 0.0
    kind: str = "adam"
    momentum: float = 0.9

    def params(self) -> params.Optimizer:
        """The struct of the C interface. ValueError for a step that does not fit its 64 bits, and
        for another kind."""
        if not -(2**63) <= self.step < 2**63:
            raise ValueError(f"step counts from 1, below 2^63, got {self.step}")
        if self.kind not in params.OPTIMIZERS:
            kinds = ", ".join(params.OPTIMIZERS)
            raise ValueError(f"unknown optimizer {self.kind!r}; there are {kinds}")
        return params.Optimizer(
            kind=params.OPTIMIZERS[self.kind],
            momentum=self.momentum,
            learning_rate=self.learning_rate,
            beta1=self.beta1,
            beta2=self.beta2,
            epsilon=self.epsilon,
            weight_decay=self.weight_decay,
            l2=self.l2,
            step=self.step,
            seed=self.seed % 2**64,
        )


def _trained(array: Trained | None, name: str) -> params.Trained:
    if array is None:
        return params.Trained(library.absent(), library.absent(), library.absent())
    if not isinstance(array, Trained):
        raise ValueError(f"{name} must be a Trained, got {type(array).__name__}")
    parts = {name: array.values, f"{name}.m": array.m, f"{name}.v": array.v}
    return params.Trained(*(_describe(part, each, written=True) for each, part in parts.items()))


def _connections(
    indices: np.ndarray | None,
    starts: np.ndarray | None,
    tile_labels: np.ndarray | None,
    group_size: int = 0,
) -> params.Connections:
    return params.Connections(
        indices=_describe(indices, "indices"),
        starts=_describe(starts, "starts"),
        tile_labels=_describe(tile_labels, "tile_labels"),
        group_size=group_size,
    )


def step(
    features: np.ndarray,
    weights: Trained,
    bias: Trained | None,
    positive_instances: np.ndarray,
    positive_labels: np.ndarray,
    optimizer: OptimizerStep,
    *,
    indices: np.ndarray | None = None,
    starts: np.ndarray | None = None,
    tile_labels: np.ndarray | None = None,
    group_size: int = 0,
    loss: str = "squared_hinge",
    mean_labels: int = 0,
    first_weight: int = 0,
    want_grad: bool = True,
    threads: int = 0,
) -> tuple[float, np.ndarray | None]:
    """One training step of an output layer: score, loss, gradients and optimiser in one pass.

    features [batch, inputs] float32, finite. Connections: `indices` [labels, fan_in] uint16 or
    uint32, with weights of the same shape; or, with `starts` [labels + 1] int32, `indices` and
    weights [connections], label after label; or, with `group_size` (2 to 64), `indices` [label
    groups, fan_in] and weights [labels, fan_in], where so many labels, one after the other, are a
    group and share a row of indices; or, for a dense layer, none of them, and weights
    [labels, inputs].
    `tile_labels` with indices: sorted connections, see fanin.h. bias [labels] float32.
    positive_instances [positives] int32 and positive_labels int64 name the positives (a pair that
    stands twice counts once); all else is negative. loss: "squared_hinge" or "bce", the mean over
    labels, then over the batch; where the layer is a part of a larger one, over its `mean_labels`.
    first_weight: then, where the part's weights begin among those of the larger layer; bfloat16 and
    float8 are rounded as there. (Sorted connections: where the part begins with a tile.)

    Returns the loss before the update and, where wanted, its gradient by the features
    [batch, inputs]. weights and bias are updated in place. Raises ValueError, which names what is
    wrong.
    """
    if loss not in params.LOSSES:
        raise ValueError(f"unknown loss {loss!r}; there are {', '.join(params.LOSSES)}")
    value = np.empty(1, np.float32)
    grad = np.empty(np.shape(features), np.float32) if want_grad else None
    arguments = params.StepParams(
        features=_describe(features, "features"),
        connections=_connections(indices, starts, tile_labels, group_size),
        weights=_trained(weights, "weights"),
        bias=_trained(bias, "bias"),
        positive_instances=_describe(positive_instances, "positive_instances"),
        positive_labels=_describe(positive_labels, "positive_labels"),
        loss=_describe(value, "loss"),
        grad_features=_describe(grad, "grad_features"),
        optimizer=optimizer.params(),
        mean_labels=mean_labels,
        first_weight=first_weight,
        loss_kind=params.LOSSES[loss],
        threads=threads,
    )
    library.call(arguments, _allocate)
    return float(value[0]), grad


def dense_forward(
    features: np.ndarray,
    weights: np.ndarray,
    bias: np.ndarray | None,
    *,
    relu: bool = False,
    threads: int = 0,
) -> np.ndarray:
    """outputs[b, u] = bias[u] + sum_i weights[u, i] * features[b, i]; with relu 0 where negative.

    features [batch, inputs] float32, finite; weights [units, inputs] float32 or bfloat16; bias
    [units] float32. Returns [batch, units].
    """
    outputs = np.empty((_length(features), _length(weights)), np.float32)
    arguments = params.DenseForwardParams(
        features=_describe(features, "features"),
        weights=_describe(weights, "weights"),
        bias=_describe(bias, "bias"),
        outputs=_describe(outputs, "outputs"),
        relu=relu,
        threads=threads,
    )
    library.call(arguments, _allocate)
    return outputs


def dense_update(
    grad_outputs: np.ndarray,
    outputs: np.ndarray | None,
    features: np.ndarray,
    weights: Trained,
    bias: Trained | None,
    optimizer: OptimizerStep,
    *,
    want_grad: bool = True,
    threads: int = 0,
) -> np.ndarray | None:
    """Backward pass of `dense_forward` with the optimiser; weights and bias are updated in place.

    grad_outputs [batch, units] float32; outputs: what the forward pass with relu returned, or None
    without relu. Returns the gradient of features [batch, inputs] where it is wanted.
    """
    grad = np.empty(np.shape(features), np.float32) if want_grad else None
    arguments = params.DenseUpdateParams(
        grad_outputs=_describe(grad_outputs, "grad_outputs"),
        outputs=_describe(outputs, "outputs"),
        features=_describe(features, "features"),
        weights=_trained(weights, "weights"),
        bias=_trained(bias, "bias"),
        grad_features=_describe(grad, "grad_features"),
        optimizer=optimizer.params(),
        threads=threads,
    )
    library.call(arguments, _allocate)
    return grad


def top_k(
    features: np.ndarray,
    weights: np.ndarray,
    bias: np.ndarray | None,
    k: int,
    *,
    indices: np.ndarray | None = None,
    starts: np.ndarray | None = None,
    tile_labels: np.ndarray | None = None,
    group_size: int = 0,
    label_ids: np.ndarray | None = None,
    threads: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Scores and ids of the k highest scored labels of each instance, best first; equal scores
    stand in the order of their labels' ids, and NaN last. Arguments are those of `step`. label_ids
    [labels] int32, each in 0 to labels - 1: the id of each label; without them a label's id is its
    position. The scores of all labels are never held at once.

    Returns scores, float32 [batch, k], and ids, int64 [batch, k].
    """
    known = starts if starts is not None else weights
    labels = _length(known) - (starts is not None)
    if not 1 <= k <= labels:  # the library says so too, but by then there is memory for so many
        raise ValueError(f"k must be in 1..{labels} (the labels), got {k}")
    shape = (_length(features), k)
    ids, scores = np.empty(shape, np.int64), np.empty(shape, np.float32)
    arguments = params.TopKParams(
        features=_describe(features, "features"),
        connections=_connections(indices, starts, tile_labels, group_size),
        weights=_describe(weights, "weights"),
        bias=_describe(bias, "bias"),
        label_ids=_describe(label_ids, "label_ids"),
        ids=_describe(ids, "ids"),
        scores=_describe(scores, "scores"),
        threads=threads,
    )
    library.call(arguments, _allocate)
    return scores, ids
