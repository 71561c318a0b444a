"""Random arrays in blocks: the numbers of one call to NumPy's generator."""

from __future__ import annotations

import numpy as np
import pytest

from fanin.backends import drawing


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(drawing, "BLOCK_VALUES", 35)


def joined(shape, blocks):
    """They are small, and there are several."""
    blocks = [*blocks]
    assert len(blocks) > 3
    assert all(block.size <= 35 for block in blocks)
    return drawing.joined_blocks(shape, blocks)


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32, np.int32])
@pytest.mark.parametrize("limit", [1, 2, 3, 768, 40_000, 65_535, 65_536])
def test_integers(dtype, limit):
    shape = (101, 7)
    expected = np.random.default_rng(3).integers(0, limit, shape, dtype)
    found = joined(shape, drawing.integer_blocks(np.random.default_rng(3), limit, shape, dtype))
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, expected)


def test_uniform_numbers():
    shape, limit = (101, 7), np.sqrt(6 / 108)
    expected = np.random.default_rng(3).random(shape, np.float32)
    expected = expected * np.float32(2 * limit) - np.float32(limit)
    found = joined(shape, drawing.glorot_blocks(np.random.default_rng(3), shape))
    np.testing.assert_array_equal(found, expected)


def test_a_row_is_the_least_block():
    assert [*drawing.row_blocks((3, 100))] == [(1, 100)] * 3
    assert [*drawing.row_blocks((0, 4))] == []
    assert drawing.joined_blocks((0, 4), []).shape == (0, 4)
