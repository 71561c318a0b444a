"""Which memory figure of a run is shown, and how it is called.

The result files keep several kinds of memory apart. A report shows the one that can be compared
with the paper on a GPU (the peak of the framework's allocator), and on a CPU the peak resident set
above its baseline; the two are never compared with each other.
"""

from __future__ import annotations

from fanin.benchmarks.records.base import Machine, Memory
from fanin.benchmarks.records.statistics import GIB
from fanin.reports.format import GAP
from fanin.reports.machines import on_gpu

ALLOCATOR_PEAK = "allocator peak"
RSS_ABOVE_BASELINE = "RSS above baseline"
_BRIEF = {ALLOCATOR_PEAK: "allocator", RSS_ABOVE_BASELINE: "RSS"}

MEMORY_NOTE = (
    "RSS: peak resident set of the process above its baseline; allocator: peak of the framework's "
    "GPU allocator"
)
# Behind a peak that cannot be compared with others, and what it means.
UNRESOLVED = "†"
UNRESOLVED_NOTE = (
    f"{UNRESOLVED} less than the arrays alone hold, for the process had room left from before: too "
    "small to be measured so"
)


def memory_kind(machine: Machine | None) -> str | None:
    """Which memory figure of a run is the one to compare: the paper's on a GPU, RSS on a CPU."""
    if machine is None:
        return None
    return ALLOCATOR_PEAK if on_gpu(machine) else RSS_ABOVE_BASELINE


def brief_kind(kind: str | None) -> str:
    """`RSS` or `allocator`, for a narrow column; a gap where nothing was measured."""
    return GAP if kind is None else _BRIEF[kind]


def memory_gib(memory: Memory | None, kind: str | None) -> float | None:
    """The figure of that `memory_kind`, in GiB; None where it was not measured."""
    if memory is None or kind is None:
        return None
    if kind == RSS_ABOVE_BASELINE:
        return rss_above_baseline_gib(memory)
    peak = memory.allocator_peak_bytes
    return None if peak is None else peak / GIB


def rss_above_baseline_gib(memory: Memory) -> float | None:
    """Peak resident set of the process above the one before the model was made."""
    peak, baseline = memory.host_peak_rss_bytes, memory.host_baseline_rss_bytes
    return None if peak is None or baseline is None else (peak - baseline) / GIB


def counted_gib(memory: Memory | None) -> float | None:
    """Bytes of parameters and optimiser state, counted from the arrays."""
    if memory is None:
        return None
    return (memory.parameter_bytes + memory.optimizer_state_bytes) / GIB
