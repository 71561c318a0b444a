"""fanin's own ops."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fanin.backends.optimizer import ADAM
from fanin.backends.torch import fan_in_linear
from fanin.backends.torch.ops import top_k
from fanin.backends.torch.training_ops import fused_step
from fanin.benchmarks.gpu_parts.contestants.inputs import InputSets, K


class Fanin:
    def __init__(self, inputs: InputSets) -> None:
        self._inputs = inputs
        state = (inputs.weights[0], inputs.weights[0], inputs.bias[0], inputs.bias[0])
        self._moments = [[torch.zeros_like(t) for t in state] for _ in range(inputs.count)]

    def forward(self, i: int) -> Tensor:
        inputs = self._inputs
        return fan_in_linear(
            inputs.features[i], inputs.indices[i], inputs.weights[i], inputs.bias[i]
        )

    def backward(self, i: int) -> Any:
        inputs = self._inputs
        return torch.ops.fanin.fan_in_linear_backward(
            inputs.grads[i],
            inputs.features[i],
            inputs.indices[i],
            inputs.weights[i],
            [True] * 3,
            0,
        )

    def step(self, i: int) -> Any:
        inputs, (m, v, bias_m, bias_v) = self._inputs, self._moments[i]
        return fused_step(
            *(inputs.features[i], inputs.indices[i], None, None),
            *(inputs.weights[i], m, v, inputs.bias[i], bias_m, bias_v),
            *(inputs.positive_instances[i], inputs.positive_labels[i]),
            *("squared_hinge", ADAM.numbers, 1e-3, 1, 0, True),
        )

    def best(self, i: int) -> Any:
        inputs = self._inputs
        arrays = (inputs.indices[i], None, None, inputs.weights[i], inputs.bias[i])
        return top_k(inputs.features[i], *arrays, K)
