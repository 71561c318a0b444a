"""Files that save work: where they are kept, how they are written, and that they are whole.

The cache lies in $FANIN_CACHE, or where the system keeps the caches of programs. Compiled ops and
arrays of data sets are kept there. The last bytes of a file are the SHA-256 of those before; who
loads a shared library or a zip archive does not mind bytes at its end. So a file that a power cut
or a full disk damaged is known as such and made anew: to load half a library would end the process.
"""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_LOG = logging.getLogger(__name__)

_CHECKSUM_BYTES = hashlib.sha256().digest_size
_ADVICE = "set FANIN_CACHE to a folder that can be written"


class CacheError(OSError):
    """The cache cannot be used; the message says where, why, and to set FANIN_CACHE."""


def cache_folder() -> Path:
    """Where files are kept: $FANIN_CACHE if set, else the user's cache folder. CacheError where
    the user has no home folder."""
    chosen = os.environ.get("FANIN_CACHE")
    # Imported here, since not every machine that uses the kernels has platformdirs.
    import platformdirs

    try:
        return Path(chosen or platformdirs.user_cache_dir("fanin")).expanduser()
    except RuntimeError as error:
        raise CacheError(f"no cache folder ({error}): {_ADVICE}") from error


def is_whole(path: Path) -> bool:
    """Whether a kept file is there and as it was written; what is damaged is logged."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            left = os.fstat(file.fileno()).st_size - _CHECKSUM_BYTES
            while left > 0 and (block := file.read(min(left, 1 << 20))):
                digest.update(block)
                left -= len(block)
            whole = left == 0 and file.read() == digest.digest()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        _LOG.warning("%s cannot be read (%s): making it anew", path, error.strerror)
        return False
    if not whole:
        _LOG.warning("%s is damaged (its checksum is wrong): making it anew", path)
    return whole


@contextmanager
def keeping(path: Path) -> Iterator[Path]:
    """Write a file that `is_whole` knows: within it at the path that it gives, afterwards at
    `path`, on the disk. Two processes that make the same file at once both succeed. Raises
    CacheError where it cannot be written."""
    made = new_file(path)
    try:
        yield made
        with made.open("rb") as file:
            checksum = hashlib.file_digest(file, "sha256").digest()
        with made.open("ab") as file:
            file.write(checksum)
            file.flush()
            os.fsync(file.fileno())
        os.replace(made, path)
    except BaseException as error:
        made.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise _not_written(path, error) from error
        raise
    _flush_names(path.parent)
    _LOG.info("cached %s", path)


def new_file(path: Path) -> Path:
    """An empty file beside `path`, under a name of its own; CacheError where there can be none."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
        os.close(handle)
    except OSError as error:
        raise _not_written(path, error) from error
    return Path(name)


def _not_written(path: Path, error: OSError) -> CacheError:
    return CacheError(f"{path}: cannot be written ({error.strerror or error}): {_ADVICE}")


def _flush_names(folder: Path) -> None:
    """Have the names in a folder on the disk, where the file system can do that."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
