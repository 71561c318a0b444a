"""Labels on words in the kernels' form, and how their steps are held against
`words_reference.Layer`: shared by the tests of the CPU's kernels and of the CUDA ones."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import words_reference
from kernel_layers import near
from sparse_layers import make_features

from fanin import kernels

RATES = {"learning_rate": 0.3, "bias_rate": 0.1}


def make_pairs(rng, inputs, labels, block_labels, share=0.3):
    """Random pairs, a share of all there could be; some words have none, the first has nearly all
    labels. Biases around the threshold, so that many labels are looked at and many are not."""
    chosen = rng.random((labels, inputs)) < share * rng.random(inputs)
    chosen[:, 0] = rng.random(labels) < 0.9
    blocks = -(-labels // block_labels)
    starts = np.zeros((blocks, inputs + 1), np.int64)
    label_ids, at = [], 0
    for block in range(blocks):
        some = chosen[block * block_labels : (block + 1) * block_labels]
        _, ids = np.nonzero(some.T)  # word by word, ascending labels
        starts[block, 0] = at
        starts[block, 1:] = at + np.cumsum(some.sum(0))
        at += ids.size
        label_ids.append(ids)
    pairs = chosen.sum()
    return kernels.WordPairs(
        block_labels,
        starts,
        np.concatenate(label_ids).astype(np.uint16),
        rng.standard_normal(pairs).astype(np.float32),
        (rng.standard_normal(labels) - 4).astype(np.float32),
        (0.1 + rng.random(pairs)).astype(np.float32),
        (0.1 + rng.random(labels)).astype(np.float32),
    )


def make_positives(rng, batch, labels, dtype=np.int64):
    """Starts and labels; some instances have none, some have one twice."""
    count = int(rng.integers(0, 4 * batch))
    instances = np.sort(rng.integers(0, batch, count))
    starts = np.searchsorted(instances, np.arange(batch + 1)).astype(np.int64)
    return starts, rng.integers(0, labels, count).astype(dtype)


def arrays_of(pairs):
    return [pairs.weights, pairs.squares, pairs.bias, pairs.bias_squares]


def reference_of(pairs):
    blocks, words = pairs.pair_starts.shape[0], pairs.pair_starts.shape[1] - 1
    counts = np.diff(pairs.pair_starts, axis=1)
    first = np.repeat(np.arange(blocks) * pairs.block_labels, counts.sum(1))
    return words_reference.Layer(
        pairs.pair_labels + first,
        np.repeat(np.tile(np.arange(words), blocks), counts.ravel()),
        pairs.weights,
        pairs.squares,
        pairs.bias,
        pairs.bias_squares,
    )


def settled(layer, features, positives, options, loss):
    """The steps of the reference; its mean loss, and how near a score came to the threshold, where
    rounding decides what is looked at."""
    values, starts, columns = features
    positive_starts, positive_labels = positives
    total, nearest = 0.0, np.inf
    for i in range(starts.size - 1):
        of = slice(starts[i], starts[i + 1])
        scores = layer.scores(columns[of], values[of].astype(np.float64))
        nearest = min(nearest, np.abs(scores - options["threshold"]).min())
        total += layer.step(
            columns[of],
            values[of].astype(np.float64),
            positive_labels[positive_starts[i] : positive_starts[i + 1]],
            options["learning_rate"],
            options["bias_rate"],
            options["threshold"],
            loss,
        )
    return total / (starts.size - 1), nearest


def check_steps(
    rng, batch, inputs, labels, block_labels, *, loss="bce", threads=0, steps=2, wide=True
):
    """A few calls against the reference. Returns whether they could be compared: no score was so
    near to the threshold that rounding decides."""
    pairs = make_pairs(rng, inputs, labels, block_labels)
    layer = reference_of(pairs)
    options = {**RATES, "threshold": -4.0 if loss == "bce" else -1.0}
    for _ in range(steps):
        features = make_features(rng, batch, inputs)
        positives = make_positives(rng, batch, labels, np.int64 if wide else np.int32)
        expected, nearest = settled(layer, features, positives, options, loss)
        value = kernels.words_step(
            *features, *positives, pairs, **options, loss=loss, threads=threads
        )
        if nearest < 1e-4:
            return False
        near(np.float64(value), expected, 1e-4)
        near(pairs.weights, layer.weights, 1e-4)
        near(pairs.squares, layer.squares, 1e-4)
        near(pairs.bias, layer.bias, 1e-4)
        near(pairs.bias_squares, layer.bias_squares, 1e-4)
    return True


def best(layer, features, k):
    """Scores and ids of the reference, by a stable sort."""
    values, starts, columns = features
    scores = np.stack(
        [layer.scores(columns[a:b], values[a:b].astype(np.float64)) for a, b in pairwise(starts)]
    )
    ids = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, ids, 1), ids
