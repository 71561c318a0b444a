"""How much memory this process may still take: what the machine has free, or what its control
groups (version 2) leave of their limits, as in a container."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psutil

_GROUPS = Path("/sys/fs/cgroup")
_OWN = Path("/proc/self/cgroup")


def available_bytes() -> int:
    """Bytes that can be taken without swapping, or being killed for it."""
    free = int(psutil.virtual_memory().available)
    left = [free]
    for group in _own_groups():
        if (of_group := _left(group)) is not None:
            left.append(of_group)
    return max(0, min(left))


def _own_groups() -> Iterator[Path]:
    """This process's control group and those around it, each of which may have a limit."""
    try:
        lines = _OWN.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        if line.startswith("0::"):
            group = _GROUPS / line.removeprefix("0::").lstrip("/")
            yield from (each for each in (group, *group.parents) if each.is_relative_to(_GROUPS))


def _left(group: Path) -> int | None:
    """What a group's limit leaves; None without one."""
    try:
        limit = int((group / "memory.max").read_text())  # "max" without a limit
        used = int((group / "memory.current").read_text())
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return None
    # Files that were read and may be forgotten count as used, too.
    return limit - used + int(stat.get("inactive_file", 0))
