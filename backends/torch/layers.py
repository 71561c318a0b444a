"""`FixedFanInLinear`: the fixed fan-in output layer as an ordinary nn.Module."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fanin.backends import checks
from fanin.backends.arrays import drawn_seed, plan_rewiring
from fanin.backends.recipes import RecipeName
from fanin.backends.setup import Loss
from fanin.backends.torch.connected import Connected
from fanin.backends.torch.optimizers import resets_of
from fanin.backends.torch.tools import ranks


class FixedFanInLinear(Connected):
    """A linear layer in which every label is connected to exactly `fan_in` inputs.

    Takes [..., in_features] and gives [..., labels]. Parameters `weights` [labels, fan_in] and
    `bias` [labels]; `indices` [labels, fan_in], uint16 where in_features <= 65536 and else uint32,
    drawn uniformly (a label may name an input twice). All of it is in the state_dict, the indices
    as bytes. `.double()` and the like leave the indices alone. With float16 and bfloat16, of
    features or of the layer, it computes in float32; scores have the layer's type, under autocast
    too. Sparse features are made dense.

    recipe: "paper", or "best" for a layer that scales its features and, up to 4,096 inputs, writes
    them in the atoms of a dictionary, which labels read then; `start_from` fills the buffers of
    both, `feature_scale` and `feature_dictionary` [in_features, atoms]. generator: for the indices
    and the initial weights. Raises ValueError where fan_in is larger than in_features, and for a
    recipe that is none.

    group_size: how many labels share their sources, 8 to 64; indices are [label groups, fan_in]
    then. None: each label has its own. A buffer `order` has the label at each position. At first
    that is the label of the same number; `start_from` gives the order of the recipe. Weights,
    biases and indices are in the order of the positions, scores in that of the labels.
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
        recipe: RecipeName = "paper",
        group_size: int | None = None,
    ) -> None:
        super().__init__()
        check_sizes(in_features, labels, fan_in)
        self.group_size = group_size
        self.in_features = in_features
        self.labels = labels
        self.fan_in = fan_in
        self._follow(
            recipe, device, torch.promote_types(dtype or torch.get_default_dtype(), torch.float32)
        )
        shape = (labels, fan_in)
        self._add_indices(self._setup.output_inputs, device)
        self._add_order(device)
        self.weights = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(labels, device=device, dtype=dtype)) if bias else None
        self.reset_parameters(generator)

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw indices and weights anew, and put each label at its own position. What the layer
        does to features stays. The weights are uniform within sqrt(3 / (labels fan_in)), near zero:
        Glorot's limit for one flat vector of all connections, as in the paper's code."""
        draw_connections(self._setup.output_inputs, self.indices, self.weights, generator)
        self._stamp()
        self._reset_order()
        self._take_from_first()
        if self.bias is not None:
            self.bias.zero_()
        self._reset_features()

    def forward(self, features: Tensor) -> Tensor:
        return self._scores(features, self.weights).to(self.weights.dtype)

    @torch.no_grad()
    def rewire(
        self,
        fraction: float,
        optimizer: torch.optim.Optimizer | None = None,
        rng: np.random.Generator | int | None = None,
    ) -> int:
        """Give the `fraction` of connections with the smallest |weight| a new random input.

        Weights keep their value. Where `optimizer` is given, its moments of the moved connections
        start again (Adam's at 0), and its averages of weights take the weight (ASGD). rng: a
        generator or a seed. Returns how many connections moved. Where labels share their sources,
        sources are compared, by the mean |weight| of their group, and sources are counted. See
        `fanin.backends.arrays.plan_rewiring` for the rule. Raises ValueError for an optimizer that
        does not train this layer's weights, and for one that is not torch's own.
        """
        resets = [] if optimizer is None else resets_of(optimizer, self.weights)
        known = torch.promote_types(self.weights.dtype, torch.float32)  # NumPy has no bfloat16
        weights = self._whole_weights().to(known).cpu().numpy()
        weights = self._setup.output.source_magnitudes(weights)
        plan = plan_rewiring(weights, fraction, self._setup.output_inputs, drawn_seed(rng))
        return self._move(plan, resets)

    def rewire_towards_gradients(
        self,
        features: Any,
        labels: Any,
        fraction: float = 0.2,
        optimizer: torch.optim.Optimizer | None = None,
        *,
        loss: Loss = "bce",
        rng: np.random.Generator | int | None = None,
    ) -> int:
        """Move the `fraction` of each label's connections with the smallest |weight| to the inputs
        whose weight would change most; their new weight is 0.

        features, labels: the training data, as in `start_from`. optimizer, rng, and what is
        returned: as in `rewire`. loss: what the layer is trained with, "bce" or "squared_hinge".
        See `fanin.backends.gradients.plan_towards_gradients`. Raises ValueError for others.
        """
        resets = [] if optimizer is None else resets_of(optimizer, self.weights)
        return self._rewire_towards_gradients(features, labels, fraction, rng, loss, resets)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, bias={self.bias is not None}"


def check_sizes(in_features: int, labels: int, fan_in: int) -> None:
    """ValueError for sizes that make no fixed fan-in layer."""
    checks.whole("in_features", in_features, 1, checks.MOST_INPUTS)
    checks.whole("labels", labels, 1)
    checks.whole("fan_in", fan_in, 1)
    checks.fitting_fan_in(fan_in, in_features)


def draw_connections(
    inputs: int, indices: Tensor, weights: Tensor, generator: torch.Generator | None
) -> None:
    """Fill indices and weights [labels, fan_in], as `FixedFanInLinear` says."""
    # On the CPU whatever the device, torch's default included: a generator belongs to one of them.
    drawn = torch.randint(
        inputs, indices.shape, generator=generator, dtype=torch.int32, device="cpu"
    )
    indices.copy_(drawn.to(indices.dtype))
    limit = math.sqrt(3 / weights.numel())
    dtype = torch.promote_types(weights.dtype, torch.float32)
    values = torch.empty(weights.shape, dtype=dtype, device="cpu")
    ranks.assign(weights, values.uniform_(-limit, limit, generator=generator))
