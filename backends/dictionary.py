"""A dictionary for the features: written in its atoms, few numbers tell most about a label.

A fixed fan-in layer reads few numbers for a label, so it loses what stands in the others. Features
that were learnt, or reduced by an SVD, have no preferred axes: what tells a label apart is spread
over all of them. Here the features are multiplied by a matrix [inputs, atoms] first, and labels
read atoms. The atoms are learnt from how each label's positives differ from all instances: each
difference is to be near to a sum of few atoms. There may be more atoms than inputs, so that more
labels find some that suit them.

Atoms and sums are found in turn: sums of few atoms by iterative hard thresholding (Blumensath &
Davies, 2008), atoms by least squares (the method of optimal directions: Engan, Aase & Husoy, 1999).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse as sp
from threadpoolctl import threadpool_limits

from fanin.backends.features import FeatureTransform, inputs_as_atoms
from fanin.backends.kinds import index_dtype
from fanin.backends.passes import (
    known_features,
    known_labels,
    label_sums,
    pairs_by_label,
)
from fanin.kernels import choose_sources

# Wider features have no dictionary: the matrix would be large, and they are mostly sparse already.
MOST_INPUTS = 4096
# A dictionary has at most so many atoms for each input, so many bytes, so that a step finds it in a
# cache, and this share of the bytes that the connections take; but never fewer atoms than inputs.
_MOST_PER_INPUT, _MOST_BYTES, _MOST_SHARE = 4, 4 << 20, 1 / 3
# Of a connection: weight, two moments and index.
_CONNECTION_BYTES = 14

# How many labels it is fitted to, those with most positives: they count most for precision at k,
# and for them the mean over positives is known best.
_LABELS = 16384
# A sum has as many atoms as a label has connections, but not more than these, which would take
# long. It is found in so many steps.
_MOST_OF_A_SUM, _STEPS = 16, 2
_ITERATIONS = 10
# So many sums are found together.
_ROWS = 512
# Keeps atoms that few labels use from growing without bounds: a share of the mean of the diagonal.
_RIDGE = 1e-3
_TINY = np.finfo(np.float32).tiny


def atom_count(inputs: int, labels: int, fan_in: int) -> int | None:
    """How many atoms the dictionary of so many inputs has; None where there is none."""
    if inputs > MOST_INPUTS:
        return None
    connections = _CONNECTION_BYTES * labels * fan_in
    affordable = min(_MOST_BYTES, int(_MOST_SHARE * connections)) // (4 * inputs)
    return max(inputs, min(_MOST_PER_INPUT * inputs, affordable))


def dictionary_bytes(inputs: int, labels: int, atoms: int) -> int:
    """What `feature_dictionary` takes at most beside the data, the result included: differences,
    twice; three matrices [atoms, atoms]; the dictionary, twice; and a block of sums."""
    rows = min(labels, _LABELS)
    return 4 * (2 * rows * inputs + 3 * atoms**2 + 2 * inputs * atoms + 5 * _ROWS * atoms)


def feature_dictionary(
    features: Any,
    labels: Any,
    mean: np.ndarray,
    atoms: int,
    fan_in: int,
    *,
    scale: np.ndarray | None = None,
    seed: int = 0,
    threads: int = 0,
) -> np.ndarray:
    """The dictionary for features that are multiplied by `scale` before; float32 [inputs, atoms],
    columns of length 1.

    features: float32 [instances, inputs] or CSR, labels: SciPy sparse [instances, labels], as
    `choosing.choose_sources` takes them; mean: of each input; fan_in: how many atoms a label will
    read; seed: of the labels whose differences are the first atoms. Raises ValueError naming what
    is wrong.
    """
    features = known_features(features)
    labels = known_labels(labels, features.shape[0])
    positives = np.bincount(labels.indices, minlength=labels.shape[1])
    most = np.sort(np.argsort(-positives, kind="stable")[:_LABELS])
    # A mean over no instances tells nothing, nor does one over all, which differs by rounding only.
    most = most[(positives[most] > 0) & (positives[most] < features.shape[0])]
    if not len(most):
        return inputs_as_atoms(features.shape[1], atoms)
    positives = positives[most]
    differences = np.empty((len(most), features.shape[1]), np.float32)
    factors, scaled = _factors(positives), FeatureTransform(scale)
    for begin, sums in label_sums(features, pairs_by_label(labels[:, most]), threads=threads):
        for first in range(0, len(sums), _ROWS):  # in small parts: NumPy computes in float64
            some = sums[first : first + _ROWS]
            own = slice(begin + first, begin + first + len(some))
            difference = (some / positives[own, None] - mean).astype(np.float32)
            differences[own] = _unit_rows(scaled.apply(difference)) * factors[own, None]
    del sums, some
    with threadpool_limits(threads or None, "blas"):
        rng = np.random.default_rng(seed)
        return learn_dictionary(differences, atoms, fan_in, rng, threads=threads)


def _factors(positives: np.ndarray) -> np.ndarray:
    """The lengths that the labels' rows get, from how many positives each label has.

    Half of the sum of squares is shared out equally, and half in proportion to the squares of the
    positives. If all rows were equally long, the few labels that most instances have would lose
    what they need. Without the equal half, the many others would gain nothing.
    """
    squares = positives.astype(np.float64) ** 2
    shares = 0.5 / len(squares) + 0.5 * squares / squares.sum()
    factors: np.ndarray = np.sqrt(shares / shares.max()).astype(np.float32)
    return factors


def learn_dictionary(
    rows: np.ndarray, atoms: int, fan_in: int, rng: np.random.Generator, *, threads: int = 0
) -> np.ndarray:
    """A dictionary [inputs, atoms] in which each row of float32 [rows, inputs] is near to a sum of
    `fan_in` atoms; columns of length 1."""
    first = rows[rng.permutation(len(rows))[:atoms]]
    rest = inputs_as_atoms(rows.shape[1], atoms - len(first)).T
    dictionary = _unit_rows(np.concatenate([first, rest])).T
    for _ in range(_ITERATIONS):
        sums = sums_of_atoms(rows, dictionary, min(fan_in, _MOST_OF_A_SUM), threads=threads)
        squares = (sums.T @ sums).toarray()
        squares[np.diag_indices(atoms)] += _RIDGE * np.trace(squares) / atoms + _TINY
        better = _unit_rows(np.linalg.solve(squares, sums.T @ rows))
        # An atom that no row uses would become 0 and stay 0; it keeps its old value.
        dictionary = np.where(better.any(1), better.T, dictionary)
    return np.ascontiguousarray(dictionary)


def _unit_rows(rows: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    unit: np.ndarray = (rows / np.maximum(lengths, _TINY)).astype(np.float32)
    return unit


def sums_of_atoms(
    rows: np.ndarray, dictionary: np.ndarray, count: int, *, threads: int = 0
) -> sp.csr_array:
    """Numbers [rows, atoms], `count` of each row not 0, whose products with the atoms are near the
    rows."""
    gram = dictionary.T @ dictionary
    # The step that iterative hard thresholding needs so as not to diverge.
    step = np.float32(1 / max(np.linalg.eigvalsh(dictionary @ dictionary.T)[-1], _TINY))
    blocks = []
    for first in range(0, len(rows), _ROWS):
        match = rows[first : first + _ROWS] @ dictionary
        sums = _largest(match, count, threads)
        for _ in range(_STEPS - 1):
            sums = _largest(sums + step * (match - sums @ gram), count, threads)
        blocks.append(sums)
    return sp.vstack(blocks, format="csr")


def _largest(values: np.ndarray, count: int, threads: int) -> sp.csr_array:
    """Of each row the `count` numbers of largest size, and 0 for the others."""
    rows, atoms = values.shape
    count = min(count, atoms)
    places = np.empty((rows, count), index_dtype(atoms))
    kept = np.empty((rows, count), np.float32)
    once, no_mean = np.ones(rows, np.int64), np.zeros(atoms, np.float32)
    choose_sources(values, once, no_mean, places, values=kept, threads=threads)
    starts = np.arange(0, rows * count + 1, count)
    return sp.csr_array((kept.ravel(), places.ravel(), starts), shape=values.shape)
