"""A linear one-versus-rest model over words: its arrays, its training on some instances, its
predictions.

The score of a label is its bias + the sum, over the instance's words that it has a weight for, of
value * weight, where the instance is scaled to length 1. DiSMEC (Babbar & Schoelkopf, WSDM 2017)
and PPDSparse (Yen et al., KDD 2017) train such labels one by one. Here all are trained together,
one instance after the other: of an instance its positives, and the labels whose score is not low
yet (`fanin.kernels.words_step`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import scipy.sparse as sp

from fanin.backends.interface import TrainingBatch
from fanin.backends.sparse import ByInstance, by_instance
from fanin.backends.words.pairs import best_pairs, inverse_lengths, pairs_of_positives
from fanin.kernels import WordPairs, words_step, words_top_k
from fanin.kernels.threads import thread_count, within_share

# The labels that a thread works on are cut so that their scores stay in the cache.
_BLOCK_LABELS = 8192
_LEAST_BLOCK = 256
# Sums of squares that biases begin with; and weights, of a model without any pair.
_BIAS_SQUARES, _SQUARES = 1.0, 1e-2
# Labels whose score is not above this are not looked at: their probability is below 0.02.
THRESHOLD = -4.0
# Growing looks at so many labels of each instance, and at errors of at least so much.
_LOOKED, _LEAST_ERROR = 20, 0.05
_BLOCK_INSTANCES = 4096


def blocks_of(labels: int, threads: int) -> tuple[int, int]:
    """How many blocks labels are cut into, and the labels of each but the last."""
    least = max(-(-labels // _BLOCK_LABELS), min(threads, -(-labels // _LEAST_BLOCK)))
    size = -(-labels // least)
    return -(-labels // size), size


class OneVersusRest:
    """The pairs of a model, with what training needs of them.

    inputs, labels: sizes. pairs: word * labels + label of each, ascending, int64 [pairs]. weights,
    squares: float32 [pairs], in that order; bias, bias_squares: float32 [labels]. squares are
    AdaGrad's sums, above 0. threads: CPU threads, 0 for all; no number depends on them.
    """

    def __init__(
        self,
        inputs: int,
        labels: int,
        pairs: np.ndarray,
        bias: np.ndarray,
        weights: np.ndarray,
        squares: np.ndarray,
        bias_squares: np.ndarray | None = None,
        threads: int = 0,
    ) -> None:
        self.inputs, self.labels, self.threads = inputs, labels, within_share(threads)
        self._lay_out(pairs, bias, weights, squares, bias_squares)

    def _lay_out(
        self,
        pairs: np.ndarray,
        bias: np.ndarray,
        weights: np.ndarray,
        squares: np.ndarray,
        bias_squares: np.ndarray | None,
    ) -> None:
        """The arrays in the order of the kernels: block by block, and by word within."""
        labels = self.labels
        blocks, size = blocks_of(labels, thread_count(self.threads))
        # What is not needed any more goes at once: here training takes most memory.
        ids = (pairs % labels).astype(np.int32)
        places = pairs // labels
        places += ids // size * np.int64(self.inputs)  # of the block, then of the word
        starts = np.zeros((blocks, self.inputs + 1), np.int64)
        counts = np.bincount(places, minlength=blocks * self.inputs)
        starts[:, 1:] = np.cumsum(counts).reshape(blocks, self.inputs)
        starts[1:, 0] = starts[:-1, -1]
        del places, counts
        order: np.ndarray | slice = slice(None)
        if blocks > 1:
            order = np.argsort((ids // size).astype(np.uint16), kind="stable")
        ids %= size

        self._word_pairs = WordPairs(
            size,
            starts,
            ids.astype(np.uint16)[order],
            np.array(weights[order], np.float32),
            np.array(bias, np.float32),
            np.array(squares[order], np.float32),
            np.full(labels, _BIAS_SQUARES, np.float32)
            if bias_squares is None
            else np.array(bias_squares, np.float32),
        )

    @property
    def pair_count(self) -> int:
        return len(self._word_pairs.weights)

    def _in_order(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Pairs, weights and squares in the order of the pairs."""
        word_pairs = self._word_pairs
        assert word_pairs.squares is not None
        blocks = len(word_pairs.pair_starts)
        lengths = np.diff(word_pairs.pair_starts, axis=1).ravel()
        pairs = np.repeat(np.tile(np.arange(self.inputs) * self.labels, blocks), lengths)
        of_blocks = (word_pairs.pair_starts[:, -1] - word_pairs.pair_starts[:, 0]).astype(int)
        pairs += np.repeat(np.arange(blocks) * word_pairs.block_labels, of_blocks)
        pairs += word_pairs.pair_labels
        if blocks == 1:
            return pairs, word_pairs.weights, word_pairs.squares
        order = np.argsort(pairs, kind="stable")
        return pairs[order], word_pairs.weights[order], word_pairs.squares[order]

    def weights(self) -> dict[str, np.ndarray]:
        """The model's arrays by name, from which training can go on. Some may be its own, which
        later steps change.

        "output.weights" float32 [pairs] are the values of a CSR matrix [inputs, labels], with
        "output.starts" int64 [inputs + 1] and "output.label_ids" int32 [pairs]; "output.bias"
        float32 [labels]; "output.squares" and "output.bias_squares" are AdaGrad's sums, float32 of
        the same shapes.
        """
        pairs, weights, squares = self._in_order()
        starts = np.searchsorted(pairs, np.arange(self.inputs + 1) * self.labels)
        word_pairs = self._word_pairs
        assert word_pairs.bias_squares is not None
        return {
            "output.starts": starts.astype(np.int64),
            "output.label_ids": (pairs % self.labels).astype(np.int32),
            "output.weights": weights,
            "output.bias": word_pairs.bias,
            "output.squares": squares,
            "output.bias_squares": word_pairs.bias_squares,
        }

    @classmethod
    def from_arrays(
        cls, inputs: int, labels: int, arrays: Mapping[str, np.ndarray], threads: int = 0
    ) -> OneVersusRest:
        """Undo `weights`; ValueError for arrays that make up no such model."""
        pairs = check_arrays(inputs, labels, arrays)
        return cls(
            inputs,
            labels,
            pairs,
            arrays["output.bias"],
            arrays["output.weights"],
            arrays["output.squares"],
            arrays["output.bias_squares"],
            threads,
        )

    # Training -----------------------------------------------------------------------------------

    def step(self, batch: TrainingBatch, learning_rate: float) -> float:
        """Train on each instance of a batch of CSR features, of any lengths, one after the other;
        the mean loss."""
        assert isinstance(batch.features, sp.csr_array)
        positives = np.bincount(batch.positive_instances, minlength=batch.features.shape[0])
        return words_step(
            *scaled(batch.features),
            np.concatenate([[0], np.cumsum(positives)]),
            batch.positive_labels,
            self._word_pairs,
            learning_rate=learning_rate,
            bias_rate=learning_rate,
            threshold=THRESHOLD,
            threads=self.threads,
        )

    def train(self, batches: Iterable[TrainingBatch], learning_rate: float) -> np.ndarray:
        """A step for each batch; the losses, float32 [batches]."""
        return np.array([self.step(batch, learning_rate) for batch in batches], np.float32)

    def extend(self, x: sp.csr_array, y: sp.csr_array, most: int) -> int:
        """Add pairs of more instances while there are fewer than `most`; returns how many. Weights
        stay."""
        if self.pair_count >= most:
            return 0
        pairs, _ = pairs_of_positives(x, y, most - self.pair_count, self._in_order()[0])
        return self._add(pairs)

    def grow(self, x: sp.csr_array, y: sp.csr_array, count: int) -> int:
        """Add the `count` pairs whose weights would change most: those of the largest gradient of
        the loss over all instances, of the labels that the model gives the highest scores and of
        the positives. Returns how many were added: fewer where no more have a gradient. Weights
        stay."""
        pairs, _ = best_pairs(self._errors(x, y), x, count, excluded=self._in_order()[0])
        return self._add(pairs)

    def _add(self, added: np.ndarray) -> int:
        pairs, weights, squares = self._in_order()
        word_pairs = self._word_pairs
        places = np.searchsorted(pairs, added)
        # The least sum is that of a pair which was hardly trained.
        least = squares.min() if len(squares) else _SQUARES
        # Each in place of the old one, which is not needed any more.
        pairs = np.insert(pairs, places, added)
        weights = np.insert(weights, places, 0)
        squares = np.insert(squares, places, least)
        del places
        self._lay_out(pairs, word_pairs.bias, weights, squares, word_pairs.bias_squares)
        return len(added)

    def _errors(self, x: sp.csr_array, y: sp.csr_array) -> sp.csr_array:
        """Probability - truth where it is not small, of the labels of highest score and of the
        positives, divided by the instance's length; CSR float32 [instances, labels]."""
        parts = []
        k = min(_LOOKED, self.labels)
        for first in range(0, x.shape[0], _BLOCK_INSTANCES):
            some = slice(first, first + _BLOCK_INSTANCES)
            ids, scores = self.top_k(x[some], k)
            predicted = sp.csr_array(
                (
                    (1 / (1 + np.exp(-scores))).ravel(),
                    ids.ravel().astype(np.int32),
                    np.arange(0, k * len(ids) + 1, k, dtype=np.int32),
                ),
                shape=(len(ids), self.labels),
            )
            errors = sp.csr_array(predicted - y[some].astype(np.float32))
            errors.data[np.abs(errors.data) < _LEAST_ERROR] = 0
            errors.eliminate_zeros()
            parts.append(errors)
        errors = sp.csr_array(sp.vstack(parts, "csr"))
        errors.data *= np.repeat(inverse_lengths(x), np.diff(errors.indptr))
        return errors

    # Prediction ---------------------------------------------------------------------------------

    def top_k(self, x: sp.csr_array, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Ids int64 and scores float32, [instances, k] each, of the k best labels, best first. x:
        CSR float32 [instances, inputs]. ValueError where k is not in 1..labels."""
        scores, ids = words_top_k(*scaled(x), self._word_pairs, k, threads=self.threads)
        return ids, scores

    def scores(self, x: sp.csr_array) -> np.ndarray:
        """Scores of all labels, float32 [instances, labels]; x as in `top_k`."""
        ids, best = self.top_k(x, self.labels)
        scores = np.empty_like(best)
        np.put_along_axis(scores, ids, best, 1)
        return scores


def scaled(x: sp.csr_array) -> ByInstance:
    """The arrays of CSR features, each instance scaled to length 1."""
    lengths = np.repeat(inverse_lengths(x), np.diff(x.indptr))
    return by_instance(x)._replace(values=x.data * lengths)


_TYPES: dict[str, Any] = {
    "output.starts": np.int64,
    "output.label_ids": np.int32,
    "output.weights": np.float32,
    "output.bias": np.float32,
    "output.squares": np.float32,
    "output.bias_squares": np.float32,
}


def check_arrays(inputs: int, labels: int, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    """ValueError where arrays make up no model of these sizes; else its pairs, int64, ascending."""
    if set(arrays) != set(_TYPES):
        raise ValueError(f"arrays must be {', '.join(_TYPES)}, got {', '.join(sorted(arrays))}")
    starts, ids = arrays["output.starts"], arrays["output.label_ids"]
    pairs = ids.size
    sizes = {"output.starts": inputs + 1, "output.bias": labels, "output.bias_squares": labels}
    for name, dtype in _TYPES.items():
        array, size = arrays[name], sizes.get(name, pairs)
        if array.dtype != dtype or array.shape != (size,):
            raise ValueError(
                f"{name} must be {np.dtype(dtype)} [{size}], got {array.dtype} {list(array.shape)}"
            )
        if array.dtype == np.float32 and not np.isfinite(array).all():
            raise ValueError(f"{name} must be finite")
    if starts[0] != 0 or starts[-1] != pairs or (np.diff(starts) < 0).any():
        raise ValueError(f"output.starts must ascend from 0 to {pairs}")
    if pairs and not 0 <= ids.min() <= ids.max() < labels:
        raise ValueError(f"output.label_ids must be in 0..{labels - 1}")
    keys = np.repeat(np.arange(inputs) * labels, np.diff(starts))
    keys += ids
    if (keys[1:] <= keys[:-1]).any():
        raise ValueError("output.label_ids must ascend within each word")
    for name in ("output.squares", "output.bias_squares"):
        if (arrays[name] <= 0).any():
            raise ValueError(f"{name} must be above 0")
    return keys
