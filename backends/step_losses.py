"""The losses of a training's steps, as they are looked at."""

from __future__ import annotations

import math
from typing import SupportsFloat

import numpy as np

from fanin.backends.interface import Device

_STEPS_BETWEEN_LOOKS = 100


class Losses:
    """The losses of consecutive steps, from `first_step` on; FloatingPointError names the first
    that is not finite.

    On a CPU each loss is checked at once: otherwise the next step would fail first, on the weights
    that this step spoilt. On a GPU a check waits for the device, so that only every
    `_STEPS_BETWEEN_LOOKS` steps the losses are checked.
    """

    def __init__(self, device: Device, first_step: int) -> None:
        self._between_looks = 1 if device.is_cpu else _STEPS_BETWEEN_LOOKS
        self._first_step = first_step
        self._seen: list[float] = []
        self._unseen: list[SupportsFloat] = []

    def add(self, loss: SupportsFloat) -> None:
        self._unseen.append(loss)
        if len(self._unseen) == self._between_looks:
            self._look()

    def all(self) -> np.ndarray:
        """All that were added, float64 [steps]."""
        self._look()
        return np.array(self._seen, np.float64)

    def _look(self) -> None:
        for loss in self._unseen:
            value = float(loss)
            if not math.isfinite(value):
                raise FloatingPointError(
                    f"the loss of step {self._first_step + len(self._seen)} is {value}; lower the "
                    "learning rate or look at the features"
                )
            self._seen.append(value)
        self._unseen = []
