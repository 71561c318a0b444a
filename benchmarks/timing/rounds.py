"""Contestants that take turns: times on shared machines drift, so that only what ran close together
in time can be compared."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any


def wall_seconds(call: Callable[[], Any]) -> float:
    """Seconds of one call on a CPU."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def rounds(
    contestants: dict[str, Callable[[], Any]],
    count: int,
    clock: Callable[[Callable[[], Any]], float] = wall_seconds,
) -> dict[str, list[float]]:
    """Seconds of each contestant in each round, after two rounds of warming up. clock: how one call
    is timed."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(count + 2):
        for name, call in contestants.items():
            spent = clock(call)
            if number >= 2:
                seconds[name].append(spent)
    return seconds
