"""Which labels share their sources: the order in which a grouped layer has them.

A grouped layer divides its labels, in that order, into groups of equal size (the last may be
smaller). Labels that mean similar things need similar sources, so they are divided by the mean
features of their positives: into two balanced halves by spherical 2-means, each half again, down to
groups, as Parabel builds its trees (Prabhu et al., 2018).
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import numpy as np
import scipy.sparse as sp

from fanin.backends import checks
from fanin.backends.passes import known_features, known_labels

Grouping = Literal["random", "frequency", "meaning"]

# Mean features are compared in a random projection to so many numbers, which keeps distances
# (Johnson & Lindenstrauss, 1984): 2.8 million labels then take 1.4 GB.
PROJECTED = 128
# Rounds of 2-means; most halves stop to change before.
_ROUNDS = 12
# Instances that are projected together.
_INSTANCES = 8192


def label_order(
    labels: Any, group_size: int, grouping: Grouping, *, features: Any = None, seed: int = 0
) -> np.ndarray:
    """The label at each position of a grouped layer, int32 [labels]; equal seeds give equal orders.

    labels: the positives, SciPy sparse [instances, labels]. features: float32 [instances, inputs],
    or CSR; only "meaning" looks at them. "random": a random order. "frequency": by the number of
    positives, most first; of equal ones the lower label. "meaning": neighbours have positives with
    similar features. Raises ValueError naming what is wrong.
    """
    if grouping not in get_args(Grouping):
        known = ", ".join(get_args(Grouping))
        raise ValueError(f"unknown grouping {grouping!r}; there are {known}")
    checks.whole("group_size", group_size, 2)
    checks.whole("seed", seed, 0, 2**64 - 1)
    rng = np.random.default_rng(seed)
    if grouping == "random":
        return rng.permutation(np.arange(labels.shape[1], dtype=np.int32))
    labels = known_labels(labels, labels.shape[0])
    if grouping == "frequency":
        counts = np.bincount(labels.indices, minlength=labels.shape[1])
        return np.argsort(-counts, kind="stable").astype(np.int32)
    return _by_meaning(_meanings(known_features(features), labels, rng), group_size, rng)


def _meanings(features: Any, labels: sp.csr_array, rng: np.random.Generator) -> np.ndarray:
    """The direction of each label's mean features in a random projection, float32
    [labels, PROJECTED]: of length 1, or 0 for a label without positives."""
    inputs = features.shape[1]
    size = min(PROJECTED, inputs)
    projection = np.eye(inputs, dtype=np.float32)
    if inputs > size:
        projection = rng.standard_normal((inputs, size), np.float32)
    sums = np.zeros((labels.shape[1], size), np.float32)
    for first in range(0, features.shape[0], _INSTANCES):
        some = slice(first, first + _INSTANCES)
        sums += labels[some].T @ np.asarray(features[some] @ projection)
    lengths = np.linalg.norm(sums, axis=1, keepdims=True)
    return np.divide(sums, lengths, out=sums, where=lengths > 0)


def _by_meaning(meanings: np.ndarray, group_size: int, rng: np.random.Generator) -> np.ndarray:
    order = np.arange(len(meanings), dtype=np.int32)
    parts = [(0, len(order))]
    while parts:
        begin, end = parts.pop()
        groups = -(-(end - begin) // group_size)
        if groups < 2:
            continue
        middle = begin + (groups + 1) // 2 * group_size
        part = order[begin:end]
        order[begin:end] = part[_halves(meanings[part], middle - begin, rng)]
        parts += [(begin, middle), (middle, end)]
    return order


def _halves(meanings: np.ndarray, first_size: int, rng: np.random.Generator) -> np.ndarray:
    """An order of these labels whose first `first_size` are one half by spherical 2-means."""
    ends = meanings[rng.choice(len(meanings), 2, replace=False)]
    before = np.zeros(0, np.int64)
    for _ in range(_ROUNDS):
        order = np.argsort(meanings @ (ends[1] - ends[0]), kind="stable")
        first = np.sort(order[:first_size])
        if np.array_equal(first, before):
            break
        before = first
        ends = np.stack([meanings[half].sum(0) for half in (first, order[first_size:])])
        ends /= np.maximum(np.linalg.norm(ends, axis=1, keepdims=True), 1e-30)
    return order
