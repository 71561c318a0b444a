"""A linear one-versus-rest model over words: its arrays, its training on some instances, its
predictions.

The score of a label is its bias + the sum, over the instance's words that it has a weight for, of
value * weight, where the instance is scaled to length 1. The other labels that PPDSparse (Yen et
al., KDD 2017) and DiSMEC (Babbar & Schoelkopf, WSDM 2017) train one by one are trained together
here: one instance after the other, and of an instance only its positives and those labels whose
score is not yet low (`fanin.kernels.words_step`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import scipy.sparse as sp

from fanin.backends.sparse import ByInstance, by_instance
from fanin.backends.words.pairs import best_pairs, inverse_lengths
from fanin.datasets import Batches
from fanin.kernels import WordPairs, words_step, words_top_k

# Instances of one call: so the rate falls smoothly, and progress is told.
CALL_INSTANCES = 256
# The labels that a thread works on are cut so that their scores stay in the cache.
_BLOCK_LABELS = 8192
_LEAST_BLOCK = 256
# Sums of squares at the start. That of a weight is about one gradient of a rare word.
_SQUARES, _BIAS_SQUARES = 1e-2, 1.0
# Labels whose score is not above this are not looked at: their probability is below 0.02.
THRESHOLD = -4.0
# Growing looks at so many labels of each instance, and at errors of at least so much.
_LOOKED, _LEAST_ERROR = 20, 0.03
_BLOCK_INSTANCES = 4096


def log_odds(y: sp.csr_array) -> np.ndarray:
    """Log-odds of each label, float32 [labels]; half an instance more of either kind."""
    counts = np.bincount(y.indices, minlength=y.shape[1])
    return np.log((counts + 0.5) / (y.shape[0] - counts + 0.5)).astype(np.float32)


class OneVersusRest:
    """The pairs of a model, with what training needs of them.

    inputs, labels: sizes. pairs: word * labels + label of each, ascending, int64 [pairs]. weights,
    squares: float32 [pairs], in that order, and bias_squares [labels]; zeros and AdaGrad's starting
    sums where not given. bias: float32 [labels]. threads: CPU threads, 0 for all; no number depends
    on them.
    """

    def __init__(
        self,
        inputs: int,
        labels: int,
        pairs: np.ndarray,
        bias: np.ndarray,
        weights: np.ndarray | None = None,
        squares: np.ndarray | None = None,
        bias_squares: np.ndarray | None = None,
        threads: int = 0,
    ) -> None:
        self.inputs, self.labels, self.threads = inputs, labels, threads
        self._passes = 0
        self._lay_out(pairs, bias, weights, squares, bias_squares)

    def _lay_out(
        self,
        pairs: np.ndarray,
        bias: np.ndarray,
        weights: np.ndarray | None,
        squares: np.ndarray | None,
        bias_squares: np.ndarray | None,
    ) -> None:
        """The arrays in the order of the kernels: block by block, and by word within."""
        labels = self.labels
        threads = self.threads or len(os.sched_getaffinity(0))
        blocks = max(-(-labels // _BLOCK_LABELS), min(threads, -(-labels // _LEAST_BLOCK)))
        size = -(-labels // blocks)
        blocks = -(-labels // size)
        words, ids = np.divmod(pairs, labels)
        places = ids // size * self.inputs + words  # block, then word
        ids %= size
        starts = np.zeros((blocks, self.inputs + 1), np.int64)
        counts = np.bincount(places, minlength=blocks * self.inputs)
        starts[:, 1:] = np.cumsum(counts).reshape(blocks, self.inputs)
        starts[1:, 0] = starts[:-1, -1]
        order: np.ndarray | slice = slice(None)
        if blocks > 1:
            order = np.argsort((places // self.inputs).astype(np.uint16), kind="stable")
        self._order = order

        def placed(given: np.ndarray | None, start: float) -> np.ndarray:
            if given is None:
                return np.full(len(pairs), start, np.float32)
            return np.ascontiguousarray(given[order], np.float32)

        self._pairs = WordPairs(
            size,
            starts,
            ids.astype(np.uint16)[order],
            placed(weights, 0),
            np.array(bias, np.float32),
            placed(squares, _SQUARES),
            np.full(labels, _BIAS_SQUARES, np.float32) if bias_squares is None else bias_squares,
        )

    @property
    def pair_count(self) -> int:
        return len(self._pairs.weights)

    @property
    def pairs(self) -> np.ndarray:
        """word * labels + label of each, int64, ascending."""
        held = self._pairs
        blocks = len(held.pair_starts)
        lengths = np.diff(held.pair_starts, axis=1).ravel()
        words = np.repeat(np.tile(np.arange(self.inputs), blocks), lengths)
        firsts = np.repeat(
            np.arange(blocks) * held.block_labels, np.diff(held.pair_starts[:, [0, -1]])[:, 0]
        )
        return self._in_order(words * self.labels + firsts + held.pair_labels)

    def _in_order(self, held: np.ndarray) -> np.ndarray:
        """An array of the kernels' order in that of the pairs."""
        if isinstance(self._order, slice):
            return held
        made = np.empty_like(held)
        made[self._order] = held
        return made

    def arrays(self) -> dict[str, np.ndarray]:
        """What predictions need, by name: "output.weights" float32 [pairs], the values of a CSR
        matrix [inputs, labels], with "output.starts" int64 [inputs + 1] and "output.label_ids"
        int32 [pairs]; "output.bias" float32 [labels]."""
        words, ids = np.divmod(self.pairs, self.labels)
        starts = np.zeros(self.inputs + 1, np.int64)
        np.cumsum(np.bincount(words, minlength=self.inputs), out=starts[1:])
        return {
            "output.starts": starts,
            "output.label_ids": ids.astype(np.int32),
            "output.weights": self._in_order(self._pairs.weights),
            "output.bias": self._pairs.bias,
        }

    @classmethod
    def from_arrays(
        cls, inputs: int, labels: int, arrays: Mapping[str, np.ndarray], threads: int = 0
    ) -> OneVersusRest:
        """Undo `arrays`; ValueError for arrays that make up no such model."""
        starts, ids, weights, bias = known_arrays(inputs, labels, arrays)
        words = np.repeat(np.arange(inputs), np.diff(starts))
        return cls(inputs, labels, words * labels + ids, bias, weights, threads=threads)

    # Training -----------------------------------------------------------------------------------

    def train(
        self,
        x: sp.csr_array,
        y: sp.csr_array,
        seed: int,
        rates: Callable[[float], tuple[float, float]],
        progress: Callable[[int, float], None] | None = None,
    ) -> float:
        """Train on each instance once, in an order that follows from the seed and from how often
        this was called before; the mean loss.

        x: CSR float32 [instances, inputs], of any lengths; y: CSR [instances, labels], sorted.
        rates: from the share of the instances that is done to the rates of weights and biases.
        progress: told after each call of the kernel how many instances it had, and their loss.
        """
        done, total = 0, 0.0
        for batch in Batches(x, y, CALL_INSTANCES, seed=seed).epoch(self._passes):
            count = batch.features.shape[0]
            positives = np.bincount(batch.positive_instances, minlength=count)
            rate, bias_rate = rates((done + count / 2) / x.shape[0])
            loss = words_step(
                *scaled(batch.features),
                np.concatenate([[0], np.cumsum(positives)]),
                batch.positive_labels,
                self._pairs,
                learning_rate=rate,
                bias_rate=bias_rate,
                threshold=THRESHOLD,
                threads=self.threads,
            )
            done += count
            total += count * loss
            if progress:
                progress(count, loss)
        self._passes += 1
        return total / done

    def grow(self, x: sp.csr_array, y: sp.csr_array, count: int, *, keep: bool = True) -> int:
        """Add the `count` pairs whose weights would change most: those of the largest gradient of
        the loss over all instances, of the labels that the model gives the highest scores and of
        the positives. Returns how many were added: fewer where no more have a gradient. keep:
        whether the weights that there are stay; else training begins anew, with the biases too."""
        pairs = self.pairs
        added = best_pairs(self._errors(x, y), x, count, beside=pairs)
        self._add(pairs, added, log_odds(y) if not keep else None)
        return len(added)

    def _add(self, pairs: np.ndarray, added: np.ndarray, new_bias: np.ndarray | None) -> None:
        held = self._pairs
        places = np.searchsorted(pairs, added)
        joined = np.insert(pairs, places, added)
        if new_bias is not None:
            return self._lay_out(joined, new_bias, None, None, None)
        assert held.squares is not None
        weights = np.insert(self._in_order(held.weights), places, 0)
        squares = np.insert(self._in_order(held.squares), places, _SQUARES)
        self._lay_out(joined, held.bias, weights, squares, held.bias_squares)

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
        scores, ids = words_top_k(*scaled(x), self._pairs, k, threads=self.threads)
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


def known_arrays(
    inputs: int, labels: int, arrays: Mapping[str, np.ndarray]
) -> Iterator[np.ndarray]:
    """The arrays of a model in the order of `arrays`; ValueError where they make up none."""
    types: dict[str, Any] = {
        "output.starts": np.int64,
        "output.label_ids": np.int32,
        "output.weights": np.float32,
        "output.bias": np.float32,
    }
    if set(arrays) != set(types):
        raise ValueError(f"arrays must be {', '.join(types)}, got {', '.join(sorted(arrays))}")
    for name, dtype in types.items():
        if arrays[name].dtype != dtype or arrays[name].ndim != 1:
            raise ValueError(f"{name} must be a vector of {np.dtype(dtype)}")
    starts, ids = arrays["output.starts"], arrays["output.label_ids"]
    sizes = {"output.starts": inputs + 1, "output.weights": len(ids), "output.bias": labels}
    for name, size in sizes.items():
        if len(arrays[name]) != size:
            raise ValueError(f"{name} must be [{size}], got [{len(arrays[name])}]")
    if starts[0] != 0 or starts[-1] != len(ids) or (np.diff(starts) < 0).any():
        raise ValueError(f"output.starts must ascend from 0 to {len(ids)}")
    if len(ids) and not 0 <= ids.min() <= ids.max() < labels:
        raise ValueError(f"output.label_ids must be in 0..{labels - 1}")
    words = np.repeat(np.arange(inputs), np.diff(starts))
    if (np.diff(words * labels + ids) <= 0).any():
        raise ValueError("output.label_ids must ascend within each word")
    for name in ("output.weights", "output.bias"):
        if not np.isfinite(arrays[name]).all():
            raise ValueError(f"{name} must be finite")
    return iter([arrays[name] for name in types])
