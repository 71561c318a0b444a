"""`dense_relu` and `dense_relu_update`: the intermediate layer and its training."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from fanin.backends.optimizer import ADAM
from fanin.backends.torch.training_ops import dense_relu, dense_relu_update
from fanin.benchmarks.gpu_parts import reference
from fanin.benchmarks.gpu_parts.correct.bench import (
    LEARNING_RATE,
    Bench,
    Case,
    Outputs,
    adam_from,
    tolerance,
    type_name,
)

# Of the first step.
NUMBERS = (ADAM.numbers, LEARNING_RATE, 1, 0)


@dataclass(frozen=True)
class DenseLayer:
    """`dense_relu` and, in float32, a step of `dense_relu_update`."""

    batch: int
    inputs: int
    units: int
    dtype: torch.dtype = torch.float32

    def __call__(self, bench: Bench) -> None:
        batch, inputs, units = self.batch, self.inputs, self.units
        shape = {"batch": batch, "inputs": inputs, "units": units}
        features, grad = bench.normal(batch, inputs), bench.normal(batch, units)
        weights, bias = bench.normal(units, inputs).to(self.dtype), bench.normal(units)
        layer = reference.Layer(weights, bias)
        bench.poison(grad)
        outputs, seconds = bench.timed(lambda: dense_relu(features, weights, bias))
        expected = layer.scores(features).clamp(min=0)
        checked: Outputs = {"outputs": (outputs, expected, tolerance(torch.float32, inputs))}
        dtype = type_name(self.dtype)
        bench.check("dense_relu", checked, shape, dtype, None, seconds)
        if self.dtype != torch.float32:
            return
        m, v, bias_m, bias_v = (torch.zeros_like(t) for t in (weights, weights, bias, bias))
        before = weights.double(), bias.double()
        bench.poison(features)
        state = (weights, m, v, bias, bias_m, bias_v)
        result, seconds = bench.timed(
            lambda: dense_relu_update(grad, outputs, features, *state, *NUMBERS, True)
        )
        # Which units are active is for the forward pass to say: an input within rounding of 0 may
        # be on either side.
        active = grad * (outputs > 0)
        grad_features, grad_weights, grad_bias = layer.gradients(active, features)
        reference.adam(layer.weights, layer.m, layer.v, grad_weights, 1, LEARNING_RATE)
        reference.adam(layer.bias, layer.bias_m, layer.bias_v, grad_bias, 1, LEARNING_RATE)
        exact, over_batch, over_units = (tolerance(torch.float32, n) for n in (1, batch, units))
        checked = {
            "grad_features": (result, grad_features, over_units),
            "weights": (weights, adam_from(before[0], m, v, 1), exact),
            "weights_m": (m, layer.m, over_batch),
            "weights_v": (v, layer.v, 2 * over_batch),
            "bias": (bias, adam_from(before[1], bias_m, bias_v, 1), exact),
            "bias_m": (bias_m, layer.bias_m, over_batch),
        }
        bench.check("dense_relu_update", checked, shape, dtype, None, seconds)


def cases() -> Iterator[Case]:
    """Odd sizes and a usual one."""
    for batch, inputs, units in ((1, 1, 1), (33, 97, 131), (128, 129, 65), (32, 512, 4_096)):
        for dtype in (torch.float32, torch.bfloat16):
            key = f"dense_relu {units}x{inputs} batch {batch} {type_name(dtype)}"
            yield Case(key, DenseLayer(batch, inputs, units, dtype), small=batch == 33)
