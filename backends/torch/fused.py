"""The fused execution in PyTorch: its ops, `FusedFanIn` for a user's own model, and the harness'
engine.

The ops change their arguments (weights and Adam's moments) in place; torch is told so by
`mutates_args`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, SupportsFloat

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fanin.backends import checks, fused
from fanin.backends.arrays import drawn_seed
from fanin.backends.interface import ADAM_BETAS, ADAM_EPSILON, TrainingBatch
from fanin.backends.setup import Loss
from fanin.backends.torch.devices import TorchDevice
from fanin.backends.torch.layers import (
    Connected,
    check_sizes,
    check_width,
    draw_connections,
    index_type,
)
from fanin.backends.torch.losses import LOSSES
from fanin.backends.torch.ops import call, described, fan_in_linear, refuse_other_devices
from fanin.kernels import params

_CONNECTIONS = ("indices", "starts", "tile_labels")
_WEIGHTS = ("weights", "weights_m", "weights_v")
_BIAS = ("bias", "bias_m", "bias_v")
_POSITIVES = ("positive_instances", "positive_labels")


def _trained(values: Tensor | None, m: Tensor | None, v: Tensor | None) -> params.Trained:
    return params.Trained(described(values), described(m), described(v))


def _adam(learning_rate: float, step: int, seed: int) -> params.Adam:
    beta1, beta2 = ADAM_BETAS
    return params.Adam(learning_rate, beta1, beta2, ADAM_EPSILON, step, seed)


@torch.library.custom_op("fanin::fused_step", mutates_args=(*_WEIGHTS, *_BIAS))
def fused_step(
    features: Tensor,
    indices: Tensor | None,
    starts: Tensor | None,
    tile_labels: Tensor | None,
    weights: Tensor,
    weights_m: Tensor,
    weights_v: Tensor,
    bias: Tensor | None,
    bias_m: Tensor | None,
    bias_v: Tensor | None,
    positive_instances: Tensor,
    positive_labels: Tensor,
    loss: str,
    learning_rate: float,
    step: int,
    seed: int,
    want_grad: bool,
) -> tuple[Tensor, Tensor]:
    """One training step of an output layer; arguments as in `fanin.kernels.step`. Returns the loss,
    a scalar, and its gradient by the features, without elements where not wanted."""
    value = features.new_empty(1)
    grad = torch.empty_like(features) if want_grad else features.new_empty(0)
    arguments = params.StepParams(
        features=described(features),
        connections=params.Connections(*map(described, (indices, starts, tile_labels))),
        weights=_trained(weights, weights_m, weights_v),
        bias=_trained(bias, bias_m, bias_v),
        positive_instances=described(positive_instances),
        positive_labels=described(positive_labels),
        loss=described(value),
        grad_features=described(grad if want_grad else None),
        adam=_adam(learning_rate, step, seed),
        loss_kind=params.LOSSES.get(loss, 0),
        threads=torch.get_num_threads(),
    )
    call(arguments, features)
    return value.view(()), grad


@torch.library.custom_op("fanin::counted_step", mutates_args=(*_WEIGHTS, *_BIAS, "steps"))
def counted_step(
    features: Tensor,
    indices: Tensor,
    weights: Tensor,
    weights_m: Tensor,
    weights_v: Tensor,
    bias: Tensor,
    bias_m: Tensor,
    bias_v: Tensor,
    steps: Tensor,
    learning_rate: Tensor,
    positive_instances: Tensor,
    positive_labels: Tensor,
    loss: str,
    seed: int,
    want_grad: bool,
) -> tuple[Tensor, Tensor]:
    """`fused_step` as step `steps` + 1, which is counted if it was made. steps and learning_rate:
    scalars on the CPU; numbers would be compiled in, and each new one compiled anew."""
    made: tuple[Tensor, Tensor] = fused_step(
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
        float(learning_rate),
        int(steps) + 1,
        seed,
        want_grad,
    )
    steps += 1
    return made


@fused_step.register_fake
def _(features: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    names = (*_CONNECTIONS, *_WEIGHTS, *_BIAS, *_POSITIVES)
    refuse_other_devices(features, **dict(zip(names, others, strict=False)))
    return _empty_results(features, others[-1])


@counted_step.register_fake
def _(features: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    # steps and learning_rate, on the CPU, stand between the layer and the positives.
    names = ("indices", *_WEIGHTS, *_BIAS, *_POSITIVES)
    refuse_other_devices(features, **dict(zip(names, others[:7] + others[9:11], strict=True)))
    return _empty_results(features, others[-1])


def _empty_results(features: Tensor, want_grad: bool) -> tuple[Tensor, Tensor]:
    return features.new_empty(()), features.new_empty(features.shape if want_grad else (0,))


@torch.library.custom_op("fanin::dense_relu", mutates_args=())
def dense_relu(features: Tensor, weights: Tensor, bias: Tensor | None) -> Tensor:
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


@dense_relu.register_fake
def _(features: Tensor, weights: Tensor, bias: Tensor | None) -> Tensor:
    refuse_other_devices(features, weights=weights, bias=bias)
    return features.new_empty((features.shape[0], weights.shape[0]))


@torch.library.custom_op("fanin::dense_relu_update", mutates_args=(*_WEIGHTS, *_BIAS))
def dense_relu_update(
    grad: Tensor,
    outputs: Tensor,
    features: Tensor,
    weights: Tensor,
    weights_m: Tensor,
    weights_v: Tensor,
    bias: Tensor | None,
    bias_m: Tensor | None,
    bias_v: Tensor | None,
    learning_rate: float,
    step: int,
    seed: int,
    want_grad: bool,
) -> Tensor:
    """Backward pass of `dense_relu` with Adam; the gradient of features where it is wanted."""
    of_features = torch.empty_like(features) if want_grad else features.new_empty(0)
    arguments = params.DenseUpdateParams(
        grad_outputs=described(grad),
        outputs=described(outputs),
        features=described(features),
        weights=_trained(weights, weights_m, weights_v),
        bias=_trained(bias, bias_m, bias_v),
        grad_features=described(of_features if want_grad else None),
        adam=_adam(learning_rate, step, seed),
        threads=torch.get_num_threads(),
    )
    call(arguments, features)
    return of_features


@dense_relu_update.register_fake
def _(grad: Tensor, outputs: Tensor, features: Tensor, *others: Any) -> Tensor:
    names = (*_WEIGHTS, *_BIAS)
    refuse_other_devices(
        features, grad=grad, outputs=outputs, **dict(zip(names, others, strict=False))
    )
    return features.new_empty(features.shape if others[-1] else (0,))


@torch.library.custom_op("fanin::top_k", mutates_args=())
def top_k(
    features: Tensor,
    indices: Tensor | None,
    starts: Tensor | None,
    tile_labels: Tensor | None,
    weights: Tensor,
    bias: Tensor | None,
    k: int,
) -> tuple[Tensor, Tensor]:
    """Scores and ids [batch, k] of the best labels, best first, equal scores in order of their
    label; without ever holding all scores. Arguments as in `fanin.kernels.top_k`."""
    scores = features.new_empty((features.shape[0], k))
    ids = features.new_empty((features.shape[0], k), dtype=torch.int64)
    arguments = params.TopKParams(
        features=described(features),
        connections=params.Connections(*map(described, (indices, starts, tile_labels))),
        weights=described(weights),
        bias=described(bias),
        ids=described(ids),
        scores=described(scores),
        threads=torch.get_num_threads(),
    )
    call(arguments, features)
    return scores, ids


@top_k.register_fake
def _(features: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    names = (*_CONNECTIONS, "weights", "bias")
    refuse_other_devices(features, **dict(zip(names, others, strict=False)))
    shape = (features.shape[0], others[-1])
    return features.new_empty(shape), features.new_empty(shape, dtype=torch.int64)


def rewire(
    indices: Tensor, weights: Tensor, m: Tensor, v: Tensor, inputs: int, fraction: float, seed: int
) -> int:
    """Rewire in place, see `fanin.kernels.rewire`; how many connections moved."""
    arguments = params.RewireParams(
        indices=described(indices),
        weights=_trained(weights, m, v),
        inputs=inputs,
        fraction=fraction,
        seed=seed,
        threads=torch.get_num_threads(),
    )
    call(arguments, indices)
    return int(arguments.moved)


@torch.library.custom_op("fanin::checked_positives", mutates_args=())
def checked_positives(
    positive_instances: Tensor, positive_labels: Tensor, batch: int, labels: int
) -> tuple[Tensor, Tensor]:
    """The positives' instances as int32 and their labels as int64; ValueError where one of them is
    out of range.

    That cannot be an error on a GPU, where nothing may wait: there such positives become (-1, 0),
    for which the loss of `fused_step` is NaN, and which torch can index by.
    """
    may_wait = not positive_instances.is_cuda
    return _in_range(positive_instances, positive_labels, batch, labels, may_wait=may_wait)


@checked_positives.register_fake
def _(
    positive_instances: Tensor, positive_labels: Tensor, batch: int, labels: int
) -> tuple[Tensor, Tensor]:
    return (
        positive_instances.new_empty(positive_instances.shape, dtype=torch.int32),
        positive_labels.new_empty(positive_labels.shape, dtype=torch.int64),
    )


def _in_range(
    positive_instances: Tensor, positive_labels: Tensor, batch: int, labels: int, may_wait: bool
) -> tuple[Tensor, Tensor]:
    # Before instances become int32, in which larger ones would wrap around. A copy of the labels,
    # since an op must not return what it was given.
    instances, label_ids = positive_instances.long(), positive_labels.to(torch.int64, copy=True)
    bad_instances = (instances < 0) | (instances >= batch)
    bad_labels = (label_ids < 0) | (label_ids >= labels)
    if may_wait:
        _refuse("positive_instances", instances, bad_instances, f"a batch of {batch}")
        _refuse("positive_labels", label_ids, bad_labels, f"{labels} labels")
    else:
        bad = bad_instances | bad_labels
        instances, label_ids = instances.masked_fill(bad, -1), label_ids.masked_fill(bad, 0)
    return instances.int().contiguous(), label_ids.contiguous()


def _refuse(name: str, values: Tensor, bad: Tensor, limit: str) -> None:
    if bad.any():
        at = int(bad.nonzero()[0])
        raise ValueError(f"{name}[{at}] is {int(values[at])}, out of range for {limit}")


def _positives(
    positive_instances: Tensor, positive_labels: Tensor, batch: int, labels: int
) -> tuple[Tensor, Tensor]:
    """See `checked_positives`; ValueError also for types and shapes that name no positives."""
    named = {"positive_instances": positive_instances, "positive_labels": positive_labels}
    for name, values in named.items():
        dtype = values.dtype
        integers = not (dtype.is_floating_point or dtype.is_complex or dtype == torch.bool)
        if not integers and values.numel():  # an empty list makes a float tensor
            raise ValueError(f"{name} must be integers, got {dtype}")
    if positive_instances.ndim != 1 or positive_instances.shape != positive_labels.shape:
        raise ValueError(
            "positive_instances and positive_labels must be two vectors of one length, got "
            f"{list(positive_instances.shape)} and {list(positive_labels.shape)}"
        )
    checked: tuple[Tensor, Tensor] = checked_positives(*named.values(), batch, labels)
    return checked


class _WithGradient(torch.autograd.Function):
    """A loss whose gradient by the features is known already."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, loss: Tensor, grad: Tensor) -> Tensor:
        ctx.save_for_backward(grad)
        return loss.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = ctx.saved_tensors
        return grad_loss * grad, None, None


class FusedFanIn(Connected):
    """A fixed fan-in output layer that trains itself: score, loss, gradients and Adam in one pass.

    Called like any layer, it gives the scores [batch, labels] of features [batch, in_features].
    Training is `loss = layer.training_step(features, positive_instances, positive_labels)`: the
    last two name the positives, and the layer has been updated when the loss is there;
    `loss.backward()` then hands the gradient of the features upstream, where any optimizer may
    train the rest. Neither scores nor gradients of weights are ever held.

    The layer's arrays are buffers, not parameters, so no optimizer takes hold of them, and the
    state_dict has them all: `indices`, `weights` [labels, fan_in] and `bias` [labels] with their
    moments (`weights_m`, ...), `steps`, and `rate`, which is `learning_rate`: change that between
    steps as you like. Under autocast the layer computes in float32; a scaled loss scales what goes
    upstream only. What calls it twice trains it twice, as torch.utils.checkpoint does with
    `use_reentrant=False`.

    loss: "squared_hinge" or "bce", the mean over labels, then over the batch. weights_dtype,
    moments_dtype: torch.float32 or torch.bfloat16, the latter rounded stochastically, by numbers
    that `rounding_seed` starts; `.half()` and the like leave all types as they are. generator: for
    the indices and initial weights. On a GPU nothing waits for the device (so what is wrong in the
    data gives NaN, not an error) but `rewire`. Raises ValueError for what makes no layer.
    """

    weights: Tensor
    weights_m: Tensor
    weights_v: Tensor
    bias: Tensor
    bias_m: Tensor
    bias_v: Tensor
    steps: Tensor
    rate: Tensor

    def __init__(
        self,
        in_features: int,
        labels: int,
        fan_in: int,
        *,
        loss: Loss = "squared_hinge",
        learning_rate: float = 1e-3,
        weights_dtype: torch.dtype = torch.float32,
        moments_dtype: torch.dtype = torch.float32,
        rounding_seed: int = 0,
        device: torch.device | str | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        check_sizes(in_features, labels, fan_in)
        if loss not in params.LOSSES:
            raise ValueError(f"unknown loss {loss!r}; there are {', '.join(params.LOSSES)}")
        for name, dtype in (("weights_dtype", weights_dtype), ("moments_dtype", moments_dtype)):
            if dtype not in (torch.float32, torch.bfloat16):
                raise ValueError(f"{name} must be torch.float32 or torch.bfloat16, got {dtype}")
        self.in_features = in_features
        self.labels = labels
        self.fan_in = fan_in
        self.loss: Loss = loss
        self.rounding_seed = checks.whole("rounding_seed", rounding_seed, 0, 2**63 - 1)
        shape, index = (labels, fan_in), index_type(in_features)
        self.register_buffer("indices", torch.empty(shape, dtype=index, device=device))
        self.register_buffer("weights", torch.empty(shape, dtype=weights_dtype, device=device))
        draw_connections(in_features, self.indices, self.weights, generator)
        for name in ("weights_m", "weights_v"):
            self.register_buffer(name, torch.zeros(shape, dtype=moments_dtype, device=device))
        for name in _BIAS:
            self.register_buffer(name, torch.zeros(labels, device=device))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64, device="cpu"))
        rate = checks.learning_rate(learning_rate)
        self.register_buffer("rate", torch.tensor(rate, dtype=torch.float64, device="cpu"))

    @property
    def learning_rate(self) -> float:
        return float(self.rate)

    @learning_rate.setter
    def learning_rate(self, value: float) -> None:
        self.rate.fill_(checks.learning_rate(value))

    def _apply(self, fn: Any, recurse: bool = True) -> FusedFanIn:
        def moved(tensor: Tensor) -> Tensor:
            # `model.half()` is not meant for moments; which types they have the layer was told.
            there: Tensor = fn(tensor)
            return there if there.dtype == tensor.dtype else tensor.to(there.device)

        steps, rate = self.steps, self.rate
        super()._apply(moved, recurse)
        self.steps, self.rate = steps, rate  # read at every step, which would wait for a GPU
        return self

    def forward(self, features: Tensor) -> Tensor:
        """All scores, [batch, labels]; differentiable in the features."""
        return fan_in_linear(self._known(features), self.indices, self.weights.float(), self.bias)

    def training_step(
        self,
        features: Tensor,
        positive_instances: Tensor | Sequence[int],
        positive_labels: Tensor | Sequence[int],
    ) -> Tensor:
        """Train the layer once; returns the loss before that, a scalar, differentiable once in the
        features.

        features [batch, in_features]; positive_instances and positive_labels: integers [positives]
        (tensors, NumPy arrays, lists), each a positive's instance within the batch and its label; a
        pair that stands twice counts once. ValueError for what is wrong, an empty batch included.
        """
        features, positives = self._batch(features, positive_instances, positive_labels)
        loss, grad = counted_step(
            features.detach(),
            self.indices,
            *(getattr(self, name) for name in (*_WEIGHTS, *_BIAS)),
            self.steps,
            self.rate,
            *positives,
            self.loss,
            self.rounding_seed,
            features.requires_grad and torch.is_grad_enabled(),
        )
        if not (features.requires_grad and torch.is_grad_enabled()):
            return loss
        with_gradient: Tensor = _WithGradient.apply(features, loss, grad)
        return with_gradient

    def evaluate_loss(
        self,
        features: Tensor,
        positive_instances: Tensor | Sequence[int],
        positive_labels: Tensor | Sequence[int],
    ) -> Tensor:
        """The loss without a step; arguments as in `training_step`. All scores are held."""
        features, positives = self._batch(features, positive_instances, positive_labels)
        instances, label_ids = positives
        loss: Tensor = LOSSES[self.loss](self(features), instances.long(), label_ids)
        return loss.masked_fill((instances < 0).any(), torch.nan)

    def _batch(
        self, features: Tensor, positive_instances: Any, positive_labels: Any
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        features = self._known(features)
        if not features.shape[0]:
            raise ValueError("a loss needs at least one instance; the batch is empty")
        given = (torch.as_tensor(positive_instances), torch.as_tensor(positive_labels))
        return features, _positives(*given, features.shape[0], self.labels)

    def _known(self, features: Tensor) -> Tensor:
        """Features as the ops read them: contiguous, and in float32 what autocast made smaller."""
        check_width(features, self.in_features)
        if features.dtype in (torch.float16, torch.bfloat16):
            features = features.float()
        return features.contiguous()

    @torch.no_grad()
    def top_k(self, features: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Scores and ids of the k best labels, [batch, k] each, best first, ties to the lower id;
        all scores are never held."""
        found: tuple[Tensor, Tensor] = top_k(
            self._known(features),
            *(self.indices, None, None, self.weights, self.bias),
            checks.best(k, self.labels),
        )
        return found

    @torch.no_grad()
    def rewire(self, fraction: float, rng: np.random.Generator | int | None = None) -> int:
        """Give the `fraction` of connections with the smallest |weight| new random inputs; their
        weight stays and their moments become 0. rng: a generator or a seed. Returns how many moved.
        See `fanin.backends.arrays.plan_rewiring`."""
        return rewire(
            self.indices,
            self.weights,
            self.weights_m,
            self.weights_v,
            self.in_features,
            checks.fraction(fraction),
            drawn_seed(rng),
        )

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, labels={self.labels}, fan_in={self.fan_in}, "
            f"loss={self.loss!r}, learning_rate={self.learning_rate}"
        )


class TorchEngine:
    """See `fanin.backends.fused.Engine`."""

    def __init__(self, device: TorchDevice) -> None:
        self.device = device
        self.sorts_connections = device.is_cpu

    def features(self, array: np.ndarray) -> Tensor:
        return self.device.tensor(array)

    def hold(self, array: np.ndarray, dtype: str) -> Tensor:
        tensor = self.zeros(array.shape, dtype)
        self.write(tensor, array)
        return tensor

    def zeros(self, shape: tuple[int, ...], dtype: str) -> Tensor:
        return torch.zeros(shape, dtype=getattr(torch, dtype), device=self.device.torch)

    def read(self, held: Tensor) -> np.ndarray:
        return (held.float() if held.dtype == torch.bfloat16 else held).cpu().numpy()

    def write(self, held: Tensor, array: np.ndarray) -> None:
        if held.dtype in (torch.uint16, torch.uint32):  # torch converts nothing to these
            array = array.astype(str(held.dtype).removeprefix("torch."), copy=False)
        held.copy_(torch.from_numpy(array if array.flags.writeable else array.copy()))

    def bytes(self, held: Tensor) -> int:
        return held.nbytes

    def forward(self, features: Tensor, layer: fused.Layer) -> Tensor:
        outputs: Tensor = dense_relu(features, layer.weights.values, layer.bias.values)
        return outputs

    def update(
        self,
        grad: Tensor,
        outputs: Tensor,
        features: Tensor,
        layer: fused.Layer,
        rate: float,
        step: int,
    ) -> None:
        dense_relu_update(grad, outputs, features, *self._state(layer), rate, step, 1, False)

    def step(
        self,
        features: Tensor,
        layer: fused.Layer,
        batch: TrainingBatch,
        loss: str,
        rate: float,
        step: int,
        want_grad: bool,
    ) -> tuple[SupportsFloat, Tensor]:
        value, grad = fused_step(
            features,
            *self._connections(layer),
            *self._state(layer),
            self.device.tensor(batch.positive_instances),
            self.device.tensor(batch.positive_labels),
            loss,
            rate,
            step,
            0,
            want_grad,
        )
        return self.device.number(value), grad

    def top_k(self, features: Tensor, layer: fused.Layer, k: int) -> np.ndarray:
        values = (layer.weights.values, layer.bias.values)
        _, ids = top_k(features, *self._connections(layer), *values, k)
        found: np.ndarray = ids.cpu().numpy()
        return found

    def sort(self, layer: fused.Layer, sources: int, undo: bool) -> None:
        arguments = params.SortParams(
            indices=described(layer.connections["indices"]),
            tile_labels=described(layer.connections["tile_labels"]),
            slots=described(layer.slots),
            weights=_trained(layer.weights.values, layer.weights.m, layer.weights.v),
            inputs=sources,
            undo=undo,
            threads=torch.get_num_threads(),
        )
        call(arguments, layer.slots)

    def rewire(self, layer: fused.Layer, sources: int, fraction: float, seed: int) -> int:
        weights = layer.weights
        state = (weights.values, weights.m, weights.v)
        return rewire(layer.connections["indices"], *state, sources, fraction, seed)

    @staticmethod
    def _connections(layer: fused.Layer) -> tuple[Tensor | None, ...]:
        return tuple(layer.connections.get(name) for name in _CONNECTIONS)

    @staticmethod
    def _state(layer: fused.Layer) -> tuple[Tensor, ...]:
        return tuple(
            getattr(part, name)
            for part in (layer.weights, layer.bias)
            for name in ("values", "m", "v")
        )
