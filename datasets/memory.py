"""How much memory this process may still take.

That is what the machine has free, or less where the process's control groups (version 2) have
limits, as in a container.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psutil

_GROUPS = Path("/sys/fs/cgroup")
_OWN = Path("/proc/self/cgroup")


def available_bytes() -> int:
    """Bytes that this process can take without swapping and without being killed for it."""
    bounds = [int(psutil.virtual_memory().available), *map(_left_by_limit, _own_groups())]
    return max(0, min(bound for bound in bounds if bound is not None))


def _own_groups() -> Iterator[Path]:
    """This process's control group and those that contain it; each may have a limit."""
    try:
        lines = _OWN.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        if line.startswith("0::"):
            group = _GROUPS / line.removeprefix("0::").lstrip("/")
            yield from (each for each in (group, *group.parents) if each.is_relative_to(_GROUPS))


def _left_by_limit(group: Path) -> int | None:
    """Bytes that a group may still take; None without a limit."""
    try:
        limit = int((group / "memory.max").read_text())  # "max" without a limit
        used = int((group / "memory.current").read_text())
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return None
    # `used` contains cached files, which the system drops when memory is needed.
    return limit - used + int(stat.get("inactive_file", 0))
