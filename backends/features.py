"""What a model does to its features first: a scale for each input, then a dictionary.

Both are arrays of the model, made from the training instances and never trained. Why a dictionary
helps, and how one is learnt, stand in `dictionary.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import overload

import numpy as np
import scipy.sparse as sp

from fanin.backends.interface import Features
from fanin.kernels import dense_forward

SCALE = "features.scale"
DICTIONARY = "features.dictionary"
NAMES = (SCALE, DICTIONARY)
# Up to so many instances are multiplied by fanin's own product, with the threads of the training
# step. NumPy's product starts threads of its own, which disturb these: a step took three times
# as long.
_BATCH = 64


def inputs_as_atoms(inputs: int, atoms: int) -> np.ndarray:
    """A dictionary that changes nothing, [inputs, atoms]: the atoms are the inputs, over and
    over."""
    repeated = np.arange(atoms) % inputs
    return (repeated == np.arange(inputs)[:, None]).astype(np.float32)


@dataclass(frozen=True)
class FeatureTransform:
    """scale: [inputs], by which the features are multiplied; dictionary: [inputs, atoms], with
    which they are multiplied after that; float32, None for what a model does not do."""

    scale: np.ndarray | None = None
    dictionary: np.ndarray | None = None

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> FeatureTransform:
        """Copies of what a model's arrays have of it."""
        names = set(arrays)  # by iteration: each array may be read from a file when asked for
        given = {name: np.array(arrays[name], np.float32) for name in NAMES if name in names}
        return cls(given.get(SCALE), given.get(DICTIONARY))

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """Its arrays by their names in `LayerSetup.array_shapes`, in that order."""
        named = {SCALE: self.scale, DICTIONARY: self.dictionary}
        return {name: array for name, array in named.items() if array is not None}

    @overload
    def apply(self, features: np.ndarray, threads: int = 0) -> np.ndarray: ...
    @overload
    def apply(self, features: sp.csr_array, threads: int = 0) -> sp.csr_array: ...
    def apply(self, features: Features, threads: int = 0) -> Features:
        """Features [instances, inputs] as the model reads them, [instances, atoms] where there is a
        dictionary; the same array where nothing is done. CSR features stay CSR: for these there is
        no dictionary. threads: CPU threads for a batch, 0 for all."""
        if isinstance(features, sp.csr_array):
            return self._scaled_csr(features)
        scaled: np.ndarray = features if self.scale is None else features * self.scale
        if self.dictionary is None:
            return scaled
        is_plain = scaled.dtype == np.float32 and scaled.flags.c_contiguous
        if len(scaled) > _BATCH or not is_plain:
            product: np.ndarray = scaled @ self.dictionary
            return product
        return dense_forward(scaled, self._columns, None, threads=threads)

    def _scaled_csr(self, features: sp.csr_array) -> sp.csr_array:
        assert self.dictionary is None, "LayerSetup refuses it for sparse features"
        if self.scale is None:
            return features
        values = features.data * self.scale[features.indices]
        return sp.csr_array((values, features.indices, features.indptr), features.shape)

    @cached_property
    def _columns(self) -> np.ndarray:
        assert self.dictionary is not None
        return np.ascontiguousarray(self.dictionary.T)
