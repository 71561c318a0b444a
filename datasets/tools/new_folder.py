"""A data folder that is written whole or not at all."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fanin.datasets.dataset import DataError
from fanin.kernels import kept_files

# What a data folder consists of: both splits, names of the labels, pairs left out, and what the
# tools keep beside the features.
DATA_FILE = re.compile(
    r"(train|test)[-.].*|(trn|tst)_X_.*|labels\.txt|filter_labels_(train|test)\.txt|"
    r"[\w.-]+\.features\.(json|npy)"
)


@contextmanager
def making(folder: Path, force: bool) -> Iterator[Path]:
    """Gives an empty folder beside `folder`, which takes its place at the end. After an error
    nothing of it remains.

    Raises DataError where `folder` is not empty. With `force` its data files are removed first, so
    that no old one stays beside the new ones; other files stay as they are.
    """
    check_free(folder, force)
    parent = folder.parent
    parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=parent, prefix=f".{folder.name}-") as beside:
        made = Path(beside, folder.name)
        made.mkdir()
        yield made
        for path in made.iterdir():
            kept_files.flush(path)
        if folder.exists():
            for path in _data_files(folder):
                path.unlink()
            for path in made.iterdir():
                os.replace(path, folder / path.name)
        else:
            os.rename(made, folder)
        kept_files.flush(parent)


def check_free(folder: Path, force: bool) -> None:
    """Raise DataError where `making` would."""
    if folder.exists() and not folder.is_dir():
        raise DataError(f"{folder}: is a file: name a folder for the data")
    if folder.is_dir() and not force and any(folder.iterdir()):
        old = ", ".join(sorted(path.name for path in _data_files(folder))[:4])
        raise DataError(
            f"{folder}: holds {old or 'other files'}: name another folder, or give --force, which "
            "replaces all its data files"
        )


def check_new(path: Path, force: bool) -> None:
    """Raise DataError where a file exists that may not be replaced."""
    if path.exists() and not force:
        raise DataError(f"{path}: exists: give --force to replace it")


def copy(path: Path, into: Path, name: str | None = None) -> None:
    """Copy a file into a folder, there by that name where one is given."""
    shutil.copyfile(path, into / (name or path.name))


def _data_files(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if DATA_FILE.fullmatch(path.name) and path.is_file()]
