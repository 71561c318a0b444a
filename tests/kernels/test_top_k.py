"""The best labels of each instance."""

from __future__ import annotations

import itertools
import threading

import numpy as np
import pytest
from kernel_layers import (
    INSTRUCTION_SETS,
    KINDS,
    make_layer_with_ties,
    near,
)

from fanin import kernels


def best(scores, k):
    order = np.lexsort((np.broadcast_to(np.arange(scores.shape[1]), scores.shape), -scores))
    return order[:, :k]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
def test_top_k_among_many_ties(instruction_set, kind):
    """Features and weights are small whole numbers, so sums are exact and equal ones abound."""
    kernels.set_instruction_set(instruction_set)
    rng = np.random.default_rng(11)
    for batch, inputs, labels, fan_in, k in (
        (1, 3, 1, 3, 1),
        (40, 9, 300, 3, 5),
        (33, 9, 3000, 3, 64),
        (5, 4, 50, 3, 50),
        # The kernels have narrower rows of features for up to 1, 4, 8 and 16 instances.
        *((batch, 60, 700, 43, 7) for batch in (1, 2, 4, 5, 8, 9, 16, 17)),
    ):
        model, layer, x = make_layer_with_ties(rng, kind, batch, inputs, labels, fan_in)
        scores = model.scores(x)
        for threads in (0, 1, 3):
            values, ids = kernels.top_k(
                x, layer.weights.values, layer.bias.values, k, threads=threads, **layer.connections
            )
            np.testing.assert_array_equal(ids, best(scores, k))
            np.testing.assert_array_equal(values, np.take_along_axis(scores, ids, 1))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
def test_ids_of_labels_decide_ties(instruction_set, kind):
    """Ids in any order, and sums of small whole numbers: those of equal score stand by their ids,
    whichever thread came upon them."""
    kernels.set_instruction_set(instruction_set)
    rng = np.random.default_rng(12)
    for batch, inputs, labels, fan_in, k in (
        (40, 9, 300, 3, 5),
        (33, 9, 3000, 3, 64),
        (5, 4, 50, 3, 50),
        *((batch, 60, 1500, 43, 7) for batch in (1, 2, 4, 5, 8, 9, 16, 17)),
    ):
        model, layer, x = make_layer_with_ties(rng, kind, batch, inputs, labels, fan_in)
        label_ids = rng.permutation(labels).astype(np.int32)
        scores = np.empty((batch, labels))
        scores[:, label_ids] = model.scores(x)
        arrays = (x, layer.weights.values, layer.bias.values)
        for threads in (1, 3):
            options = {"label_ids": label_ids, "threads": threads, **layer.connections}
            values, ids = kernels.top_k(*arrays, k, **options)
            np.testing.assert_array_equal(ids, best(scores, k))
            np.testing.assert_array_equal(values, np.take_along_axis(scores, ids, 1))


@pytest.mark.parametrize(
    "score",
    [0.0, -0.0, 1e-45, -1e-40, 2.0**-126, -(2.0**-126), 1.5, -3e38, np.inf, -np.inf, np.nan],
)
def test_labels_of_one_score_come_by_their_ids(score):
    """Descending ids, so that each label takes the place of one before, at any score."""
    labels, k = 3000, 4
    indices = np.zeros((labels, 1), np.uint16)
    weights, x = np.zeros((labels, 1), np.float32), np.zeros((20, 1), np.float32)
    bias = np.full(labels, score, np.float32)
    label_ids = np.arange(labels, dtype=np.int32)[::-1].copy()
    grouped = {"indices": indices[:100], "group_size": 30}
    for batch, threads in itertools.product((1, 3, 8, 20), (1, 2)):
        for connections in ({"indices": indices}, grouped, {}):
            options = {"label_ids": label_ids, "threads": threads, **connections}
            scores, ids = kernels.top_k(x[:batch], weights, bias, k, **options)
            np.testing.assert_array_equal(ids, [range(k)] * batch)
            np.testing.assert_array_equal(scores, np.full((batch, k), score, np.float32))


@pytest.mark.parametrize("at, id", [(0, -1), (1499, 1500), (700, -(2**31)), (3, 2**31 - 1)])
def test_an_id_out_of_range_is_an_error(at, id):
    x, weights = np.ones((3, 4), np.float32), np.zeros((1500, 2), np.float32)
    label_ids = np.arange(1500, dtype=np.int32)
    label_ids[at] = id
    message = rf"label_ids\[{at}\] is {id}, out of range for 1500 labels"
    for batch, threads in itertools.product((1, 3), (1, 3)):
        options = {"label_ids": label_ids, "threads": threads}
        indices = np.zeros((1500, 2), np.uint16)
        with pytest.raises(ValueError, match=message):
            kernels.top_k(x[:batch], weights, None, 2, indices=indices, **options)
        grouped = {"indices": indices[:50], "group_size": 30}
        with pytest.raises(ValueError, match=message):
            kernels.top_k(x[:batch], weights, None, 2, **grouped, **options)


@pytest.mark.parametrize(
    "label_ids, message",
    [
        (np.arange(8), "label_ids must be int32, got int64"),
        (np.arange(7, dtype=np.int32), "labels is 7 here but 8 in weights"),
        (np.zeros((8, 1), np.int32), r"label_ids must be \[labels\], got 2 dimensions"),
        (np.arange(16, dtype=np.int32)[::2], "label_ids .* is not contiguous"),
    ],
)
def test_ids_that_are_no_ids(label_ids, message):
    x, weights = np.ones((3, 4), np.float32), np.zeros((8, 4), np.float32)
    with pytest.raises(ValueError, match=message):
        kernels.top_k(x, weights, None, 2, label_ids=label_ids)


def test_few_instances_have_the_scores_that_they_have_among_many():
    rng = np.random.default_rng(3)
    weights = rng.standard_normal((2000, 40), np.float32)
    indices = rng.integers(0, 100, weights.shape, np.uint16)
    x = rng.standard_normal((32, 100), np.float32)
    scores, ids = kernels.top_k(x, weights, None, 9, indices=indices)
    for batch in (2, 4, 7, 16):
        few_scores, few_ids = kernels.top_k(x[:batch], weights, None, 9, indices=indices)
        np.testing.assert_array_equal(few_ids, ids[:batch])
        np.testing.assert_array_equal(few_scores, scores[:batch])
    one_scores, one_ids = kernels.top_k(x[:1], weights, None, 9, indices=indices)
    np.testing.assert_array_equal(one_ids, ids[:1])
    near(one_scores, scores[:1].astype(np.float64), 1e-6)


def test_top_k_puts_nan_last():
    nan, inf = np.nan, np.inf
    for column, expected in (
        ([nan, 1, -inf, 3, inf], [4, 3, 1, 2, 0]),
        ([nan, nan, -inf, nan], [2, 0, 1, 3]),
        ([-inf, nan, -inf, 0.0], [3, 0, 2, 1]),
        # In several threads' lists, and beyond what the first ones had room for.
        ([nan] * 100 + [-inf] * 3 + [5, -inf], [103, 100, 101, 102, 104]),
    ):
        weights = np.array(column, np.float32)[:, None]
        sources = np.zeros(weights.shape, np.uint16)
        for threads, batch, indices in itertools.product((1, 2, 3), (1, 2, 9, 20), (None, sources)):
            x = np.ones((batch, 1), np.float32)
            k = min(5, len(weights))
            scores, ids = kernels.top_k(x, weights, None, k, indices=indices, threads=threads)
            np.testing.assert_array_equal(ids, [expected] * batch)
            np.testing.assert_array_equal(scores, weights[ids, 0])


@pytest.mark.slow
def test_top_k_of_many_labels_holds_no_scores():
    """670,091 labels times 1,024 instances would be 2.6 GiB of scores."""
    import psutil

    rng = np.random.default_rng(0)
    labels, inputs = 670_091, 768
    indices = rng.integers(0, inputs, (labels, 32), np.uint16)
    weights = rng.standard_normal((labels, 32), np.float32)
    x = rng.standard_normal((1024, inputs), np.float32)
    process = psutil.Process()
    with MemoryPeak(process) as peak:
        values, ids = kernels.top_k(x, weights, None, 5, indices=indices)
    assert peak.bytes < 64 << 20
    for b in (0, 1023):
        some = rng.integers(0, labels, 1000)
        chosen = np.concatenate([ids[b], some])
        scores = (weights[chosen] * x[b][indices[chosen]]).sum(1)
        near(values[b], scores[:5].astype(np.float64), 1e-5)
        assert (scores[5:][~np.isin(some, ids[b])] <= values[b, -1] + 1e-4).all()


class MemoryPeak:
    """The largest resident set above that at the start, looked at every millisecond."""

    def __init__(self, process):
        self._process = process
        self._stop = threading.Event()
        self.bytes = 0

    def _watch(self, start):
        while not self._stop.wait(0.001):
            self.bytes = max(self.bytes, self._process.memory_info().rss - start)

    def __enter__(self):
        self._thread = threading.Thread(target=self._watch, args=[self._process.memory_info().rss])
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join()
