"""Which label stands at each position of an output layer, where that is not its own number.

Inside, all arrays of such a layer are in the order of the positions. Outside, labels have the ids
that the user knows: those of positives become positions on the way in, and the library gives the
ids of the best labels itself (`label_ids` of `fanin.kernels.top_k`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class LabelOrder:
    """positions: where each label stands, int32 [labels]."""

    positions: np.ndarray

    @classmethod
    def of(cls, order: np.ndarray) -> LabelOrder:
        """From the label at each position, integers [labels], as `check_order` wants them."""
        positions = np.empty(len(order), np.int32)
        positions[order] = np.arange(len(order), dtype=np.int32)
        return cls(positions)

    def positions_of(self, label_ids: np.ndarray) -> np.ndarray:
        """The position of each label, int64 like label_ids. An id that is out of range stays as it
        is, for the library to name."""
        known = (label_ids >= 0) & (label_ids < len(self.positions))
        return np.where(known, self.positions.take(label_ids, mode="clip"), label_ids)

    def by_label(self, array: np.ndarray) -> np.ndarray:
        """An array whose last axis counts positions, with labels there instead."""
        return array[..., self.positions]


def check_order(name: str, order: np.ndarray) -> None:
    """ValueError where an order, integers in 0..labels - 1, does not have each label once."""
    counts = np.bincount(order, minlength=len(order))
    missing = np.flatnonzero(counts == 0)
    if missing.size:
        repeated = int(np.argmax(counts > 1))
        raise ValueError(
            f"{name} must have each label once, but label {int(missing[0])} is missing and label "
            f"{repeated} stands {int(counts[repeated])} times"
        )
