"""Arrays made once from texts or data files, and read again later; see `fanin.kernels.kept_files`.

The name of a file contains a hash of everything that its arrays depend on, so no file is ever out
of date.
"""

from __future__ import annotations

import logging
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from fanin.kernels import kept_files

_LOG = logging.getLogger(__name__)

T = TypeVar("T")
Arrays = Mapping[str, npt.NDArray[Any]]

# What a file that another program wrote may raise: errors of NumPy, a missing array.
UNEXPECTED = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile)


def load(path: Path, unpack: Callable[[Arrays], T]) -> T | None:
    """Load a file: the result of `unpack` for its arrays; None if it does not exist or is damaged.

    `unpack` has to raise ValueError for arrays that it does not expect.
    """
    if not kept_files.is_whole(path):
        return None
    try:
        with path.open("rb") as file, np.lib.npyio.NpzFile(file, allow_pickle=False) as arrays:
            return unpack(arrays)
    except UNEXPECTED as error:
        _LOG.warning("%s is damaged (%s): making it anew", path, error)
        return None


def store(path: Path, **arrays: npt.NDArray[Any]) -> None:
    """Write arrays for `load`. Raises CacheError if the file cannot be written."""
    with kept_files.keeping(path) as made, made.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)
