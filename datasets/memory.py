"""How much memory this process may still take, and how a sentence says so.

That is what the machine has free, or less where the process's control groups have limits, as in a
container.
"""

from __future__ import annotations

import psutil

from fanin.kernels.control_groups import Group, own_groups

# By the version of control groups: the file of the limit, the file of the use, and the line of
# `memory.stat` that counts cached files. The system drops those when memory is needed.
_NAMES = {
    2: ("memory.max", "memory.current", "inactive_file"),
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}


def available_bytes() -> int:
    """Bytes that this process can take without swapping and without being killed for it."""
    free = int(psutil.virtual_memory().available)
    bounds = [free, *map(_left_by_limit, own_groups("memory"))]
    return max(0, min(bound for bound in bounds if bound is not None))


def size_text(size: int) -> str:
    """So many bytes in the unit that fits: `1.5 GiB`, `12.0 MiB`, `0.3 KiB`."""
    units = (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10))
    unit, factor = next((each for each in units if size >= each[1] / 10), units[-1])
    return f"{size / factor:.1f} {unit}"


def _left_by_limit(group: Group) -> int | None:
    """Bytes that a group may still take; None without a limit."""
    *files, cached = _NAMES[group.version]
    try:
        # "max" without a limit, in version 1 a number that no machine has.
        limit, used = (int((group.folder / name).read_text()) for name in files)
        lines = (group.folder / "memory.stat").read_text().splitlines()
        stat = dict(line.split() for line in lines)
        return limit - used + int(stat.get(cached, 0))
    except (OSError, ValueError):
        return None
