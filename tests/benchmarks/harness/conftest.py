"""A data set with published sizes that are small."""

import pytest

from fanin.datasets import PUBLISHED
from fanin.datasets.catalogue import Published

TINY = Published("tiny", 3_000, 1_000, 320, 4.0, features=("slice",))


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setitem(PUBLISHED, "tiny", TINY)
