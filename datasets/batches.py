"""The stream of training batches: made once in NumPy, so that every backend sees the same one.

Order, dropout and labels of a batch are a function of (seed, epoch, step) alone. A run can
therefore restart at any epoch, and two backends can be compared step by step.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import sparse

from fanin.datasets.dataset import Features

# The purpose of a generator is part of its seed. Without it, order (seed, epoch) and dropout
# (seed, epoch, 0) would be the same stream, since NumPy pads seeds with zeros.
_ORDER, _DROPOUT = 1, 2


@dataclass(frozen=True, eq=False)
class Batch:
    """One training step's input."""

    features: Features
    """[batch, inputs], contiguous or CSR; dropout is applied, what is kept is scaled by
    1 / (1 - p). Of sparse features, what is dropped is not stored."""
    positive_instances: npt.NDArray[np.int32]
    """[positives]: which instance of the batch."""
    positive_labels: npt.NDArray[np.int64]
    """[positives]: which label; the pairs (instance, label) are sorted."""


class Batches:
    """Batches of features x [instances, inputs] and positives y [instances, labels], by epoch.

    Instances are shuffled through a buffer of `shuffle_buffer` instances, as the published runs did
    (see `shuffled_order`); the last batch of an epoch may be smaller. `dropout` is the probability
    with which a feature is set to zero. Sparse features stay sparse.

    Raises ValueError for arguments that make no sense.
    """

    def __init__(
        self,
        x: Features,
        y: sparse.csr_array,
        batch_size: int = 32,
        dropout: float = 0.0,
        seed: int = 0,
        shuffle_buffer: int = 50_000,
    ) -> None:
        if x.ndim != 2 or x.shape[0] != y.shape[0]:
            raise ValueError(f"features {x.shape} and labels {y.shape} must have the same rows")
        if not y.has_sorted_indices:
            raise ValueError("labels must have sorted indices: call y.sort_indices()")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, not {batch_size}")
        if not 0.0 <= dropout < 1.0:
            raise ValueError(f"dropout must be at least 0 and below 1, not {dropout}")
        if seed < 0:
            raise ValueError(f"seed must not be negative: {seed}")
        if shuffle_buffer < 1:
            raise ValueError(f"shuffle_buffer must be at least 1, not {shuffle_buffer}")
        self.x = x
        self.y = y
        self.batch_size = batch_size
        self.dropout = dropout
        self.seed = seed
        self.shuffle_buffer = shuffle_buffer

    def __len__(self) -> int:
        """Steps per epoch, a ragged last one included."""
        return -(-int(self.x.shape[0]) // self.batch_size)

    def epoch(self, number: int) -> Iterator[Batch]:
        """The batches of epoch `number` (from 0), always the same for the same seed and number."""
        rng = np.random.default_rng([_ORDER, self.seed, number])
        order = shuffled_order(self.x.shape[0], self.shuffle_buffer, rng)
        for step in range(len(self)):
            chosen = order[step * self.batch_size : (step + 1) * self.batch_size]
            yield self._batch(chosen, number, step)

    def _batch(self, chosen: npt.NDArray[np.int64], epoch: int, step: int) -> Batch:
        features = self.x[chosen]  # indexing by an array copies
        if not isinstance(features, sparse.csr_array):
            features = np.ascontiguousarray(features, np.float32)
        if self.dropout > 0.0:
            features = self._dropped(features, epoch, step)

        starts = self.y.indptr[chosen].astype(np.int64)
        counts = self.y.indptr[chosen + 1] - starts
        # Where in y.indices the positives lie: the ranges [start, start + count), end to end.
        before = np.cumsum(counts) - counts
        positions = np.arange(counts.sum()) + np.repeat(starts - before, counts)
        return Batch(
            features=features,
            positive_instances=np.repeat(np.arange(len(chosen), dtype=np.int32), counts),
            positive_labels=self.y.indices[positions].astype(np.int64),
        )

    def _dropped(self, features: Features, epoch: int, step: int) -> Features:
        """The features of a batch after dropout, which may change them."""
        rng = np.random.default_rng([_DROPOUT, self.seed, epoch, step])
        rate, factor = np.float32(self.dropout), np.float32(1.0 / (1.0 - self.dropout))
        if not isinstance(features, sparse.csr_array):
            features *= (rng.random(features.shape, np.float32) >= rate) * factor
            return features
        kept = rng.random(features.nnz, np.float32) >= rate
        before = np.concatenate([[0], np.cumsum(kept)])
        starts = before[features.indptr].astype(features.indptr.dtype)
        parts = features.data[kept] * factor, features.indices[kept], starts
        return sparse.csr_array(parts, shape=features.shape)


def shuffled_order(count: int, buffer: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """The order in which 0 .. count - 1 leave a shuffle buffer; int64 [count].

    The buffer is filled with the first instances. Each draw takes the instance at a random position
    of the buffer and puts the next instance there; once none is left, the rest leaves in random
    order. All draws are made in bulk: a draw takes what the previous draw of its position put
    there, so the draws only need to be grouped by position.
    """
    buffer = min(buffer, count)
    waiting = np.arange(buffer)  # the instance at each position of the buffer
    draws = rng.integers(buffer, size=count - buffer) if count > buffer else waiting[:0]
    taken = draws.copy()  # the first draw of a position takes the instance that filled it
    by_position = np.argsort(draws, kind="stable")
    again = draws[by_position[1:]] == draws[by_position[:-1]]
    taken[by_position[1:][again]] = buffer + by_position[:-1][again]
    waiting[draws] = buffer + np.arange(len(draws))  # the last assignment to a position stays
    return np.concatenate([taken, rng.permutation(waiting)])


def evaluation_blocks(x: Features, size: int) -> Iterator[Features]:
    """The instances of x in order, `size` at a time, as new contiguous float32 arrays, or as CSR.

    They are copies, because a slice of a memory map is read-only and reads its file at every use.
    """
    if size < 1:
        raise ValueError(f"size must be at least 1, not {size}")
    for first in range(0, x.shape[0], size):
        block = x[first : first + size]
        if not isinstance(block, sparse.csr_array):
            block = np.array(block, np.float32, order="C", subok=False)
        yield block
