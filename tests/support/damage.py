"""What happens to files in a power cut, on a full or on a failing disk."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path


def zero_block(path: Path) -> None:
    """Zeros in the second half: blocks whose contents never reached the disk."""
    contents = path.read_bytes()
    kept = len(contents) // 2
    path.write_bytes(contents[:kept] + bytes(len(contents) - kept))


def zero_all(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def flip(path: Path) -> None:
    """One bit of the last byte: of a number, where the file holds numbers."""
    contents = path.read_bytes()
    path.write_bytes(contents[:-1] + bytes([contents[-1] ^ 1]))


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def make_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGES: tuple[Callable[[Path], None], ...] = (
    *(zero_block, zero_all, flip, cut, Path.unlink, make_folder),
)
