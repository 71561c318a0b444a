"""Labels that are connected directly to words of sparse features, on NumPy arrays: their training,
one instance after the other, and their best labels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fanin.kernels import library, params
from fanin.kernels.numpy_ops import _allocate, _describe, _length


@dataclass(frozen=True)
class WordPairs:
    """Labels and the words that they are connected to.

    The labels are cut into blocks of `block_labels` neighbours, 1 to 65,536; the last may be
    smaller. The pairs of block b and word w stand from pair_starts[b, w] to
    pair_starts[b, w + 1] - 1, and a block's pairs behind those of the block before.

    pair_starts [blocks, inputs + 1] int64; pair_labels [pairs] uint16: the label of each pair,
    counted within its block, strictly ascending within a word; weights and squares [pairs]
    float32; bias and bias_squares [labels] float32. squares are AdaGrad's sums of squared
    gradients, which begin above 0; they may be None where nothing is trained.
    """

    block_labels: int
    pair_starts: np.ndarray
    pair_labels: np.ndarray
    weights: np.ndarray
    bias: np.ndarray
    squares: np.ndarray | None = None
    bias_squares: np.ndarray | None = None


def _pairs(pairs: WordPairs, *, written: bool) -> params.WordPairs:
    return params.WordPairs(
        _describe(pairs.pair_starts, "pair_starts"),
        _describe(pairs.pair_labels, "pair_labels"),
        _describe(pairs.weights, "weights", written=written),
        _describe(pairs.bias, "bias", written=written),
    )


def words_step(
    values: np.ndarray,
    starts: np.ndarray,
    columns: np.ndarray,
    positive_starts: np.ndarray,
    positive_labels: np.ndarray,
    pairs: WordPairs,
    *,
    learning_rate: float,
    bias_rate: float,
    threshold: float = -4.0,
    loss: str = "bce",
    threads: int = 0,
) -> float:
    """Train labels on words, in place, on one instance after the other, with AdaGrad (Duchi et al.,
    JMLR 2011).

    Of each instance only labels whose score is above the threshold, and its positives, are looked
    at. For each of these and each value of the instance: G = the loss's gradient by the score *
    value, squares += G^2, weights -= learning_rate * G / sqrt(squares); the bias likewise, with
    bias_rate and 1 as value.

    Features by rows (CSR): values [stored] float32, finite; starts [batch + 1] int64; columns
    [stored] int32, each below inputs. The positives of instance b are positive_labels [positives]
    int32 or int64 from positive_starts[b] to positive_starts[b + 1] - 1 (int64 [batch + 1]). loss:
    "bce" or "squared_hinge".

    Returns the mean over the instances of the summed loss of the labels that were looked at, each
    before its update. It and the arrays do not depend on the number of threads, and a thread works
    on whole blocks of labels. Raises ValueError, which names what is wrong; nothing has been
    updated then.
    """
    if loss not in params.LOSSES:
        raise ValueError(f"unknown loss {loss!r}; there are {', '.join(params.LOSSES)}")
    value = np.empty(1, np.float32)
    arguments = params.WordsStepParams(
        values=_describe(values, "values"),
        starts=_describe(starts, "starts"),
        columns=_describe(columns, "columns"),
        positive_starts=_describe(positive_starts, "positive_starts"),
        positive_labels=_describe(positive_labels, "positive_labels"),
        pairs=_pairs(pairs, written=True),
        squares=_describe(pairs.squares, "squares", written=True),
        bias_squares=_describe(pairs.bias_squares, "bias_squares", written=True),
        loss=_describe(value, "loss"),
        block_labels=pairs.block_labels,
        learning_rate=learning_rate,
        bias_rate=bias_rate,
        threshold=threshold,
        loss_kind=params.LOSSES[loss],
        threads=threads,
    )
    library.call(arguments, _allocate)
    return float(value[0])


def words_top_k(
    values: np.ndarray,
    starts: np.ndarray,
    columns: np.ndarray,
    pairs: WordPairs,
    k: int,
    *,
    threads: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Scores and ids of the k highest scored labels of each instance, best first; equal scores
    stand in the order of their labels. Arguments are those of `words_step`. The scores of all
    instances are never held at once.

    Returns scores, float32 [batch, k], and ids, int64 [batch, k].
    """
    labels = _length(pairs.bias)
    if not 1 <= k <= labels:  # the library says so too, but by then there is memory for so many
        raise ValueError(f"k must be in 1..{labels} (the labels), got {k}")
    shape = (max(0, _length(starts) - 1), k)
    ids, scores = np.empty(shape, np.int64), np.empty(shape, np.float32)
    arguments = params.WordsTopKParams(
        values=_describe(values, "values"),
        starts=_describe(starts, "starts"),
        columns=_describe(columns, "columns"),
        pairs=_pairs(pairs, written=False),
        ids=_describe(ids, "ids"),
        scores=_describe(scores, "scores"),
        block_labels=pairs.block_labels,
        threads=threads,
    )
    library.call(arguments, _allocate)
    return scores, ids
