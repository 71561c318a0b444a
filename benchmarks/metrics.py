"""Ranking metrics of extreme classification, in NumPy, from sparse labels and top-k label ids.

P@k, nDCG@k and their propensity-scored forms PSP@k and PSnDCG@k, which weigh a label by how likely
it is to be missing (Jain, Prabhu & Varma, KDD 2016). The forms are those of the extreme
classification repository's evaluation scripts; all are fractions.

In all functions labels is [instances, labels], non-zero where true, and top holds label ids
[instances, >= k], best first (fewer columns only where fewer than k labels exist). ValueError for
shapes that do not fit, ids out of range, an id twice in a row, and no instances.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import scipy.sparse as sp

from fanin.benchmarks.results import AtK, Precision, Ranking
from fanin.datasets.catalogue import Propensity

# Instances worked on together: temporaries stay small beside the model whose memory is measured.
_BLOCK = 16_384


def precision_at(labels: sp.csr_array, top: np.ndarray, k: int) -> float:
    """Mean over instances of (true labels among the first k) / k.

    Divides by k even where an instance has fewer labels, as the field does.
    """
    _check(labels, top, k)
    hits = sum(int(block.hits.sum()) for block in _blocks(labels, top, k))
    return hits / (labels.shape[0] * k)


def ndcg_at(labels: sp.csr_array, top: np.ndarray, k: int) -> float:
    """Mean over instances of DCG@k / (the best possible DCG@k), where
    DCG@k = sum of 1 / log2(1 + rank) over the true labels among the first k.

    The best possible one ranks min(k, number of true labels) true labels first; an instance
    without labels counts 0.
    """
    _check(labels, top, k)
    total = sum(_dcg(block.hits, block.counts).sum() for block in _blocks(labels, top, k))
    return float(total) / int(labels.shape[0])


def psp_at(labels: sp.csr_array, top: np.ndarray, k: int, inverse: np.ndarray) -> float:
    """Propensity-scored precision at k, over the best that any ranking could get:
    sum of 1/p over the true labels among the first k, over the sum of the k largest 1/p of each
    instance's true labels, both summed over all instances. 0 where nothing is true.

    inverse: 1/p of each label, float [labels]; see `inverse_propensity`.
    """
    _check(labels, top, k, inverse)
    got = best = 0.0
    for block in _blocks(labels, top, k):
        got += float((block.hits * inverse[block.top]).sum())
        best += float(block.best(inverse).sum())
    return got / best if best else 0.0


def psndcg_at(labels: sp.csr_array, top: np.ndarray, k: int, inverse: np.ndarray) -> float:
    """Propensity-scored nDCG at k, over the best that any ranking could get: as `ndcg_at`, but a
    true label counts 1/p, and the mean is divided by the mean of a ranking by falling 1/p of the
    true labels. 0 where nothing is true. inverse: as in `psp_at`.
    """
    _check(labels, top, k, inverse)
    got = best = 0.0
    for block in _blocks(labels, top, k):
        got += float(_dcg(block.hits * inverse[block.top], block.counts).sum())
        best += float(_dcg(block.best(inverse), block.counts).sum())
    return got / best if best else 0.0


def inverse_propensity(train_labels: sp.csr_array, propensity: Propensity) -> np.ndarray:
    """1/p of each label, float64 [labels]: 1 + C (n + B)^-A with C = (ln N - 1) (B + 1)^A, where n
    of the N training instances have the label (Jain, Prabhu & Varma, KDD 2016, equation 3).

    With fewer than three instances, where ln N - 1 is negative, all labels weigh 1.
    """
    instances, count = train_labels.shape
    true = train_labels.indices[train_labels.data != 0]
    positives = np.bincount(true, minlength=count).astype(np.float64)
    a, b = propensity
    scale = max(0.0, np.log(max(1, instances)) - 1.0) * (b + 1.0) ** a
    weights: np.ndarray = 1.0 + scale * (positives + b) ** -a
    return weights


def precision(labels: sp.csr_array, top: np.ndarray) -> Precision:
    """P@1, P@3 and P@5; `top` is [instances, >= min(5, labels)]."""
    at_1, at_3, at_5 = (precision_at(labels, top, k) for k in (1, 3, 5))
    return Precision(at_1=at_1, at_3=at_3, at_5=at_5)


def ranking(
    labels: sp.csr_array, top: np.ndarray, train_labels: sp.csr_array, propensity: Propensity
) -> Ranking:
    """nDCG, PSP and PSnDCG at 1, 3 and 5."""
    inverse = inverse_propensity(train_labels, propensity)

    def at_k(metric: str) -> AtK:
        measure = {"psp": psp_at, "psndcg": psndcg_at}.get(metric)
        values = {
            f"at_{k}": measure(labels, top, k, inverse) if measure else ndcg_at(labels, top, k)
            for k in (1, 3, 5)
        }
        return AtK(**values)

    return Ranking(
        ndcg=at_k("ndcg"),
        psp=at_k("psp"),
        psndcg=at_k("psndcg"),
        propensity_a=propensity.a,
        propensity_b=propensity.b,
    )


class _Block:
    """Some instances: hits [instances, <= k] of their `top`, and counts of their true labels."""

    def __init__(self, labels: sp.csr_array, top: np.ndarray, k: int) -> None:
        instances, count = labels.shape
        self.top = top[:, :k].astype(np.int64)
        true = labels.data != 0
        rows = np.repeat(np.arange(instances, dtype=np.int64), np.diff(labels.indptr))[true]
        self._k, self._rows, self._ids = k, rows, labels.indices[true].astype(np.int64)
        self.counts = np.bincount(rows, minlength=instances)
        # A pair (instance, label) is one number; both sides are then plain sets.
        offset = np.arange(instances, dtype=np.int64)[:, None] * count
        self.hits = np.isin(self.top + offset, rows * count + self._ids)

    def best(self, inverse: np.ndarray) -> np.ndarray:
        """The k largest 1/p of each instance's true labels, falling, then zeros; [instances, k]."""
        weights = inverse[self._ids]
        order = np.lexsort((-weights, self._rows))
        starts = np.cumsum(self.counts) - self.counts
        rank = np.arange(len(order)) - np.repeat(starts, self.counts)
        kept = rank < self._k
        found = np.zeros((len(self.counts), self._k))
        found[self._rows[kept], rank[kept]] = weights[order][kept]
        return found


def _blocks(labels: sp.csr_array, top: np.ndarray, k: int) -> Iterator[_Block]:
    for first in range(0, labels.shape[0], _BLOCK):
        yield _Block(labels[first : first + _BLOCK], top[first : first + _BLOCK], k)


def _dcg(gains: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """sum of gains [instances, <= k] / log2(1 + rank), over that of min(k, counts) ones."""
    discount = 1.0 / np.log2(np.arange(gains.shape[1]) + 2.0)
    ideal = np.concatenate([[1.0], np.cumsum(discount)])  # no labels: nothing is gained
    result: np.ndarray = gains @ discount / ideal[np.minimum(counts, gains.shape[1])]
    return result


def _check(
    labels: sp.csr_array, top: np.ndarray, k: int, inverse: np.ndarray | None = None
) -> None:
    instances, count = labels.shape
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    if top.ndim != 2 or top.shape[0] != instances or top.shape[1] < min(k, count):
        raise ValueError(f"top must be [{instances}, >= {min(k, count)}], got {list(top.shape)}")
    if instances == 0:
        raise ValueError("metrics of no instances are not defined")
    if top.size and not (top.min() >= 0 and top.max() < count):
        raise ValueError(f"label ids in top must be in 0..{count - 1}")
    if k > 1 and (np.diff(np.sort(top[:, :k], axis=1), axis=1) == 0).any():
        raise ValueError("top names a label twice for one instance; it would count double")
    if inverse is not None and inverse.shape != (count,):
        raise ValueError(f"inverse propensities must be [{count}], got {list(inverse.shape)}")
