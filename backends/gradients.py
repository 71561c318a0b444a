"""Rewiring towards gradients: connections of small weight move to the inputs whose weight would
change most (RigL: Evci et al., ICML 2020), where blind rewiring draws a source.

The gradient of the loss by the weight of input i of label l is the sum of r(p, l) x(p, i) over all
instances p, with r the loss' gradient by the score. Few r are not small: those of positives, and of
labels that score high without being positive. All positives are taken; the others come from the
best labels of some instances, and count for those that were not asked. So a pass costs what
predicting these instances costs, and one reading of the positives' features.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp

from fanin.backends import checks
from fanin.backends.arrays import Rewiring
from fanin.backends.features import FeatureTransform
from fanin.backends.passes import (
    MOST_BYTES,
    Entries,
    Features,
    give_back,
    input_statistics,
    known_data,
    known_features,
    known_labels,
    label_sums,
)
from fanin.backends.setup import LayerSetup, Loss
from fanin.kernels import Trained, params, replace_sources

# How many instances are asked for their best labels, and for how many. Three times as many of
# either changed no precision by more than 0.1 points (trials on 12,000 and 34,000 labels).
ASKED, BEST = 8192, 64
# A smaller gradient by the score is left out: it takes time and moves nothing.
_SMALLEST = 1e-2
_BLOCK = 512

# Ids of the k best labels [batch, k] of features [batch, inputs], as `Trainer.top_k` gives them.
TopK = Callable[[np.ndarray, int], np.ndarray]


@dataclass(frozen=True)
class OutputLayer:
    """A fixed fan-in layer in NumPy: indices and weights [labels, fan_in], bias [labels], the loss
    that it is trained with, what it does to its features, and how it finds the best labels."""

    indices: np.ndarray
    weights: np.ndarray
    bias: np.ndarray
    loss: Loss
    transform: FeatureTransform
    top_k: TopK


@dataclass(frozen=True)
class Pairs:
    """Instances and labels [pairs] each, in the order of the instances."""

    instances: np.ndarray
    labels: np.ndarray


def plan_towards_gradients(
    features: Any,
    labels: Any,
    layer: OutputLayer,
    fraction: float,
    *,
    mean: np.ndarray | None = None,
    seed: int = 0,
    threads: int = 0,
    most_bytes: int = MOST_BYTES,
) -> Rewiring:
    """Choose the connections of smallest |weight|, a `fraction` of each label's, and for them the
    inputs of largest |gradient| that the label does not read yet. Their weights become 0, which
    leaves the scores almost as they were.

    features, labels: all training data, as `choosing.choose_sources` takes them, before what the
    model does to features. mean: of each input, where it is known; the part of a gradient that
    the bias can have is left out. seed: of the instances that are asked. Raises ValueError naming
    what is wrong.
    """
    count = int(checks.fraction(fraction) * layer.indices.shape[1])
    features = known_features(features)
    positives = known_labels(labels, features.shape[0])
    if positives.shape[1] != len(layer.bias):
        raise ValueError(f"labels must have {len(layer.bias)} columns, got {positives.shape[1]}")
    if mean is None:
        mean = input_statistics(features)[0]
    mean = np.asarray(mean, np.float32)
    entries = _entries(features, positives, layer, np.random.default_rng(seed))
    starts = entries.starts
    assert entries.weights is not None
    totals = np.zeros(len(layer.bias), np.float32)
    np.add.at(totals, np.repeat(np.arange(len(totals)), np.diff(starts)), entries.weights)

    positions: list[np.ndarray] = []
    sources: list[np.ndarray] = []
    most_bytes //= 3  # the sums, and what the transformation makes of them
    for first, sums in label_sums(features, entries, threads=threads, most_bytes=most_bytes):
        own = slice(first, first + len(sums))
        sums -= totals[own, None] * mean
        before = np.ascontiguousarray(layer.indices[own])
        after = before.copy()
        weights = np.array(layer.weights[own], np.float32, order="C")
        replace_sources(
            layer.transform.apply(sums),
            after,
            Trained(weights, np.zeros_like(weights), np.zeros_like(weights)),
            count,
            threads=threads,
        )
        moved = np.flatnonzero(after != before)
        positions.append(moved + first * after.shape[1])
        sources.append(after.reshape(-1)[moved].astype(np.uint32))
    return Rewiring(np.concatenate(positions), np.concatenate(sources), weight=0.0)


def plan_for_layer(
    features: Any,
    labels: Any,
    layer: OutputLayer,
    setup: LayerSetup,
    fraction: float,
    *,
    seed: int,
    threads: int,
) -> Rewiring:
    """`plan_towards_gradients` for a layer of a user's own model. ValueError for a loss that is
    none, and for data that do not fit the layer, too."""
    if layer.loss not in params.LOSSES:
        raise ValueError(f"unknown loss {layer.loss!r}; there are {', '.join(params.LOSSES)}")
    features, labels = known_data(features, labels, setup)
    return plan_towards_gradients(features, labels, layer, fraction, seed=seed, threads=threads)


def rewiring_bytes(instances: int, inputs: int, labels: int, positives: int, fan_in: int) -> int:
    """What `plan_towards_gradients` takes at most beside data and model: blocks of sums, the pairs
    whose scores have gradients (ids, scores and weights, once in each of two orders), and a copy
    of the layer."""
    pairs = positives + min(ASKED, instances) * min(BEST, labels)
    block = min(MOST_BYTES // 2, 3 * 4 * inputs * labels)
    return block + 48 * pairs + 8 * labels * fan_in


def _entries(
    features: Features, positives: sp.csr_array, layer: OutputLayer, rng: np.random.Generator
) -> Entries:
    """The pairs whose score has a gradient, with that gradient as weight, by label."""
    instances = features.shape[0]
    asked = np.sort(rng.permutation(instances)[:ASKED])
    of_positives = Pairs(
        np.repeat(np.arange(instances, dtype=np.int32), np.diff(positives.indptr)),
        positives.indices,
    )
    others = _high_scored(features, positives, layer, asked)
    gradients = [
        score_gradients(layer.loss, _scores(features, of_positives, layer), 1),
        score_gradients(layer.loss, _scores(features, others, layer), -1) * instances / len(asked),
    ]
    weights = np.concatenate(gradients).astype(np.float32)
    keep = np.abs(weights) > _SMALLEST
    label_ids = np.concatenate([of_positives.labels, others.labels])[keep]
    order = np.argsort(label_ids, kind="stable")
    counts = np.bincount(label_ids, minlength=len(layer.bias))
    return Entries(
        np.concatenate([[0], np.cumsum(counts)]),
        np.concatenate([of_positives.instances, others.instances])[keep][order],
        weights[keep][order],
    )


def score_gradients(loss: Loss, scores: np.ndarray, sign: int) -> np.ndarray:
    """The gradient of the loss by scores of labels that are all positive (sign 1) or none (-1),
    but for a factor that is the same for all."""
    if loss == "bce":
        return -sign / (1 + np.exp(np.clip(sign * scores, -80, 80)))
    return -sign * np.maximum(0, 1 - sign * scores)


def _high_scored(
    features: Features, positives: sp.csr_array, layer: OutputLayer, asked: np.ndarray
) -> Pairs:
    """Of some instances the best labels that are not positive."""
    count = positives.shape[1]
    k = min(BEST, count)
    instances, best = np.repeat(asked, k), []
    for first in range(0, len(asked), _BLOCK):
        best.append(layer.top_k(_rows(features, asked[first : first + _BLOCK]), k).reshape(-1))
    label_ids = np.concatenate(best)
    own = positives[asked]
    rows = np.repeat(asked, np.diff(own.indptr))
    is_positive = np.isin(instances * count + label_ids, rows * count + own.indices)
    return Pairs(instances[~is_positive].astype(np.int32), label_ids[~is_positive])


def _scores(features: Features, pairs: Pairs, layer: OutputLayer) -> np.ndarray:
    """The score of each pair, float32 [pairs]; features are read and transformed in blocks."""
    scores = np.empty(len(pairs.labels), np.float32)
    for first in range(0, features.shape[0], _BLOCK):
        near = slice(*np.searchsorted(pairs.instances, [first, first + _BLOCK]))
        if near.start == near.stop:
            continue
        rows = np.arange(first, min(first + _BLOCK, features.shape[0]))
        block = layer.transform.apply(_rows(features, rows))
        label_ids = pairs.labels[near]
        place = (pairs.instances[near] - first)[:, None]
        read = block[place, layer.indices[label_ids]]
        scores[near] = np.einsum("pk,pk->p", read, layer.weights[label_ids]) + layer.bias[label_ids]
        give_back(features, first, first + _BLOCK)
    return scores


def _rows(features: Features, instances: np.ndarray) -> np.ndarray:
    """The features of some instances, dense."""
    rows = features[instances]
    dense: np.ndarray = rows if isinstance(rows, np.ndarray) else rows.toarray()
    return dense
