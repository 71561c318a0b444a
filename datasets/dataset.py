"""What a data set is: features and sparse labels, for training and for testing.

Every loader returns a `Dataset`, and every `Dataset` has passed `validate`. So training and metrics
need not check again whether features and labels have the same instances or whether one is NaN.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse

# Features are checked and hashed in blocks of this size: they may be a large memory map.
BLOCK_BYTES = 16 << 20

# Features [instances, inputs] in float32: a C-contiguous array, which may be a read-only memory
# map, or CSR for sparse ones, with sorted indices, none twice, and no zeros stored.
Features = npt.NDArray[np.float32] | sparse.csr_array


class DataError(ValueError):
    """Data that cannot be used; the message says where, what, and what to do."""


@dataclass(frozen=True, eq=False)
class Dataset:
    """An extreme multi-label data set in memory or memory-mapped.

    Raises DataError on construction if the parts do not fit each other (see `validate`).
    """

    name: str
    """Name of the data set, such as "wordnet-small"."""
    features: str
    """Name of its features, such as "tfidf-svd512"."""
    train_x: Features
    """Features [train instances, inputs]."""
    train_y: sparse.csr_array
    """Positives [train instances, labels], bool; indices sorted, none twice."""
    test_x: Features
    """Features [test instances, inputs], dense or sparse as `train_x`."""
    test_y: sparse.csr_array
    """Positives [test instances, labels], as `train_y`."""
    synthetic: bool
    """True if the data are made up, without real text or labels; reports then say so."""
    source: str
    """One line for reports: where the data come from."""
    label_names: Sequence[str] | None = None
    """What each label means, in the order of the label ids; None where that is unknown."""
    train_left_out: sparse.csr_array | None = None
    """Pairs whose scores evaluation leaves out, as `train_y`; None where there are none."""
    test_left_out: sparse.csr_array | None = None
    """The same, of the test split."""

    def __post_init__(self) -> None:
        self.validate()

    @property
    def inputs(self) -> int:
        """How many numbers an instance has."""
        return int(self.train_x.shape[1])

    @property
    def sparse_features(self) -> bool:
        """Whether the features are CSR."""
        return isinstance(self.train_x, sparse.csr_array)

    @property
    def labels(self) -> int:
        """How many labels there are, those without a positive included."""
        return int(self.train_y.shape[1])

    @property
    def train_instances(self) -> int:
        """How many instances there are to train on."""
        return int(self.train_x.shape[0])

    @property
    def test_instances(self) -> int:
        """How many instances there are to test on."""
        return int(self.test_x.shape[0])

    @property
    def memory_bytes(self) -> int:
        """What features and labels take in memory; memory maps take none."""
        parts = (self.train_x, self.train_y, self.test_x, self.test_y)
        return sum(array_bytes(part) for part in parts if not isinstance(part, np.memmap))

    @cached_property
    def identity(self) -> str:
        """SHA-256 (hex) over the shapes, the labels and the features of both splits, and over the
        pairs that are left out, where there are any.

        It reads all features once (about 2 s per GB), so it is computed only at the first use. It
        is exact: an SVD that is computed anew on another machine may differ in a last bit, and the
        identity then differs too.
        """
        digest = hashlib.sha256()
        for x, y in ((self.train_x, self.train_y), (self.test_x, self.test_y)):
            digest.update(repr((x.shape, y.shape)).encode())
            _add_pairs(digest, y)
            if isinstance(x, sparse.csr_array):
                digest.update(b"sparse features")
                _add_pairs(digest, x)
                _add_numbers(digest, x.data, np.float32)
                continue
            for _, block in _blocks(x):
                digest.update(block.tobytes())
        for split, pairs in (("train", self.train_left_out), ("test", self.test_left_out)):
            if pairs is not None:
                digest.update(f"{split} left out".encode())
                _add_pairs(digest, pairs)
        return digest.hexdigest()

    def validate(self) -> None:
        """Check that the parts fit: shapes, types, sorted labels in range, finite features.

        There must also be something to train and to test on.

        Raises DataError naming the data set, the split, and the first thing that is wrong.
        """
        where = f"{self.name} ({self.source})"
        for split, x, y, left_out in (
            ("train", self.train_x, self.train_y, self.train_left_out),
            ("test", self.test_x, self.test_y, self.test_left_out),
        ):
            _check_form(x, f"{where}: {split} features")
            if x.shape[0] != y.shape[0]:
                raise DataError(
                    f"{where}: {split} has {x.shape[0]} rows of features but {y.shape[0]} rows of "
                    "labels: both must hold the same instances in the same order"
                )
            _check_labels(y, f"{where}: {split} labels")
            check_some(y, f"{where}: {split} labels", to_train=split == "train")
            if left_out is not None:
                _check_labels(left_out, f"{where}: {split} pairs left out")
                if left_out.shape != y.shape:
                    raise DataError(
                        f"{where}: {split} pairs left out are of {left_out.shape} instances and "
                        f"labels, but there are {y.shape}"
                    )
            features = str(getattr(x, "filename", None) or f"{where}: {split} features")
            if not x.shape[1]:
                raise DataError(f"{features}: 0 inputs: at least one is needed")
            if isinstance(x, sparse.csr_array):
                _check_sparse_values(x, features)
            else:
                check_finite(x, features)
        if self.sparse_features != isinstance(self.test_x, sparse.csr_array):
            raise DataError(
                f"{where}: features of one split are dense and those of the other sparse: store "
                "both in the same form"
            )
        if self.train_x.shape[1] != self.test_x.shape[1]:
            raise DataError(
                f"{where}: {self.train_x.shape[1]} inputs for training but {self.test_x.shape[1]} "
                "for testing: make both with the same feature extractor"
            )
        if self.train_y.shape[1] != self.test_y.shape[1]:
            raise DataError(
                f"{where}: {self.train_y.shape[1]} labels for training but {self.test_y.shape[1]} "
                "for testing: both must count all labels, also those without a positive there"
            )
        if self.label_names is not None and len(self.label_names) != self.labels:
            raise DataError(
                f"{where}: {len(self.label_names)} label names for {self.labels} labels: "
                "give one for each, or none"
            )


def array_bytes(array: Features) -> int:
    """Bytes of the numbers in an array, which may be sparse."""
    if isinstance(array, sparse.csr_array):
        return int(array.data.nbytes + array.indices.nbytes + array.indptr.nbytes)
    return array.nbytes


def check_some(y: sparse.csr_array, where: str, to_train: bool) -> None:
    """Raise DataError without instances or labels and, if `to_train`, without any positive.

    `where` begins the message: the file, or the data set and split.
    """
    for count, what in zip(y.shape, ("instances", "labels"), strict=True):
        if not count:
            raise DataError(f"{where}: 0 {what}: at least one is needed")
    if to_train and not y.nnz:
        raise DataError(f"{where}: no instance has a label: there is nothing to learn")


def check_finite(x: npt.NDArray[np.floating], where: str, number: int = 0) -> None:
    """Raise DataError at the first NaN or infinite entry of x [rows, columns].

    `where` begins the message: the file, or the data set and split. number: that of the first row.
    """
    for first, block in _blocks(x):
        finite = np.isfinite(block)
        if not finite.all():
            row, column = np.argwhere(~finite)[0]
            raise DataError(
                f"{where}: row {number + first + row}, column {column} (counted from 0) is "
                f"{block[row, column]}: features must be finite; make them anew, or drop the row"
            )


def _check_form(x: Features, where: str) -> None:
    """Raise DataError where x is not of the shape, type and layout that `Features` have."""
    if not isinstance(x, (np.ndarray, sparse.csr_array)):
        raise DataError(
            f"{where} must be a NumPy array or a scipy.sparse.csr_array, not {type(x).__name__}"
        )
    if x.ndim != 2:
        raise DataError(f"{where} must be [instances, inputs], not {x.shape}")
    if isinstance(x, sparse.csr_array):
        if x.dtype != np.float32:
            raise DataError(f"{where} must be float32, not {x.dtype}: x.astype(numpy.float32)")
        _check_ids(x, where, "input")
    elif x.dtype != np.float32 or not x.flags.c_contiguous:
        raise DataError(
            f"{where} must be C-contiguous float32, not {x.dtype}: "
            "convert with numpy.ascontiguousarray(x, numpy.float32)"
        )


def _check_sparse_values(x: sparse.csr_array, where: str) -> None:
    """Raise DataError at the first stored value that is not finite, or 0."""
    for first in range(0, x.nnz, BLOCK_BYTES // 4):
        values = x.data[first : first + BLOCK_BYTES // 4]
        for good, advice in (
            (np.isfinite(values), "features must be finite; make them anew, or drop the row"),
            (values != 0, "zeros must not be stored: call x.eliminate_zeros()"),
        ):
            if not good.all():
                entry = first + int(good.argmin())
                row = int(np.searchsorted(x.indptr, entry, side="right")) - 1
                raise DataError(
                    f"{where}: row {row}, column {x.indices[entry]} (counted from 0) is "
                    f"{x.data[entry]}: {advice}"
                )


def _check_ids(matrix: sparse.csr_array, where: str, what: str) -> None:
    """Raise DataError where the columns of a matrix are not the ids of labels or inputs."""
    try:
        matrix.check_format(full_check=False)
        if (np.diff(matrix.indptr) < 0).any():
            raise ValueError("indptr must rise")
    except ValueError as error:
        raise DataError(f"{where}: no valid CSR matrix ({error}): make it anew") from error
    ids, count = matrix.indices, matrix.shape[1]
    if matrix.nnz and (ids.min() < 0 or ids.max() >= count):
        wrong = next(int(i) for i in ids if not 0 <= i < count)
        raise DataError(f"{where}: {what} {wrong} is out of range: ids are 0 to {count - 1}")
    if not matrix.has_canonical_format:
        raise DataError(f"{where}: indices must be sorted, none twice: call sum_duplicates()")


def _check_labels(y: sparse.csr_array, where: str) -> None:
    if not isinstance(y, sparse.csr_array) or y.ndim != 2:
        raise DataError(f"{where}: must be a scipy.sparse.csr_array, not {type(y).__name__}")
    _check_ids(y, where, "label")
    if y.dtype not in (np.bool_, np.int8) or not (y.data == 1).all():
        raise DataError(f"{where}: must be bool or int8, all stored values 1: positives only")


def _add_pairs(digest: hashlib._Hash, pairs: sparse.csr_array) -> None:
    _add_numbers(digest, pairs.indptr, np.int64)
    _add_numbers(digest, pairs.indices, np.int64)


def _add_numbers(digest: hashlib._Hash, numbers: npt.NDArray[Any], dtype: type) -> None:
    """Add a vector as numbers of a type, in blocks: a copy of all of it may be large."""
    size = BLOCK_BYTES // np.dtype(dtype).itemsize
    for first in range(0, len(numbers), size):
        digest.update(numbers[first : first + size].astype(dtype, copy=False).data)


def _blocks(x: npt.NDArray[np.floating]) -> Iterator[tuple[int, npt.NDArray[np.floating]]]:
    """The instances in blocks of about BLOCK_BYTES: (number of the first one, features)."""
    size = max(1, BLOCK_BYTES // max(1, x.shape[1] * x.itemsize))
    for first in range(0, x.shape[0], size):
        yield first, x[first : first + size]
