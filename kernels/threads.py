"""How many CPU threads work where the caller gives no number.

OpenMP and the frameworks look at the cores that the process is bound to, and not at the share of
them that a container lets it have: with 64 cores and a share of 2, 64 threads would take turns.
"""

from __future__ import annotations

import os

from fanin.kernels.control_groups import cpu_quota

# Of one call of the kernels.
MOST_THREADS = 1024


def cores() -> int:
    """Cores this process may use: in a container, no more than its share."""
    quota = cpu_quota()
    return _bound_cores() if quota is None else max(1, min(_bound_cores(), int(quota)))


def thread_count(asked: int) -> int:
    """How many CPU threads work where so many are asked for; 0 asks for OMP_NUM_THREADS, or without
    it for all cores. Raises ValueError where OMP_NUM_THREADS is more than a layer takes."""
    if asked:
        return asked
    setting = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    threads = int(setting) if setting.isdecimal() else 0
    if threads > MOST_THREADS:
        raise ValueError(
            f"OMP_NUM_THREADS={setting}: at most {MOST_THREADS} threads are possible; give fewer, "
            "or unset it"
        )
    return threads or min(cores(), MOST_THREADS)


def within_share(asked: int) -> int:
    """How many threads to ask of the kernels and the frameworks: `asked`, but in place of 0 a
    container's share, where that is less than all cores and OMP_NUM_THREADS gives no other number.
    Otherwise 0 stays, and OpenMP and the frameworks follow OMP_NUM_THREADS and what the program
    sets later."""
    share = cores()
    return asked or (share if thread_count(0) == share < _bound_cores() else 0)


def _bound_cores() -> int:
    """The cores that this process is bound to."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
