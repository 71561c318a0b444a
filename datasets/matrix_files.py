"""NumPy's and SciPy's files: `.npz` with a sparse matrix, `.npy` with a dense array.

Whatever a damaged file makes the libraries raise becomes a DataError that names the file.
"""

from __future__ import annotations

import errno
import logging
import math
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import sparse

from fanin.datasets.dataset import DataError, check_finite
from fanin.datasets.file_errors import naming
from fanin.datasets.text_files import MOST

_LOG = logging.getLogger(__name__)

FEATURE_TYPES = ("float16", "float32", "float64")


def read_matrix(path: Path) -> sparse.csr_array:
    """Read a `.npz` file into a checked float32 matrix with sorted indices.

    Raises DataError for an unreadable file, another format than CSR, an id that is no integer, is
    out of range or stands twice in a row, and for a value that is not finite in float32.
    """
    with readable(path):
        shape, starts = _read_starts(path)
        with np.load(path, allow_pickle=False) as arrays:
            matrix = sparse.csr_array((arrays["data"], arrays["indices"], starts), shape=shape)
    return checked(matrix, path)


def read_starts(path: Path) -> tuple[tuple[int, int], npt.NDArray[np.int64]]:
    """The shape of a matrix in a `.npz` file, and where its rows start: all but its entries.

    Raises DataError as `read_matrix` does for an unreadable file or another format.
    """
    with readable(path):
        return _read_starts(path)


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Whatever is raised in here becomes a DataError about a `.npz` file."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:  # damaged bytes make NumPy and SciPy raise many kinds
        raise DataError(
            f"{path}: not a readable sparse .npz file ({_reason(error)}): write it anew with "
            "scipy.sparse.save_npz"
        ) from error


def checked(matrix: sparse.csr_array, path: Path, first: int = 0) -> sparse.csr_array:
    """The matrix as float32 with sorted indices, or the DataError about its first bad entry.

    first: number of its first row in the file."""
    columns = matrix.shape[1]

    def complain(entry: int, complaint: str) -> None:
        row = first + np.searchsorted(matrix.indptr, entry, side="right") - 1
        raise DataError(f"{path}: row {row} (counted from 0): {complaint}")

    wrong = (matrix.indices < 0) | (matrix.indices >= columns)
    if wrong.any():
        entry = int(wrong.argmax())
        complain(
            entry,
            f"id {matrix.indices[entry]} is out of range: the matrix has {columns} columns, so "
            f"ids are 0 to {columns - 1}",
        )
    with np.errstate(over="ignore"):  # too large a value becomes infinite, which is reported below
        # matrix.astype would sum what stands twice.
        values = matrix.data.astype(np.float32, copy=False)
    matrix = sparse.csr_array((values, matrix.indices, matrix.indptr), shape=matrix.shape)
    matrix.sort_indices()
    if not matrix.has_canonical_format:  # it is sorted, so an id stands twice in a row
        rows = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))
        entry = int(((np.diff(matrix.indices) == 0) & (np.diff(rows) == 0)).argmax())
        complain(entry, f"id {matrix.indices[entry]} stands twice: keep it once")
    infinite = ~np.isfinite(matrix.data)
    if infinite.any():
        entry = int(infinite.argmax())
        complain(
            entry,
            f"id {matrix.indices[entry]} has the value {matrix.data[entry]}: values must be finite "
            "in float32",
        )
    return matrix


def _read_starts(path: Path) -> tuple[tuple[int, int], npt.NDArray[np.int64]]:
    """Not by `scipy.sparse.load_npz`, which turns any indices into integers: 0.7 into 0."""
    with np.load(path, allow_pickle=False) as arrays:
        stored_as = arrays["format"].item()
        form = stored_as.decode("ascii") if isinstance(stored_as, bytes) else stored_as
        names = ("data", "indices", "indptr") if form == "csr" else ("data",)
        headers = {name: _header_in(arrays.zip, name) for name in names}
        if form != "csr" or headers["data"].dtype.kind not in "biuf":
            raise DataError(
                f"{path}: holds {headers['data'].dtype} numbers in format {form}: store "
                "matrix.tocsr().astype(numpy.float32)"
            )
        shape = tuple(arrays["shape"].tolist())
        if max(shape) > MOST:
            raise DataError(f"{path}: {max(shape)} rows or columns are too many: at most {MOST}")
        for name in ("indices", "indptr"):
            if headers[name].dtype.kind not in "iu":
                raise DataError(
                    f"{path}: its {name} are {headers[name].dtype}: they must be integers, as "
                    "scipy.sparse.save_npz writes them"
                )
        starts = arrays["indptr"].astype(np.int64)
    entries = headers["indices"].size
    # SciPy looks only as far as the last of the starts says, and a negative one lets it crash.
    if not starts.size or starts[0] or starts[-1] != entries or (np.diff(starts) < 0).any():
        raise DataError(f"{path}: damaged (indptr has to rise from 0 to {entries}): write it anew")
    if len(starts) != shape[0] + 1 or headers["data"].size != entries:
        raise ValueError(
            f"{len(starts) - 1} rows and {headers['data'].size} values for {shape[0]} rows and "
            f"{entries} ids"
        )
    return shape, starts


class Header(NamedTuple):
    """What a stored array is: the type of its numbers, and how many there are."""

    dtype: np.dtype[Any]
    size: int


def _header_in(archive: zipfile.ZipFile, name: str) -> Header:
    with archive.open(f"{name}.npy") as file:
        return read_header(file)


def read_header(file: IO[bytes]) -> Header:
    """The header of a `.npy` file; what follows in it are the numbers."""
    version = np.lib.format.read_magic(file)
    read: Any = getattr(np.lib.format, f"read_array_header_{version[0]}_0")
    shape, _, dtype = read(file)
    return Header(dtype, math.prod(shape))


def read_array(path: Path) -> npt.NDArray[np.float32]:
    """Open a `.npy` file [instances, inputs] as C-contiguous float32.

    A float32 file is memory-mapped, and its values are not checked; another float type is converted
    in memory. Raises DataError for another type or shape, and for a value that is not finite in
    float32.
    """
    stored = open_array(path)
    if stored.dtype == np.float32 and stored.flags.c_contiguous:
        return stored
    _LOG.info("%s is %s: converting in memory; a float32 file is mapped", path, stored.dtype)
    with np.errstate(over="ignore"):  # too large a value becomes infinite, which the check reports
        converted = np.ascontiguousarray(stored, np.float32)
    check_finite(converted, f"{path} (as float32)")
    return converted


def open_array(path: Path) -> npt.NDArray[Any]:
    """The array [instances, inputs] of a `.npy` file as it is stored: mapped where possible, and
    its values not checked. Raises DataError for another type or shape."""
    try:
        with naming(path):
            stored = _load_mapped(path)
    except OSError:
        raise
    except Exception as error:  # damaged headers make NumPy raise many kinds
        raise DataError(
            f"{path}: not a readable .npy file ({_reason(error)}): write it anew with numpy.save"
        ) from error
    if not isinstance(stored, np.ndarray) or stored.ndim != 2:
        shape = getattr(stored, "shape", "an .npz archive")
        raise DataError(f"{path}: features must be one array [instances, inputs], not {shape}")
    if stored.dtype.name not in FEATURE_TYPES:
        usable = ", ".join(FEATURE_TYPES)
        raise DataError(f"{path}: features are {stored.dtype}: store one of {usable}")
    return stored


def _load_mapped(path: Path) -> object:
    """The array in a file: mapped, or read where its file system has no memory maps."""
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except OSError as error:
        if error.errno != errno.ENODEV:
            raise
        _LOG.info("%s cannot be mapped: reading it into memory", path)
        return np.load(path, allow_pickle=False)


def _reason(error: Exception) -> str:
    """What NumPy found wrong with a file.

    NumPy takes anything that is no array for a pickle, and then advises to allow pickles, which
    would run code of a stranger. That advice is not passed on.
    """
    return "it does not begin as one" if "pickle" in str(error) else str(error)
