"""Files that save work: arrays made once from texts or data files, and read again later.

The cache lies in $FANIN_CACHE, or where the system keeps caches of programs. Who caches puts all
that the arrays depend on into the file's name, as a hash: other content is another file, and no
file is ever out of date. Files are written beside their place and moved there: two processes that
make the same one at once both succeed, and neither sees a half-written file.
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

# What reading a damaged `.npz` file raises: the system, NumPy, a missing array, zip's CRC.
DAMAGED = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile)


def cache_folder() -> Path:
    """Where cached arrays lie: $FANIN_CACHE if set, else the user's cache folder."""
    chosen = os.environ.get("FANIN_CACHE")
    if chosen:
        return Path(chosen)
    # Here, so that the catalogue can be read where nothing is cached and this is not installed.
    import platformdirs

    return Path(platformdirs.user_cache_dir("fanin"))


def load(path: Path, unpack: Callable[[Arrays], T]) -> T | None:
    """What `unpack` makes of the arrays in `path`; None if there is no such file or it is damaged.

    `unpack` raises ValueError for arrays that it did not expect.
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
    """Write arrays for `load`. Raises OSError where that is not possible."""
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
