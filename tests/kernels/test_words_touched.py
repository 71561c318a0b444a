"""Labels that are connected to words, where an instance touches few of many labels, and where most
labels have one of its words: a CPU works on each in its own way."""

from __future__ import annotations

import numpy as np
import pytest
from kernel_layers import INSTRUCTION_SETS, near
from sparse_layers import make_features
from word_layers import (
    RATES,
    arrays_of,
    best,
    blocked,
    make_pairs,
    make_positives,
    reference_of,
    reference_steps,
)

from fanin import kernels

LABELS, INPUTS, BATCH = 20_000, 12, 8
THREADS = (1, 2, 5)
BLOCKS = (5_001, 65_536)


def scattered(rng, block_labels, *, whole=False):
    """60 pairs of 20,000 labels, so that most instances touch less than a label in 128. Most biases
    are far below the threshold, a few above it. whole: all numbers are, so that sums are exact."""
    labels, words = rng.integers(0, LABELS, 60), rng.integers(0, INPUTS, 60)
    labels, words = np.unique(np.stack([labels, words], 1), axis=0).T
    weights = rng.integers(-3, 12, labels.size) if whole else 3 * rng.standard_normal(labels.size)
    bias = rng.integers(-9, -7, LABELS) if whole else rng.standard_normal(LABELS) - 12
    bias[rng.integers(0, LABELS, 5)] = 1
    arrays = [a.astype(np.float32) for a in (weights, 0.1 + rng.random(labels.size))]
    bias_arrays = [a.astype(np.float32) for a in (bias, 0.1 + rng.random(LABELS))]
    return blocked(labels, words, arrays, bias_arrays, INPUTS, block_labels)


def calls(pairs, threads, sizes):
    """Arrays and the losses after calls with so many instances, which are the same ones in all."""
    rng = np.random.default_rng(5)
    inputs, count = pairs.pair_starts.shape[1] - 1, sum(sizes)
    values, starts, columns = make_features(rng, count, inputs)
    positive_starts, positive_labels = make_positives(rng, count, pairs.bias.size)
    losses, first = [], 0
    for size in sizes:
        part = slice(first, first + size + 1)
        losses.append(
            size
            * kernels.words_step(
                values,
                starts[part],
                columns,
                positive_starts[part],
                positive_labels,
                pairs,
                **RATES,
                threads=threads,
            )
        )
        first += size
    return [*arrays_of(pairs), np.array(losses)]


@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
@pytest.mark.parametrize("block_labels", BLOCKS)
@pytest.mark.parametrize("loss", ["bce", "squared_hinge"])
def test_steps_that_touch_few_labels(instruction_set, block_labels, loss):
    """The second call sees what the first has left in scores and biases. At the threshold the
    gradient of the squared hinge is 0."""
    kernels.set_instruction_set(instruction_set)
    rng = np.random.default_rng(1)
    pairs = scattered(rng, block_labels)
    layer = reference_of(pairs)
    options = {**RATES, "threshold": -4.0 if loss == "bce" else -1.0}
    for _ in range(3):
        features = make_features(rng, BATCH, INPUTS)
        positives = make_positives(rng, BATCH, LABELS)
        expected, nearest = reference_steps(layer, features, positives, options, loss)
        value = kernels.words_step(*features, *positives, pairs, **options, loss=loss)
        assert nearest > 1e-5
        near(np.float64(value), expected, 1e-4)
        for got, wanted in zip(arrays_of(pairs), arrays_of(layer), strict=True):
            near(got, wanted, 1e-4)


def test_a_bias_that_rises_above_the_threshold():
    """A positive without any word raises its bias; the next instance looks at it, untouched."""
    pairs = scattered(np.random.default_rng(2), LABELS)
    pairs.bias[:] = -4.1
    empty = np.empty(0, np.float32), np.zeros(3, np.int64), np.empty(0, np.int32)
    rates = {"learning_rate": 0.3, "bias_rate": 2.0}
    kernels.words_step(*empty, np.array([0, 1, 1]), np.array([777]), pairs, **rates)
    assert np.flatnonzero(pairs.bias != np.float32(-4.1)).tolist() == [777]
    raised = -4.1 + 2 * 0.98 / np.sqrt(1.1 + 0.98**2)
    assert -4.1 < pairs.bias[777] < raised + 1  # and lowered again by the second instance
    first = scattered(np.random.default_rng(2), LABELS)
    first.bias[:] = -4.1
    kernels.words_step(
        *(empty[0], empty[1][:2], empty[2]), np.array([0, 1]), np.array([777]), first, **rates
    )
    assert pairs.bias[777] < first.bias[777]


@pytest.mark.parametrize("block_labels", BLOCKS)
def test_threads_and_calls_change_nothing(block_labels):
    """Calls of few instances have no rows of words, and instances of few pairs are trained between
    instances of many."""
    for make in (
        lambda rng: scattered(rng, block_labels),
        lambda rng: make_pairs(rng, 40, 3000, min(block_labels, 700), share=0.02),
        lambda rng: make_pairs(rng, 10, 300, 70),
    ):
        runs = [
            calls(make(np.random.default_rng(3)), threads, sizes)
            for sizes in ([130], [65, 65], [40, 30, 60])
            for threads in THREADS
        ]
        for arrays in runs[1:]:
            for mine, other in zip(runs[0][:-1], arrays[:-1], strict=True):
                np.testing.assert_array_equal(mine, other)
            near(runs[0][-1].sum(), arrays[-1].sum(), 1e-5)


@pytest.mark.parametrize("block_labels", BLOCKS)
@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize("batch", [1, 6, 80])
def test_best_of_labels_that_are_hardly_touched(block_labels, threads, batch):
    """In whole numbers, with many ties. An instance without words has the biases for scores."""
    rng = np.random.default_rng(4)
    pairs = scattered(rng, block_labels, whole=True)
    values, starts, columns = make_features(rng, batch, INPUTS)
    values[:] = rng.integers(-2, 3, values.size)
    starts[0] = starts[1]  # the first instance has none
    scores, ids = kernels.words_top_k(values, starts, columns, pairs, 50, threads=threads)
    expected = best(reference_of(pairs), (values, starts, columns), 50)
    np.testing.assert_array_equal(scores, expected[0])
    np.testing.assert_array_equal(ids, expected[1])
    if block_labels == BLOCKS[0]:
        return
    pairs.bias[:] = -1  # all the same, and nothing touched: ids ascend
    none = np.empty(0, np.float32), np.zeros(batch + 1, np.int64), np.empty(0, np.int32)
    scores, ids = kernels.words_top_k(*none, pairs, 40, threads=threads)
    np.testing.assert_array_equal(ids, np.tile(np.arange(40), (batch, 1)))
    assert (scores == -1).all()


@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
def test_a_nan_among_the_biases_hides_no_other_label(instruction_set):
    """The NaN stands between a high bias and a low one, and no instance touches the three."""
    kernels.set_instruction_set(instruction_set)
    pairs = scattered(np.random.default_rng(7), BLOCKS[1])
    pairs.bias[:] = -20
    pairs.bias[:4] = 2
    pairs.bias[1000:1003] = 5, np.nan, -9
    none = np.empty(0, np.float32), np.zeros(2, np.int64), np.empty(0, np.int32)
    scores, ids = kernels.words_top_k(*none, pairs, 4)
    assert ids.tolist() == [[1000, 0, 1, 2]] and scores.tolist() == [[5, 2, 2, 2]]
    scores, ids = kernels.words_top_k(*none, pairs, LABELS)
    assert ids[0, -1] == 1001 and np.isnan(scores[0, -1])


@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
@pytest.mark.parametrize("threads", THREADS)
def test_words_that_most_labels_have(instruction_set, threads):
    """100 instances: such a word is then a row. The first word has nine labels in ten."""
    kernels.set_instruction_set(instruction_set)
    rng = np.random.default_rng(6)
    pairs = make_pairs(rng, 9, 210, 100)
    layer = reference_of(pairs)
    options = {**RATES, "threshold": -30.0}  # of -30 on, rounding decides little
    features, positives = make_features(rng, 100, 9), make_positives(rng, 100, 210)
    expected, _ = reference_steps(layer, features, positives, options, "bce")
    value = kernels.words_step(*features, *positives, pairs, **options, threads=threads)
    near(np.float64(value), expected, 1e-4)
    for got, wanted in zip(arrays_of(pairs), arrays_of(layer), strict=True):
        near(got, wanted, 1e-4)
    pairs.weights[:] = rng.integers(-3, 4, pairs.weights.size)
    pairs.bias[:] = rng.integers(-3, 4, 210)
    features[0][:] = rng.integers(-2, 3, features[0].size)
    scores, ids = kernels.words_top_k(*features, pairs, 30, threads=threads)
    expected = best(reference_of(pairs), features, 30)
    np.testing.assert_array_equal(scores, expected[0])
    np.testing.assert_array_equal(ids, expected[1])
