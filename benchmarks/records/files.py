"""Result files are written whole or not at all, and an error about a file names it."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np

# What a flush says where data are lost. Anything else says that the file system, of a network say,
# has no such call, and a flush is an extra.
_LOST = (errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# More than a file system keeps beside the names in a folder.
_TRIAL = b"\n" * (1 << 16)


@contextmanager
def naming(path: Path | str) -> Iterator[None]:
    """An OSError in here names `path`, if it names none: what goes wrong when an open file is
    written does not, and NumPy tells no more than how much was written."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise OSError(errno.EIO, str(error), str(path)) from error
        if error.filename is None:
            error.filename = str(path)
        raise


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write beside the target, then rename: a reader sees the old file or the new, never half."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    data = content.encode() if isinstance(content, str) else content
    try:
        with naming(path), temporary.open("xb") as stream:
            stream.write(data)
            stream.flush()
            _flush(stream.fileno())
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    with suppress(OSError):  # the file is there; a folder may be closed to this
        flush(path.parent)  # and with it the new name


def flush(path: Path) -> None:
    """Have a file, or the names in a folder, on the disk, where the file system can be asked to."""
    with naming(path):
        handle = os.open(path, os.O_RDONLY)
        try:
            _flush(handle)
        finally:
            os.close(handle)


def _flush(handle: int) -> None:
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno in _LOST:
            raise


def save_array(path: Path, array: np.ndarray) -> None:
    """`numpy.save`, whose errors name the file."""
    with naming(path):
        np.save(path, array)


def try_writing(folder: Path) -> None:
    """Write a file into a folder, which is made if it is not there, and remove it again. Raises
    OSError where that fails: better now than after hours."""
    trial = folder / ".trial"
    write_atomically(trial, _TRIAL)
    trial.unlink(missing_ok=True)


def remove_leftovers(path: Path) -> None:
    """Remove what a kill in the middle of writing `path` left beside it."""
    for leftover in path.parent.glob(f".{path.name}.*"):
        leftover.unlink(missing_ok=True)
