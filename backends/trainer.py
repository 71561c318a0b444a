"""The trainer: a model of one setup, its optimiser's state, and the ways to train and ask it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Protocol, SupportsFloat

import numpy as np

from fanin.backends.arrays import Rewiring
from fanin.backends.interface import Device, OnStep, TrainingBatch
from fanin.backends.setup import LayerSetup

_STEPS_BETWEEN_LOOKS = 100


class Trainer(Protocol):
    """A model in one framework, its optimiser state and the ways to train and ask it."""

    setup: LayerSetup

    @property
    def device(self) -> Device: ...

    def train(
        self, batches: Iterable[TrainingBatch], learning_rate: float, on_step: OnStep | None = None
    ) -> np.ndarray:
        """One step per batch, in order; the losses, float64 [steps]. Raises FloatingPointError
        naming the step whose loss is not finite."""

    def top_k(self, features: np.ndarray, k: int) -> np.ndarray:
        """Ids of the k highest scored labels, int64 [instances, k], best first; no dropout.
        features: float32 [instances, inputs]. Ties go to the lower id. ValueError where k is not
        in 1..labels."""

    def array(self, name: str) -> np.ndarray:
        """One array of `LayerSetup.array_shapes` as it is now; it may be a view that the next step
        changes. KeyError for another name."""

    def rewire(self, fraction: float, seed: int) -> int:
        """Choose connections as `fanin.backends.arrays.plan_rewiring` does and give them new
        sources; how many they are. Weights keep their value; their Adam moments become 0.
        ValueError for a layer whose connections cannot be rewired, here and in `apply_rewiring`."""

    def apply_rewiring(self, rewiring: Rewiring) -> None:
        """Move the connections that were chosen elsewhere."""

    def arrays(self) -> Iterator[tuple[str, np.ndarray]]:
        """All arrays with their names in `LayerSetup.array_shapes`, one after the other, so that
        they need not be in memory beside the model. Each may be a view and holds until the next
        one is asked for; the model must not be used before the last one."""

    def weights(self) -> dict[str, np.ndarray]:
        """A copy of all arrays under the names of `LayerSetup.array_shapes`."""

    def load_weights(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Take over all arrays; ValueError names what is missing or does not fit."""

    def optimizer_arrays(self) -> Iterator[tuple[str, np.ndarray]]:
        """Adam's state: `<name>.m` and `<name>.v` for each trained array, and `steps`, an int64
        scalar; as `arrays`, one after the other."""

    def load_optimizer_arrays(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Take over what `optimizer_arrays` gave, in this or the other backend. Each array is
        asked for once, when it is its turn."""

    def state_bytes(self) -> tuple[int, int]:
        """Bytes of the parameters (indices included) and of the optimiser state, counted."""


class Losses:
    """The losses of consecutive steps, from `first_step` on; FloatingPointError names the first
    that is not finite.

    On a CPU, where a loss is there at once, each is looked at as it comes: the next step would
    find what this one made of the weights, and complain of that. On a GPU, where a look waits for
    the device, every so many are.
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
