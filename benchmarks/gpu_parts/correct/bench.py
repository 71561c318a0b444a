"""What all cases share: random inputs on the device, poisoned memory, checks and tolerances."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fanin.backends.kinds import FixedFanIn
from fanin.backends.setup import LayerSetup
from fanin.benchmarks.gpu_parts import reference
from fanin.benchmarks.records.gpu import Check

LEARNING_RATE = 0.01
# Labels where the shape is published but not the number of labels: some tiles and a bit. A dry run
# has a few.
SOME_LABELS, FEW_LABELS = 4_099, 261

# Output -> what an op gave, what is expected, and the tolerance.
Outputs = dict[str, tuple[Tensor, Tensor, float]]


class NeedsGpuError(RuntimeError):
    """Nothing of this kind exists on a CPU."""


class Bench:
    """Fresh random inputs on a device, and the checks of one case's outputs."""

    def __init__(self, device: torch.device, seed: int) -> None:
        self.device = device
        self.seed = seed
        self.checks: list[Check] = []
        self._generator = torch.Generator(device).manual_seed(seed)

    def normal(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(shape, dtype=dtype, device=self.device, generator=self._generator)

    def integers(self, low: int, high: int, *shape: int) -> Tensor:
        return torch.randint(low, high, shape, device=self.device, generator=self._generator)

    def positives(self, batch: int, labels: int) -> tuple[Tensor, Tensor]:
        """Instance and label of five positives an instance, each pair once."""
        flat = torch.unique(
            self.integers(0, batch, 5 * batch) * labels + self.integers(0, labels, 5 * batch)
        )
        return (flat // labels).int(), flat % labels

    def poison(self, *tensors: Tensor) -> None:
        """Leave NaN in the memory that outputs like these will most likely get."""
        for like in tensors:
            # Two of each: an op may allocate something else first.
            _ = [torch.full_like(like, torch.nan) for _ in range(2)]

    def poisoned_scratch(self, size: int) -> tuple[int, Tensor]:
        """Scratch memory for a call of the C interface, NaN for certain."""
        memory = torch.full((size,), 255, dtype=torch.uint8, device=self.device)
        return memory.data_ptr(), memory

    def timed(self, call: Callable[[], Any]) -> tuple[Any, float]:
        """What the call gives, and its seconds."""
        self._wait()
        start = time.perf_counter()
        result = call()
        self._wait()
        return result, time.perf_counter() - start

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def check(
        self,
        op: str,
        outputs: Outputs,
        shape: dict[str, int],
        dtype: str,
        index: Tensor | None,
        seconds: float,
    ) -> None:
        """Compare each output with what is expected."""
        index_name = None if index is None else type_name(index.dtype)
        for output, (result, expected, room) in outputs.items():
            error = relative(result, expected)
            self.record(op, output, shape, dtype, index_name, error, room, seconds)

    def record(
        self,
        op: str,
        output: str,
        shape: dict[str, int],
        dtype: str,
        index: str | None,
        error: float,
        room: float,
        seconds: float | None,
        reason: str | None = None,
    ) -> None:
        """Keep one check; room: its tolerance."""
        if not np.isfinite(error):
            reason = reason or "NaN or infinity, or another shape"
        self.checks.append(
            Check(
                op=op,
                output=output,
                shape=shape,
                dtype=dtype,
                index=index,
                error=float(error) if np.isfinite(error) else None,
                tolerance=room,
                passed=bool(error <= room),
                seconds=seconds,
                reason=reason,
            )
        )


@dataclass(frozen=True)
class Case:
    """What `run` records in a bench. small: also run under the sanitizer."""

    key: str
    run: Callable[[Bench], None]
    small: bool = False


# ---- tolerances ----------------------------------------------------------------------------------


def tolerance(dtype: torch.dtype, terms: float) -> float:
    """How far from float64 a sum of so many products may be, relative to the largest result.

    Each addition rounds by eps / 2 of the partial sum. Signs are random, so both the sum and its
    error grow like sqrt(terms), the error by eps * sqrt(terms) / 3 of a typical sum at most (all
    added one after the other). The largest result is some times a typical one, and so is the
    largest error. 4 leaves room, and still finds a TF32 product (eps 2^-11) or a term left out.
    """
    return float(4 * torch.finfo(dtype).eps * (1 + terms**0.5))


def relative(result: Tensor, expected: Tensor) -> float:
    """max |result - expected| / max |expected|; NaN where either has one or the shapes differ."""
    if result.shape != expected.shape:
        return float("nan")
    if not expected.numel():
        return 0.0
    largest = expected.double().abs().max().clamp(min=1e-300)
    return float((result.double() - expected.double()).abs().max() / largest)


def adam_from(before: Tensor, m: Tensor, v: Tensor, step: int) -> Tensor:
    """What a step makes of the values before it, given the moments that it left. Where a gradient
    all but cancels, Adam blows its rounding up to a step of full size; so moments are held to the
    reference, and the values to the moments."""
    values = before.clone()
    reference.adam_update(values, m.double(), v.double(), step, LEARNING_RATE)
    return values


# ---- layers --------------------------------------------------------------------------------------


def fixed(inputs: int, labels: int, fan_in: int) -> LayerSetup:
    """A fixed fan-in layer without an intermediate one."""
    return LayerSetup(inputs, labels, FixedFanIn(fan_in))


def connections_per_label(setup: LayerSetup) -> int:
    return setup.count("output.weights") // setup.labels


def shape_of(setup: LayerSetup, batch: int) -> dict[str, int]:
    """The sizes that a check tells."""
    fan_in = connections_per_label(setup)
    return {"batch": batch, "inputs": setup.inputs, "labels": setup.labels, "fan_in": fan_in}


def sizes(setup: LayerSetup, batch: int) -> str:
    """The sizes in a case's key."""
    fan_in = connections_per_label(setup)
    return f"{setup.labels}x{setup.inputs} fan-in {fan_in} batch {batch}"


def starts_of(sorted_ids: Tensor, count: int) -> Tensor:
    """Where each of 0 to count - 1 begins among sorted ids, and their number."""
    return torch.searchsorted(sorted_ids, torch.arange(count + 1, device=sorted_ids.device))


def type_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
