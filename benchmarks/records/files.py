"""Result files are written whole or not at all, and an error about a file names it."""

from __future__ import annotations

import errno
import hashlib
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from fanin.datasets.file_errors import naming
from fanin.kernels import kept_files

# As large as a result file, and random: no file system can store it in less space.
_TRIAL = secrets.token_bytes(1 << 16)


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write beside the target, then rename: a reader sees the old file or the new, never half."""
    data = content.encode() if isinstance(content, str) else content
    with naming(path), kept_files.replacing(path) as temporary:
        temporary.write_bytes(data)


def flush(path: Path) -> None:
    """Bring a file, or the names in a folder, to the disk, where the file system can do that."""
    with naming(path):
        kept_files.flush(path)


@contextmanager
def reserving(path: Path) -> Iterator[None]:
    """Keep as much of the disk as the file `path` will need, and free it at the end: what was
    measured for hours can then be written, however full the disk has become."""
    reserve = path.with_name(f".{path.name}.reserve")
    try:
        with naming(path):
            reserve.write_bytes(_TRIAL)
        yield
    finally:
        reserve.unlink(missing_ok=True)


def save_array(path: Path, array: np.ndarray) -> None:
    """`numpy.save`, whose errors name the file and what is wrong."""
    try:
        with naming(path):
            np.save(path, array)
    except OSError as error:
        if error.errno is not None:
            raise
        # NumPy says only how much was written. Writing another file shows what is wrong.
        try:
            try_writing(path.parent)
        except OSError as reason:
            raise OSError(reason.errno, reason.strerror, str(path)) from error
        raise OSError(errno.EIO, str(error), str(path)) from error


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


def written_at(path: Path) -> int | None:
    """When a file was last written (ns); None where there is none."""
    return path.stat().st_mtime_ns if path.exists() else None


def checksum(path: Path) -> str:
    """SHA-256 of a file's contents, hex; read a piece at a time."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
