"""Which pairs (label, word) a one-versus-rest model has: those that the training instances
give most evidence for.

A pair is a number here, word * labels + label. So pairs in order are those of a CSR matrix
[inputs, labels].
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import scipy.sparse as sp

# How many values of a product (labels of a block) x words are made at once, and how many pairs are
# collected before the best are kept.
BLOCK_VALUES = 1 << 20


def inverse_lengths(x: sp.csr_array) -> np.ndarray:
    """1 / Euclidean length of each instance, float32 [instances]; 1 where it is 0."""
    starts = x.indptr
    squares = np.zeros(x.shape[0])
    filled = np.flatnonzero(np.diff(starts))
    for first in range(0, len(filled), 1 << 16):  # float64 copies of a part alone
        some = filled[first : first + (1 << 16)]
        begin, end = int(starts[some[0]]), int(starts[some[-1] + 1])
        values = x.data[begin:end].astype(np.float64) ** 2
        squares[some] = np.add.reduceat(values, starts[some] - begin)
    squares[squares == 0] = 1
    return (1 / np.sqrt(squares)).astype(np.float32)


def pairs_of_positives(
    x: sp.csr_array, y: sp.csr_array, count: int, excluded: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The `count` pairs that occur together in positives with the largest score, int64, ascending;
    fewer where there are fewer. And the mean of the word over the label's positives, float32.

    The score is |sum of the word's value over the label's positives| * sqrt(instances / instances
    that have the word), of instances scaled to length 1. x: CSR float32 [instances, inputs]; y: CSR
    [instances, labels]; excluded: as in `best_pairs`.
    """
    occurs = np.bincount(x.indices, minlength=x.shape[1])
    rarity = np.sqrt(x.shape[0] / np.maximum(occurs, 1)).astype(np.float32)
    values = np.repeat(inverse_lengths(x), np.diff(y.indptr))
    positives = sp.csr_array((values, y.indices, y.indptr), shape=y.shape)
    pairs, scores = best_pairs(positives, x, count, rarity, excluded)
    words, ids = np.divmod(pairs, y.shape[1])
    counts = np.bincount(y.indices, minlength=y.shape[1]).astype(np.float32)
    scores /= rarity[words]
    scores /= counts[ids]
    return pairs, scores


def best_pairs(
    signal: sp.csr_array,
    x: sp.csr_array,
    count: int,
    word_factors: np.ndarray | None = None,
    excluded: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The `count` pairs of largest |signal.T @ x| * word_factors, int64, ascending, or all that are
    not 0, where these are fewer. And signal.T @ x * word_factors of these, float32.

    signal: CSR float32 [instances, labels]; x: CSR float32 [instances, inputs]; word_factors:
    float32 [inputs]; excluded: pairs that are not chosen, ascending. The product is made block by
    block of the labels, and never as a whole.
    """
    if count < 1:
        return np.zeros(0, np.int64), np.zeros(0, np.float32)
    labels = signal.shape[1]
    by_label = signal.T.tocsr()
    keys, scores = [np.zeros(0, np.int64)], [np.zeros(0, np.float32)]
    collected, floor = 0, np.float32(0)
    for first, end in _blocks(by_label, x):
        product = by_label[first:end] @ x
        score = product.data
        if word_factors is not None:
            score *= word_factors[product.indices]
        kept = np.abs(score) > floor
        ids = np.repeat(np.arange(first, end), np.diff(product.indptr))[kept]
        key = product.indices[kept].astype(np.int64) * labels + ids
        score = score[kept]
        del product, kept, ids
        if excluded is not None:
            new = ~_is_among(key, excluded)
            key, score = key[new], score[new]
        keys.append(key)
        scores.append(score)
        collected += len(key)
        if collected > count + BLOCK_VALUES:
            key, score, floor = _best(np.concatenate(keys), np.concatenate(scores), count)
            keys, scores, collected = [key], [score], len(key)
    key, score, _ = _best(np.concatenate(keys), np.concatenate(scores), count)
    order = np.argsort(key)
    return key[order], score[order]


def _blocks(by_label: sp.csr_array, x: sp.csr_array) -> Iterator[tuple[int, int]]:
    """First label and end of parts whose product with x has at most so many values, or of one
    label."""
    lengths = np.diff(x.indptr)
    before = np.concatenate([[0], np.cumsum(lengths[by_label.indices], dtype=np.int64)])
    sizes = np.minimum(np.diff(before[by_label.indptr]), x.shape[1])
    ends = np.cumsum(sizes)
    first = 0
    while first < len(sizes):
        done = ends[first - 1] if first else 0
        end = max(first + 1, int(np.searchsorted(ends, done + BLOCK_VALUES, "right")))
        yield first, end
        first = end


def _is_among(keys: np.ndarray, ascending: np.ndarray) -> np.ndarray:
    """Whether each key is among the ascending ones."""
    if not len(ascending):
        return np.zeros(len(keys), bool)
    places = np.minimum(np.searchsorted(ascending, keys), len(ascending) - 1)
    same: np.ndarray = ascending[places] == keys
    return same


def _best(
    keys: np.ndarray, scores: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray, np.float32]:
    """The `count` pairs of the largest |scores|, the first ones of equals; and the size above which
    a later score is among the best."""
    if len(keys) <= count:
        return keys, scores, np.float32(0)
    sizes = np.abs(scores)
    floor = np.partition(sizes, len(sizes) - count)[len(sizes) - count]
    kept = sizes > floor
    kept[np.flatnonzero(sizes == floor)[: count - np.count_nonzero(kept)]] = True
    return keys[kept], scores[kept], floor
