"""Ranking metrics of extreme classification, in NumPy, from sparse labels and top-k label ids.

P@k, nDCG@k and their propensity-scored forms PSP@k and PSnDCG@k, which weigh a label by how likely
it is to be missing (Jain, Prabhu & Varma, KDD 2016). The forms are those of the extreme
classification repository's evaluation scripts; all are fractions.

In all functions `truth` is [instances, labels], non-zero where true, and `top` holds label ids
[instances, >= k], best first (fewer columns only where fewer than k labels exist), and NO_LABEL
behind the last one where labels are left out. ValueError for shapes that do not fit, ids out of
range, an id twice in a row, and no instances.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import scipy.sparse as sp

from fanin.datasets.catalogue import Propensity

# Instances worked on together: temporaries stay small beside the model whose memory is measured.
_BLOCK = 16_384
# Far from any id, so that no wrong id is taken for it.
NO_LABEL = int(np.iinfo(np.int64).min)


def precision_at(truth: sp.csr_array, top: np.ndarray, k: int) -> float:
    """Mean over instances of (true labels among the first k) / k.

    Divides by k even where an instance has fewer labels, as the field does.
    """
    return plain_at(truth, top, (k,))[k][0]


def ndcg_at(truth: sp.csr_array, top: np.ndarray, k: int) -> float:
    """Mean over instances of DCG@k / (the best possible DCG@k), where
    DCG@k = sum of 1 / log2(1 + rank) over the true labels among the first k.

    The best possible one ranks min(k, number of true labels) true labels first; an instance
    without labels counts 0.
    """
    return plain_at(truth, top, (k,))[k][1]


def psp_at(truth: sp.csr_array, top: np.ndarray, k: int, inverse: np.ndarray) -> float:
    """Propensity-scored precision at k, over the best that any ranking could get:
    sum of 1/p over the true labels among the first k, over the sum of the k largest 1/p of each
    instance's true labels, both summed over all instances. 0 where nothing is true.

    inverse: 1/p of each label, float [labels]; see `inverse_propensity`.
    """
    return scored_at(truth, top, (k,), inverse)[k][0]


def psndcg_at(truth: sp.csr_array, top: np.ndarray, k: int, inverse: np.ndarray) -> float:
    """Propensity-scored nDCG at k, over the best that any ranking could get: as `ndcg_at`, but a
    true label counts 1/p, and the mean is divided by the mean of a ranking by falling 1/p of the
    true labels. 0 where nothing is true. inverse: as in `psp_at`.
    """
    return scored_at(truth, top, (k,), inverse)[k][1]


def inverse_propensity(train_truth: sp.csr_array, propensity: Propensity) -> np.ndarray:
    """1/p of each label, float64 [labels]: 1 + C (n + B)^-A with C = (ln N - 1) (B + 1)^A, where n
    of the N training instances have the label (Jain, Prabhu & Varma, KDD 2016, equation 3).

    With fewer than three instances, where ln N - 1 is negative, all labels weigh 1.
    """
    instances, count = train_truth.shape
    true = train_truth.indices[train_truth.data != 0]
    positives = np.bincount(true, minlength=count).astype(np.float64)
    a, b = propensity
    scale = max(0.0, np.log(max(1, instances)) - 1.0) * (b + 1.0) ** a
    weights: np.ndarray = 1.0 + scale * (positives + b) ** -a
    return weights


def plain_at(
    truth: sp.csr_array, top: np.ndarray, ks: tuple[int, ...]
) -> dict[int, tuple[float, float]]:
    """k -> precision and nDCG, in one pass over the instances."""
    _check(truth, top, ks)
    sums = {k: np.zeros(2) for k in ks}
    for block in _blocks(truth, top, max(ks)):
        for k, total in sums.items():
            hits = block.hits[:, :k]
            total += hits.sum(), _dcg(hits, block.counts).sum()
    count = int(truth.shape[0])
    return {k: (float(hits) / (count * k), float(dcg) / count) for k, (hits, dcg) in sums.items()}


def scored_at(
    truth: sp.csr_array, top: np.ndarray, ks: tuple[int, ...], inverse: np.ndarray
) -> dict[int, tuple[float, float]]:
    """k -> PSP and PSnDCG, in one pass over the instances."""
    _check(truth, top, ks)
    if inverse.shape != truth.shape[1:]:
        raise ValueError(
            f"inverse propensities must be [{truth.shape[1]}], got {list(inverse.shape)}"
        )
    got, best = ({k: np.zeros(2) for k in ks} for _ in range(2))
    for block in _blocks(truth, top, max(ks)):
        gained, ideal = block.hits * inverse[block.top], block.best(inverse)
        for k in ks:
            for sums, weights in ((got, gained[:, :k]), (best, ideal[:, :k])):
                sums[k] += weights.sum(), _dcg(weights, block.counts).sum()
    # Nothing true: nothing could be gained.
    shares = {k: got[k] / np.where(best[k] > 0, best[k], 1.0) for k in ks}
    return {k: (float(share[0]), float(share[1])) for k, share in shares.items()}


class _Block:
    """Some instances: hits [instances, <= k] of their `top`, and counts of their true labels."""

    def __init__(self, truth: sp.csr_array, top: np.ndarray, k: int) -> None:
        instances, count = truth.shape
        is_label = top[:, :k] != NO_LABEL
        self.top = np.where(is_label, top[:, :k], 0).astype(np.int64)
        true = truth.data != 0
        instance_ids = np.repeat(np.arange(instances, dtype=np.int64), np.diff(truth.indptr))[true]
        self._k, self._instances, self._ids = k, instance_ids, truth.indices[true].astype(np.int64)
        self.counts = np.bincount(instance_ids, minlength=instances)
        # A pair (instance, label) is one number; both sides are then plain sets.
        offset = np.arange(instances, dtype=np.int64)[:, None] * count
        self.hits = is_label & np.isin(self.top + offset, instance_ids * count + self._ids)

    def best(self, inverse: np.ndarray) -> np.ndarray:
        """The k largest 1/p of each instance's true labels, falling, then zeros; [instances, k]."""
        weights = inverse[self._ids]
        order = np.lexsort((-weights, self._instances))
        starts = np.cumsum(self.counts) - self.counts
        rank = np.arange(len(order)) - np.repeat(starts, self.counts)
        kept = rank < self._k
        best = np.zeros((len(self.counts), self._k))
        best[self._instances[kept], rank[kept]] = weights[order][kept]
        return best


def _blocks(truth: sp.csr_array, top: np.ndarray, k: int) -> Iterator[_Block]:
    for first in range(0, truth.shape[0], _BLOCK):
        yield _Block(truth[first : first + _BLOCK], top[first : first + _BLOCK], k)


def _dcg(gains: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """sum of gains [instances, <= k] / log2(1 + rank), over that of min(k, counts) ones."""
    discount = 1.0 / np.log2(np.arange(gains.shape[1]) + 2.0)
    ideal = np.concatenate([[1.0], np.cumsum(discount)])  # no labels: nothing is gained
    result: np.ndarray = gains @ discount / ideal[np.minimum(counts, gains.shape[1])]
    return result


def _check(truth: sp.csr_array, top: np.ndarray, ks: tuple[int, ...]) -> None:
    instances, count = truth.shape
    k = max(ks)
    if min(ks) < 1:
        raise ValueError(f"k must be at least 1, got {min(ks)}")
    if top.ndim != 2 or top.shape[0] != instances or top.shape[1] < min(k, count):
        raise ValueError(f"top must be [{instances}, >= {min(k, count)}], got {list(top.shape)}")
    if instances == 0:
        raise ValueError("metrics of no instances are not defined")
    if not ((top >= 0) & (top < count) | (top == NO_LABEL)).all():
        raise ValueError(f"label ids in top must be in 0..{count - 1}")
    ordered = np.sort(top[:, :k], axis=1)
    if k > 1 and ((np.diff(ordered, axis=1) == 0) & (ordered[:, 1:] != NO_LABEL)).any():
        raise ValueError("top names a label twice for one instance; it would count double")
