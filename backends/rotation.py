"""A rotation of the inputs in which few of them tell most about a label.

A fixed fan-in layer reads few inputs of a label, so it loses what stands in the others. Features
that were learnt, or reduced by an SVD, have no preferred axes: what tells a label apart is spread
over all of them. A rotation does not change what a dense layer can learn, but it can bring the
difference between a label's positives and all instances onto few axes. That is what varimax finds
(Kaiser, 1958; here without centring, that is quartimax, by the iteration of Horst, 1965).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from fanin.backends.features import FeatureTransform
from fanin.backends.passes import (
    LabelPairs,
    known_features,
    known_labels,
    label_sums,
    pairs_by_label,
)

# Wider features are not rotated: the matrix would be large, and they are mostly sparse already.
MOST_ROTATED = 4096
# How many labels it is fitted to, those with most positives: they count most for precision at k,
# and for them the mean over positives is known best. Twice as many, and iterations until nothing
# changes, gave the same precision within 0.5 points (trials on two sets).
_LABELS = 4096
_ITERATIONS, _RISE = 20, 1e-3


def feature_rotation(
    features: Any,
    labels: Any,
    mean: np.ndarray,
    scale: np.ndarray | None = None,
    *,
    threads: int = 0,
) -> np.ndarray:
    """The rotation for features that are multiplied by `scale` before; float32 [inputs, inputs].

    features: float32 [instances, inputs] or CSR, labels: SciPy sparse [instances, labels], as
    `choosing.choose_sources` takes them; mean: of each input. Raises ValueError naming what is
    wrong.
    """
    features = known_features(features)
    labels = known_labels(labels, features.shape[0])
    pairs = pairs_by_label(labels)
    positives = np.diff(pairs.starts)
    most = np.sort(np.argsort(-positives, kind="stable")[:_LABELS])
    # A mean over no instances tells nothing, nor does one over all, which differs by rounding only.
    most = most[(positives[most] > 0) & (positives[most] < features.shape[0])]
    if not len(most):
        return np.eye(features.shape[1], dtype=np.float32)
    starts = np.concatenate([[0], np.cumsum(positives[most])])
    own = LabelPairs(
        starts,
        np.concatenate([pairs.instances[slice(*pairs.starts[at : at + 2])] for at in most]),
    )
    differences = np.empty((len(most), features.shape[1]), np.float32)
    for first, sums in label_sums(features, own, threads=threads):
        counts = positives[most][first : first + len(sums), None]
        differences[first : first + len(sums)] = sums / counts - mean
    differences = FeatureTransform(scale).apply(differences)
    lengths = np.linalg.norm(differences, axis=1, keepdims=True)
    differences /= np.maximum(lengths, np.finfo(np.float32).tiny)
    differences *= _factors(positives[most])[:, None]
    return varimax(differences)


def _factors(positives: np.ndarray) -> np.ndarray:
    """By how much the labels' rows are longer than others, from how many positives each has.

    Half of the criterion, which sums fourth powers, is shared by all labels alike, and half by the
    square of their positives: with all alike the few labels that most instances have lose what
    they need, and without such a share the many others gain nothing.
    """
    squares = positives.astype(np.float64) ** 2
    shares = 0.5 / len(squares) + 0.5 * squares / squares.sum()
    factors: np.ndarray = ((shares / shares.max()) ** 0.25).astype(np.float32)
    return factors


def varimax(rows: np.ndarray) -> np.ndarray:
    """An orthogonal matrix R [inputs, inputs] for which the sum of (rows R)^4 is large; rows:
    float32 [rows, inputs]. A local maximum, found from the identity."""
    rotation = np.eye(rows.shape[1], dtype=np.float32)
    before = 0.0
    # More threads win little in matrices of this size, and on a busy machine they wait for each
    # other: an SVD took twenty times as long.
    with threadpool_limits(1, "blas"):
        for _ in range(_ITERATIONS):
            rotated = rows @ rotation
            left, sizes, right = np.linalg.svd(rows.T @ (rotated * rotated * rotated))
            rotation = np.ascontiguousarray(left @ right, np.float32)
            if sizes.sum() <= before * (1 + _RISE):
                break
            before = float(sizes.sum())
    return rotation
