"""The few statistics that reports and measurements share."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

GIB = 2**30


def ratio(slow: Sequence[float], fast: Sequence[float]) -> float:
    """Median over rounds of slow / fast, where both have taken turns."""
    return statistics.median(a / b for a, b in zip(slow, fast, strict=True))


def quartiles(seconds: Sequence[float]) -> tuple[float, float, float]:
    """The quartiles of a few rounds or steps; all three the same for one."""
    if len(seconds) < 2:
        return seconds[0], seconds[0], seconds[0]
    low, middle, high = statistics.quantiles(seconds, n=4, method="inclusive")
    return low, middle, high
