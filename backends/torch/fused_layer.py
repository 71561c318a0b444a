"""`FusedFanIn`: the fixed fan-in output layer that trains itself, as an nn.Module."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.autograd.function import once_differentiable

from fanin.backends import checks
from fanin.backends.arrays import drawn_seed, plan_rewiring
from fanin.backends.moments import Resets
from fanin.backends.optimizer import Optimizer, OptimizerKind
from fanin.backends.recipes import RecipeName
from fanin.backends.setup import Loss
from fanin.backends.torch.connected import Connected
from fanin.backends.torch.layers import check_sizes, draw_connections
from fanin.backends.torch.linear import fan_in_linear
from fanin.backends.torch.losses import LOSSES, known_positives
from fanin.backends.torch.ops import rewire, top_k
from fanin.backends.torch.training_ops import BIAS, WEIGHTS, counted_step
from fanin.kernels import params


class WithGradient(torch.autograd.Function):
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


# Buffers that are read at every step. They stay on the CPU: to read a GPU is to wait for it.
PROGRESS = ("steps", "rate")


class TrainsItself(nn.Module):
    """What layers that train themselves have in common: how many steps they have made, their
    learning rate, and types that no cast of the model changes."""

    steps: Tensor
    rate: Tensor

    def _add_progress(self, learning_rate: float) -> None:
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64, device="cpu"))
        self.register_buffer("rate", torch.tensor(learning_rate, dtype=torch.float64, device="cpu"))

    @property
    def learning_rate(self) -> float:
        return float(self.rate)

    @learning_rate.setter
    def learning_rate(self, value: float) -> None:
        self.rate.fill_(checks.learning_rate(value))

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        def moved(tensor: Tensor) -> Tensor:
            # `model.half()` must not change the types that the layer was given.
            result: Tensor = fn(tensor)
            return result if result.dtype == tensor.dtype else tensor.to(result.device)

        progress = {name: self._buffers[name] for name in PROGRESS if name in self._buffers}
        super()._apply(moved, recurse)
        self._buffers.update(progress)
        return self


class FusedFanIn(TrainsItself, Connected):
    """A fixed fan-in output layer that trains itself: score, loss, gradients and optimiser in one
    pass.

    Called like any layer, it gives the scores [..., labels] of features [..., in_features].
    Training is `loss = layer.training_step(features, positive_instances, positive_labels)`: the
    last two name the positives, and the layer has been updated when the loss is there;
    `loss.backward()` then hands the gradient of the features upstream, where any optimizer may
    train the rest. Neither scores nor gradients of weights are ever held. Sparse features are made
    dense.

    The layer's arrays are buffers, not parameters, so no optimizer takes hold of them, and the
    state_dict has them all: `indices`, `weights` [labels, fan_in] and `bias` [labels] with their
    moments (`weights_m`, ...), `steps`, and `rate`, which is `learning_rate`: change that between
    steps as you like. Under autocast the layer computes in float32; a scaled loss scales what goes
    upstream only. What calls it twice trains it twice, as torch.utils.checkpoint does with
    `use_reentrant=False`.

    recipe: "paper", or "best" for a layer that scales its features and, up to 4,096 inputs, writes
    them in the atoms of a dictionary, which labels read then; `start_from` fills the buffers of
    both, `feature_scale` and `feature_dictionary` [in_features, atoms]. loss:
    "squared_hinge" or "bce", the mean over labels, then over the batch; None is the recipe's, as
    for the learning rate. optimizer: "adam", "sgd" (no moments) or "momentum" (m alone); for this,
    momentum, weight_decay and l2 see `fanin.backends.optimizer.Optimizer`. weights_dtype,
    moments_dtype: torch.float32 or torch.bfloat16, the latter rounded stochastically, by numbers
    that `rounding_seed` starts; `.half()` and the like leave all types as they are. generator: for
    the indices and initial weights. On a GPU nothing waits for the device (so what is wrong in the
    data gives NaN, not an error) but what rewires. Raises ValueError for what makes no layer.

    group_size: see `FixedFanInLinear`.
    """

    weights: Tensor
    weights_m: Tensor | None
    weights_v: Tensor | None
    bias: Tensor
    bias_m: Tensor | None
    bias_v: Tensor | None
    not_averaged = (*Connected.not_averaged, "steps")

    def __init__(
        self,
        in_features: int,
        labels: int,
        fan_in: int,
        *,
        recipe: RecipeName = "paper",
        loss: Loss | None = None,
        learning_rate: float | None = None,
        optimizer: OptimizerKind = "adam",
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        l2: float = 0.0,
        weights_dtype: torch.dtype = torch.float32,
        moments_dtype: torch.dtype = torch.float32,
        rounding_seed: int = 0,
        device: torch.device | str | None = None,
        generator: torch.Generator | None = None,
        group_size: int | None = None,
    ) -> None:
        super().__init__()
        check_sizes(in_features, labels, fan_in)
        self.group_size = group_size
        self.in_features = in_features
        self.labels = labels
        self.fan_in = fan_in
        known = self._follow(recipe, device, torch.float32)
        loss = known.loss_fn if loss is None else loss
        if loss not in params.LOSSES:
            raise ValueError(f"unknown loss {loss!r}; there are {', '.join(params.LOSSES)}")
        for name, dtype in (("weights_dtype", weights_dtype), ("moments_dtype", moments_dtype)):
            if dtype not in (torch.float32, torch.bfloat16):
                raise ValueError(f"{name} must be torch.float32 or torch.bfloat16, got {dtype}")
        self.loss: Loss = loss
        self.optimizer = Optimizer(optimizer, weight_decay, l2, momentum)
        self.own_moments = tuple(f"weights_{moment}" for moment in self.optimizer.keeps)
        self.own_progress = (*(f"bias_{moment}" for moment in self.optimizer.keeps), "steps")
        self.rounding_seed = checks.whole("rounding_seed", rounding_seed, 0, 2**63 - 1)
        shape = (labels, fan_in)
        self._add_indices(self._setup.output_inputs, device)
        self._add_order(device)
        self.register_buffer("weights", torch.empty(shape, dtype=weights_dtype, device=device))
        for name in WEIGHTS[1:]:
            made = None
            if name in self.own_moments:
                made = torch.empty(shape, dtype=moments_dtype, device=device)
            self.register_buffer(name, made)
        for name in BIAS:
            made = None
            if name == "bias" or name in self.own_progress:
                made = torch.empty(labels, dtype=torch.float32, device=device)
            self.register_buffer(name, made)
        rate = known.learning_rate if learning_rate is None else checks.learning_rate(learning_rate)
        self._add_progress(rate)
        self.reset_parameters(generator)

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Begin anew: draw indices and weights, as `FixedFanInLinear` does, leave features as they
        are, and have made no step. The learning rate stays."""
        draw_connections(self._setup.output_inputs, self.indices, self.weights, generator)
        self._stamp()
        self._reset_features()
        self._reset_order()
        for name in (*self.own_moments, "bias", *self.own_progress):
            getattr(self, name).zero_()
        self._take_from_first()

    def forward(self, features: Tensor) -> Tensor:
        """All scores, [..., labels] of features [..., in_features]; differentiable in these."""
        return self._scores(features, self.weights)

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
        features = self._read(features)
        positives = self._positives(features, positive_instances, positive_labels)
        loss, grad = counted_step(
            features.detach(),
            self.indices,
            *(getattr(self, name) for name in (*WEIGHTS, *BIAS)),
            self.steps,
            self.rate,
            *positives,
            self.loss,
            self.optimizer.numbers,
            self.rounding_seed,
            features.requires_grad and torch.is_grad_enabled(),
            self.group_size or 0,
        )
        if not (features.requires_grad and torch.is_grad_enabled()):
            return loss
        with_gradient: Tensor = WithGradient.apply(features, loss, grad)
        return with_gradient

    def evaluate_loss(
        self,
        features: Tensor,
        positive_instances: Tensor | Sequence[int],
        positive_labels: Tensor | Sequence[int],
    ) -> Tensor:
        """The loss without a step; arguments as in `training_step`. All scores are held."""
        features = self._read(features)
        instances, label_ids = self._positives(features, positive_instances, positive_labels)
        size, weights = self.group_size or 0, self.weights.float()
        scores = fan_in_linear(features, self.indices, weights, self.bias, group_size=size)
        loss: Tensor = LOSSES[self.loss](scores, instances.long(), label_ids)
        return loss.masked_fill((instances < 0).any(), torch.nan)

    def _positives(
        self, features: Tensor, positive_instances: Any, positive_labels: Any
    ) -> tuple[Tensor, Tensor]:
        """The positives of a batch [batch, in_features] as the ops read them, with positions in
        place of labels. Those that are no tensors yet go where the features are, not where torch
        makes new ones."""
        if features.ndim != 2:
            raise ValueError(
                f"features must be [batch, {self.in_features}], got {list(features.shape)}"
            )
        if not features.shape[0]:
            raise ValueError("a loss needs at least one instance; the batch is empty")
        self._refuse_other_derivatives(features)
        instances, label_ids = (
            torch.as_tensor(
                given, device=given.device if isinstance(given, Tensor) else features.device
            )
            for given in (positive_instances, positive_labels)
        )
        known = known_positives(instances, label_ids, features.shape[0], self.labels)
        positions = self._positions()
        return known if positions is None else (known[0], positions[known[1]].long())

    @staticmethod
    def _refuse_other_derivatives(features: Tensor) -> None:
        """torch would take the derivatives that it does not know for 0."""
        in_torch_func = torch._C._are_functorch_transforms_active()
        compiled = torch.compiler.is_compiling()
        if in_torch_func or (not compiled and forward_ad.unpack_dual(features).tangent is not None):
            raise NotImplementedError(
                "a loss of FusedFanIn has one derivative, by loss.backward() or "
                "torch.autograd.grad; for others take those of the scores, layer(features)"
            )

    @torch.no_grad()
    def top_k(self, features: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Scores and ids of the k best labels, [batch, k] each, best first, ties to the lower id;
        all scores are never held."""
        best: tuple[Tensor, Tensor] = top_k(
            self._read(features),
            *(self.indices, None, None, self.weights, self.bias),
            checks.best(k, self.labels),
            self.order,
            self.group_size or 0,
        )
        return best

    @torch.no_grad()
    def rewire(self, fraction: float, rng: np.random.Generator | int | None = None) -> int:
        """Give the `fraction` of connections with the smallest |weight| new random inputs; their
        weight stays and their moments become 0. rng: a generator or a seed. Returns how many moved.
        See `fanin.backends.arrays.plan_rewiring`. Where labels share their sources, sources are
        compared, by the mean |weight| of their group, and sources are counted."""
        if self.group_size is not None:
            magnitudes = self._setup.output.source_magnitudes(self.weights.float().cpu().numpy())
            inputs, seed = self._setup.output_inputs, drawn_seed(rng)
            return self._move(plan_rewiring(magnitudes, fraction, inputs, seed), self._resets())
        moved = rewire(
            self.indices,
            self.weights,
            self.weights_m,
            self.weights_v,
            self._setup.output_inputs,
            checks.fraction(fraction),
            drawn_seed(rng),
        )
        self._stamp()
        return moved

    def rewire_towards_gradients(
        self,
        features: Any,
        labels: Any,
        fraction: float = 0.2,
        *,
        rng: np.random.Generator | int | None = None,
    ) -> int:
        """Move the `fraction` of each label's connections with the smallest |weight| to the inputs
        whose weight would change most; their new weight and their moments are 0.

        features, labels: the training data, as in `start_from`. rng: a generator or a seed. Returns
        how many moved. See `fanin.backends.gradients.plan_towards_gradients`. Raises ValueError for
        others.
        """
        resets = self._resets()
        return self._rewire_towards_gradients(features, labels, fraction, rng, self.loss, resets)

    def _resets(self) -> Resets:
        return [(getattr(self, name), 0.0) for name in self.own_moments]

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, loss={self.loss!r}, learning_rate={self.learning_rate}"
