"""Files that are written whole or not at all, and the cache: files that save work.

The cache lies in $FANIN_CACHE, or where the system keeps the caches of programs. Compiled ops and
arrays of data sets are kept there. The last bytes of a file are the SHA-256 of those before; bytes
at the end do no harm to a shared library or a zip archive. So a file that a power cut or a full
disk damaged is noticed and made anew: to load half a library would end the process.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import logging
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_LOG = logging.getLogger(__name__)

_CHECKSUM_BYTES = hashlib.sha256().digest_size
_ADVICE = "set FANIN_CACHE to a folder that can be written"
# Errors of a flush that mean lost data. With any other error the file system has no flush, such as
# one of a network, and we do without.
_LOST = (errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class CacheError(OSError):
    """The cache cannot be used; the message says where, why, and to set FANIN_CACHE."""


def cache_folder() -> Path:
    """Where files are kept: $FANIN_CACHE if set, else the user's cache folder. CacheError where
    the user has no home folder."""
    chosen = os.environ.get("FANIN_CACHE")
    try:
        if chosen:
            return Path(chosen).expanduser()
        # Imported here, since not every machine that uses the kernels has platformdirs.
        import platformdirs

        return Path(platformdirs.user_cache_dir("fanin")).expanduser()
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
    """Write a file that `is_whole` knows, at the path that this gives; see `replacing`. Raises
    CacheError where it cannot be written."""
    with _cache_errors(path), replacing(path) as made:
        yield made
        with made.open("rb") as file:
            checksum = hashlib.file_digest(file, "sha256").digest()
        with made.open("ab") as file:
            file.write(checksum)
    _LOG.info("cached %s", path)


def check_writable(path: Path) -> None:
    """Raises CacheError where no file can be written at `path`: better now than after minutes of
    work."""
    with _cache_errors(path):
        _new_file(path).unlink()


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Gives the path of a new file beside `path`. At the end of the block the new file is on the
    disk and takes the place of `path`: a reader sees the old file or the new, never half. After an
    error the new file is removed. Two processes that make the same file at once both succeed."""
    made = _new_file(path)
    try:
        yield made
        flush(made)
        os.replace(made, path)
    except BaseException:
        with suppress(OSError):
            made.unlink(missing_ok=True)
        raise
    with suppress(OSError):  # the file is in place; a folder may not allow this
        flush(path.parent)  # and with it the new name


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """Gives the path of a new folder beside `path`. The caller flushes the files that it writes
    there. At the end of the block the new folder takes the place of `path`: a reader sees the old
    folder or the new, never a mixture. After an error the new folder is removed. Where `path` is a
    link, the link stays, and the folder that it leads to is replaced."""
    path = Path(os.path.realpath(path))  # to exchange a link would leave it beside the new folder
    path.parent.mkdir(parents=True, exist_ok=True)
    made = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    made.mkdir()
    try:
        yield made
        flush(made)
        if path.exists():
            _exchange(made, path)  # and the old one goes
        else:
            os.rename(made, path)
        with suppress(OSError):  # the folder is in place; its parent may not allow this
            flush(path.parent)
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _exchange(one: Path, other: Path) -> None:
    """Exchange two folders at once; where the file system cannot, one after the other."""
    libc = ctypes.CDLL(None)
    current_folder, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE of Linux
    paths = os.fsencode(one), os.fsencode(other)
    if hasattr(libc, "renameat2") and not libc.renameat2(
        current_folder, paths[0], current_folder, paths[1], exchange
    ):
        return
    aside = one.with_name(f"{one.name}.old")
    os.rename(other, aside)
    try:
        os.rename(one, other)
    except OSError:
        os.rename(aside, other)
        raise
    os.rename(aside, one)


def flush(path: Path) -> None:
    """Write a file, or the names in a folder, to the disk, where the file system can do that."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno in _LOST:
            raise
    finally:
        os.close(handle)


def _new_file(path: Path) -> Path:
    """An empty file beside `path`, under a name of its own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    made = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    made.touch(exist_ok=False)
    return made


@contextmanager
def _cache_errors(path: Path) -> Iterator[None]:
    """An OSError in here becomes a CacheError about `path`."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise CacheError(f"{path}: cannot be written ({reason}): {_ADVICE}") from error
