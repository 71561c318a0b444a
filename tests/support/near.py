"""What near means in the tests."""

from __future__ import annotations

import numpy as np


def assert_near(actual, expected, tolerance):
    """|actual - expected| <= tolerance * the largest |expected|, everywhere; no NaN passes."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape
    if expected.size:
        difference = np.abs(actual.astype(np.float64) - expected).max()
        assert difference <= tolerance * max(1e-30, np.abs(expected).max())


def difference(a, b):
    """The largest |a - b|, over the largest |b|."""
    return np.abs(a.astype(np.float64) - b).max(initial=0) / max(np.abs(b).max(initial=0), 1e-30)
