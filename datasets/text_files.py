"""Text files with a header and one line per instance, read a block of lines at a time.

A `Parser` has two ways to read lines. The fast one handles good lines in bulk and gives up at
anything odd; the slow one then walks the same lines and names the first bad one. What stands in a
line is the matter of `line_parsers`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import sparse

from fanin.datasets.dataset import DataError
from fanin.datasets.file_errors import naming

BLOCK_BYTES = 8 << 20
MAX_DIGITS = 9  # of a number: no data set comes near, and line * columns + id fits 64 bits
MOST = 10**MAX_DIGITS - 1  # instances, inputs or labels

# How a file begins that is no plain text.
_NOT_PLAIN = {
    b"\x1f\x8b": "compressed by gzip: unpack it with gunzip",
    b"BZh": "compressed by bzip2: unpack it with bunzip2",
    b"PK\x03\x04": "a zip archive: unpack it",
    b"\xff\xfe": "UTF-16 text: save it as UTF-8",
    b"\xfe\xff": "UTF-16 text: save it as UTF-8",
}


class Entries(NamedTuple):
    """The entries of some lines: how many each line has, and all their ids, sorted per line."""

    counts: npt.NDArray[np.int64]
    ids: npt.NDArray[np.int64]
    values: npt.NDArray[np.float32]


class Parser(NamedTuple):
    """Both ways to parse lines whose ids are below `columns`.

    fast(lines, columns) returns None when a line is bad; slow(lines, columns, path, number of the
    first line) raises DataError for it.
    """

    fast: Callable[[Sequence[bytes], int], Entries | None]
    slow: Callable[[Sequence[bytes], int, Path, int], Entries]


def read_text(
    path: Path, header: dict[str, str], columns_name: str, parser: Parser
) -> sparse.csr_array:
    """Read all lines of a file into one float32 matrix [instances, columns].

    `header` names the numbers of the first line, and `columns_name` is the one that is the width of
    the matrix. Raises DataError for a bad header or line, and for too few or too many lines.
    """
    blocks: list[Entries] = []
    with naming(path), path.open("rb") as file:
        numbers = _read_header(path, file.readline(), header)
        instances, columns = next(iter(numbers.values())), numbers[columns_name]
        done = 0
        while lines := file.readlines(BLOCK_BYTES):
            if done + len(lines) > instances:
                raise DataError(
                    f"{path}:{instances + 2}: one line too many: the header says {instances} "
                    "instances; correct its first number or remove what follows"
                )
            block = parser.fast(lines, columns)
            if block is None:
                block = parser.slow(lines, columns, path, done + 2)
            blocks.append(block)
            done += len(lines)
    if done < instances:
        raise DataError(
            f"{path}:{done + 2}: the file ends after {done} instances but its header says "
            f"{instances}: is the file cut off?"
        )
    counts = np.concatenate([np.zeros(1, np.int64), *(block.counts for block in blocks)])
    ids = np.concatenate([np.zeros(0, np.int64), *(block.ids for block in blocks)])
    values = np.concatenate([np.zeros(0, np.float32), *(block.values for block in blocks)])
    index = np.int32 if len(ids) < 2**31 else np.int64  # half the memory where it suffices
    parts = (values, ids.astype(index), np.cumsum(counts).astype(index))
    return sparse.csr_array(parts, shape=(instances, columns))


def _read_header(path: Path, line: bytes, names: dict[str, str]) -> dict[str, int]:
    """The integers of the header line, by name."""
    for start, remark in _NOT_PLAIN.items():
        if line.startswith(start):
            raise DataError(f"{path}: {remark}")
    fields = line.split()
    huge = [field for field in fields if field.isdigit() and len(field) > MAX_DIGITS]
    if huge:
        raise DataError(f"{path}:1: {show(huge[0])} in the header is too large: at most {MOST}")
    if len(fields) != len(names) or not all(field.isdigit() for field in fields):
        count = {2: "two", 3: "three"}[len(names)]
        raise DataError(
            f"{path}:1: header {show(line)}: expected {count} integers `{' '.join(names)}` "
            f"({', '.join(names.values())})"
        )
    return dict(zip(names, map(int, fields), strict=True))


def show(value: bytes) -> str:
    """A piece of a file for a message: printable and not too long."""
    text = value.decode("utf-8", errors="replace").rstrip("\r\n")
    return repr(text if len(text) <= 60 else text[:57] + "...")
