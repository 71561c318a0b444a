"""Matrices in blocks: the same numbers and the same complaints as when they are read whole."""

from __future__ import annotations

import gzip
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from dataset_files import FEATURE_FORMS, LABEL_FORMS, write_form
from scipy import sparse

from fanin.datasets import DataError, formats, text_files
from fanin.datasets.folder import LABELS, feature_files
from fanin.datasets.tools import blocks
from fanin.datasets.tools.files import find_file


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of an instance or two."""
    monkeypatch.setattr(blocks, "ENTRIES", 2)
    monkeypatch.setattr(text_files, "BLOCK_BYTES", 10)


def whole(matrix: blocks.Blocks) -> sparse.csr_array:
    parts = list(matrix.blocks)
    assert len(parts) > 1
    for part in parts:
        assert part.has_canonical_format and part.dtype == np.float32
    result = sparse.csr_array(sparse.vstack(parts))
    assert result.shape == (matrix.instances, matrix.columns)
    return result


def equal(a: sparse.csr_array, b: sparse.csr_array) -> bool:
    return a.shape == b.shape and np.array_equal(a.toarray(), b.toarray())


@pytest.mark.parametrize("form", LABEL_FORMS)
def test_labels(tmp_path: Path, small: None, form: str) -> None:
    write_form(tmp_path, form, "own.npy" if form != "single" else "single")
    path = find_file(tmp_path, "train", LABELS)
    assert path
    read = {"own.txt": formats.read_labels, "single": formats.read_labels}.get(form)
    read = read or (formats.read_label_matrix if "npz" in form else formats.read_label_pairs)
    assert equal(whole(blocks.label_blocks(path)), read(path))


@pytest.mark.parametrize("form", FEATURE_FORMS)
def test_features(tmp_path: Path, small: None, form: str) -> None:
    write_form(tmp_path, "own.npz" if form != "single" else "single", form)
    path = find_file(tmp_path, "train", feature_files("bow"))
    assert path
    read: dict[str, Callable[[Path], object]] = {
        "own.npy": lambda path: sparse.csr_array(formats.read_features(path)),
        "repository.txt": formats.read_feature_pairs,
        "single": formats.read_trailing_pairs,
    }
    expected = read.get(form, formats.read_feature_matrix)(path)
    assert equal(whole(blocks.feature_blocks(path)), expected)
    if path.suffix == ".txt":
        packed = path.with_name(f"{path.name}.gz")
        packed.write_bytes(gzip.compress(path.read_bytes()))
        assert equal(whole(blocks.feature_blocks(packed)), expected)


def read_all(path: Path) -> list[sparse.csr_array]:
    return list(blocks.feature_blocks(path).blocks)


def test_a_later_bad_row_has_its_number(tmp_path: Path, small: None) -> None:
    values = np.ones((9, 4), np.float32)
    values[7, 2] = np.inf
    np.save(tmp_path / "train-a.npy", values)
    with pytest.raises(DataError, match=r"train-a.npy: row 7, column 2 .*is inf"):
        read_all(tmp_path / "train-a.npy")
    sparse.save_npz(tmp_path / "train-a.npz", sparse.csr_array(values))
    with pytest.raises(DataError, match=r"train-a.npz: row 7 .*: id 2 has the value inf"):
        read_all(tmp_path / "train-a.npz")
    y = sparse.csr_array(np.array([[1], [1], [1], [-1]]))
    sparse.save_npz(tmp_path / "train-labels.npz", y)
    with pytest.raises(DataError, match=r"labels.npz: row 3 .*: label 0 has the value -1"):
        list(blocks.label_blocks(tmp_path / "train-labels.npz").blocks)
    (tmp_path / "trn_X_Y.txt").write_text("3 1\n0:1\n\n0:-1\n")
    with pytest.raises(DataError, match=r"trn_X_Y.txt:4: label 0 has the value -1"):
        list(blocks.label_blocks(tmp_path / "trn_X_Y.txt").blocks)


@pytest.mark.parametrize("packed", [False, True])
def test_a_file_that_is_cut_off_anywhere(tmp_path: Path, packed: bool) -> None:
    """Each cut is an error of the data that names the file."""
    path = tmp_path / ("trn_X_Xf.txt.gz" if packed else "train-a.npz")
    if packed:
        path.write_bytes(gzip.compress(b"3 5\n0:1 2:0.5\n\n4:2\n"))
    else:
        sparse.save_npz(path, sparse.random_array((6, 5), density=0.5, format="csr", rng=0))
    content = path.read_bytes()
    for end in range(len(content)):
        path.write_bytes(content[:end])
        with pytest.raises(DataError, match=path.name):
            read_all(path)


def test_a_flipped_bit_is_noticed_or_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "train-a.npz"
    x = sparse.random_array((6, 5), density=0.5, format="csr", rng=0, dtype=np.float32)
    sparse.save_npz(path, x)
    content = bytearray(path.read_bytes())
    for place in range(len(content)):
        content[place] ^= 1
        path.write_bytes(content)
        content[place] ^= 1
        try:
            (read,) = read_all(path)
        except DataError as error:
            message = str(error)
        else:
            assert equal(read, x)
            continue
        assert str(path) in message


def test_a_line_without_end_does_not_fill_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_files, "LONGEST_LINE", 1 << 20)
    monkeypatch.setattr(text_files, "BLOCK_BYTES", 1 << 16)
    path = tmp_path / "train.txt"
    path.write_bytes(b"2 3 4\n" + b"1" * (3 << 20))
    with pytest.raises(DataError, match=r"train.txt:2: a line of more than 1 MiB"):
        read_all(path)


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    """12 million entries, 96 MB, in blocks of half a million."""
    rows, per_row = 120_000, 100
    starts = np.arange(rows + 1, dtype=np.int32) * per_row
    ids = np.tile(np.arange(per_row, dtype=np.int32), rows)
    shape = (rows, per_row)
    x = sparse.csr_array((np.ones(len(ids), np.float32), ids, starts), shape=shape)
    sparse.save_npz(tmp_path / "train-a.npz", x, compressed=False)
    del x, ids
    tracemalloc.start()
    total = sum(block.nnz for block in blocks.feature_blocks(tmp_path / "train-a.npz").blocks)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert total == rows * per_row
    assert peak < 24 << 20
