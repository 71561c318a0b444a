"""Rewiring towards gradients: connections of small weight move to the inputs whose weight would
change most (RigL: Evci et al., ICML 2020), where blind rewiring draws a source.

The gradient of the loss by the weight of input i of label l is the sum of r(p, l) x(p, i) over all
instances p, with r the loss' gradient by the score. Few r are not small: those of positives, and of
labels that score high without being positive. All positives are taken. The others come from the
best labels of some instances, and stand for those of the other instances too. So a pass costs what
predicting these instances costs, and two readings of the positives' features.

Where labels share their sources, a slot moves for its whole group: the slots of smallest mean
|weight|, to the inputs whose gradients over the group's labels have the largest norm.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp

from fanin.backends import checks
from fanin.backends.arrays import Rewiring
from fanin.backends.choosing import group_norms
from fanin.backends.features import FeatureTransform
from fanin.backends.interface import Features
from fanin.backends.kinds import group_sums
from fanin.backends.label_order import LabelOrder
from fanin.backends.passes import (
    MOST_BYTES,
    LabelPairs,
    bytes_of_block,
    give_back,
    in_order,
    input_statistics,
    known_data,
    known_features,
    known_labels,
    label_blocks,
    label_sums,
)
from fanin.backends.setup import LayerSetup, Loss
from fanin.kernels import Trained, params, replace_sources

# How many instances are asked for their best labels, and for how many each. Six times as many
# instances gave the same precision (a trial on 11,733 labels).
ASKED_INSTANCES, ASKED_LABELS = 8192, 64
# A smaller gradient by the score is left out: it takes time and moves nothing.
_SMALLEST = 1e-2
_BLOCK = 512

# Ids of the k best labels [batch, k] of features [batch, inputs], as `Trainer.top_k` gives them.
TopK = Callable[[np.ndarray, int], np.ndarray]


@dataclass(frozen=True)
class OutputLayer:
    """A fixed fan-in layer in NumPy: indices and weights [labels, fan_in], bias [labels], the loss
    that it is trained with, what it does to its features, and how it finds the best labels.

    Where `group_size` labels share their sources, indices are [label groups, fan_in]. order: the
    label at each position, [labels], where weights and bias are not in the order of the labels;
    `top_k` gives ids of labels in any case."""

    indices: np.ndarray
    weights: np.ndarray
    bias: np.ndarray
    loss: Loss
    transform: FeatureTransform
    top_k: TopK
    group_size: int = 0
    order: np.ndarray | None = None


@dataclass(frozen=True)
class Pairs:
    """Ids of instances and labels, or their positions, [pairs] each, in the order of the
    instances."""

    instances: np.ndarray
    label_ids: np.ndarray


def plan_towards_gradients(
    features: Any,
    labels: Any,
    layer: OutputLayer,
    fraction: float,
    *,
    seed: int = 0,
    threads: int = 0,
    most_bytes: int = MOST_BYTES,
) -> Rewiring:
    """Choose the connections of smallest |weight|, a `fraction` of each label's, and for them the
    inputs of largest |gradient| that the label does not read yet. Their weights become 0, which
    leaves the scores almost as they were. Of a grouped layer, the same of each group; what moves
    are flat positions in its indices then.

    features, labels: all training data, as `choosing.choose_sources` takes them, before what the
    model does to features. Gradients are of features less their mean, since the bias can learn what
    that contributes. seed: of the instances that are asked. Raises ValueError naming what is wrong.
    """
    count = int(checks.fraction(fraction) * layer.indices.shape[1])
    features = known_features(features)
    positives = known_labels(labels, features.shape[0])
    if positives.shape[1] != len(layer.bias):
        raise ValueError(f"labels must have {len(layer.bias)} columns, got {positives.shape[1]}")
    groups = -(-len(layer.bias) // (layer.group_size or 1))
    if len(layer.indices) != groups:
        raise ValueError(
            f"indices must be [{groups}, fan_in] for {len(layer.bias)} labels in groups of "
            f"{layer.group_size or 1}, got {list(layer.indices.shape)}"
        )
    if not count:  # as at the end of a falling fraction; no pass over the data is needed
        return Rewiring(np.empty(0, np.int64), np.empty(0, np.uint32), weight=0.0)
    order = None if layer.order is None else LabelOrder.of(layer.order)
    positives = in_order(positives, order)
    mean = input_statistics(features)[0].astype(np.float32)
    pairs = _pairs_with_gradients(features, positives, layer, order, np.random.default_rng(seed))
    totals = np.bincount(pairs.label_ids(), pairs.weights, pairs.labels).astype(np.float32)

    positions: list[np.ndarray] = []
    sources: list[np.ndarray] = []
    group_size = layer.group_size
    sums_of_blocks = label_sums(
        features, pairs, threads=threads, most_bytes=most_bytes, group_size=group_size
    )
    for first, sums in sums_of_blocks:
        for before, block in label_blocks(sums, group_size):
            start = first + before
            own = slice(start, start + len(block))
            block -= totals[own, None] * mean
            gradients = layer.transform.apply(block)
            weights = np.array(layer.weights[own], np.float32, order="C")
            if group_size:
                start //= group_size
                gradients = group_norms(gradients, group_size)
                weights = group_sums(np.abs(weights), group_size)
            indices = np.ascontiguousarray(layer.indices[start : start + len(weights)])
            after = indices.copy()
            replace_sources(
                gradients,
                after,
                Trained(weights, np.zeros_like(weights), np.zeros_like(weights)),
                count,
                threads=threads,
            )
            moved = np.flatnonzero(after != indices)
            positions.append(moved + start * after.shape[1])
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


def rewiring_bytes(
    instances: int,
    inputs: int,
    labels: int,
    positives: int,
    fan_in: int,
    atoms: int | None = None,
    group_size: int = 0,
) -> int:
    """What `plan_towards_gradients` takes at most beside data and model: sums, and with a
    dictionary of so many atoms a block of them written in atoms; the pairs whose scores have
    gradients (ids, scores and weights, once in each of two orders), and a copy of the layer. Where
    labels share sources, a block's squares, and positives by position."""
    pairs = positives + min(ASKED_INSTANCES, instances) * min(ASKED_LABELS, labels)
    block = min(MOST_BYTES // 2, 4 * inputs * labels)
    block += bytes_of_block(inputs, labels, atoms)
    if group_size:
        block += bytes_of_block(inputs, labels, atoms or inputs) + 4 * positives
    return block + 48 * pairs + 8 * labels * fan_in


def _pairs_with_gradients(
    features: Features,
    positives: sp.csr_array,
    layer: OutputLayer,
    order: LabelOrder | None,
    rng: np.random.Generator,
) -> LabelPairs:
    """The pairs whose score has a gradient, with that gradient as weight."""
    instances = features.shape[0]
    asked = np.sort(rng.permutation(instances)[:ASKED_INSTANCES])
    positive = Pairs(
        np.repeat(np.arange(instances, dtype=np.int32), np.diff(positives.indptr)),
        positives.indices,
    )
    negative = _high_scored(features, positives, layer, order, asked)
    of_positive, of_negative = _scores(features, (positive, negative), layer)
    gradients = [
        score_gradients(layer.loss, of_positive, 1),
        score_gradients(layer.loss, of_negative, -1) * (instances / len(asked)),
    ]
    weights = np.concatenate(gradients).astype(np.float32)
    keep = np.abs(weights) > _SMALLEST
    label_ids = np.concatenate([positive.label_ids, negative.label_ids])[keep]
    by_label = np.argsort(label_ids, kind="stable")
    counts = np.bincount(label_ids, minlength=len(layer.bias))
    return LabelPairs(
        np.concatenate([[0], np.cumsum(counts)]),
        np.concatenate([positive.instances, negative.instances])[keep][by_label],
        weights[keep][by_label],
    )


def score_gradients(loss: Loss, scores: np.ndarray, sign: int) -> np.ndarray:
    """The gradient of the loss by scores of labels that are all positive (sign 1) or none (-1),
    but for a factor that is the same for all."""
    if loss == "bce":
        return -sign / (1 + np.exp(np.clip(sign * scores, -80, 80)))
    return -sign * np.maximum(0, 1 - sign * scores)


def _high_scored(
    features: Features,
    positives: sp.csr_array,
    layer: OutputLayer,
    order: LabelOrder | None,
    asked: np.ndarray,
) -> Pairs:
    """The best labels of some instances, without their positives."""
    count = positives.shape[1]
    k = min(ASKED_LABELS, count)
    best = [
        layer.top_k(_dense(features[asked[first : first + _BLOCK]]), k).reshape(-1)
        for first in range(0, len(asked), _BLOCK)
    ]
    instances, label_ids = np.repeat(asked, k), np.concatenate(best)
    if order:
        label_ids = order.positions_of(label_ids)
    own = positives[asked]
    rows = np.repeat(asked, np.diff(own.indptr))
    is_positive = np.isin(instances * count + label_ids, rows * count + own.indices)
    return Pairs(instances[~is_positive].astype(np.int32), label_ids[~is_positive])


def _scores(features: Features, lists: Sequence[Pairs], layer: OutputLayer) -> list[np.ndarray]:
    """The score of each pair of each list, float32 [pairs]; features are read and transformed once,
    in blocks: a transform takes longer than all the rest."""
    instances = features.shape[0]
    # In the type of the ids: with another type, NumPy would copy all ids.
    edges = np.append(np.arange(0, instances, _BLOCK), instances).astype(np.int32)
    bounds = [np.searchsorted(pairs.instances, edges) for pairs in lists]
    scores = [np.empty(len(pairs.label_ids), np.float32) for pairs in lists]
    for number, first in enumerate(edges[:-1]):
        block = layer.transform.apply(_dense(features[first : first + _BLOCK]))
        for pairs, bound, own in zip(lists, bounds, scores, strict=True):
            near = slice(bound[number], bound[number + 1])
            places = pairs.instances[near] - first
            own[near] = _block_scores(block, places, pairs.label_ids[near], layer)
        give_back(features, first, first + _BLOCK)
    return scores


def _block_scores(
    block: np.ndarray, places: np.ndarray, label_ids: np.ndarray, layer: OutputLayer
) -> np.ndarray:
    """The score of each pair of a place in the block and a label, float32 [pairs]."""
    # `take` without a check of each index is four times as fast as brackets.
    read = np.take(layer.indices, label_ids // (layer.group_size or 1), 0).astype(np.intp)
    read += places[:, None].astype(np.intp) * block.shape[1]
    seen = block.reshape(-1).take(read, mode="clip")
    weights = np.take(layer.weights, label_ids, 0)
    scores: np.ndarray = np.einsum("pk,pk->p", seen, weights) + layer.bias[label_ids]
    return scores


def _dense(rows: Features) -> np.ndarray:
    dense: np.ndarray = rows if isinstance(rows, np.ndarray) else rows.toarray()
    return dense
