"""What a model does to its features before anything else: a scale for each input, then a rotation.

Both are arrays of the model, made from the training instances and never trained. Why a rotation
helps, and `varimax`, which makes one, stand in `rotation.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

SCALE = "features.scale"
ROTATION = "features.rotation"
NAMES = (SCALE, ROTATION)


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

    def apply(self, features: np.ndarray) -> np.ndarray:
        """Features [..., inputs] as the model reads them; the same array where nothing is done."""
        if self.scale is not None:
            features = features * self.scale
        return features if self.rotation is None else features @ self.rotation
