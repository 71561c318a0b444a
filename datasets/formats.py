"""Files that data sets lie in: how each is read, and checked while reading.

| read by               | file                                                                |
|-----------------------|---------------------------------------------------------------------|
| `read_labels`         | header `N D L` (instances, inputs, labels), lines `l1,l2 [f:v ...]` |
| `read_label_pairs`    | header `rows columns`, lines `label:value ...`                      |
| `read_label_matrix`   | `.npz`: a CSR matrix of labels, written by `scipy.sparse.save_npz`  |
| `read_feature_pairs`  | header `rows columns`, lines `input:value ...`                      |
| `read_trailing_pairs` | the pairs `f:v ...` of the first form                               |
| `read_feature_matrix` | `.npz`: a CSR matrix of features                                    |
| `read_features`       | `.npy`: dense features                                              |

In text every instance has one line; without labels it is empty, or begins with a space. Ids count
from 0. A label with value 0 is no positive, one with a value above 0 is.

Text is read a block of lines at a time: first by a `_fast` parser, which handles good lines in bulk
and gives up at anything odd, then by a `_slow` one, which walks the lines and names the culprit.
`folder` knows which file lies where.
"""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import sparse

from fanin.datasets.dataset import DataError, check_finite

_LOG = logging.getLogger(__name__)

BLOCK_BYTES = 8 << 20
# How a file begins that holds text in another way than it is read here.
_NOT_PLAIN = {
    b"\x1f\x8b": "compressed by gzip: unpack it with gunzip",
    b"BZh": "compressed by bzip2: unpack it with bunzip2",
    b"PK\x03\x04": "a zip archive: unpack it",
    b"\xff\xfe": "UTF-16 text: save it as UTF-8",
    b"\xfe\xff": "UTF-16 text: save it as UTF-8",
}
MAX_DIGITS = 9  # of a number: no data set comes near, and line * columns + id fits 64 bits
FEATURE_TYPES = ("float16", "float32", "float64")

DIGITS = b"0123456789"
NUMBER = re.compile(rb"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?")

# What each first line holds: a name for every number.
LABELS_HEADER = {"N": "instances", "D": "inputs", "L": "labels"}
LABEL_PAIRS_HEADER = {"rows": "instances", "columns": "labels"}
FEATURE_PAIRS_HEADER = {"rows": "instances", "columns": "inputs"}


class _Entries(NamedTuple):
    """The entries of some lines: how many each line has, all their ids, sorted per line."""

    counts: npt.NDArray[np.int64]
    ids: npt.NDArray[np.int64]
    values: npt.NDArray[np.float32]


class _Parser(NamedTuple):
    """Both ways to parse lines whose ids are below `columns`.

    fast(lines, columns) gives None for lines to complain about; slow(lines, columns, path, number
    of the first line) raises DataError for them.
    """

    fast: Callable[[Sequence[bytes], int], _Entries | None]
    slow: Callable[[Sequence[bytes], int, Path, int], _Entries]


# --- labels -------------------------------------------------------------------------------------


def read_labels(path: Path | str) -> sparse.csr_array:
    """Read a label file into a bool matrix [instances, labels] with sorted indices.

    Feature pairs behind the labels are ignored. Raises DataError as `path:line: value: what to do`
    for a bad header, a label that is not an integer, is out of range or stands twice in a line, and
    for too few or too many lines.
    """
    matrix = _read_text(Path(path), LABELS_HEADER, "L", _Parser(_fast_labels, _slow_labels))
    return matrix.astype(np.bool_)


def read_label_pairs(path: Path | str) -> sparse.csr_array:
    """Read `label:value` lines into a bool matrix [instances, labels] with sorted indices.

    Any value above 0 makes a positive. Raises DataError as `read_labels` does, and for a value that
    is negative or not finite.
    """
    path = Path(path)
    matrix = _read_text(path, LABEL_PAIRS_HEADER, "columns", _Parser(_fast_pairs, _slow_pairs))
    return _positives(matrix, lambda row: f"{path}:{row + 2}")


def read_label_matrix(path: Path | str) -> sparse.csr_array:
    """Read a `.npz` matrix [instances, labels] into a bool one with sorted indices.

    Any value above 0 makes a positive. Raises DataError for an unreadable file, another format than
    CSR, an id that is out of range or stands twice in a row, and for a value that is negative or
    not finite.
    """
    return _positives(_read_matrix(Path(path)), lambda row: f"{path}: row {row} (counted from 0)")


def write_labels(path: Path | str, labels: sparse.csr_array, inputs: int) -> None:
    """Write positives [instances, labels] as a label file; `inputs` goes into the header."""
    instances, count = labels.shape
    with Path(path).open("w", encoding="ascii", newline="\n") as file:
        file.write(f"{instances} {inputs} {count}\n")
        for row in range(instances):
            ids = labels.indices[labels.indptr[row] : labels.indptr[row + 1]]
            file.write(",".join(map(str, sorted(ids.tolist()))) + "\n")


# --- features -----------------------------------------------------------------------------------


def read_feature_pairs(path: Path | str) -> sparse.csr_array:
    """Read `input:value` lines into a float32 matrix [instances, inputs] with sorted indices.

    Raises DataError as `path:line: value: what to do` for a bad header, a bad pair, an input that
    is out of range or stands twice in a line, a value that is not finite in float32, and for too
    few or too many lines.
    """
    parser = _Parser(_fast_pairs, _slow_pairs)
    return _read_text(Path(path), FEATURE_PAIRS_HEADER, "columns", parser)


def read_trailing_pairs(path: Path | str) -> sparse.csr_array:
    """Read the pairs behind the labels of a label file, as `read_feature_pairs` does."""
    parser = _Parser(
        lambda lines, *place: _fast_pairs([_after_labels(line) for line in lines], *place),
        lambda lines, *place: _slow_pairs([_after_labels(line) for line in lines], *place),
    )
    return _read_text(Path(path), LABELS_HEADER, "D", parser)


def read_feature_matrix(path: Path | str) -> sparse.csr_array:
    """Read a `.npz` matrix [instances, inputs] into a float32 one with sorted indices.

    Raises DataError for an unreadable file, another format than CSR, an id that is out of range or
    stands twice in a row, and for a value that is not finite in float32.
    """
    return _read_matrix(Path(path))


def read_features(path: Path | str) -> npt.NDArray[np.float32]:
    """Open `.npy` features [instances, inputs] as C-contiguous float32.

    A float32 file is memory-mapped and its values are checked later, by `Dataset`; another float
    type is converted in memory. Raises DataError for another type or shape, and for a value that
    is not finite in float32.
    """
    path = Path(path)
    try:
        stored = np.load(path, mmap_mode="r", allow_pickle=False)
    except OSError:
        raise
    except Exception as error:  # whatever a damaged header makes NumPy stumble over
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
    with np.errstate(over="ignore"):  # becomes infinite, which the check reports
        converted = np.ascontiguousarray(stored, np.float32)
    check_finite(converted, f"{path} (as float32)")
    return converted


# --- text ---------------------------------------------------------------------------------------


def _read_text(
    path: Path, header: dict[str, str], columns_name: str, parser: _Parser
) -> sparse.csr_array:
    """All lines of a text file as one float32 matrix; `columns_name`: which number is its width."""
    blocks: list[_Entries] = []
    with path.open("rb") as file:
        numbers = _read_header(path, file.readline(), header)
        rows, columns = next(iter(numbers.values())), numbers[columns_name]
        done = 0
        while lines := file.readlines(BLOCK_BYTES):
            if done + len(lines) > rows:
                raise DataError(
                    f"{path}:{rows + 2}: one line too many: the header says {rows} "
                    "instances; correct its first number or remove what follows"
                )
            block = parser.fast(lines, columns)
            if block is None:
                block = parser.slow(lines, columns, path, done + 2)
            blocks.append(block)
            done += len(lines)
    if done < rows:
        raise DataError(
            f"{path}:{done + 2}: the file ends after {done} instances but its header says "
            f"{rows}: is the file cut off?"
        )
    counts = np.concatenate([np.zeros(1, np.int64), *(block.counts for block in blocks)])
    ids = np.concatenate([np.zeros(0, np.int64), *(block.ids for block in blocks)])
    values = np.concatenate([np.zeros(0, np.float32), *(block.values for block in blocks)])
    index = np.int32 if len(ids) < 2**31 else np.int64  # half the memory where it suffices
    parts = (values, ids.astype(index), np.cumsum(counts).astype(index))
    return sparse.csr_array(parts, shape=(rows, columns))


def _read_header(path: Path, line: bytes, names: dict[str, str]) -> dict[str, int]:
    """The integers of the header line, by name."""
    for start, what in _NOT_PLAIN.items():
        if line.startswith(start):
            raise DataError(f"{path}: {what}")
    fields = line.split()
    huge = [field for field in fields if field.isdigit() and len(field) > MAX_DIGITS]
    if huge:
        raise DataError(
            f"{path}:1: {_show(huge[0])} in the header is too large: at most {10**MAX_DIGITS - 1}"
        )
    if len(fields) != len(names) or not all(field.isdigit() for field in fields):
        count = {2: "two", 3: "three"}[len(names)]
        raise DataError(
            f"{path}:1: header {_show(line)}: expected {count} integers `{' '.join(names)}` "
            f"({', '.join(names.values())})"
        )
    return dict(zip(names, map(int, fields), strict=True))


def _fast_labels(lines: Sequence[bytes], labels: int) -> _Entries | None:
    """The positives of good lines, in bulk; None if there is anything to complain about."""
    cut = [line.rstrip(b"\r\n").partition(b" ") for line in lines]
    if any(rest and not _is_feature_list(rest) for _, _, rest in cut):
        return None
    fields = [field for field, _, _ in cut]
    counts = np.fromiter((f.count(b",") + 1 if f else 0 for f in fields), np.int64, len(fields))
    text = b",".join(filter(None, fields))
    if text and (text.translate(None, DIGITS + b",") or b",," in b",%b," % text):
        return None
    ids = np.fromstring(text, np.int64, sep=",") if text else np.zeros(0, np.int64)
    return _ordered(counts, ids, np.ones(len(ids), np.float32), labels)


def _slow_labels(lines: Sequence[bytes], labels: int, path: Path, first_line: int) -> _Entries:
    """The same line by line; raises DataError at the first bad line."""
    rows: list[dict[int, float]] = []
    for number, line in enumerate(lines, first_line):
        where = f"{path}:{number}"
        field, _, rest = line.rstrip(b"\r\n").partition(b" ")
        if rest and not _is_feature_list(rest):
            raise DataError(
                f"{where}: {_show(rest)} after the labels is no `feature:value` list: "
                "separate labels by commas without spaces"
            )
        row: dict[int, float] = {}
        for token in field.split(b",") if field else ():
            if not token.isdigit():
                raise DataError(
                    f"{where}: label {_show(token)} is not an integer: write the line as "
                    "`l1,l2,...`, with a space before any `feature:value` pairs"
                )
            if len(token) > MAX_DIGITS or (label := int(token)) >= labels:
                raise DataError(
                    f"{where}: label {_show(token)} is out of range: the header says {labels} "
                    f"labels, so ids are 0 to {labels - 1}"
                )
            if label in row:
                raise DataError(f"{where}: label {label} stands twice: keep it once")
            row[label] = 1.0
        rows.append(row)
    return _entries(rows)


def _fast_pairs(lines: Sequence[bytes], columns: int) -> _Entries | None:
    """The `id:value` pairs of good lines, in bulk; None if there is anything to complain about."""
    rows = [b" ".join(line.split()) for line in lines]
    counts = np.fromiter((row.count(b":") for row in rows), np.int64, len(rows))
    pairs = int(counts.sum())
    text = b" %b " % b" ".join(filter(None, rows))
    if not text.strip():
        return _entries([{} for _ in rows])
    # One colon per blank, and between a blank and its colon only digits. An empty id or value makes
    # fewer numbers than asked for below.
    if text.count(b" ") != pairs + 1 or text.translate(None, DIGITS).count(b" :") != pairs:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("error", DeprecationWarning)  # what NumPy says at odd text
        try:
            numbers = np.fromstring(text.replace(b":", b" "), np.float64, sep=" ")
        except (DeprecationWarning, ValueError):
            return None
    if len(numbers) != 2 * pairs or not numbers[::2].max() < columns:
        return None
    with np.errstate(over="ignore"):
        values = numbers[1::2].astype(np.float32)
    if not np.isfinite(values).all():
        return None
    return _ordered(counts, numbers[::2].astype(np.int64), values, columns)


def _slow_pairs(lines: Sequence[bytes], columns: int, path: Path, first_line: int) -> _Entries:
    """The same line by line; raises DataError at the first bad line."""
    rows: list[dict[int, float]] = []
    for number, line in enumerate(lines, first_line):
        row: dict[int, float] = {}
        for token in line.split():
            where = f"{path}:{number}: pair {_show(token)}"
            left, colon, right = token.partition(b":")
            if not colon or not left.isdigit():
                raise DataError(f"{where} is not `id:value` with an integer id: correct it")
            if len(left) > MAX_DIGITS or (index := int(left)) >= columns:
                raise DataError(
                    f"{where}: id {_show(left)} is out of range: by the header, ids are 0 to "
                    f"{columns - 1}"
                )
            if index in row:
                raise DataError(f"{where}: id {index} stands twice in the line: keep it once")
            with np.errstate(over="ignore"):
                value = np.float32(float(right) if NUMBER.fullmatch(right) else np.nan)
            if not np.isfinite(value):
                raise DataError(
                    f"{where}: {_show(right)} is no finite float32 number: correct it, or leave "
                    "the pair out"
                )
            row[index] = float(value)
        rows.append(row)
    return _entries(rows)


def _entries(rows: Sequence[dict[int, float]]) -> _Entries:
    """The entries {id: value} of each line."""
    return _Entries(
        np.array([len(row) for row in rows], np.int64),
        np.array([index for row in rows for index in sorted(row)], np.int64),
        np.array([row[index] for row in rows for index in sorted(row)], np.float32),
    )


def _ordered(
    counts: npt.NDArray[np.int64],
    ids: npt.NDArray[np.int64],
    values: npt.NDArray[np.float32],
    columns: int,
) -> _Entries | None:
    """The entries with the ids of each line sorted; None for too many, too large or equal ones."""
    if len(ids) != counts.sum() or (len(ids) and ids.max() >= columns):
        return None
    # One sortable number per entry: in order within each line exactly if these are in order.
    keys = np.repeat(np.arange(len(counts)), counts) * columns + ids
    if not (np.diff(keys) > 0).all():
        order = np.argsort(keys)
        if not (np.diff(keys[order]) > 0).all():
            return None  # an id twice in a line
        ids, values = ids[order], values[order]
    return _Entries(counts, ids, values)


def _after_labels(line: bytes) -> bytes:
    """The `f:v` pairs of a line `l1,l2,... f:v ...`."""
    labels, _, rest = line.partition(b" ")
    return line if b":" in labels else rest


def _is_feature_list(rest: bytes) -> bool:
    """Whether what follows the labels begins with an `f:v` pair, or is blank."""
    first = rest.lstrip().partition(b" ")[0]
    return not first or b":" in first


def _show(value: bytes) -> str:
    """A piece of a file for a message: printable and not too long."""
    text = value.decode("utf-8", errors="replace").rstrip("\r\n")
    return repr(text if len(text) <= 60 else text[:57] + "...")


def _reason(error: Exception) -> str:
    """What NumPy found wrong with a file. Anything that is no array it takes for a pickle, and
    advises what would run a stranger's code."""
    return "it does not begin as one" if "pickle" in str(error) else str(error)


# --- sparse matrices ----------------------------------------------------------------------------


def _read_matrix(path: Path) -> sparse.csr_array:
    """A `.npz` file as a checked float32 matrix with sorted indices."""
    try:
        stored = sparse.load_npz(path)
    except Exception as error:  # whatever damaged bytes make NumPy and SciPy stumble over
        raise DataError(
            f"{path}: not a readable sparse .npz file ({_reason(error)}): write it anew with "
            "scipy.sparse.save_npz"
        ) from error
    if stored.format != "csr" or stored.ndim != 2 or stored.dtype.kind not in "biuf":
        raise DataError(
            f"{path}: holds {stored.dtype} numbers in format {stored.format}: store "
            "matrix.tocsr().astype(numpy.float32)"
        )
    matrix = sparse.csr_array(stored)
    columns = matrix.shape[1]

    def complain(entry: int, what: str) -> None:
        row = np.searchsorted(matrix.indptr, entry, side="right") - 1
        raise DataError(f"{path}: row {row} (counted from 0): {what}")

    wrong = (matrix.indices < 0) | (matrix.indices >= columns)
    if wrong.any():
        entry = int(wrong.argmax())
        complain(
            entry,
            f"id {matrix.indices[entry]} is out of range: the matrix has {columns} columns, so "
            f"ids are 0 to {columns - 1}",
        )
    try:
        matrix.check_format(full_check=True)
    except ValueError as error:
        raise DataError(f"{path}: damaged ({error}): write it anew") from error
    with np.errstate(over="ignore"):  # becomes infinite, which is reported
        values = matrix.data.astype(np.float32)  # matrix.astype would sum what stands twice
    matrix = sparse.csr_array((values, matrix.indices, matrix.indptr), shape=matrix.shape)
    matrix.sort_indices()
    if not matrix.has_canonical_format:  # sorted it is, so an id stands twice in a row
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


def _positives(matrix: sparse.csr_array, place: Callable[[int], str]) -> sparse.csr_array:
    """The labels of a matrix with values: all but the zeros. `place` names a row in a message."""
    negative = matrix.data < 0
    if negative.any():
        entry = int(negative.argmax())
        row = int(np.searchsorted(matrix.indptr, entry, side="right")) - 1
        raise DataError(
            f"{place(row)}: label {matrix.indices[entry]} has the value {matrix.data[entry]}: "
            "give positives the value 1 and leave the others out"
        )
    matrix.eliminate_zeros()
    return matrix.astype(np.bool_)
