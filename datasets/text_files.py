"""Text files with a header and one line per instance, read a block of lines at a time.

A `Parser` has two ways to read lines. The fast one handles good lines in bulk and gives up at
anything odd; the slow one then walks the same lines and names the first bad one. What stands in a
line is the matter of `line_parsers`.
"""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import sparse

from fanin.datasets.dataset import DataError
from fanin.datasets.file_errors import naming

BLOCK_BYTES = 8 << 20
LONGEST_LINE = 1 << 28  # bytes; what has no line ends is no text, and must not fill the memory
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


class TextMatrix(NamedTuple):
    """A text file of instances: its sizes, and its entries, a block of lines at a time."""

    instances: int
    columns: int
    blocks: Iterator[Entries]


def read_text(
    path: Path, header: dict[str, str], columns_name: str, parser: Parser
) -> sparse.csr_array:
    """Read all lines of a file into one float32 matrix [instances, columns].

    `header` names the numbers of the first line, and `columns_name` is the one that is the width of
    the matrix. Raises DataError for a bad header or line, and for too few or too many lines.
    """
    text = open_text(path, header, columns_name, parser)
    blocks = list(text.blocks)
    counts = np.concatenate([np.zeros(1, np.int64), *(block.counts for block in blocks)])
    ids = np.concatenate([np.zeros(0, np.int64), *(block.ids for block in blocks)])
    values = np.concatenate([np.zeros(0, np.float32), *(block.values for block in blocks)])
    index = np.int32 if len(ids) < 2**31 else np.int64  # half the memory where it suffices
    parts = (values, ids.astype(index), np.cumsum(counts).astype(index))
    return sparse.csr_array(parts, shape=(text.instances, text.columns))


def open_text(path: Path, header: dict[str, str], columns_name: str, parser: Parser) -> TextMatrix:
    """The same, a block at a time: the header is read at once, the lines as the blocks are."""
    lines = line_blocks(path, at_once=BLOCK_BYTES)
    first = next(lines, [b""])
    numbers = _read_header(path, first[0], header)
    instances, columns = next(iter(numbers.values())), numbers[columns_name]

    def blocks() -> Iterator[Entries]:
        done = 0
        block = first[1:]
        while block or (block := next(lines, [])):
            if done + len(block) > instances:
                raise DataError(
                    f"{path}:{instances + 2}: one line too many: the header says {instances} "
                    "instances; correct its first number or remove what follows"
                )
            entries = parser.fast(block, columns)
            if entries is None:
                entries = parser.slow(block, columns, path, done + 2)
            yield entries
            done += len(block)
            block = []
        if done < instances:
            raise DataError(
                f"{path}:{done + 2}: the file ends after {done} instances but its header says "
                f"{instances}: is the file cut off?"
            )

    return TextMatrix(instances, columns, blocks())


def line_blocks(path: Path, at_once: int) -> Iterator[list[bytes]]:
    """The lines of a file without their line ends, about `at_once` bytes at a time; a file whose
    name ends with `.gz` is unpacked. Raises DataError for one that is damaged, and for a line
    longer than LONGEST_LINE."""
    done = 0
    begun = b""
    with opened(path) as file:
        while chunk := file.read(at_once):
            *lines, begun = (begun + chunk).split(b"\n")
            if lines:
                yield lines
            done += len(lines)
            if len(begun) > LONGEST_LINE:
                raise DataError(
                    f"{path}:{done + 1}: a line of more than {LONGEST_LINE >> 20} MiB: is this a "
                    "text file, with a line end behind each line?"
                )
        if begun:
            yield [begun]


@contextmanager
def opened(path: Path) -> Iterator[io.BufferedIOBase]:
    """The bytes of a file, unpacked where its name ends with `.gz`. An error of the system names
    the file; a damaged archive raises DataError."""
    try:
        with naming(path), path.open("rb") as stored:
            if path.suffix == ".gz":
                with gzip.GzipFile(fileobj=stored) as file:
                    yield file
            else:
                yield stored
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(
            f"{path}: damaged, or not compressed by gzip ({error}): get or make it anew"
        ) from error


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
