"""Files that data sets lie in: labels as text, features as `.npy`.

The layout is the one of the extreme-classification repository's users (Schultheis & Babbar, 2023):

    <data>/<dataset>/train-labels.txt        <data>/<dataset>/train-<features>.npy
    <data>/<dataset>/test-labels.txt         <data>/<dataset>/test-<features>.npy

A label file begins with the header `N D L` (instances, inputs, labels); then every instance has one
line `l1,l2,... [f:v ...]`. Feature pairs may stand there and are ignored, since the features used
are the dense ones; an instance without labels is an empty line, or one that begins with a space.

Labels are read a block of lines at a time: first by `_parse_fast`, which handles good lines in bulk
and gives up at anything odd, then by `_parse_slowly`, which walks the lines and names the culprit.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import sparse

from .dataset import DataError, Dataset, check_finite

log = logging.getLogger(__name__)

BLOCK_LINES = 20_000
MAX_DIGITS = 9  # of a number: no data set comes near, and line * labels + label fits 64 bits
FEATURE_TYPES = ("float16", "float32", "float64")


class _Positives(NamedTuple):
    """The positives of some lines: how many each line has, and all their ids, sorted per line."""

    counts: npt.NDArray[np.int64]
    ids: npt.NDArray[np.int64]


def read_labels(path: Path | str) -> sparse.csr_array:
    """Read a label file into a bool matrix [instances, labels] with sorted indices.

    Raises DataError as `path:line: value: what to do` for a bad header, a label that is not an
    integer, is out of range or stands twice in a line, and for too few or too many lines.
    """
    path = Path(path)
    blocks: list[_Positives] = []
    with path.open("rb") as file:
        instances, labels = _read_header(path, file.readline())
        done = 0
        while lines := list(islice(file, BLOCK_LINES)):
            if done + len(lines) > instances:
                raise DataError(
                    f"{path}:{instances + 2}: one line too many: the header says {instances} "
                    "instances; correct its first number or remove what follows"
                )
            block = _parse_fast(lines, labels)
            if block is None:
                block = _parse_slowly(lines, labels, path, done + 2)
            blocks.append(block)
            done += len(lines)
    if done < instances:
        raise DataError(
            f"{path}:{done + 2}: the file ends after {done} instances but its header says "
            f"{instances}: is the file cut off?"
        )
    counts = np.concatenate([np.zeros(1, np.int64), *(block.counts for block in blocks)])
    ids = np.concatenate([np.zeros(0, np.int64), *(block.ids for block in blocks)])
    index = np.int32 if len(ids) < 2**31 else np.int64  # half the memory where it suffices
    parts = (np.ones(len(ids), np.bool_), ids.astype(index), np.cumsum(counts).astype(index))
    return sparse.csr_array(parts, shape=(instances, labels))


def write_labels(path: Path | str, labels: sparse.csr_array, inputs: int) -> None:
    """Write positives [instances, labels] as a label file; `inputs` goes into the header."""
    instances, count = labels.shape
    with Path(path).open("w", encoding="ascii", newline="\n") as file:
        file.write(f"{instances} {inputs} {count}\n")
        for row in range(instances):
            ids = labels.indices[labels.indptr[row] : labels.indptr[row + 1]]
            file.write(",".join(map(str, sorted(ids.tolist()))) + "\n")


def read_features(path: Path | str) -> npt.NDArray[np.float32]:
    """Open `.npy` features [instances, inputs] as C-contiguous float32.

    A float32 file is memory-mapped and its values are checked later, by `Dataset`; another float
    type is converted in memory. Raises DataError for another type or shape, and for a value that
    is not finite in float32.
    """
    path = Path(path)
    try:
        stored = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise DataError(
            f"{path}: not a readable .npy file ({error}): write it anew with numpy.save"
        ) from error
    if not isinstance(stored, np.ndarray) or stored.ndim != 2:
        shape = getattr(stored, "shape", "an .npz archive")
        raise DataError(f"{path}: features must be one array [instances, inputs], not {shape}")
    if stored.dtype.name not in FEATURE_TYPES:
        usable = ", ".join(FEATURE_TYPES)
        raise DataError(f"{path}: features are {stored.dtype}: store one of {usable}")
    if stored.dtype == np.float32 and stored.flags.c_contiguous:
        return stored
    log.info("%s is %s: converting in memory; a float32 file is mapped", path, stored.dtype)
    with np.errstate(over="ignore"):  # becomes infinite, which the check reports
        converted = np.ascontiguousarray(stored, np.float32)
    check_finite(converted, f"{path} (as float32)")
    return converted


def load_folder(data_dir: Path | str, dataset: str, features: str | None = None) -> Dataset:
    """Load `<data_dir>/<dataset>` in the layout above.

    `features` may be left out where the folder holds only one kind. Raises DataError for a missing
    file (saying what it is to hold), for a bad one, and for files that do not fit each other.
    """
    folder = Path(data_dir) / dataset
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; it is to hold the files of {dataset}")
    found = sorted(path.stem.removeprefix("train-") for path in folder.glob("train-*.npy"))
    have = ", ".join(found) or "none"
    if features is None:
        if len(found) != 1:
            raise DataError(f"{folder}: say which features to load; train-*.npy here: {have}")
        features = found[0]

    parts = []
    for split in ("train", "test"):
        label_path = folder / f"{split}-labels.txt"
        feature_path = folder / f"{split}-{features}.npy"
        if not label_path.is_file():
            raise DataError(
                f"{label_path}: missing; it is to hold the {split} labels: a header line `N D L` "
                "(instances, inputs, labels), then one line `l1,l2,...` per instance"
            )
        if not feature_path.is_file():
            raise DataError(
                f"{feature_path}: missing; it is to hold the {split} features, a float array "
                f"[instances, inputs] written by numpy.save; features here: {have}"
            )
        x, y = read_features(feature_path), read_labels(label_path)
        if len(x) != y.shape[0]:
            raise DataError(
                f"{feature_path}: {len(x)} rows, but {label_path} has {y.shape[0]} instances: "
                "both must hold the same instances in the same order"
            )
        parts.append((x, y))
    (train_x, train_y), (test_x, test_y) = parts
    return Dataset(
        name=dataset,
        features=features,
        train_x=train_x,
        train_y=train_y,
        test_x=test_x,
        test_y=test_y,
        synthetic=False,
        source=f"files in {folder}",
    )


def _read_header(path: Path, line: bytes) -> tuple[int, int]:
    """Instances and labels of the header line; its second number, the inputs, is not needed."""
    fields = line.split()
    if len(fields) != 3 or not all(f.isdigit() and len(f) <= MAX_DIGITS for f in fields):
        raise DataError(
            f"{path}:1: header {_show(line)}: expected three integers `N D L` "
            "(instances, inputs, labels)"
        )
    return int(fields[0]), int(fields[2])


def _parse_fast(lines: Sequence[bytes], labels: int) -> _Positives | None:
    """The positives of good lines, in bulk; None if there is anything to complain about."""
    cut = [line.rstrip(b"\r\n").partition(b" ") for line in lines]
    if any(rest and not _is_feature_list(rest) for _, _, rest in cut):
        return None
    fields = [field for field, _, _ in cut]
    counts = np.fromiter((f.count(b",") + 1 if f else 0 for f in fields), np.int64, len(fields))
    text = b",".join(filter(None, fields))
    if text and (text.translate(None, b"0123456789,") or b",," in b",%b," % text):
        return None
    ids = np.fromstring(text, np.int64, sep=",") if text else np.zeros(0, np.int64)
    if len(ids) != counts.sum() or (len(ids) and ids.max() >= labels):
        return None
    # One sortable number per positive: in order within each line exactly if these are in order.
    keys = np.repeat(np.arange(len(fields)), counts) * labels + ids
    if not (np.diff(keys) > 0).all():
        keys.sort()
        if not (np.diff(keys) > 0).all():
            return None  # a label twice in a line
        ids = keys % labels
    return _Positives(counts, ids)


def _parse_slowly(lines: Sequence[bytes], labels: int, path: Path, first_line: int) -> _Positives:
    """The same line by line; raises DataError at the first bad line."""
    counts: list[int] = []
    ids: list[int] = []
    for number, line in enumerate(lines, first_line):
        where = f"{path}:{number}"
        field, _, rest = line.rstrip(b"\r\n").partition(b" ")
        if rest and not _is_feature_list(rest):
            raise DataError(
                f"{where}: {_show(rest)} after the labels is no `feature:value` list: "
                "separate labels by commas without spaces"
            )
        row: set[int] = set()
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
            row.add(label)
        counts.append(len(row))
        ids.extend(sorted(row))
    return _Positives(np.array(counts, np.int64), np.array(ids, np.int64))


def _is_feature_list(rest: bytes) -> bool:
    """Whether what follows the labels begins with an `f:v` pair, or is blank."""
    first = rest.lstrip().partition(b" ")[0]
    return not first or b":" in first


def _show(value: bytes) -> str:
    """A piece of a file for a message: printable and not too long."""
    text = value.decode("utf-8", errors="replace").rstrip("\r\n")
    return repr(text if len(text) <= 60 else text[:57] + "...")
