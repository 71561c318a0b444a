"""Part `kernels`: forward, backward, fused step and top-k against torch's own ways and the floor.

Per shape, batch and op all contestants take turns in one process, each going through input sets
that are together larger than the GPU's cache, and so does a plain copy, whose bandwidth is what the
floor is made of. On a GPU the calls are queued behind a pause and timed by events, so that their
launching is not measured.
"""

from __future__ import annotations

import gc
import math
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch

from fanin.backends.kinds import FixedFanIn
from fanin.backends.setup import LayerSetup
from fanin.benchmarks.gpu_parts import contestants, part
from fanin.benchmarks.gpu_parts.contestants import METHODS, DoesNotFitError, InputSets, Workload
from fanin.benchmarks.gpu_parts.contestants.inputs import cache_bytes
from fanin.benchmarks.records.gpu import COPY, OURS, Contestant, KernelRow, Row
from fanin.benchmarks.timing.rounds import rounds, wall_seconds
from fanin.datasets.catalogue import FEATURES, PUBLISHED

FAN_IN, BATCHES = 32, (32, 128)
# (data set, inputs of the output layer): without and with an intermediate layer.
LAYERS = (
    ("amazon-670k", FEATURES["cascade"]),
    ("amazon-670k", 32_768),
    ("wiki-500k", 32_768),
    ("amazon-3m", 131_072),
)
# A row takes about so long, within these numbers of rounds.
_ROW_SECONDS, _FEWEST, _MOST = 5.0, 5, 25
# The pause that launching hides behind, in cycles of the GPU: about 2 ms.
_PAUSE_CYCLES = 4_000_000


class Copy:
    """Reads and writes memory well above any cache."""

    def __init__(self, device: torch.device) -> None:
        size = (1 << 30 if device.type == "cuda" else 1 << 22) // 4
        self._from = torch.randn(size, device=device)
        self._to = torch.empty_like(self._from)
        self.bytes = 2 * self._from.nbytes

    def __call__(self) -> None:
        self._to.copy_(self._from)


def _clock(device: torch.device, count: int) -> Callable[[Callable[[], Any]], float]:
    """Seconds of one of the `count` calls that a contestant makes, one for each input set."""
    if device.type != "cuda":
        return lambda call: wall_seconds(call) / count

    def seconds(call: Callable[[], Any]) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda._sleep(_PAUSE_CYCLES)
        start.record()
        call()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / 1e3 / count

    return seconds


@torch.no_grad()
def measure(
    row: KernelRow, workload: Workload, device: torch.device, dry_run: bool, seed: int
) -> None:
    """Fill the row: every contestant that can be had, in turns."""
    # Together at least four times the cache.
    each = workload.least_bytes("forward")
    count = min(16, max(2, math.ceil(4 * cache_bytes(device) / each)))
    inputs, copy = InputSets(workload, device, count, seed), Copy(device)
    row.copy_bytes, row.rotated = copy.bytes, count
    method, clock = METHODS[row.op], _clock(device, count)

    def copies() -> None:
        for _ in range(count):
            copy()

    calls: dict[str, Callable[[], Any]] = {COPY: copies}
    results = {COPY: Contestant(name=COPY)}
    round_seconds = 0.0
    for name, make in contestants.makers(inputs, row.op).items():
        result = results[name] = Contestant(name=name)
        try:
            contestant = make()

            def all_sets(contestant: contestants.Contestant = contestant) -> None:
                for i in range(count):
                    method(contestant, i)

            all_sets()
            round_seconds += count * clock(all_sets)
        except (DoesNotFitError, torch.OutOfMemoryError) as error:
            result.reason = f"does not fit: {str(error).splitlines()[0]}"
        except Exception as error:  # the others still compare with each other
            result.reason = f"{type(error).__name__}: {str(error).splitlines()[0]}"
        else:
            calls[name] = all_sets
            result.reason = getattr(contestant, "note", None)
    turns = int(_ROW_SECONDS / max(round_seconds, 1e-6))
    turns = 2 if dry_run else min(_MOST, max(_FEWEST, turns))
    for name, seconds in rounds(calls, turns, clock).items():
        results[name].seconds = seconds
    row.contestants = list(results.values())
    if results[OURS].seconds is None:
        row.reason = results[OURS].reason


def free(device: torch.device) -> None:
    if device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()


def jobs(device: torch.device, dry_run: bool, seed: int) -> list[part.Job]:
    made = []
    for dataset, inputs in LAYERS:
        labels = PUBLISHED[dataset].labels
        if dry_run:
            labels, inputs = labels // 4_000, min(inputs, 1_024)
        for batch in BATCHES:
            workload = Workload(dataset, LayerSetup(inputs, labels, FixedFanIn(FAN_IN)), batch)
            for op in METHODS:
                row = KernelRow(
                    key=f"{dataset} {labels}x{inputs} batch {batch} {op}",
                    op=op,
                    dataset=dataset,
                    labels=labels,
                    inputs=inputs,
                    fan_in=FAN_IN,
                    batch=batch,
                    index=str(workload.index).removeprefix("torch."),
                    bytes=workload.least_bytes(op),
                )

                def run(row: KernelRow = row, workload: Workload = workload) -> None:
                    try:
                        measure(row, workload, device, dry_run, seed)
                    finally:
                        free(device)

                made.append(part.Job(row, run))
    return made


def failed(row: Row) -> bool:
    """fanin's own op has to run; that a peer does not is a gap."""
    ours = [one for one in getattr(row, "contestants", ()) if one.name == OURS]
    return row.state == "gap" or any(one.seconds is None for one in ours)


def main(arguments: Sequence[str] | None = None) -> int:
    options = part.read_options(arguments)
    made = jobs(options.torch_device, options.dry_run, options.seed)
    return part.conduct("kernels", options, made, failed)


if __name__ == "__main__":
    sys.exit(main())
