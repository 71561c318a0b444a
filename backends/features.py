"""What a model does to its features before anything else: a scale for each input, then a rotation.

Both are arrays of the model, made from the training instances and never trained. Why a rotation
helps, and `varimax`, which makes one, stand in `rotation.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from fanin.kernels import dense_forward

SCALE = "features.scale"
ROTATION = "features.rotation"
NAMES = (SCALE, ROTATION)
# Up to so many instances fanin's own product rotates them, with the threads of the training step.
# NumPy's has threads of its own, which get in the way of those: a step took three times as long.
_BATCH = 64
_ROWS = 4096


@dataclass(frozen=True)
class FeatureTransform:
    """scale: [inputs], by which the features are multiplied; rotation: [inputs, inputs], with which
    they are multiplied after that; float32, None for what a model does not do."""

    scale: np.ndarray | None = None
    rotation: np.ndarray | None = None

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> FeatureTransform:
        """Copies of what a model's arrays have of it."""
        names = set(arrays)  # by iteration: each array may be read from a file when asked for
        given = {name: np.array(arrays[name], np.float32) for name in NAMES if name in names}
        return cls(given.get(SCALE), given.get(ROTATION))

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """Its arrays by their names in `LayerSetup.array_shapes`, in that order."""
        named = {SCALE: self.scale, ROTATION: self.rotation}
        return {name: array for name, array in named.items() if array is not None}

    def apply(self, features: np.ndarray, threads: int = 0) -> np.ndarray:
        """Features [instances, inputs] as the model reads them; the same array where nothing is
        done. threads: CPU threads for a batch, 0 for all."""
        if self.scale is not None:
            features = features * self.scale
        if self.rotation is None:
            return features
        is_plain = features.dtype == np.float32 and features.flags.c_contiguous
        if len(features) > _BATCH or not is_plain:
            product: np.ndarray = features @ self.rotation
            return product
        return dense_forward(features, self._columns, None, threads=threads)

    def apply_in_place(self, rows: np.ndarray) -> None:
        """Write over rows [any number, inputs] what `apply` makes of them, few at a time, so that
        no second array of that size is needed."""
        if self.arrays:
            for first in range(0, len(rows), _ROWS):
                rows[first : first + _ROWS] = self.apply(rows[first : first + _ROWS])

    @cached_property
    def _columns(self) -> np.ndarray:
        assert self.rotation is not None
        return np.ascontiguousarray(self.rotation.T)
