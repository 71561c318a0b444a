"""The picture of a data set's positives: any data set has one, and its words have the numbers."""

from __future__ import annotations

import numpy as np
import pytest

from fanin.datasets.tools.label_counts import LabelCounts
from fanin.reports.plots.label_distribution import label_distribution


def counts(by_label, by_instance) -> LabelCounts:
    return LabelCounts(np.array(by_label, np.int64), np.array(by_instance, np.int64))


@pytest.mark.parametrize(
    "test",
    [counts([1, 0, 0], [0, 1]), counts([0, 0, 0], [4]), counts([0, 0, 0], [0])],
    ids=["one", "without labels", "without instances"],
)
def test_any_data_set_has_a_picture(test):
    train = counts([1000, 5, 6], [3, 5, 503])
    plot = label_distribution("mine", {"train": train, "test": test})
    assert plot.png.startswith(b"\x89PNG")
    assert "train: 3 labels, at most 1,000 instances of one, 1 labels with 1 to 5" in plot.alt


def test_many_labels_make_a_small_picture():
    by_label = np.sort(np.random.default_rng(0).zipf(1.5, 2_000_000).clip(max=10**6))
    plot = label_distribution("mine", {"train": counts(by_label, [0, by_label.sum()])})
    assert len(plot.png) < 300_000
