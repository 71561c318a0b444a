"""fanin's own ops: of labels that have their own sources, and of labels that share them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fanin.backends.optimizer import ADAM
from fanin.backends.torch import fan_in_linear
from fanin.backends.torch.ops import top_k
from fanin.backends.torch.training_ops import fused_step
from fanin.benchmarks.gpu_parts.contestants.inputs import DoesNotFitError, InputSets, K


class Fanin:
    """group_size: labels that share their sources, 0 for none. half: weights and moments in
    bfloat16, which only the fused step and top-k have."""

    def __init__(
        self, inputs: InputSets, op: str = "", group_size: int = 0, half: bool = False
    ) -> None:
        if half and op not in ("fused step", "top-k"):
            raise DoesNotFitError("the op has no bfloat16")
        self._inputs, self._group_size = inputs, group_size
        dtype = torch.bfloat16 if half else torch.float32
        self._weights = [w.to(dtype) for w in inputs.weights]
        # The first labels' own sources, as many rows as there are groups.
        groups = -(-len(inputs.bias[0]) // group_size) if group_size else None
        self._indices = [i[:groups] for i in inputs.indices]
        state = (self._weights[0], self._weights[0], inputs.bias[0], inputs.bias[0])
        self._moments = [[torch.zeros_like(t) for t in state] for _ in range(inputs.count)]

    def forward(self, i: int) -> Tensor:
        inputs = self._inputs
        return fan_in_linear(
            *(inputs.features[i], self._indices[i], self._weights[i], inputs.bias[i]),
            group_size=self._group_size,
        )

    def backward(self, i: int) -> Any:
        inputs = self._inputs
        return torch.ops.fanin.fan_in_linear_backward(
            *(inputs.grads[i], inputs.features[i], self._indices[i], self._weights[i]),
            *([True] * 3, 0, self._group_size),
        )

    def step(self, i: int) -> Any:
        inputs, (m, v, bias_m, bias_v) = self._inputs, self._moments[i]
        return fused_step(
            *(inputs.features[i], self._indices[i], None, None),
            *(self._weights[i], m, v, inputs.bias[i], bias_m, bias_v),
            *(inputs.positive_instances[i], inputs.positive_labels[i]),
            *("squared_hinge", ADAM.numbers, 1e-3, 1, 0, True, self._group_size),
        )

    def best(self, i: int) -> Any:
        inputs = self._inputs
        arrays = (self._indices[i], None, None, self._weights[i], inputs.bias[i])
        return top_k(inputs.features[i], *arrays, K, None, self._group_size)
