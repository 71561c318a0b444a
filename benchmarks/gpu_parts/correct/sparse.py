"""`sparse_relu` and `sparse_relu_update`: a dense layer over sparse features, and the training of
the rows of its words."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from fanin.backends.optimizer import ADAM
from fanin.backends.torch.training_ops import sparse_relu, sparse_relu_update
from fanin.benchmarks.gpu_parts import reference
from fanin.benchmarks.gpu_parts.correct.bench import (
    LEARNING_RATE,
    Bench,
    Case,
    Outputs,
    adam_from,
    starts_of,
    tolerance,
    type_name,
)

Features = tuple[Tensor, Tensor, Tensor]  # values, starts, columns

# Of the first step.
NUMBERS = (ADAM.numbers, LEARNING_RATE, 1, 0)


@dataclass(frozen=True)
class SparseLayer:
    """Both calls, on words of which some are in no instance and the first is in most. rows: one
    moment for each row."""

    batch: int
    inputs: int
    units: int
    dtype: torch.dtype
    rows: bool

    @property
    def key(self) -> str:
        moments = "row moments" if self.rows else "moments"
        sizes = f"{self.inputs}x{self.units} batch {self.batch}"
        return f"sparse_relu {sizes} {type_name(self.dtype)} {moments}"

    def __call__(self, bench: Bench) -> None:
        batch, inputs, units = self.batch, self.inputs, self.units
        shape = {"batch": batch, "inputs": inputs, "units": units}
        dtype = type_name(self.dtype)
        features, words, dense = self._features(bench)
        weights, bias = bench.normal(inputs, units).to(self.dtype), bench.normal(units)
        grad = bench.normal(batch, units)
        layer = reference.Layer(weights.t(), bias)
        bench.poison(grad)
        outputs, seconds = bench.timed(lambda: sparse_relu(*features, weights, bias))
        expected = layer.scores(dense).clamp(min=0)
        checked: Outputs = {"outputs": (outputs, expected, tolerance(torch.float32, inputs))}
        bench.check("sparse_relu", checked, shape, dtype, None, seconds)

        # What earlier steps have left, in rows that are updated and in others.
        m = None if self.rows else 0.1 * bench.normal(inputs, units)
        v = bench.normal(inputs, *(() if self.rows else (units,))).square()
        bias_m, bias_v = torch.zeros_like(bias), torch.zeros_like(bias)
        state = (weights, m, v, bias, bias_m, bias_v)
        before = [tensor.double() for tensor in (weights, v, v if m is None else m)]
        active = grad * (outputs > 0)
        _, grad_weights, grad_bias = layer.gradients(active, dense)
        _, seconds = bench.timed(
            lambda: sparse_relu_update(grad, outputs, *words, *state, *NUMBERS)
        )
        changed = words[0].long()
        expected, *moments = self._updated(before, grad_weights.t().contiguous(), changed)
        room = tolerance(torch.float32, batch)
        layer.bias_m += 0.1 * (grad_bias - layer.bias_m)
        checked = {
            "bias": (bias, adam_from(layer.bias, bias_m, bias_v, 1), tolerance(torch.float32, 1)),
            "bias_m": (bias_m, layer.bias_m, room),
            "weights_v": (v, moments[0], 2 * room),
            # A bfloat16 is one of the two neighbours.
            "weights": (weights, expected, room if self.dtype == torch.float32 else 2.0**-7),
        }
        if m is not None:
            checked["weights_m"] = (m, moments[1], room)
        others = torch.ones(inputs, dtype=torch.bool, device=changed.device)
        others[changed] = False
        checked["other weights"] = (weights[others], before[0][others], 0.0)
        bench.check("sparse_relu_update", checked, shape, dtype, None, seconds)

    def _features(self, bench: Bench) -> tuple[Features, tuple[Tensor, ...], Tensor]:
        """CSR, by words, and as a float64 matrix."""
        stored = 5 * self.batch
        instances = bench.integers(0, self.batch, stored).sort().values
        columns = bench.integers(0, self.inputs, stored)
        columns[bench.integers(0, 3, stored) == 0] = 0
        values = bench.normal(stored)
        starts = starts_of(instances, self.batch)
        order = columns.sort(stable=True).indices
        words, of_words = columns[order].unique(return_inverse=True)
        word_starts = starts_of(of_words, words.numel())
        by_words = (words.int(), word_starts, instances[order].int(), values[order])
        dense = torch.zeros(self.batch, self.inputs, dtype=torch.float64, device=bench.device)
        dense.index_put_((instances, columns), values.double(), accumulate=True)
        return (values, starts, columns.int()), by_words, dense

    def _updated(self, before: list[Tensor], grad: Tensor, words: Tensor) -> list[Tensor]:
        """Weights, v and m as the formulas of `fanin.h` have them; without m, v again."""
        weights, v, m = (tensor.clone() for tensor in before)
        g = grad[words]
        if self.rows:
            v[words] += 0.001 * (g.square().mean(1) - v[words])
            size = LEARNING_RATE * 0.001**0.5
            weights[words] -= size * g / (v[words].sqrt() + 1e-7)[:, None]
            return [weights, v, v]
        some, some_m, some_v = (tensor[words] for tensor in (weights, m, v))
        reference.adam(some, some_m, some_v, g, 1, LEARNING_RATE)
        weights[words], m[words], v[words] = some, some_m, some_v
        return [weights, v, m]


def cases() -> Iterator[Case]:
    """Odd sizes, and 1,024 units of an intermediate layer, but fewer words than published data sets
    have."""
    for batch, inputs, units in ((1, 1, 1), (33, 97, 131), (128, 1_009, 65), (32, 3_001, 1_024)):
        for dtype in (torch.float32, torch.bfloat16):
            for rows in (False, True):
                layer = SparseLayer(batch, inputs, units, dtype, rows)
                yield Case(layer.key, layer, small=batch == 33)
