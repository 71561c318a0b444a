"""Shape twins: real sizes, a long tail of labels, and nothing that is not published."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse

from fanin.datasets import DataError
from fanin.datasets.shape_twins import has_twin, shape_twin


def test_a_twin_has_the_real_sizes_and_a_long_tail():
    twin = shape_twin("Amazon670k", "cascade")
    x, y = twin.sample(20_000, 7)
    assert x.shape == (20_000, 768) and x.dtype == np.float32
    assert y.shape == (20_000, 670_091)
    counts = np.diff(y.indptr)
    assert counts.min() >= 1
    assert counts.mean() == pytest.approx(5.45, rel=0.02)
    assert y.has_canonical_format
    # A few labels are frequent, most are never seen.
    seen = np.sort(np.bincount(y.indices, minlength=670_091))[::-1]
    assert seen[0] > 20 * seen.mean() and seen[:67_009].sum() > 0.3 * seen.sum()


def test_a_twin_of_words():
    twin = shape_twin("Amazon670k", "bow")
    x, y = twin.sample(5_000, 7)
    assert isinstance(x, sparse.csr_array) and x.shape == (5_000, 135_909) == (5_000, twin.inputs)
    assert x.dtype == np.float32 and x.has_canonical_format and y.shape == (5_000, 670_091)
    counts = np.diff(x.indptr)
    assert counts.min() >= 1 and counts.mean() == pytest.approx(75, rel=0.02)
    assert np.allclose(np.sqrt(x.power(2).sum(axis=1)), 1, atol=1e-5)
    # By Zipf's law the 1,000 most frequent of 135,909 words have 7.5 / 12.4 of all draws, of which
    # some are in vain.
    seen = np.sort(np.bincount(x.indices, minlength=135_909))[::-1]
    assert 0.4 < seen[:1000].sum() / seen.sum() < 0.6
    again, _ = twin.sample(5_000, 7)
    assert np.array_equal(x.data, again.data) and np.array_equal(x.indices, again.indices)
    assert has_twin("amazon-670k", "bow") and not has_twin("amazon-3m", "bow")


def test_a_twin_depends_on_its_seed_alone():
    twin = shape_twin("amazon-3m", "cascade")
    (a, y), (b, z), (c, _) = (twin.sample(50, seed) for seed in (1, 1, 2))
    assert (a == b).all() and (y != z).nnz == 0
    assert (a != c).any()


def test_no_twin_of_what_is_not_published():
    with pytest.raises(DataError, match=r"'amazon-3m' with 'slice' features; known: wiki-500k"):
        shape_twin("amazon-3m", "slice")
