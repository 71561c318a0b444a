"""The memory that a process may take."""

from __future__ import annotations

from pathlib import Path

import pytest

from fanin.datasets import memory
from fanin.kernels import control_groups

MIB = 1 << 20


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that stands in for the trees of control groups; its file `own` names the groups that
    this process is in."""
    monkeypatch.setattr(control_groups, "_TREES", tmp_path)
    monkeypatch.setattr(control_groups, "_OWN", tmp_path / "own")
    return tmp_path


def limit(folder: Path, most: int | str, used: int) -> None:
    """A group of version 2 with that limit, of whose use 4 MiB are cached files."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.max").write_text(f"{most}\n")
    (folder / "memory.current").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 5\ninactive_file {4 * MIB}\n")


def limit_of_version_1(folder: Path, most: int, used: int) -> None:
    """The same in version 1, where a group's own cached files are not those of all below it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.limit_in_bytes").write_text(f"{most}\n")
    (folder / "memory.usage_in_bytes").write_text(f"{used}\n")
    stat = f"inactive_file {2 * MIB}\ntotal_inactive_file {4 * MIB}\n"
    (folder / "memory.stat").write_text(stat)


def test_memory_is_what_the_control_groups_leave(groups: Path) -> None:
    without = memory.available_bytes()
    assert MIB < without < 2**50
    (groups / "own").write_text("4:memory:/elsewhere\n0::/outer/inner\n")
    inner = groups / "outer" / "inner"
    limit(inner, "max", 70 * MIB)
    assert memory.available_bytes() > without // 2
    limit(inner.parent, 90 * MIB, 70 * MIB)
    limit(inner, 80 * MIB, 70 * MIB)
    # The memory of cached files counts as available.
    assert memory.available_bytes() == 14 * MIB
    limit(inner.parent, 60 * MIB, 70 * MIB)
    assert memory.available_bytes() == 0


def test_the_same_in_version_1(groups: Path) -> None:
    (groups / "own").write_text("5:cpu:/\n4:memory:/outer/inner\n0::/\n")
    tree = groups / "memory"
    limit_of_version_1(tree, 0x7FFFFFFFFFFFF000, 70 * MIB)  # which is no limit
    assert memory.available_bytes() > 100 * MIB
    limit_of_version_1(tree / "outer" / "inner", 80 * MIB, 70 * MIB)
    assert memory.available_bytes() == 14 * MIB
    # In a container the path may be that of the host, and the tree begins at the own group.
    (groups / "own").write_text("4:memory:/docker/0123\n")
    limit_of_version_1(tree, 50 * MIB, 30 * MIB)
    assert memory.available_bytes() == 24 * MIB


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0.0 KiB"), (300, "0.3 KiB"), (12 << 20, "12.0 MiB"), (110 << 20, "0.1 GiB")],
)
def test_a_size_has_the_unit_that_fits(size: int, text: str) -> None:
    assert memory.size_text(size) == text


def test_a_cpu_quota_is_the_least_of_all_groups(groups: Path) -> None:
    assert control_groups.cpu_quota() is None
    (groups / "own").write_text("0::/outer/inner\n")
    inner = groups / "outer" / "inner"
    inner.mkdir(parents=True)
    (inner / "cpu.max").write_text("max 100000\n")
    assert control_groups.cpu_quota() is None
    (inner / "cpu.max").write_text("250000 100000\n")
    assert control_groups.cpu_quota() == 2.5
    (groups / "cpu.max").write_text("50000 100000\n")
    assert control_groups.cpu_quota() == 0.5


@pytest.mark.parametrize("tree", ["cpu,cpuacct", "cpu"])
def test_a_cpu_quota_of_version_1(groups: Path, tree: str) -> None:
    (groups / "own").write_text("9:cpuset:/\n4:cpu,cpuacct:/docker/0123\n0::/\n")
    (groups / tree).mkdir()
    (groups / tree / "cpu.cfs_period_us").write_text("100000\n")
    for quota, expected in ((-1, None), (150_000, 1.5)):
        (groups / tree / "cpu.cfs_quota_us").write_text(f"{quota}\n")
        assert control_groups.cpu_quota() == expected
