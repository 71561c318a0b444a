"""Sparse features, as the first layer of a model reads them: checks of a batch, and its arrays by
instance. `fanin.kernels.by_words` has them by word.

An input of sparse features is called a word here, although nothing asks for text: a column of the
matrix [instances, inputs], of which most values are 0 and not stored. No array is [batch, words].
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sp

from fanin.backends.interface import Device, Features
from fanin.backends.passes import check_sparse


class ByInstance(NamedTuple):
    """A batch as CSR: instance i has the values starts[i] to starts[i + 1] - 1. values: float32
    [stored]; starts: int64 [batch + 1]; columns: the word of each value, int32 [stored]. They are
    arrays in NumPy or of a framework."""

    values: Any
    starts: Any
    columns: Any


def by_instance(features: sp.csr_array) -> ByInstance:
    """The arrays of CSR features in the types that the kernels read."""
    return ByInstance(
        features.data,
        features.indptr.astype(np.int64, copy=False),
        features.indices.astype(np.int32, copy=False),
    )


def tensors(features: Features, device: Device) -> Any:
    """Features as a framework computes with them: a tensor; or, of sparse ones, a `ByInstance` of
    tensors."""
    if isinstance(features, np.ndarray):
        return device.tensor(features)
    return ByInstance(*map(device.tensor, by_instance(features)))


def known_sparse(given: Any, inputs: int) -> sp.csr_array:
    """Features [instances, inputs] of a model of sparse features; ValueError for others, which
    says what to do."""
    if not isinstance(given, sp.csr_array | sp.csr_matrix):
        kind = type(given).__name__
        raise ValueError(
            "features must be a SciPy CSR array, since this model reads sparse features, got "
            f"{kind}; scipy.sparse.csr_array(features) makes one"
        )
    if given.ndim != 2 or given.shape[1] != inputs:
        raise ValueError(
            f"features must be [instances, {inputs}] (the inputs), got {list(given.shape)}"
        )
    if given.dtype != np.float32:
        raise ValueError(
            f"features must be float32, got {given.dtype}; features.astype('float32') makes them so"
        )
    check_sparse("features", given)
    if not (good := np.isfinite(given.data)).all():
        at = int(good.argmin())
        instance = int(np.searchsorted(given.indptr, at, "right")) - 1
        raise ValueError(
            f"features[{instance}, {given.indices[at]}] is {given.data[at]}; all of features must "
            "be finite: leave such values out, or replace them"
        )
    return given if isinstance(given, sp.csr_array) else sp.csr_array(given)


def refuse_sparse(features: Any) -> None:
    """ValueError for sparse features, of a model that reads dense ones."""
    if sp.issparse(features):
        raise ValueError(
            "features must be dense, since this model reads dense features, got "
            f"{type(features).__name__}; hand over features.toarray(), or make the model by a "
            "LayerSetup with sparse_features=True"
        )
