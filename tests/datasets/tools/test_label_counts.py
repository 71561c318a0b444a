"""The numbers of a split, against counting one by one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from dataset_files import csr
from scipy import sparse

from fanin.datasets import DataError
from fanin.datasets.tools import blocks
from fanin.datasets.tools.label_counts import LabelCounts, counts_of


@pytest.mark.parametrize("seed", range(5))
def test_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    monkeypatch.setattr(blocks, "ENTRIES", 50)
    rng = np.random.default_rng(seed)
    labels = int(rng.integers(1, 300))
    counts = rng.poisson(2, 150).clip(max=labels)
    rows = [sorted(rng.choice(labels, count, replace=False, shuffle=False)) for count in counts]
    rows[0] = sorted(range(labels))  # one instance with all of them
    for split in ("train", "test"):
        sparse.save_npz(tmp_path / f"{split}-labels.npz", csr(rows, labels))
    numbers = counts_of(str(tmp_path))["test"].summary()

    each = sorted((sum(label in row for row in rows) for label in range(labels)), reverse=True)
    sizes = [len(row) for row in rows]
    total = sum(sizes)
    assert (numbers.instances, numbers.labels, numbers.positives) == (150, labels, total)
    assert numbers.labels_per_instance == pytest.approx(total / 150)
    assert numbers.instances_per_label == pytest.approx(total / labels)
    assert numbers.median_instances_per_label == np.median(each)
    assert numbers.most_labels_of_an_instance == max(sizes)
    assert numbers.most_instances_of_a_label == each[0]
    assert numbers.instances_without_label == sizes.count(0)
    assert numbers.labels_without_instance == each.count(0)
    assert numbers.tail_labels == sum(1 <= count <= 5 for count in each)
    assert numbers.tail_positives == sum(count for count in each if count <= 5)
    assert numbers.head_labels == -(-labels // 100)
    assert numbers.head_positives == sum(each[: numbers.head_labels])
    for share, number in ((0.5, numbers.labels_with_half), (0.9, numbers.labels_with_nine_tenths)):
        assert sum(each[:number]) >= share * total > sum(each[: number - 1])


def test_nothing_to_count() -> None:
    for instances in (0, 3):
        numbers = LabelCounts.of_matrix(csr([[]] * instances, 4)).summary()
        assert (numbers.instances, numbers.labels, numbers.positives) == (instances, 4, 0)
        assert (
            numbers.labels_per_instance == numbers.labels_with_half == numbers.head_positives == 0
        )


def test_a_data_set_that_is_not_there() -> None:
    with pytest.raises(DataError, match="no data set named 'nowhere'; fanin comes with wordnet"):
        counts_of("nowhere")
