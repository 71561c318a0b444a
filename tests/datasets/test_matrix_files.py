"""NumPy's and SciPy's files: types, and damaged files."""

from __future__ import annotations

import errno
import mmap
import os
import re
from pathlib import Path

import numpy as np
import pytest
from dataset_files import csr, same, same_values
from scipy import sparse

from fanin.datasets import DataError, formats


def npy(header: bytes) -> bytes:
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"PK\x03\x04junk",
        npy(b"{'descr': '<f4', 'fortran_order': \n"),
        npy(b"{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999999999999, 4)}\n"),
        npy(b"{'descr': '<f4', 'fortran_order': False, 'shape': (True, 4)}\n"),
    ],
)
def test_damaged_features_are_named(tmp_path: Path, content: bytes) -> None:
    for name, read in (("x.npy", formats.read_features), ("x.npz", formats.read_feature_matrix)):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=rf"{name}: not a readable .*write it anew with"):
            read(tmp_path / name)


@pytest.mark.parametrize("dtype", [bool, np.int8, np.int64, np.float16, np.float32, np.float64])
def test_matrix_types(tmp_path: Path, dtype: type) -> None:
    expected = csr([[0, 3], [], [1]], 5)
    shuffled = sparse.csr_array((np.ones(3, dtype), [3, 0, 1], [0, 2, 2, 3]), (3, 5))
    sparse.save_npz(tmp_path / "labels.npz", shuffled)
    assert same(formats.read_label_matrix(tmp_path / "labels.npz"), expected)
    features = formats.read_feature_matrix(tmp_path / "labels.npz")
    assert same_values(features, expected.astype(np.float32))


def matrix(**change: list | np.ndarray) -> sparse.csr_array:
    """A matrix of 3 rows and 5 columns, with one of its arrays spoiled."""
    made = sparse.csr_array((np.ones(3), [0, 3, 1], [0, 2, 2, 3]), (3, 5))
    for name, values in change.items():
        getattr(made, name)[:] = values
    return made


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        (matrix(indices=[0, 5, 1]), r"row 0 .*: id 5 is out of range: .* 5 columns, so ids are 0"),
        (matrix(indices=[0, 3, -1]), r"row 2 .*: id -1 is out of range"),
        (matrix(indices=[3, 3, 3]), r"row 0 .*: id 3 stands twice"),
        (matrix(indptr=[0, 2, 1, 3]), "damaged"),
        (matrix(data=[1, 1, np.nan]), r"row 2 .*: id 1 has the value nan"),
        (matrix(data=[1, 1e300, 1]), r"row 0 .*: id 3 has the value inf"),
        (matrix().tocoo(), "holds float64 numbers in format coo"),
        (matrix().astype(complex), "holds complex128 numbers in format csr"),
    ],
)
def test_bad_matrix(tmp_path: Path, stored: sparse.csr_array, message: str) -> None:
    sparse.save_npz(tmp_path / "x.npz", stored)
    for read in (formats.read_label_matrix, formats.read_feature_matrix):
        with pytest.raises(DataError, match=f"x.npz: {message}"):
            read(tmp_path / "x.npz")


def test_a_file_system_without_memory_maps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Refused:
        def __init__(self, *_: object, **__: object) -> None:
            raise OSError(number, os.strerror(number))

    x = np.arange(6, dtype=np.float32).reshape(3, 2)
    np.save(tmp_path / "x.npy", x)
    monkeypatch.setattr(mmap, "mmap", Refused)
    number = errno.ENODEV
    assert np.array_equal(formats.read_features(tmp_path / "x.npy"), x)
    number = errno.EIO
    with pytest.raises(OSError, match=re.escape(f"'{tmp_path / 'x.npy'}'")):
        formats.read_features(tmp_path / "x.npy")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"indices": np.array([0.7, 3, 1])}, "its indices are float64: they must be integers"),
        ({"indptr": np.array([0, 2.9, 2.9, 3])}, "its indptr are float64: they must be integers"),
        ({"indices": np.array([True, False, True])}, "its indices are bool"),
        ({"indices": np.array(["0", "3", "1"])}, "its indices are <U1"),
        ({"indptr": np.array([0, 2, 2, 2**64 - 1], np.uint64)}, r"damaged \(indptr has to rise"),
        ({"shape": np.array([3, 10**9])}, "1000000000 rows or columns are too many: at most 99999"),
        ({"indptr": np.array([0, 2, 2, 2])}, r"damaged \(indptr has to rise from 0 to 3"),
    ],
)
def test_arrays_that_scipy_takes_for_something_else(
    tmp_path: Path, change: dict[str, np.ndarray], message: str
) -> None:
    path, good = tmp_path / "x.npz", matrix()
    parts = {"data": good.data, "indices": good.indices, "indptr": good.indptr}
    parts |= {"shape": np.array(good.shape), "format": np.array(b"csr")}
    np.savez(path, **parts)
    assert same_values(formats.read_feature_matrix(path), good.astype(np.float32))
    np.savez(path, **parts | change)
    for read in (formats.read_label_matrix, formats.read_feature_matrix):
        with pytest.raises(DataError, match=f"x.npz: {message}"):
            read(path)


def test_unreadable_matrix(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    sparse.save_npz(path, matrix())
    whole = path.read_bytes()
    np.save(path.with_suffix(".npy"), np.ones(3))
    array = path.with_suffix(".npy").read_bytes()
    np.savez(path, x=np.ones(3))
    for content in (path.read_bytes(), whole[:-40], array, b"3 5\n", b""):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"x.npz: not a readable sparse .npz file"):
            formats.read_feature_matrix(path)
