"""Matrices of a file, a block of instances at a time: memory does not grow with the file.

The forms and their errors are those of `formats`; a text form may be compressed by gzip too.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import sparse

from fanin.datasets import formats, matrix_files
from fanin.datasets.dataset import check_finite
from fanin.datasets.file_errors import naming
from fanin.datasets.line_parsers import LABEL_LINES, PAIR_LINES, TRAILING_PAIR_LINES
from fanin.datasets.text_files import TextMatrix, open_text

# Numbers of a `.npz` or `.npy` file that are read at a time; a row is never divided. A number takes
# some 150 bytes while it is written as text.
ENTRIES = 1 << 19


class Blocks(NamedTuple):
    """A matrix [instances, columns] of a file. blocks: its rows in order, some at a time, as
    canonical float32 CSR [some instances, columns]."""

    path: Path
    instances: int
    columns: int
    blocks: Iterator[sparse.csr_array]


def label_blocks(path: Path) -> Blocks:
    """The positives of a label file of any form, values 1; see `folder.LABELS` for their names."""
    name = path.name.removesuffix(".gz")
    if name.endswith(".npz"):
        stored = csr_blocks(path)
        return stored._replace(blocks=_positives(stored))
    if name.endswith("_X_Y.txt"):
        pairs = _text(path, open_text(path, formats.LABEL_PAIRS_HEADER, "columns", PAIR_LINES))
        return pairs._replace(blocks=_positives(pairs, first_line=2))
    return _text(path, open_text(path, formats.LABELS_HEADER, "L", LABEL_LINES))


def feature_blocks(path: Path) -> Blocks:
    """The features of a file of any form, dense ones too; without stored zeros in dense ones."""
    name = path.name.removesuffix(".gz")
    if name.endswith(".npz"):
        return csr_blocks(path)
    if name.endswith(".npy"):
        return dense_blocks(path)
    if name.endswith("_X_Xf.txt"):
        return _text(path, open_text(path, formats.FEATURE_PAIRS_HEADER, "columns", PAIR_LINES))
    return _text(path, open_text(path, formats.LABELS_HEADER, "D", TRAILING_PAIR_LINES))


def _text(path: Path, text: TextMatrix) -> Blocks:
    def blocks() -> Iterator[sparse.csr_array]:
        for counts, ids, values in text.blocks:
            starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
            yield sparse.csr_array((values, ids, starts), shape=(len(counts), text.columns))

    return Blocks(path, text.instances, text.columns, blocks())


def _positives(matrix: Blocks, first_line: int | None = None) -> Iterator[sparse.csr_array]:
    """Values above 0 become 1. first_line: of a text file, that of its first instance."""
    done = 0
    for block in matrix.blocks:

        def place(row: int, done: int = done) -> str:
            if first_line is None:
                return f"{matrix.path}: row {done + row} (counted from 0)"
            return f"{matrix.path}:{first_line + done + row}"

        yield formats.positives(block, place).astype(np.float32)
        done += block.shape[0]


# --- NumPy's and SciPy's files ------------------------------------------------------------------


def dense_blocks(path: Path) -> Blocks:
    """The features of a `.npy` file [instances, inputs], checked to be finite in float32."""
    stored = matrix_files.open_array(path)
    size = max(1, ENTRIES // max(1, stored.shape[1]))

    def blocks() -> Iterator[sparse.csr_array]:
        for first in range(0, len(stored), size):
            with np.errstate(over="ignore"), naming(path):  # too large a value becomes infinite
                block = np.asarray(stored[first : first + size], np.float32)
            check_finite(block, str(path), first)
            yield sparse.csr_array(block)

    instances, inputs = stored.shape
    return Blocks(path, instances, inputs, blocks())


def csr_blocks(path: Path) -> Blocks:
    """The matrix of a `.npz` file; in memory are its starts, 8 bytes an instance, and a block."""
    shape, starts = matrix_files.read_starts(path)
    return Blocks(path, *shape, _csr_blocks(path, shape, starts))


def _csr_blocks(
    path: Path, shape: tuple[int, int], starts: npt.NDArray[np.int64]
) -> Iterator[sparse.csr_array]:
    with matrix_files.readable(path), ExitStack() as stack:
        archive = stack.enter_context(zipfile.ZipFile(path))
        parts = [_Part(stack.enter_context(archive.open(f"{n}.npy"))) for n in ("indices", "data")]
        first = 0
        while first < shape[0]:
            # As many rows as have ENTRIES entries together, at least one.
            end = int(np.searchsorted(starts, starts[first] + ENTRIES, side="right")) - 1
            end = min(max(end, first + 1), shape[0])
            ids, values = (part.read(int(starts[end] - starts[first])) for part in parts)
            rows = starts[first : end + 1] - starts[first]
            block = sparse.csr_array((values, ids, rows), shape=(end - first, shape[1]))
            yield matrix_files.checked(block, path, first)
            first = end


class _Part:
    """The numbers of a `.npy` file within an archive, from the first to the last."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._dtype = matrix_files.read_header(file).dtype

    def read(self, count: int) -> npt.NDArray[Any]:
        content = self._file.read(count * self._dtype.itemsize)
        # A copy can be written; ValueError where some are missing.
        return np.frombuffer(content, self._dtype, count).copy()
