"""Data sets by name: those that come with fanin, and folders of the user.

To embed another data set, write one file with a function that takes the name of the features (or
None) and returns a `Dataset`, and add one line to EMBEDDED.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from fanin.datasets import wordnet
from fanin.datasets.catalogue import PUBLISHED, canonical_name
from fanin.datasets.dataset import DataError, Dataset
from fanin.datasets.folder import find_folder, is_sparse, layout, load_folder
from fanin.datasets.text_features import TFIDF_WORDS

EMBEDDED: dict[str, Callable[[str | None], Dataset]] = {
    "wordnet": wordnet.load_wordnet,
    "wordnet-small": wordnet.load_wordnet_small,
}


def available() -> list[str]:
    """Names of the data sets that come with fanin."""
    return list(EMBEDDED)


def load(name: str, features: str | None = None, data_dir: Path | str | None = None) -> Dataset:
    """Load a data set by name.

    A folder `<data_dir>/<name>` is loaded if there is one (see `folder` for its files), else the
    embedded data set of that name. `features` may be left out where there is only one kind.
    Raises DataError for an unknown name and for data that cannot be used.
    """
    folder = find_folder(data_dir, name) if data_dir is not None else None
    if folder is not None:
        return load_folder(folder, name, features)
    if name in EMBEDDED:
        return EMBEDDED[name](features)
    raise unknown(name, data_dir)


def has_sparse_features(name: str, features: str, data_dir: Path | str | None = None) -> bool:
    """Whether the data set that `load` would find has these features as sparse ones, as far as
    names of files tell; False where there are none."""
    folder = find_folder(data_dir, name) if data_dir is not None else None
    return is_sparse(folder, features) if folder else features == TFIDF_WORDS


def unknown(name: str, data_dir: Path | str | None) -> DataError:
    """The error about a data set that neither lies in `data_dir` nor comes with fanin."""
    looked = f", and there is no folder {Path(data_dir) / name}" if data_dir is not None else ""
    if canonical_name(name) in PUBLISHED:
        return DataError(
            f"{name} does not come with fanin{looked}: {layout(name)}. What comes with fanin: "
            f"{', '.join(available())}"
        )
    return DataError(
        f"no data set named {name!r}{looked}; fanin comes with {', '.join(available())}. For your "
        f"own, name a data folder with {name}/train-labels.txt, {name}/train-<features>.npy and "
        "the same two for test: labels as text with a header `N D L` and a line `l1,l2,...` per "
        "instance, features written by numpy.save"
    )
