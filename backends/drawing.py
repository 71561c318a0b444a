"""Random arrays that a model starts with, drawn in blocks: a rank keeps its own part of each, so it
never holds an array of the whole model. The numbers are those of one call to NumPy's generator.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import numpy as np

# So many values are drawn together, or one row.
BLOCK_VALUES = 1 << 20


def row_blocks(shape: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """Shapes of the blocks of an array, which follow one another along its first axis."""
    rows, *others = shape
    size = max(1, BLOCK_VALUES // max(1, math.prod(others)))
    for start in range(0, rows, size):
        yield min(size, rows - start), *others


def glorot_blocks(
    rng: np.random.Generator, shape: tuple[int, ...], fans: int | None = None
) -> Iterator[np.ndarray]:
    """float32 values, uniform within sqrt(6 / fans); fans: by default those of a matrix, rows +
    columns (Glorot & Bengio, 2010)."""
    limit = np.sqrt(6 / (sum(shape) if fans is None else fans))
    for block in row_blocks(shape):
        values = rng.random(block, np.float32)
        values *= np.float32(2 * limit)
        values -= np.float32(limit)
        yield values


def integer_blocks(
    rng: np.random.Generator, limit: int, shape: tuple[int, ...], dtype: type[np.generic]
) -> Iterator[np.ndarray]:
    """`rng.integers(0, limit, shape, dtype)`."""
    if dtype is np.uint16:
        yield from _uint16_blocks(rng, limit, shape)
        return
    for block in row_blocks(shape):
        yield rng.integers(0, limit, block, dtype)


def _uint16_blocks(
    rng: np.random.Generator, limit: int, shape: tuple[int, ...]
) -> Iterator[np.ndarray]:
    """NumPy takes two of these numbers from 32 random bits, and in each call begins with 32 new
    ones; so its rule stands here (Lemire, "Fast random integer generation in an interval", 2019).
    """
    least = (65536 - limit) % limit  # what the lower half of a product must reach to be fair
    drawn = np.empty(0, np.uint16)
    for block in row_blocks(shape):
        count = math.prod(block)
        while len(drawn) < count:
            bits = rng.integers(0, 1 << 32, (count - len(drawn)) // 2 + 1, np.uint32)
            products = bits.astype("<u4").view("<u2").astype(np.uint32) * np.uint32(limit)
            fair = (products & 0xFFFF) >= least
            drawn = np.concatenate([drawn, (products[fair] >> 16).astype(np.uint16)])
        yield drawn[:count].reshape(block)
        drawn = drawn[count:]


def filled_blocks(shape: tuple[int, ...], value: float) -> Iterator[np.ndarray]:
    """float32, all of one value."""
    return (np.full(block, value, np.float32) for block in row_blocks(shape))


def ascending_blocks(count: int) -> Iterator[np.ndarray]:
    """0 to count - 1, int32."""
    first = 0
    for (block,) in row_blocks((count,)):
        yield np.arange(first, first + block, dtype=np.int32)
        first += block


def joined_blocks(shape: tuple[int, ...], blocks: Iterable[np.ndarray]) -> np.ndarray:
    """The array [shape] that these blocks make up, in the type of the first."""
    array: np.ndarray | None = None
    row = 0
    for block in blocks:
        if array is None:
            array = np.empty(shape, block.dtype)
        array[row : row + len(block)] = block
        row += len(block)
    return np.empty(shape, np.float32) if array is None else array
