"""Data sets by name: the embedded ones, and one's own folders.

To embed another data set: write one file with a function `features name or None -> Dataset`, and
add one line to EMBEDDED.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from . import wordnet
from .dataset import DataError, Dataset
from .formats import load_folder

EMBEDDED: dict[str, Callable[[str | None], Dataset]] = {
    "wordnet": wordnet.load_wordnet,
    "wordnet-small": wordnet.load_wordnet_small,
}


def available() -> list[str]:
    """Names of the data sets that come with fanin."""
    return list(EMBEDDED)


def load(name: str, features: str | None = None, data_dir: Path | str | None = None) -> Dataset:
    """Load a data set by name.

    A folder `<data_dir>/<name>` is loaded if there is one (see `formats` for its files), else the
    embedded data set of that name. `features` may be left out where there is only one kind.
    Raises DataError for an unknown name and for data that cannot be used.
    """
    if data_dir is not None and (Path(data_dir) / name).is_dir():
        return load_folder(data_dir, name, features)
    if name in EMBEDDED:
        return EMBEDDED[name](features)
    looked = f", and there is no folder {Path(data_dir) / name}" if data_dir is not None else ""
    raise DataError(
        f"no data set named {name!r}{looked}; fanin comes with {', '.join(available())}. For your "
        f"own, name a data folder with {name}/train-labels.txt, {name}/train-<features>.npy and "
        "the same two for test: labels as text with a header `N D L` and a line `l1,l2,...` per "
        "instance, features written by numpy.save"
    )
