"""The control groups that this process is in, as in a container, and how many cores they allow.

Version 2 has one tree of groups, version 1 one for each controller, and a machine may have both. A
group lies within others, and each of them may have a limit. A container often sees its own group as
the root of the tree, but reads the path that the group has on the host. Folders that do not exist
have no limits.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

_TREES = Path("/sys/fs/cgroup")
_OWN = Path("/proc/self/cgroup")


class Group(NamedTuple):
    """folder: where the group's files are. Their names depend on the version, 1 or 2."""

    version: int
    folder: Path


def own_groups(controller: str) -> Iterator[Group]:
    """The groups that this process is in for that controller, `memory` or `cpu`: its own, and those
    that contain it."""
    try:
        lines = _OWN.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            version, roots = 2, {_TREES, _TREES / "unified"}
        elif controller in controllers.split(","):
            version, roots = 1, {_TREES / controllers, _TREES / controller}
        else:
            continue
        for root in roots:
            own = root / path.lstrip("/")
            inside = (each for each in (own, *own.parents) if each.is_relative_to(root))
            yield from (Group(version, folder) for folder in inside)


def cpu_quota() -> float | None:
    """How many cores this process's groups allow it, such as 0.5; None without a limit."""
    quotas = [quota for quota in map(_quota, own_groups("cpu")) if quota is not None]
    return min(quotas, default=None)


def _quota(group: Group) -> float | None:
    try:
        if group.version == 2:
            quota, period = map(int, (group.folder / "cpu.max").read_text().split())
        else:
            names = ("cpu.cfs_quota_us", "cpu.cfs_period_us")
            quota, period = (int((group.folder / name).read_text()) for name in names)
    except (OSError, ValueError):  # "max" without a limit
        return None
    return quota / period if quota > 0 and period > 0 else None  # -1 without a limit
