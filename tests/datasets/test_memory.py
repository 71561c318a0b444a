"""The memory that a process may take."""

from __future__ import annotations

from pathlib import Path

import pytest

from fanin.datasets import memory


def test_memory_is_what_the_control_groups_leave(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "_GROUPS", tmp_path)
    monkeypatch.setattr(memory, "_OWN", tmp_path / "own")
    without = memory.available_bytes()
    assert 2**20 < without < 2**50
    (tmp_path / "own").write_text("4:memory:/elsewhere\n0::/outer/inner\n")
    inner = tmp_path / "outer" / "inner"
    inner.mkdir(parents=True)
    (inner / "memory.max").write_text("max\n")
    assert memory.available_bytes() > without // 2
    for folder_, limit, used in ((inner.parent, 90 << 20, 70 << 20), (inner, 80 << 20, 70 << 20)):
        (folder_ / "memory.max").write_text(f"{limit}\n")
        (folder_ / "memory.current").write_text(f"{used}\n")
        (folder_ / "memory.stat").write_text(f"anon 5\ninactive_file {4 << 20}\n")
    # The memory of cached files counts as available.
    assert memory.available_bytes() == 14 << 20
    (inner.parent / "memory.max").write_text(f"{60 << 20}\n")
    assert memory.available_bytes() == 0
