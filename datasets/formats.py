"""Files that data sets lie in: which function reads which file.

| read by               | file                                                                |
|-----------------------|---------------------------------------------------------------------|
| `read_labels`         | header `N D L` (instances, inputs, labels), lines `l1,l2 [f:v ...]` |
| `read_label_pairs`    | header `rows columns`, lines `label:value ...`                      |
| `read_label_matrix`   | `.npz`: a CSR matrix of labels, written by `scipy.sparse.save_npz`  |
| `read_feature_pairs`  | header `rows columns`, lines `input:value ...`                      |
| `read_trailing_pairs` | the pairs `f:v ...` of the first form                               |
| `read_feature_matrix` | `.npz`: a CSR matrix of features                                    |
| `read_features`       | `.npy`: dense features                                              |
| `read_left_out`       | no header, lines `instance label`                                   |

In text every instance has one line; the line of an instance without labels is empty or begins with
a space. Ids count from 0. A label with a value above 0 is a positive, one with the value 0 is not.

`text_files` and `line_parsers` read text, `matrix_files` reads NumPy's and SciPy's files. `folder`
knows which file lies where.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy import sparse

from fanin.datasets.dataset import DataError
from fanin.datasets.line_parsers import LABEL_LINES, PAIR_LINES, TRAILING_PAIR_LINES
from fanin.datasets.matrix_files import read_array, read_matrix
from fanin.datasets.text_files import MAX_DIGITS, read_text, show

# What each first line holds: a name for every number. The first one counts the lines behind it.
LABELS_HEADER = {"N": "instances", "D": "inputs", "L": "labels"}
LABEL_PAIRS_HEADER = {"rows": "instances", "columns": "labels"}
FEATURE_PAIRS_HEADER = {"rows": "instances", "columns": "inputs"}


# --- labels -------------------------------------------------------------------------------------


def read_labels(path: Path | str) -> sparse.csr_array:
    """Read a label file into a bool matrix [instances, labels] with sorted indices.

    Feature pairs behind the labels are ignored. Raises DataError as `path:line: value: what to do`
    for a bad header, a label that is not an integer, is out of range or stands twice in a line, and
    for too few or too many lines.
    """
    return read_text(Path(path), LABELS_HEADER, "L", LABEL_LINES).astype(np.bool_)


def read_label_pairs(path: Path | str) -> sparse.csr_array:
    """Read `label:value` lines into a bool matrix [instances, labels] with sorted indices.

    Any value above 0 makes a positive. Raises DataError as `read_labels` does, and for a value that
    is negative or not finite.
    """
    path = Path(path)
    matrix = read_text(path, LABEL_PAIRS_HEADER, "columns", PAIR_LINES)
    return positives(matrix, lambda instance: f"{path}:{instance + 2}")


def read_label_matrix(path: Path | str) -> sparse.csr_array:
    """Read a `.npz` matrix [instances, labels] into a bool one with sorted indices.

    Any value above 0 makes a positive. Raises DataError for an unreadable file, another format than
    CSR, an id that is out of range or stands twice in a row, and for a value that is negative or
    not finite.
    """
    return positives(read_matrix(Path(path)), lambda row: f"{path}: row {row} (counted from 0)")


def positives(matrix: sparse.csr_array, place: Callable[[int], str]) -> sparse.csr_array:
    """The positives of a matrix with values: all but the zeros. `place` names a row in an error."""
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


def read_left_out(path: Path | str, shape: tuple[int, int]) -> sparse.csr_array:
    """Read pairs whose scores evaluation leaves out, one a line, into a bool matrix of that shape
    [instances, labels] with sorted indices. A pair may stand twice, and blank lines say nothing.

    Raises DataError as `path:line: value: what to do` for what is no pair of integers, or out of
    range.
    """
    pairs: list[tuple[int, int]] = []
    for number, line in enumerate(Path(path).read_bytes().splitlines(), 1):
        fields = line.split()
        if not fields:
            continue
        if len(fields) != 2 or not all(field.isdigit() for field in fields):
            raise DataError(
                f"{path}:{number}: {show(line)}: expected two integers, `instance label`"
            )
        for field, count, what in zip(fields, shape, ("instance", "label"), strict=True):
            if len(field) > MAX_DIGITS or int(field) >= count:
                raise DataError(
                    f"{path}:{number}: {what} {show(field)} is out of range: ids are 0 to "
                    f"{count - 1}"
                )
        pairs.append((int(fields[0]), int(fields[1])))
    rows, columns = np.array(sorted(set(pairs)), np.int64).reshape(-1, 2).T
    return sparse.csr_array((np.ones(len(rows), np.bool_), (rows, columns)), shape=shape)


def write_labels(path: Path | str, positives: sparse.csr_array, inputs: int) -> None:
    """Write positives [instances, labels] as a label file; `inputs` goes into the header."""
    instances, labels = positives.shape
    with Path(path).open("w", encoding="ascii", newline="\n") as file:
        file.write(f"{instances} {inputs} {labels}\n")
        for start, end in zip(positives.indptr[:-1], positives.indptr[1:], strict=True):
            label_ids = positives.indices[start:end].tolist()
            file.write(",".join(map(str, sorted(label_ids))) + "\n")


# --- features -----------------------------------------------------------------------------------


def read_feature_pairs(path: Path | str) -> sparse.csr_array:
    """Read `input:value` lines into a float32 matrix [instances, inputs] with sorted indices.

    Raises DataError as `path:line: value: what to do` for a bad header, a bad pair, an input that
    is out of range or stands twice in a line, a value that is not finite in float32, and for too
    few or too many lines.
    """
    return read_text(Path(path), FEATURE_PAIRS_HEADER, "columns", PAIR_LINES)


def read_trailing_pairs(path: Path | str) -> sparse.csr_array:
    """Read the pairs behind the labels of a label file, as `read_feature_pairs` does."""
    return read_text(Path(path), LABELS_HEADER, "D", TRAILING_PAIR_LINES)


def read_feature_matrix(path: Path | str) -> sparse.csr_array:
    """Read a `.npz` matrix [instances, inputs] into a float32 one with sorted indices.

    Raises DataError for an unreadable file, another format than CSR, an id that is out of range or
    stands twice in a row, and for a value that is not finite in float32.
    """
    return read_matrix(Path(path))


def read_features(path: Path | str) -> npt.NDArray[np.float32]:
    """Open `.npy` features [instances, inputs] as C-contiguous float32.

    A float32 file is memory-mapped and its values are checked later, by `Dataset`; another float
    type is converted in memory. Raises DataError for another type or shape, and for a value that
    is not finite in float32.
    """
    return read_array(Path(path))
