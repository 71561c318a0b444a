"""Fixtures of the tests of data sets: a cache of their own, an SVD that takes milliseconds."""

from __future__ import annotations

from pathlib import Path

import pytest

from fanin.datasets import svd


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FANIN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def three(monkeypatch: pytest.MonkeyPatch) -> None:
    """An SVD that is small enough for the few instances of `dataset_files`."""
    monkeypatch.setitem(svd.SVD, "n_components", 3)
