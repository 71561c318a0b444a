"""Precision at k from sparse labels and the ids of the top-k labels, in NumPy."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp

from fanin.benchmarks.results import Precision


def precision_at(labels: sp.csr_array, top: np.ndarray, k: int) -> float:
    """Mean over instances of (true labels among the first k) / k.

    labels: [instances, labels], non-zero where true; top: label ids [instances, >= k], best first
    (fewer columns only where fewer than k labels exist). Divides by k even where an instance has
    fewer labels, as the field does.
    """
    instances, count = labels.shape
    if top.ndim != 2 or top.shape[0] != instances or top.shape[1] < min(k, count):
        raise ValueError(f"top must be [{instances}, >= {min(k, count)}], got {list(top.shape)}")
    if instances == 0:
        raise ValueError("precision of no instances is not defined")
    if top.size and not (top.min() >= 0 and top.max() < count):
        raise ValueError(f"label ids in top must be in 0..{count - 1}")
    top = top[:, :k].astype(np.int64)
    if k > 1 and (np.diff(np.sort(top, axis=1), axis=1) == 0).any():
        raise ValueError("top names a label twice for one instance; it would count double")
    # A pair (instance, label) is one number; both sides are then plain sets.
    offset = np.arange(instances, dtype=np.int64)[:, None] * count
    rows = np.repeat(np.arange(instances, dtype=np.int64), np.diff(labels.indptr))
    true = (rows * count + labels.indices)[labels.data != 0]
    return float(np.isin(top + offset, true).sum() / (instances * k))


def precision(labels: sp.csr_array, top: np.ndarray) -> Precision:
    """P@1, P@3 and P@5; `top` is [instances, >= min(5, labels)]."""
    at_1, at_3, at_5 = (precision_at(labels, top, k) for k in (1, 3, 5))
    return Precision(at_1=at_1, at_3=at_3, at_5=at_5)
