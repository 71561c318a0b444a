"""Data sets by name: the embedded ones, and one's own folders.

To embed another data set: write one file with a function `features name or None -> Dataset`, and
add one line to EMBEDDED.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from . import wordnet
from .catalogue import canonical_name
from .dataset import DataError, Dataset
from .formats import load_folder

EMBEDDED: dict[str, Callable[[str | None], Dataset]] = {
    "wordnet": wordnet.load_wordnet,
    "wordnet-small": wordnet.load_wordnet_small,
}


def available() -> list[str]:
    """Names of the data sets that come with fanin."""
    return list(EMBEDDED)


def folder_of(name: str, data_dir: Path | str) -> Path | None:
    """The folder of a data set below `data_dir`, None if there is none: the one of that name, else
    one that spells a published name differently (`Amazon-3M` for `amazon-3m`)."""
    if (Path(data_dir) / name).is_dir():
        return Path(data_dir) / name
    others = sorted(Path(data_dir).iterdir()) if Path(data_dir).is_dir() else []
    alike = (p for p in others if canonical_name(p.name) == canonical_name(name) and p.is_dir())
    return next(alike, None)


def load(name: str, features: str | None = None, data_dir: Path | str | None = None) -> Dataset:
    """Load a data set by name.

    A folder `<data_dir>/<name>` is loaded if there is one (see `formats` for its files), also under
    another spelling of a published name, else the embedded data set of that name. `features` may be
    left out where there is only one kind. Raises DataError for an unknown name and for data that
    cannot be used.
    """
    folder = folder_of(name, data_dir) if data_dir is not None else None
    if folder is not None:
        return load_folder(folder.parent, folder.name, features)
    if name in EMBEDDED:
        return EMBEDDED[name](features)
    looked = f", and there is no folder {Path(data_dir) / name}" if data_dir is not None else ""
    raise DataError(
        f"no data set named {name!r}{looked}; fanin comes with {', '.join(available())}. For your "
        f"own, name a data folder with {name}/train-labels.txt, {name}/train-<features>.npy and "
        "the same two for test: labels as text with a header `N D L` and a line `l1,l2,...` per "
        "instance, features written by numpy.save"
    )
