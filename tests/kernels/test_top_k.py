"""The best labels of each instance."""

from __future__ import annotations

import itertools
import threading

import numpy as np
import pytest
from kernel_layers import INSTRUCTION_SETS, KINDS, make_layer, make_setup, near

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
        setup = make_setup(kind, inputs, labels, fan_in)
        model, layer = make_layer(rng, setup, kind)
        for array in (layer.weights.values, layer.bias.values):
            array[:] = rng.integers(-1, 2, array.shape)
        model.arrays["output.weights"] = layer.original(layer.weights.values).astype(np.float64)
        model.arrays["output.bias"] = layer.bias.values.astype(np.float64)
        x = rng.integers(-1, 2, (batch, inputs)).astype(np.float32)
        scores = model.scores(x)
        for threads in (0, 1, 3):
            values, ids = kernels.top_k(
                x, layer.weights.values, layer.bias.values, k, threads=threads, **layer.connections
            )
            np.testing.assert_array_equal(ids, best(scores, k))
            np.testing.assert_array_equal(values, np.take_along_axis(scores, ids, 1))


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
