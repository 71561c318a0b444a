"""Time of training steps."""

from __future__ import annotations

import statistics
from typing import Any, SupportsFloat

import numpy as np

from fanin.backends.trainer import Trainer

_WARMUP_STEPS = 10


class StepClock:
    """Measures the time of each training step; call it as a trainer's `on_step`.

    It puts marks between the steps into the device's own order of work, so that nothing has to wait
    for a GPU.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.steps = 0
        self._trainer = trainer
        self._marks: list[Any] = []
        self._seconds: list[float] = []
        self._communication: list[float] = []

    def __call__(self, loss: SupportsFloat) -> None:
        self.steps += 1
        mark = self._trainer.device.mark()
        if mark is not None:
            self._marks.append(mark)
        if self._trainer.communication_seconds is not None:
            self._communication.append(self._trainer.communication_seconds)

    def pause(self) -> None:
        """Leave out the time until the next step, in which something else is done."""
        self._seconds += self._trainer.device.seconds(self._marks)
        self._marks = []

    def seconds(self) -> list[float]:
        """Of every step but the first and those after a pause; none where a framework cannot tell
        (TensorFlow on a GPU)."""
        self.pause()
        return self._seconds

    def median_communication(self) -> float | None:
        """Seconds of a step that are waited for other ranks, over the same steps; None in a process
        that trains by itself, and on a GPU, where nothing is waited for."""
        steady = np.diff(self._communication)[_WARMUP_STEPS:]
        return statistics.median(steady.tolist()) if steady.size else None

    def median(self) -> float | None:
        """Seconds per step after the first ten; None for runs that short."""
        steady = self.seconds()[_WARMUP_STEPS:]
        return statistics.median(steady) if steady else None
