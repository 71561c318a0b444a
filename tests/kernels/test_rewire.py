"""Rewiring: which connections move, and where to."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from kernel_layers import trained

from fanin import kernels
from fanin.backends.arrays import new_sources, plan_rewiring


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.5, 0.999])
def test_rewiring_follows_the_plan(dtype, fraction):
    rng = np.random.default_rng(4)
    weights = trained(rng.standard_normal((500, 7)), dtype)
    weights.values[3] = 0
    weights.m[:] = weights.v[:] = 1
    indices = rng.integers(0, 90, (500, 7)).astype(np.uint32)
    before = indices.copy()
    plan = plan_rewiring(weights.values.astype(np.float32), fraction, 90, 2**63 + 5)
    kept = weights.values.copy()

    moved, threshold = kernels.rewire(indices, weights, 90, fraction, 2**63 + 5)

    assert (moved, threshold) == (len(plan.slots), plan.threshold)
    before.reshape(-1)[plan.slots] = plan.sources
    np.testing.assert_array_equal(indices, before)
    np.testing.assert_array_equal(weights.values, kept)
    for moment in (weights.m, weights.v):
        assert not moment.reshape(-1)[plan.slots].any()
        assert np.count_nonzero(moment) == moment.size - len(plan.slots)


def test_nothing_is_below_a_threshold_that_is_nan():
    values = np.array([[1, np.nan, 2, np.nan, 3, np.nan]], np.float32)
    for fraction, moved in ((0.6, 0), (0.4, 2)):
        weights, indices = trained(values.copy()), np.full((1, 6), 9, np.uint16)
        assert len(plan_rewiring(values, fraction, 10, 5).slots) == moved
        assert kernels.rewire(indices, weights, 10, fraction, 5)[0] == moved
        assert np.count_nonzero(indices == 9) == 6 - moved


def test_new_sources_are_uniform():
    sources = new_sources(np.arange(200_000), 10, 77)
    counts = np.bincount(sources, minlength=10)
    assert abs(counts - 20_000).max() < 5 * np.sqrt(20_000)
    assert (new_sources(np.arange(50), 1000, 1) != new_sources(np.arange(50), 1000, 2)).mean() > 0.9
