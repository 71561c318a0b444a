"""How the positives of a split are spread over labels and instances."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse

from fanin.datasets.registry import unknown
from fanin.datasets.tools.blocks import Blocks, label_blocks
from fanin.datasets.tools.files import SPLITS, label_path
from fanin.datasets.wordnet import CUTS, read_splits

# The tail: labels with at most so many instances. The head: the most frequent labels, so many
# percent of them.
TAIL = 5
HEAD_PERCENT = 1


@dataclass(frozen=True, eq=False)
class LabelCounts:
    """by_label: instances of each label; by_instance: how often an instance has 0, 1, 2, ...
    labels."""

    by_label: npt.NDArray[np.int64]
    by_instance: npt.NDArray[np.int64]

    @staticmethod
    def of(labels: Blocks) -> LabelCounts:
        """Read them from a label file; only the counts stay in memory."""
        by_label = np.zeros(labels.columns, np.int64)
        by_instance = np.zeros(1, np.int64)
        for block in labels.blocks:
            by_label += np.bincount(block.indices, minlength=labels.columns)
            counts = np.bincount(np.diff(block.indptr), minlength=len(by_instance))
            counts[: len(by_instance)] += by_instance
            by_instance = counts
        return LabelCounts(by_label, by_instance)

    @staticmethod
    def of_matrix(y: sparse.csr_array) -> LabelCounts:
        """Of positives [instances, labels] in memory."""
        return LabelCounts.of(Blocks(Path(), *y.shape, iter([y])))

    def summary(self) -> Summary:
        by_label = np.sort(self.by_label)[::-1]
        used = by_label[by_label > 0]
        positives = int(used.sum())
        instances = int(self.by_instance.sum())
        head = -(-len(by_label) * HEAD_PERCENT // 100)
        most = int(np.flatnonzero(self.by_instance)[-1]) if instances else 0

        def labels_with(share: float) -> int:
            """The least number of labels that have this share of all positives together."""
            return int(np.searchsorted(np.cumsum(used), share * positives)) + 1 if positives else 0

        return Summary(
            instances=instances,
            labels=len(by_label),
            positives=positives,
            labels_per_instance=positives / instances if instances else 0.0,
            most_labels_of_an_instance=most,
            instances_without_label=int(self.by_instance[0]),
            instances_per_label=positives / len(by_label) if len(by_label) else 0.0,
            median_instances_per_label=float(np.median(by_label)) if len(by_label) else 0.0,
            most_instances_of_a_label=int(by_label[0]) if len(by_label) else 0,
            labels_without_instance=len(by_label) - len(used),
            tail_labels=int((used <= TAIL).sum()),
            tail_positives=int(used[used <= TAIL].sum()),
            head_labels=head,
            head_positives=int(by_label[:head].sum()),
            labels_with_half=labels_with(0.5),
            labels_with_nine_tenths=labels_with(0.9),
        )


@dataclass(frozen=True)
class Summary:
    """The numbers of a split. tail: labels with 1 to TAIL instances; head: the HEAD_PERCENT percent
    of the labels that have most instances; `labels_with_half` of all positives together."""

    instances: int
    labels: int
    positives: int
    labels_per_instance: float
    most_labels_of_an_instance: int
    instances_without_label: int
    instances_per_label: float
    median_instances_per_label: float
    most_instances_of_a_label: int
    labels_without_instance: int
    tail_labels: int
    tail_positives: int
    head_labels: int
    head_positives: int
    labels_with_half: int
    labels_with_nine_tenths: int

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def counts_of(data: str) -> dict[str, LabelCounts]:
    """The counts of both splits of a data folder, or of a data set that comes with fanin.

    Raises DataError where there is neither, and for labels that cannot be read.
    """
    folder = Path(data)
    if folder.is_dir():
        files = {split: label_path(folder, split) for split in SPLITS}
        return {split: LabelCounts.of(label_blocks(path)) for split, path in files.items()}
    if data not in CUTS:
        raise unknown(data, None)
    train, test, _ = read_splits(CUTS[data])
    return {
        "train": LabelCounts.of_matrix(train.positives),
        "test": LabelCounts.of_matrix(test.positives),
    }
