"""How many CPU threads work, in a container too."""

from __future__ import annotations

import os

import pytest

from fanin.kernels import threads
from fanin.kernels.threads import thread_count, within_share


@pytest.mark.parametrize(
    ("asked", "setting", "expected"),
    [
        *((3, "1", 3), (0, "1", 1), (0, " 5,2", 5), (0, "1024", 1024)),
        *((0, None, None), (0, "many", None), (0, "0", None)),
    ],
)
def test_threads_are_what_was_asked_for_or_the_setting(asked, setting, expected, monkeypatch):
    if setting is None:
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    else:
        monkeypatch.setenv("OMP_NUM_THREADS", setting)
    assert thread_count(asked) == (expected or threads.cores())


def test_the_setting_has_the_bound_of_the_option(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "20000")
    with pytest.raises(ValueError, match="OMP_NUM_THREADS=20000: at most 1024 threads"):
        thread_count(0)
    assert thread_count(2) == 2


def test_more_cores_than_a_layer_takes_threads(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(threads, "cores", lambda: 4096)
    assert thread_count(0) == 1024


@pytest.mark.parametrize(
    ("quota", "expected"), [(None, 4), (0.5, 1), (1.0, 1), (2.9, 2), (64.0, 4)]
)
def test_cores_are_no_more_than_a_quota(quota, expected, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1, 2, 3})
    monkeypatch.setattr(threads, "cpu_quota", lambda: quota)
    assert threads.cores() == expected


@pytest.mark.parametrize(
    ("asked", "setting", "quota", "expected"),
    [
        *((0, None, None, 0), (0, None, 64.0, 0), (0, None, 2.0, 2), (0, "3", 2.0, 0)),
        *((0, "1", None, 0), (3, None, 2.0, 3), (3, "1", None, 3)),
    ],
)
def test_a_share_stands_in_place_of_all(asked, setting, quota, expected, monkeypatch):
    """Where OMP_NUM_THREADS says a number, OpenMP follows it by itself."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if setting:
        monkeypatch.setenv("OMP_NUM_THREADS", setting)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1, 2, 3})
    monkeypatch.setattr(threads, "cpu_quota", lambda: quota)
    assert within_share(asked) == expected
