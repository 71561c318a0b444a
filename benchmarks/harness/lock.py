"""One process at a time per file: a lock that ends with the last process that holds it.

It is the kernel's lock on an open file, so nothing has to be cleaned up after a kill. A child that
inherits the descriptor holds the lock too, also when its parent is gone. Some file systems of a
network have no such lock; runs on them go without one.
"""

from __future__ import annotations

import fcntl
import functools
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_LOG = logging.getLogger(__name__)

# An orphaned child ends by itself as soon as it gets a turn; it is waited for that long.
PATIENCE = 15.0
_POLL_SECONDS = 0.1


class BusyError(RuntimeError):
    """Another process is at it; the message names the process."""


@contextmanager
def locked(path: Path, patience: float = PATIENCE) -> Iterator[int]:
    """Hold the lock file `path`, which is removed afterwards; its descriptor.

    Raises BusyError when another process has it for longer than `patience` seconds, and OSError
    where the file cannot be made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = _acquire(path, time.monotonic() + patience)
    try:
        yield handle
    finally:
        path.unlink(missing_ok=True)
        os.close(handle)


def add_holder(handle: int, text: str) -> None:
    """Write into the file of a lock who holds it; only a person reads that."""
    with suppress(OSError):
        os.write(handle, text.encode())


@functools.cache
def _warn(reason: str | None) -> None:
    """Warn once, and not for each file."""
    _LOG.warning(
        "the file system of the results has no locks (%s): let no other process write "
        "the same results",
        reason,
    )


def _acquire(path: Path, deadline: float) -> int:
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(handle, 100, 0).decode() or "another process"
            os.close(handle)
            if time.monotonic() > deadline:
                raise BusyError(
                    f"{path.with_suffix('')}: {holder} is running this; wait until it is done, or "
                    "end it and start again"
                ) from None
            time.sleep(_POLL_SECONDS)
            continue
        except OSError as error:
            _warn(error.strerror)
            return handle
        # The holder before removed the file: what was opened may not be what others will open.
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(handle), path.stat()):
                os.ftruncate(handle, 0)
                add_holder(handle, f"process {os.getpid()}")
                return handle
        os.close(handle)
