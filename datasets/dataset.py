"""What a data set is: dense features and sparse labels, for training and for testing.

Every loader ends in a `Dataset`, and a `Dataset` that exists has passed `validate`: the code behind
it (training, metrics) need not ask again whether rows agree or a feature is NaN.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
from scipy import sparse

BLOCK_BYTES = 16 << 20  # features are checked and hashed in pieces: they may be a large memory map


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
    train_x: npt.NDArray[np.float32]
    """Features [train instances, inputs], C-contiguous; may be a read-only memory map."""
    train_y: sparse.csr_array
    """Positives [train instances, labels], bool; indices sorted, none twice."""
    test_x: npt.NDArray[np.float32]
    """Features [test instances, inputs], as `train_x`."""
    test_y: sparse.csr_array
    """Positives [test instances, labels], as `train_y`."""
    synthetic: bool
    """True if no real text or label stands behind it; reports then say so."""
    source: str
    """One line for reports: where the data come from."""
    label_names: Sequence[str] | None = None
    """What each label means, in the order of the label ids; None where nobody knows."""

    def __post_init__(self) -> None:
        self.validate()

    @property
    def inputs(self) -> int:
        """Features per instance."""
        return int(self.train_x.shape[1])

    @property
    def labels(self) -> int:
        """Number of labels, with or without a positive."""
        return int(self.train_y.shape[1])

    @property
    def train_instances(self) -> int:
        """Instances to train on."""
        return int(self.train_x.shape[0])

    @property
    def test_instances(self) -> int:
        """Instances to test on."""
        return int(self.test_x.shape[0])

    @cached_property
    def identity(self) -> str:
        """SHA-256 (hex) over the shapes, the labels and the features of both splits.

        It reads all features once (about 2 s per GB), hence only when asked for. It is exact:
        features that differ in a last bit, as a rebuilt SVD may on another machine, differ here.
        """
        digest = hashlib.sha256()
        for x, y in ((self.train_x, self.train_y), (self.test_x, self.test_y)):
            digest.update(repr((x.shape, y.shape)).encode())
            digest.update(y.indptr.astype(np.int64).tobytes())
            digest.update(y.indices.astype(np.int64).tobytes())
            for _, block in _row_blocks(x):
                digest.update(block.tobytes())
        return digest.hexdigest()

    def validate(self) -> None:
        """Check that the parts fit: shapes, types, sorted labels in range, finite features; and
        that there is something to train and to test on.

        Raises DataError naming the data set, the split, and the first thing that is wrong.
        """
        here = f"{self.name} ({self.source})"
        for split, x, y in (
            ("train", self.train_x, self.train_y),
            ("test", self.test_x, self.test_y),
        ):
            if x.ndim != 2:
                raise DataError(
                    f"{here}: {split} features must be [instances, inputs], not {x.shape}"
                )
            if x.dtype != np.float32 or not x.flags.c_contiguous:
                raise DataError(
                    f"{here}: {split} features must be C-contiguous float32, not {x.dtype}: "
                    "convert with numpy.ascontiguousarray(x, numpy.float32)"
                )
            if x.shape[0] != y.shape[0]:
                raise DataError(
                    f"{here}: {split} has {x.shape[0]} rows of features but {y.shape[0]} rows of "
                    "labels: both must hold the same instances in the same order"
                )
            _check_labels(y, f"{here}: {split} labels")
            check_some(y, f"{here}: {split} labels", to_train=split == "train")
            features = str(getattr(x, "filename", None) or f"{here}: {split} features")
            if not x.shape[1]:
                raise DataError(f"{features}: 0 inputs: at least one is needed")
            check_finite(x, features)
        if self.train_x.shape[1] != self.test_x.shape[1]:
            raise DataError(
                f"{here}: {self.train_x.shape[1]} inputs for training but {self.test_x.shape[1]} "
                "for testing: make both with the same feature extractor"
            )
        if self.train_y.shape[1] != self.test_y.shape[1]:
            raise DataError(
                f"{here}: {self.train_y.shape[1]} labels for training but {self.test_y.shape[1]} "
                "for testing: both must count all labels, also those without a positive there"
            )
        if self.label_names is not None and len(self.label_names) != self.labels:
            raise DataError(
                f"{here}: {len(self.label_names)} label names for {self.labels} labels: "
                "give one for each, or none"
            )


def check_some(y: sparse.csr_array, where: str, to_train: bool) -> None:
    """Raise DataError for no instances or labels, and where it is `to_train`, for no positive.

    `where` begins the message: the file, or the data set and split.
    """
    for count, what in zip(y.shape, ("instances", "labels"), strict=True):
        if not count:
            raise DataError(f"{where}: 0 {what}: at least one is needed")
    if to_train and not y.nnz:
        raise DataError(f"{where}: no instance has a label: there is nothing to learn")


def check_finite(x: npt.NDArray[np.floating], where: str) -> None:
    """Raise DataError at the first NaN or infinite entry of x [rows, columns].

    `where` begins the message: the file, or the data set and split.
    """
    for first, block in _row_blocks(x):
        finite = np.isfinite(block)
        if not finite.all():
            row, column = np.argwhere(~finite)[0]
            raise DataError(
                f"{where}: row {first + row}, column {column} (counted from 0) is "
                f"{block[row, column]}: features must be finite; make them anew, or drop the row"
            )


def _check_labels(y: sparse.csr_array, where: str) -> None:
    if not isinstance(y, sparse.csr_array) or y.ndim != 2:
        raise DataError(f"{where}: must be a scipy.sparse.csr_array, not {type(y).__name__}")
    if y.nnz and (y.indices.min() < 0 or y.indices.max() >= y.shape[1]):
        wrong = next(int(i) for i in y.indices if not 0 <= i < y.shape[1])
        raise DataError(f"{where}: label {wrong} is out of range: ids are 0 to {y.shape[1] - 1}")
    if not y.has_canonical_format:
        raise DataError(f"{where}: indices must be sorted, none twice: call y.sum_duplicates()")
    if y.dtype not in (np.bool_, np.int8) or not (y.data == 1).all():
        raise DataError(f"{where}: must be bool or int8, all stored values 1: positives only")


def _row_blocks(x: npt.NDArray[np.floating]) -> Iterator[tuple[int, npt.NDArray[np.floating]]]:
    """(first row, rows) pieces of about BLOCK_BYTES."""
    rows = max(1, BLOCK_BYTES // max(1, x.shape[1] * x.itemsize))
    for first in range(0, x.shape[0], rows):
        yield first, x[first : first + rows]
