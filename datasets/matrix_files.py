"""NumPy's and SciPy's files: `.npz` with a sparse matrix, `.npy` with a dense array.

Whatever a damaged file makes the libraries raise becomes a DataError that names the file.
"""

from __future__ import annotations

import errno
import logging
from pathlib import Path

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
    try:
        matrix = _load_csr(path)
    except DataError:
        raise
    except Exception as error:  # damaged bytes make NumPy and SciPy raise many kinds
        raise DataError(
            f"{path}: not a readable sparse .npz file ({_reason(error)}): write it anew with "
            "scipy.sparse.save_npz"
        ) from error
    columns = matrix.shape[1]

    def complain(entry: int, complaint: str) -> None:
        row = np.searchsorted(matrix.indptr, entry, side="right") - 1
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


def _load_csr(path: Path) -> sparse.csr_array:
    """As `scipy.sparse.load_npz`, which would turn any indices into integers: 0.7 into 0."""
    with np.load(path, allow_pickle=False) as arrays:
        stored_as = arrays["format"].item()
        form = stored_as.decode("ascii") if isinstance(stored_as, bytes) else stored_as
        data = arrays["data"]
        if form != "csr" or data.dtype.kind not in "biuf":
            raise DataError(
                f"{path}: holds {data.dtype} numbers in format {form}: store "
                "matrix.tocsr().astype(numpy.float32)"
            )
        indices, starts = arrays["indices"], arrays["indptr"]
        shape = tuple(arrays["shape"].tolist())
        if max(shape) > MOST:
            raise DataError(f"{path}: {max(shape)} rows or columns are too many: at most {MOST}")
    for name, array in (("indices", indices), ("indptr", starts)):
        if array.dtype.kind not in "iu":
            raise DataError(
                f"{path}: its {name} are {array.dtype}: they must be integers, as "
                "scipy.sparse.save_npz writes them"
            )
    # SciPy looks only as far as the last of the starts says, and a negative one lets it crash.
    rising = starts.astype(np.int64)
    if not rising.size or rising[0] or rising[-1] != len(indices) or (np.diff(rising) < 0).any():
        raise DataError(
            f"{path}: damaged (indptr has to rise from 0 to {len(indices)}): write it anew"
        )
    return sparse.csr_array((data, indices, starts), shape=shape)


def read_array(path: Path) -> npt.NDArray[np.float32]:
    """Open a `.npy` file [instances, inputs] as C-contiguous float32.

    A float32 file is memory-mapped, and its values are not checked; another float type is converted
    in memory. Raises DataError for another type or shape, and for a value that is not finite in
    float32.
    """
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
    if stored.dtype == np.float32 and stored.flags.c_contiguous:
        return stored
    _LOG.info("%s is %s: converting in memory; a float32 file is mapped", path, stored.dtype)
    with np.errstate(over="ignore"):  # too large a value becomes infinite, which the check reports
        converted = np.ascontiguousarray(stored, np.float32)
    check_finite(converted, f"{path} (as float32)")
    return converted


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
