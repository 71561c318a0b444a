"""`FixedFanInLinear`: the fixed fan-in output layer as an ordinary nn.Module."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from fanin.backends import checks
from fanin.backends.arrays import Rewiring, drawn_seed, plan_rewiring
from fanin.backends.setup import index_dtype
from fanin.backends.torch.ops import fan_in_linear

# torch has little arithmetic for unsigned integers; a view as signed ones has the same bits.
_SIGNED = {torch.uint16: torch.int16, torch.uint32: torch.int32}


class Connected(nn.Module):
    """What the layers with a buffer `indices` [labels, fan_in] have in common."""

    indices: Tensor
    in_features: int
    own_moments: ClassVar[tuple[str, ...]] = ()
    """Names of the buffers that belong to the connections, of a layer that trains itself."""

    @torch.no_grad()
    def set_connections(self, indices: np.ndarray | Tensor) -> None:
        """Take over the sources of all connections, integers [labels, fan_in], each below
        in_features: as `fanin.backends.choosing.choose_sources` gives them, say.

        Weights keep their value, and in a layer that trains itself the moments of connections whose
        source has changed become 0. ValueError for others; nothing has changed then.
        """
        given = indices.cpu().numpy() if isinstance(indices, Tensor) else indices
        before = self.indices.cpu().numpy()
        sources = checks.connections(given, before.shape, self.in_features).astype(before.dtype)
        has_moved = torch.from_numpy(sources != before).to(self.indices.device)
        self.indices.copy_(torch.from_numpy(sources))
        for name in self.own_moments:
            getattr(self, name)[has_moved] = 0

    def __getstate__(self) -> dict[str, Any]:
        # What plain pickle makes of an unsigned tensor cannot be read again (torch 2.13).
        buffers = {**self._buffers, "indices": self.indices.view(_SIGNED[self.indices.dtype])}
        return {**self.__dict__, "_buffers": buffers}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.indices = self.indices.view(index_type(self.in_features))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *others: Any) -> None:
        loaded = state_dict.get(f"{prefix}indices")
        if isinstance(loaded, Tensor) and not loaded.is_meta:
            try:
                checks.loaded_indices(loaded.cpu().numpy(), self.in_features)
            except ValueError as error:
                error_messages: list[str] = others[-1]
                error_messages.append(f"{prefix}{error}")
                return
        super()._load_from_state_dict(state_dict, prefix, *others)


class FixedFanInLinear(Connected):
    """A linear layer in which every label is connected to exactly `fan_in` inputs.

    Takes [..., in_features] and gives [..., labels]. Parameters `weights` [labels, fan_in] and
    `bias` [labels]; buffer `indices` [labels, fan_in], uint16 where in_features <= 65536 and else
    uint32, drawn uniformly (a label may name an input twice). All of it is in the state_dict.
    `.double()` and `.float()` leave the indices alone; `.half()` is not supported, autocast is.

    generator: for the indices and the initial weights. Raises ValueError where fan_in is larger
    than in_features.
    """

    def __init__(
        self,
        in_features: int,
        labels: int,
        fan_in: int,
        *,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        check_sizes(in_features, labels, fan_in)
        self.in_features = in_features
        self.labels = labels
        self.fan_in = fan_in
        shape, index = (labels, fan_in), index_type(in_features)
        self.register_buffer("indices", torch.empty(shape, dtype=index, device=device))
        self.weights = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(labels, device=device, dtype=dtype)) if bias else None
        self.reset_parameters(generator)

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw indices and weights anew. The weights are uniform within sqrt(3 / (labels fan_in)),
        near zero: Glorot's limit for one flat vector of all connections, as in the paper's code."""
        draw_connections(self.in_features, self.indices, self.weights, generator)
        if self.bias is not None:
            self.bias.zero_()

    def forward(self, features: Tensor) -> Tensor:
        check_width(features, self.in_features)
        flat = features.reshape(-1, features.shape[-1]).contiguous()
        scores = fan_in_linear(flat, self.indices, self.weights, self.bias)
        return scores.reshape(*features.shape[:-1], self.labels)

    @torch.no_grad()
    def rewire(
        self,
        fraction: float,
        optimizer: torch.optim.Optimizer | None = None,
        rng: np.random.Generator | int | None = None,
    ) -> int:
        """Give the `fraction` of connections with the smallest |weight| a new random input.

        Weights keep their value. Where `optimizer` is given, its per-element state of the moved
        connections (Adam's moments, say) becomes 0. rng: a generator or a seed. Returns how many
        connections moved. See `fanin.backends.arrays.plan_rewiring` for the rule. Raises ValueError
        for an optimizer that does not train this layer's weights.
        """
        moments = [] if optimizer is None else self._moments(optimizer)
        known = torch.promote_types(self.weights.dtype, torch.float32)  # NumPy has no bfloat16
        weights = self.weights.detach().to(known).cpu().numpy()
        plan = plan_rewiring(weights, fraction, self.in_features, drawn_seed(rng))
        move_connections(self.indices, moments, plan)
        return len(plan.positions)

    def _moments(self, optimizer: torch.optim.Optimizer) -> list[Tensor]:
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise ValueError(f"optimizer must be one of torch.optim, got {optimizer!r}")
        trained = (p for group in optimizer.param_groups for p in group["params"])
        if not any(parameter is self.weights for parameter in trained):
            raise ValueError(
                f"this {type(optimizer).__name__} does not train the layer's weights; "
                "hand over the optimizer that does, or none"
            )
        state = optimizer.state.get(self.weights, {})  # nothing before its first step
        shape = self.weights.shape  # others hold sums over rows or columns, say
        return [v for v in state.values() if isinstance(v, Tensor) and v.shape == shape]

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, labels={self.labels}, fan_in={self.fan_in}, "
            f"bias={self.bias is not None}"
        )


def check_sizes(in_features: int, labels: int, fan_in: int) -> None:
    """ValueError for sizes that make no fixed fan-in layer."""
    checks.whole("in_features", in_features, 1, checks.MOST_INPUTS)
    checks.whole("labels", labels, 1)
    checks.whole("fan_in", fan_in, 1)
    checks.fitting_fan_in(fan_in, in_features)


def check_width(features: Tensor, in_features: int) -> None:
    """ValueError for features of another width than the layer's, which the op does not know."""
    if features.shape[-1:] != (in_features,):
        raise ValueError(f"features must be [..., {in_features}], got {list(features.shape)}")


def index_type(in_features: int) -> torch.dtype:
    """uint16 where it can name all inputs, else uint32."""
    dtype: torch.dtype = getattr(torch, index_dtype(in_features).__name__)
    return dtype


def draw_connections(
    in_features: int, indices: Tensor, weights: Tensor, generator: torch.Generator | None
) -> None:
    """Fill indices [labels, fan_in] and weights alike, as `FixedFanInLinear` says."""
    # On the CPU whatever the device: a generator belongs to one of them.
    drawn = torch.randint(in_features, indices.shape, generator=generator, dtype=torch.int32)
    indices.copy_(drawn.to(indices.dtype))
    limit = math.sqrt(3 / weights.numel())
    values = torch.empty(weights.shape, dtype=torch.promote_types(weights.dtype, torch.float32))
    weights.copy_(values.uniform_(-limit, limit, generator=generator))


def move_connections(targets: Tensor, moments: list[Tensor], rewiring: Rewiring) -> None:
    """Give the connections their new sources and zero the moments there, all in place."""
    where = torch.from_numpy(rewiring.positions).to(targets.device)
    signed = _SIGNED.get(targets.dtype)
    flat = targets.view(-1) if signed is None else targets.view(-1).view(signed)
    values = torch.from_numpy(rewiring.sources.astype(str(targets.dtype).removeprefix("torch.")))
    if signed is not None:
        values = values.view(signed)
    flat[where] = values.to(targets.device)
    for moment in moments:
        moment.view(-1)[where] = 0
