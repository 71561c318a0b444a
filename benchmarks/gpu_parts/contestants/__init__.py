"""The contestants of part `kernels`: fanin's own ops (`ours`) and torch's ways to do the same, a
file each. `peer` is what torch's ways share, `inputs` what all of them work on.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fanin.benchmarks.gpu_parts.contestants.csr import Csr
from fanin.benchmarks.gpu_parts.contestants.dense import Dense
from fanin.benchmarks.gpu_parts.contestants.gather import Gather
from fanin.benchmarks.gpu_parts.contestants.inputs import DoesNotFitError, InputSets, Workload
from fanin.benchmarks.gpu_parts.contestants.ours import Fanin
from fanin.benchmarks.gpu_parts.contestants.peer import Peer
from fanin.benchmarks.records.gpu import OURS

__all__ = [
    "METHODS",
    "Contestant",
    "Csr",
    "Dense",
    "DoesNotFitError",
    "Fanin",
    "Gather",
    "InputSets",
    "Peer",
    "Workload",
    "makers",
]

Contestant = Fanin | Peer

# What a contestant does for each op with input set `i`.
METHODS: dict[str, Callable[[Contestant, int], Any]] = {
    "forward": lambda contestant, i: contestant.forward(i),
    "backward": lambda contestant, i: contestant.backward(i),
    "fused step": lambda contestant, i: contestant.step(i),
    "top-k": lambda contestant, i: contestant.best(i),
}


def makers(inputs: InputSets, op: str) -> dict[str, Callable[[], Contestant]]:
    """How each contestant is made; one may raise DoesNotFitError."""
    return {
        OURS: lambda: Fanin(inputs),
        "groups of 16": lambda: Fanin(inputs, op, 16),
        "groups of 32": lambda: Fanin(inputs, op, 32),
        "groups of 32 bf16": lambda: Fanin(inputs, op, 32, half=True),
        "dense fp32": lambda: Dense(inputs, op, "fp32"),
        "dense tf32": lambda: Dense(inputs, op, "tf32"),
        "dense bf16": lambda: Dense(inputs, op, "bf16"),
        "CSR": lambda: Csr(inputs),
        "gather + einsum": lambda: Gather(inputs),
    }
