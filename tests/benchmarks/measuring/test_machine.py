"""The description of the machine."""

from __future__ import annotations

import os

import pytest

from fanin.benchmarks.measuring.machine import thread_count


@pytest.mark.parametrize(
    ("asked", "setting", "expected"),
    [(3, "1", 3), (0, "1", 1), (0, " 5,2", 5), (0, None, None), (0, "many", None), (0, "0", None)],
)
def test_threads_are_what_was_asked_for_or_the_setting(asked, setting, expected, monkeypatch):
    if setting is None:
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    else:
        monkeypatch.setenv("OMP_NUM_THREADS", setting)
    assert thread_count(asked) == (expected or len(os.sched_getaffinity(0)))
