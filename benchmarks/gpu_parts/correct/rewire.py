"""`rewire`: which connections get a new source, and which."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from fanin.backends.arrays import plan_rewiring
from fanin.backends.setup import LayerSetup
from fanin.backends.torch.ops import rewire
from fanin.benchmarks.gpu_parts.correct.bench import (
    Bench,
    Case,
    Outputs,
    connections_per_label,
    fixed,
    type_name,
)


@dataclass(frozen=True)
class Rewire:
    """`rewire` against the plan in NumPy, which the CPU's kernel follows too: all of it is logic on
    whole numbers and has to be equal."""

    setup: LayerSetup
    fraction: float
    dtype: torch.dtype
    index: torch.dtype

    def __call__(self, bench: Bench) -> None:
        labels, inputs = self.setup.labels, self.setup.inputs
        fan_in = connections_per_label(self.setup)
        weights = bench.normal(labels, fan_in).to(self.dtype)
        weights[labels // 2] = 0  # equal magnitudes at the threshold's lower end
        m, v = torch.ones_like(weights), torch.ones_like(weights)
        indices = bench.integers(0, inputs, labels, fan_in).to(self.index)
        kept = weights.clone()
        seed = bench.seed * 2**32 + 5
        plan = plan_rewiring(weights.float().cpu().numpy(), self.fraction, inputs, seed)
        expected = indices.cpu().long().view(-1)
        expected[torch.from_numpy(plan.positions)] = torch.from_numpy(plan.sources.astype(np.int64))
        moments = torch.ones(weights.numel())
        moments[torch.from_numpy(plan.positions)] = 0
        moved, seconds = bench.timed(
            lambda: rewire(indices, weights, m, v, inputs, self.fraction, seed)
        )
        outputs: Outputs = {
            "indices": (indices.cpu().long().view(-1), expected, 0.0),
            "weights": (weights, kept, 0.0),
            "m": (m.float().cpu().view(-1), moments, 0.0),
            "v": (v.float().cpu().view(-1), moments, 0.0),
            "moved": (torch.tensor([moved + 1]), torch.tensor([len(plan.positions) + 1]), 0.0),
        }
        shape = {"labels": labels, "fan_in": fan_in, "inputs": inputs}
        name, dtype = f"rewire {self.fraction:g}", type_name(self.dtype)
        bench.check(name, outputs, shape, dtype, indices, seconds)


def cases() -> Iterator[Case]:
    """None, some and nearly all connections, in each type of weights and indices."""
    for fraction in (0.0, 0.1, 0.5, 0.999):
        for dtype in (torch.float32, torch.bfloat16):
            for index in (torch.uint16, torch.uint32):
                key = f"rewire {fraction:g} {type_name(dtype)} {type_name(index)}"
                case = Rewire(fixed(90, 1_003, 7), fraction, dtype, index)
                yield Case(key, case, small=fraction == 0.1)
