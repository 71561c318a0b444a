"""The ops that train a layer in torch.

They change their arguments (weights and moments) in place; torch is told so by `mutates_args`. Each
is a function too, named `run_...`: torch takes a quarter of a millisecond to find what an op does,
which is longer than the step of a small layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fanin.backends.torch.ops import (
    CONNECTIONS,
    call,
    connections,
    described,
    refuse_other_devices,
    trained,
)
from fanin.kernels import params

WEIGHTS = ("weights", "weights_m", "weights_v")
BIAS = ("bias", "bias_m", "bias_v")
_WORDS = ("words", "word_starts", "instances", "values")
_POSITIVES = ("positive_instances", "positive_labels")


def _optimizer(
    numbers: Sequence[float], learning_rate: float, step: int, seed: int
) -> params.Optimizer:
    """numbers: `Optimizer.numbers`."""
    kind, *others = numbers
    return params.Optimizer(learning_rate, *others, step, seed, int(kind))


def run_step(
    features: Tensor,
    indices: Tensor | None,
    starts: Tensor | None,
    tile_labels: Tensor | None,
    weights: Tensor,
    weights_m: Tensor | None,
    weights_v: Tensor | None,
    bias: Tensor | None,
    bias_m: Tensor | None,
    bias_v: Tensor | None,
    positive_instances: Tensor,
    positive_labels: Tensor,
    loss: str,
    optimizer: Sequence[float],
    learning_rate: float,
    step: int,
    seed: int,
    want_grad: bool,
    group_size: int = 0,
    mean_labels: int = 0,
    first_weight: int = 0,
) -> tuple[Tensor, Tensor]:
    """One training step of an output layer; arguments as in `fanin.kernels.step`, optimizer:
    `Optimizer.numbers`. Returns the loss, a scalar, and its gradient by the features, without
    elements where not wanted."""
    value = features.new_empty(())
    grad = torch.empty_like(features) if want_grad else features.new_empty(0)
    arguments = params.StepParams(
        features=described(features),
        connections=connections(indices, starts, tile_labels, group_size),
        weights=trained(weights, weights_m, weights_v),
        bias=trained(bias, bias_m, bias_v),
        positive_instances=described(positive_instances),
        positive_labels=described(positive_labels),
        loss=described(value.view(1)),
        grad_features=described(grad if want_grad else None),
        optimizer=_optimizer(optimizer, learning_rate, step, seed),
        mean_labels=mean_labels,
        first_weight=first_weight,
        loss_kind=params.LOSSES.get(loss, 0),
        threads=torch.get_num_threads(),
    )
    call(arguments, features)
    return value, grad


fused_step = torch.library.custom_op("fanin::fused_step", mutates_args=(*WEIGHTS, *BIAS))(run_step)


@torch.library.custom_op("fanin::counted_step", mutates_args=(*WEIGHTS, *BIAS, "steps"))
def counted_step(
    features: Tensor,
    indices: Tensor,
    weights: Tensor,
    weights_m: Tensor | None,
    weights_v: Tensor | None,
    bias: Tensor,
    bias_m: Tensor | None,
    bias_v: Tensor | None,
    steps: Tensor,
    learning_rate: Tensor,
    positive_instances: Tensor,
    positive_labels: Tensor,
    loss: str,
    optimizer: Sequence[float],
    seed: int,
    want_grad: bool,
    group_size: int = 0,
) -> tuple[Tensor, Tensor]:
    """`fused_step` as step `steps` + 1, which is counted if it was made. steps and learning_rate:
    scalars on the CPU; numbers would be compiled in, and each new one compiled anew."""
    made = run_step(
        features,
        indices,
        None,
        None,
        weights,
        weights_m,
        weights_v,
        bias,
        bias_m,
        bias_v,
        positive_instances,
        positive_labels,
        loss,
        optimizer,
        float(learning_rate),
        int(steps) + 1,
        seed,
        want_grad,
        group_size,
    )
    steps += 1
    return made


@fused_step.register_fake
def _(features: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    names = (*CONNECTIONS, *WEIGHTS, *BIAS, *_POSITIVES)
    refuse_other_devices(features, **dict(zip(names, others, strict=False)))
    return _empty_results(features, others[len(names) + 5])  # want_grad


@counted_step.register_fake
def _(features: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    # steps and learning_rate, on the CPU, stand between the layer and the positives.
    names = ("indices", *WEIGHTS, *BIAS, *_POSITIVES)
    refuse_other_devices(features, **dict(zip(names, others[:7] + others[9:11], strict=True)))
    return _empty_results(features, others[14])  # want_grad


def _empty_results(features: Tensor, want_grad: bool) -> tuple[Tensor, Tensor]:
    return features.new_empty(()), features.new_empty(features.shape if want_grad else (0,))


def run_dense_relu(features: Tensor, weights: Tensor, bias: Tensor | None) -> Tensor:
    """relu(features weights^T + bias), [batch, units]; weights [units, inputs]."""
    outputs = features.new_empty((features.shape[0], weights.shape[0]))
    arguments = params.DenseForwardParams(
        features=described(features),
        weights=described(weights),
        bias=described(bias),
        outputs=described(outputs),
        relu=True,
        threads=torch.get_num_threads(),
    )
    call(arguments, features)
    return outputs


dense_relu = torch.library.custom_op("fanin::dense_relu", mutates_args=())(run_dense_relu)


@dense_relu.register_fake
def _(features: Tensor, weights: Tensor, bias: Tensor | None) -> Tensor:
    refuse_other_devices(features, weights=weights, bias=bias)
    return features.new_empty((features.shape[0], weights.shape[0]))


def run_dense_relu_update(
    grad: Tensor,
    outputs: Tensor,
    features: Tensor,
    weights: Tensor,
    weights_m: Tensor | None,
    weights_v: Tensor | None,
    bias: Tensor | None,
    bias_m: Tensor | None,
    bias_v: Tensor | None,
    optimizer: Sequence[float],
    learning_rate: float,
    step: int,
    seed: int,
    want_grad: bool,
) -> Tensor:
    """Backward pass of `dense_relu` with the optimiser; the gradient of features where wanted."""
    grad_features = torch.empty_like(features) if want_grad else features.new_empty(0)
    arguments = params.DenseUpdateParams(
        grad_outputs=described(grad),
        outputs=described(outputs),
        features=described(features),
        weights=trained(weights, weights_m, weights_v),
        bias=trained(bias, bias_m, bias_v),
        grad_features=described(grad_features if want_grad else None),
        optimizer=_optimizer(optimizer, learning_rate, step, seed),
        threads=torch.get_num_threads(),
    )
    call(arguments, features)
    return grad_features


dense_relu_update = torch.library.custom_op(
    "fanin::dense_relu_update", mutates_args=(*WEIGHTS, *BIAS)
)(run_dense_relu_update)


@dense_relu_update.register_fake
def _(grad: Tensor, outputs: Tensor, features: Tensor, *others: Any) -> Tensor:
    names = (*WEIGHTS, *BIAS)
    refuse_other_devices(
        features, grad=grad, outputs=outputs, **dict(zip(names, others, strict=False))
    )
    return features.new_empty(features.shape if others[-1] else (0,))


def run_sparse_relu(
    values: Tensor, starts: Tensor, columns: Tensor, weights: Tensor, bias: Tensor | None
) -> Tensor:
    """relu(features weights + bias), [batch, units], of CSR features [batch, inputs]; arguments as
    in `fanin.kernels.sparse_forward`. weights [inputs, units]."""
    outputs = _outputs(values, starts, weights)
    arguments = params.SparseForwardParams(
        values=described(values),
        starts=described(starts),
        columns=described(columns),
        weights=described(weights),
        bias=described(bias),
        outputs=described(outputs),
        relu=True,
        threads=torch.get_num_threads(),
    )
    call(arguments, values)
    return outputs


sparse_relu = torch.library.custom_op("fanin::sparse_relu", mutates_args=())(run_sparse_relu)


@sparse_relu.register_fake
def _(
    values: Tensor, starts: Tensor, columns: Tensor, weights: Tensor, bias: Tensor | None
) -> Tensor:
    refuse_other_devices(values, starts=starts, columns=columns, weights=weights, bias=bias)
    return _outputs(values, starts, weights)


def _outputs(values: Tensor, starts: Tensor, weights: Tensor) -> Tensor:
    """Memory for the layer's outputs. ValueError where their size is unknown; the library checks
    the rest."""
    if starts.ndim != 1 or not starts.shape[0] or weights.ndim != 2:
        raise ValueError(
            "starts must be [batch + 1] and weights [inputs, units], got "
            f"{list(starts.shape)} and {list(weights.shape)}"
        )
    return values.new_empty((starts.shape[0] - 1, weights.shape[1]))


def run_sparse_relu_update(
    grad: Tensor,
    outputs: Tensor,
    words: Tensor,
    word_starts: Tensor,
    instances: Tensor,
    values: Tensor,
    weights: Tensor,
    weights_m: Tensor | None,
    weights_v: Tensor | None,
    bias: Tensor | None,
    bias_m: Tensor | None,
    bias_v: Tensor | None,
    optimizer: Sequence[float],
    learning_rate: float,
    step: int,
    seed: int,
) -> None:
    """Backward pass of `sparse_relu` with the optimiser on the rows of `words`; arguments as in
    `fanin.kernels.sparse_update`. weights_m is also None for Adam's row moments."""
    arguments = params.SparseUpdateParams(
        grad_outputs=described(grad),
        outputs=described(outputs),
        words=described(words),
        word_starts=described(word_starts),
        instances=described(instances),
        values=described(values),
        weights=trained(weights, weights_m, weights_v),
        bias=trained(bias, bias_m, bias_v),
        optimizer=_optimizer(optimizer, learning_rate, step, seed),
        threads=torch.get_num_threads(),
    )
    call(arguments, grad)


sparse_relu_update = torch.library.custom_op(
    "fanin::sparse_relu_update", mutates_args=(*WEIGHTS, *BIAS)
)(run_sparse_relu_update)


@sparse_relu_update.register_fake
def _(grad: Tensor, *others: Any) -> None:
    names = ("outputs", *_WORDS, *WEIGHTS, *BIAS)
    refuse_other_devices(grad, **dict(zip(names, others, strict=False)))
