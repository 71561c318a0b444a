"""How fast this machine copies and multiplies, for the hours of a plan."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from threadpoolctl import threadpool_limits

# Bytes of all arrays that the bandwidth is measured with: far above any cache, and no load.
_COPIED = 256 << 20


@dataclass(frozen=True)
class Speed:
    """Of a machine: bytes and floating-point operations per second."""

    bandwidth: float
    flops: float


def measured_bandwidth(threads: int) -> float:
    """Bytes per second that this machine copies, in about half a second."""
    size = max(1, _COPIED // 8 // threads)
    pairs = [(np.ones(size, np.float32), np.empty(size, np.float32)) for _ in range(threads)]

    def copy() -> None:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(lambda pair: np.copyto(pair[1], pair[0]), pairs))

    return 2 * 4 * size * threads / _fastest(copy)


def measured_flops(threads: int) -> float:
    """Operations per second of a dense product here, in about half a second."""
    square = np.ones((1536, 1536), np.float32)
    with threadpool_limits(threads, "blas"):
        return 2 * len(square) ** 3 / _fastest(lambda: square @ square)


def _fastest(work: Callable[[], object]) -> float:
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return min(seconds)
