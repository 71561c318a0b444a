"""Placing names in a plot."""

from __future__ import annotations

import numpy as np
import pytest

from fanin.reports.plots.labels import spread_apart


@pytest.mark.parametrize(
    "wished",
    [[0.5, 0.51, 0.3, 0.52, 0.8, 0.98, 0.99, 1, 1], [0.07, 0.01, 0, 0.02, 0.2], [0.5] * 16],
    ids=["top", "bottom", "full"],
)
def test_names_of_lines_are_kept_apart_in_their_order(wished: list[float]) -> None:
    placed = np.array(spread_apart(wished, gap=0.06, low=0.0, high=1.0))
    assert (np.diff(np.sort(placed)) >= 0.06 - 1e-9).all()
    assert (np.argsort(placed, kind="stable") == np.argsort(wished, kind="stable")).all()
    assert placed.min() >= 0
    assert placed.max() <= 1
    if 0.3 in wished:  # no neighbour, so it stays
        assert placed[wished.index(0.3)] == pytest.approx(0.3)
