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


def blocked(labels, words, arrays, bias_arrays, inputs, block_labels):
    """`kernels.WordPairs` from coordinates: labels and words [pairs]; arrays: weights and squares
    [pairs]; bias_arrays: bias and its squares [labels]."""
    order = np.lexsort((labels, words, labels // block_labels))
    blocks = -(-bias_arrays[0].size // block_labels)
    of_words = (labels // block_labels * inputs + words)[order]
    starts = np.searchsorted(of_words, np.arange(blocks * inputs + 1)).astype(np.int64)
    weights, squares = (array[order] for array in arrays)
    bias, bias_squares = (array.copy() for array in bias_arrays)
    return kernels.WordPairs(
        block_labels,
        np.stack([starts[b * inputs : (b + 1) * inputs + 1] for b in range(blocks)]),
        (labels % block_labels)[order].astype(np.uint16),
        weights,
        bias,
        squares,
        bias_squares,
    )


def make_pairs(rng, inputs, labels, block_labels, *, share=0.3, level=-4.0):
    """Random pairs, a share of all there could be; some words have none, the first has nearly all
    labels. Biases lie around a level: near the threshold, many labels are looked at, many not."""
    chosen = rng.random((labels, inputs)) < share * rng.random(inputs)
    chosen[:, 0] = rng.random(labels) < 0.9
    label_ids, words = np.nonzero(chosen)
    weights, squares = rng.standard_normal(words.size), 0.1 + rng.random(words.size)
    bias, bias_squares = rng.standard_normal(labels) + level, 0.1 + rng.random(labels)
    return blocked(
        label_ids,
        words,
        [a.astype(np.float32) for a in (weights, squares)],
        [a.astype(np.float32) for a in (bias, bias_squares)],
        inputs,
        block_labels,
    )


def make_positives(rng, batch, labels, dtype=np.int64):
    """Starts and labels; some instances have none, some have one twice."""
    count = int(rng.integers(0, 4 * batch))
    instances = np.sort(rng.integers(0, batch, count))
    starts = np.searchsorted(instances, np.arange(batch + 1)).astype(np.int64)
    return starts, rng.integers(0, labels, count).astype(dtype)


def arrays_of(pairs):
    return [pairs.weights, pairs.squares, pairs.bias, pairs.bias_squares]


def coordinates(pairs):
    """The label and the word of each pair."""
    blocks, inputs = pairs.pair_starts.shape[0], pairs.pair_starts.shape[1] - 1
    counts = np.diff(pairs.pair_starts, axis=1)
    first = np.repeat(np.arange(blocks) * pairs.block_labels, counts.sum(1))
    words = np.repeat(np.tile(np.arange(inputs), blocks), counts.ravel())
    return pairs.pair_labels + first, words


def reference_of(pairs):
    return words_reference.Layer(*coordinates(pairs), *arrays_of(pairs))


def reference_steps(layer, features, positives, options, loss):
    """Makes the steps of the reference. Returns its mean loss, and how near a score came to the
    threshold, where rounding decides what is looked at."""
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
    rng, batch, inputs, labels, block_labels, *, loss="bce", threads=0, steps=2, wide=True, level=-4
):
    """A few calls against the reference. Ends where a score was so near to the threshold that
    rounding decides. Returns how many calls were compared."""
    pairs = make_pairs(rng, inputs, labels, block_labels, level=level)
    layer = reference_of(pairs)
    options = {**RATES, "threshold": -4.0 if loss == "bce" else -1.0}
    for step in range(steps):
        features = make_features(rng, batch, inputs)
        positives = make_positives(rng, batch, labels, np.int64 if wide else np.int32)
        expected, nearest = reference_steps(layer, features, positives, options, loss)
        value = kernels.words_step(
            *features, *positives, pairs, **options, loss=loss, threads=threads
        )
        if nearest < 1e-5:
            return step
        near(np.float64(value), expected, 1e-4)
        near(pairs.weights, layer.weights, 1e-4)
        near(pairs.squares, layer.squares, 1e-4)
        near(pairs.bias, layer.bias, 1e-4)
        near(pairs.bias_squares, layer.bias_squares, 1e-4)
    return steps


def best(layer, features, k):
    """Scores and ids of the reference, by a stable sort."""
    values, starts, columns = features
    scores = np.stack(
        [layer.scores(columns[a:b], values[a:b].astype(np.float64)) for a, b in pairwise(starts)]
    )
    ids = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, ids, 1), ids
