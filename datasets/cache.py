"""Files that save work: arrays made once from texts or data files, and read again later.

The cache lies in $FANIN_CACHE, or where the system keeps the caches of programs. The name of a file
contains a hash of everything that its arrays depend on, so no file is ever out of date. A file is
written under another name and then moved to its place: two processes that make the same file at
once both succeed, and neither reads a half-written one.
"""

from __future__ import annotations

import logging
import os
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

_LOG = logging.getLogger(__name__)

T = TypeVar("T")
Arrays = Mapping[str, npt.NDArray[Any]]

# What a damaged `.npz` file raises: errors of the system, of NumPy, a missing array, a wrong CRC.
DAMAGED = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile)


def cache_folder() -> Path:
    """Where cached arrays lie: $FANIN_CACHE if set, else the user's cache folder."""
    chosen = os.environ.get("FANIN_CACHE")
    if chosen:
        return Path(chosen)
    # Imported here, so that the catalogue can be read on a machine without platformdirs.
    import platformdirs

    return Path(platformdirs.user_cache_dir("fanin"))


def load(path: Path, unpack: Callable[[Arrays], T]) -> T | None:
    """Load a file: the result of `unpack` for its arrays; None if it does not exist or is damaged.

    `unpack` has to raise ValueError for arrays that it does not expect.
    """
    try:
        with path.open("rb") as file, np.lib.npyio.NpzFile(file, allow_pickle=False) as arrays:
            return unpack(arrays)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except DAMAGED as error:
        _LOG.warning("%s is damaged (%s): making it anew", path, error)
        return None


def store(path: Path, **arrays: npt.NDArray[Any]) -> None:
    """Write arrays for `load`. Raises OSError if the file cannot be written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".tmp", delete=False) as file:
        try:
            np.savez(file, allow_pickle=False, **arrays)
            file.close()
            os.replace(file.name, path)
        except BaseException:
            file.close()
            os.unlink(file.name)
            raise
    _LOG.info("cached %s", path)
