"""Which data sets there are: embedded ones, folders of the user, published ones."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fanin.datasets.catalogue import DOWNLOADS, PUBLISHED, Published, canonical_name
from fanin.datasets.dataset import DataError
from fanin.datasets.folder import LABELS, REPOSITORY
from fanin.datasets.text_features import TFIDF_SVD512, TFIDF_WORDS
from fanin.datasets.tools.blocks import label_blocks
from fanin.datasets.tools.files import SPLITS, find_file, kinds_in
from fanin.datasets.wordnet import CUTS, read_splits

_PAGE = REPOSITORY.rpartition(" ")[2]


@dataclass(frozen=True)
class Listed:
    """A data set. labels, train, test: how many labels and instances of each split, None where
    that is not known; where: in which folder it lies, or how to get it."""

    name: str
    labels: int | None
    train: int | None
    test: int | None
    features: tuple[str, ...]
    where: str


def listing(data_dir: Path | None) -> list[Listed]:
    """All of them. Of the files in a folder only the heads are read."""
    rows = [_embedded(name) for name in CUTS]
    folders = sorted(path for path in data_dir.iterdir() if path.is_dir()) if data_dir else []
    own = [row for row in map(_folder, folders) if row]
    own_names = {canonical_name(row.name) for row in own}
    return (
        rows + own + [_published(each) for each in PUBLISHED.values() if each.name not in own_names]
    )


def _embedded(name: str) -> Listed:
    train, test, label_names = read_splits(CUTS[name])
    counts = (len(label_names), len(train.texts), len(test.texts))
    return Listed(name, *counts, (TFIDF_SVD512, TFIDF_WORDS), "comes with fanin")


def _folder(folder: Path) -> Listed | None:
    """A folder with a label file of the training split; None for another."""
    if find_file(folder, "train", LABELS) is None:
        return None
    labels: int | None = None
    instances: list[int | None] = []
    where = str(folder)
    for split in SPLITS:
        path = find_file(folder, split, LABELS)
        try:
            matrix = label_blocks(path) if path else None
        except DataError as error:
            matrix, where = None, str(error)
        instances.append(matrix.instances if matrix else None)
        labels = matrix.columns if matrix and split == "train" else labels
    train, test = instances
    return Listed(folder.name, labels, train, test, tuple(kinds_in(folder)), where)


def _published(entry: Published) -> Listed:
    how = "`fanin data fetch` fetches it" if entry.name in DOWNLOADS else f"behind a click: {_PAGE}"
    sizes = (entry.labels, entry.train_instances, entry.test_instances)
    return Listed(entry.name, *sizes, entry.features, how)
