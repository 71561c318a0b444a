"""Data sets: file formats and their errors, the embedded WordNet sets, the feature cache."""

from __future__ import annotations

import bz2
import functools
import gzip
import logging
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import sparse

from fanin.datasets import (
    DataError,
    Dataset,
    available,
    folder,
    formats,
    load,
    memory,
    svd,
    text_features,
    wordnet,
)


def csr(rows: list[list[int]], labels: int) -> sparse.csr_array:
    indptr = np.cumsum([0, *map(len, rows)])
    indices = np.array([label for row in rows for label in row], np.int64)
    return sparse.csr_array((np.ones(len(indices), bool), indices, indptr), (len(rows), labels))


def same(a: sparse.csr_array, b: sparse.csr_array) -> bool:
    return (
        a.shape == b.shape
        and np.array_equal(a.indptr, b.indptr)
        and np.array_equal(a.indices, b.indices)
    )


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FANIN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


# --- label files ------------------------------------------------------------------------------


@st.composite
def label_rows(draw: st.DrawFn) -> tuple[list[list[int]], int]:
    labels = draw(st.integers(1, 3_000_000))
    row = st.lists(st.integers(0, labels - 1), max_size=6, unique=True)
    return draw(st.lists(row, max_size=40)), labels


@given(data=label_rows())
@settings(max_examples=100, deadline=None)
def test_labels_round_trip(tmp_path_factory: pytest.TempPathFactory, data) -> None:
    rows, labels = data
    path = tmp_path_factory.getbasetemp() / "round-trip.txt"
    expected = csr([sorted(row) for row in rows], labels)
    formats.write_labels(path, expected, inputs=7)
    assert path.read_text().splitlines()[0] == f"{len(rows)} 7 {labels}"
    assert same(formats.read_labels(path), expected)


@given(data=label_rows(), features=st.sampled_from([b"", b" 3:0.5 7:1e-3", b"\r\n", b" "]))
@settings(max_examples=100, deadline=None)
def test_fast_and_slow_parser_agree(data, features: bytes) -> None:
    rows, labels = data
    lines = [",".join(map(str, row)).encode() + features + b"\n" for row in rows]
    fast = formats._fast_labels(lines, labels)
    slow = formats._slow_labels(lines, labels, Path("x"), 2)
    assert fast is not None
    assert fast.counts.tolist() == slow.counts.tolist() == [len(row) for row in rows]
    assert fast.ids.tolist() == slow.ids.tolist() == [i for row in rows for i in sorted(row)]


def test_feature_pairs_and_empty_instances(tmp_path: Path) -> None:
    path = tmp_path / "train-labels.txt"
    path.write_bytes(b"5 100 9\n8,1 3:0.5 99:1.5\n\n 3:0.5\n2\r\n0")
    assert same(formats.read_labels(path), csr([[1, 8], [], [], [2], [0]], 9))


GOOD = ["0,1", "2 5:0.5", "", "3,0"]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("1,x", "label 'x' is not an integer"),
        ("1.5", "label '1.5' is not an integer"),
        ("-1", "label '-1' is not an integer"),
        ("1,,2", "label '' is not an integer"),
        ("1,", "label '' is not an integer"),
        (",1", "label '' is not an integer"),
        ("5:0.5", "label '5:0.5' is not an integer"),
        ("1 2", "'2' after the labels is no `feature:value` list"),
        ("1, 2", "'2' after the labels is no `feature:value` list"),
        ("1,4", "label '4' is out of range: the header says 4 labels"),
        ("9" * 30, f"label '{'9' * 30}' is out of range"),
        ("9" * 5000, "is out of range"),
        ("1,2,1", "label 1 stands twice"),
    ],
)
@pytest.mark.parametrize("place", [0, 2, 4])
def test_bad_line_is_named(tmp_path: Path, line: str, said: str, place: int) -> None:
    path = tmp_path / "train-labels.txt"
    lines = [*GOOD[:place], line, *GOOD[place:]]
    path.write_text("\n".join(["5 10 4", *lines]) + "\n")
    with pytest.raises(DataError) as caught:
        formats.read_labels(path)
    assert str(caught.value).startswith(f"{path}:{place + 2}: ")
    assert said in str(caught.value)


def test_bad_line_in_a_later_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "BLOCK_BYTES", 10)
    path = tmp_path / "labels.txt"
    path.write_text("8 10 4\n" + "1,2\n" * 7 + "7\n")
    with pytest.raises(DataError, match=r"labels\.txt:9: label '7'"):
        formats.read_labels(path)
    path.write_text("8 10 4\n" + "1,2\n" * 7 + "3\n")
    assert same(formats.read_labels(path), csr([[1, 2]] * 7 + [[3]], 4))


@pytest.mark.parametrize("header", ["", "4 10", "4 10 x", "4 10 4 1", "-4 10 4"])
def test_bad_header(tmp_path: Path, header: str) -> None:
    path = tmp_path / "labels.txt"
    path.write_text("\n".join([header, *GOOD]) + "\n")
    with pytest.raises(DataError, match=r"labels\.txt:1: header .*expected three integers `N D L`"):
        formats.read_labels(path)


@pytest.mark.parametrize("number", ["12345678901", "9" * 5000])
def test_header_with_too_large_a_number(tmp_path: Path, number: str) -> None:
    path = tmp_path / "labels.txt"
    path.write_text("\n".join([f"4 10 {number}", *GOOD]) + "\n")
    said = rf":1: '{number[:57]}.*' in the header is too large: at most 999999999$"
    with pytest.raises(DataError, match=said):
        formats.read_labels(path)


def test_text_that_is_not_plain(tmp_path: Path) -> None:
    path = tmp_path / "labels.txt"
    text = "\n".join(["4 10 4", *GOOD]) + "\n"
    for content, said in (
        (gzip.compress(text.encode()), "compressed by gzip: unpack it with gunzip"),
        (bz2.compress(text.encode()), "compressed by bzip2: unpack it with bunzip2"),
        (text.encode("utf-16"), "UTF-16 text: save it as UTF-8"),
        (b"\xfe\xff" + text.encode("utf-16-be"), "UTF-16 text: save it as UTF-8"),
    ):
        path.write_bytes(content)
        with pytest.raises(DataError, match=rf"labels\.txt: {said}"):
            formats.read_labels(path)


def test_too_few_and_too_many_lines(tmp_path: Path) -> None:
    path = tmp_path / "labels.txt"
    path.write_text("\n".join(["5 10 4", *GOOD]) + "\n")
    with pytest.raises(DataError, match=r"labels\.txt:6: the file ends after 4 .* says 5"):
        formats.read_labels(path)
    path.write_text("\n".join(["3 10 4", *GOOD]) + "\n")
    with pytest.raises(DataError, match=r"labels\.txt:5: one line too many: the header says 3"):
        formats.read_labels(path)


# --- features and folders -----------------------------------------------------------------------


def write_folder(folder: Path, dtype: type = np.float32) -> dict[str, np.ndarray]:
    """A well-formed data set of 6 + 3 instances, 4 inputs and 5 labels; returns its features."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    features = {}
    for split, count in (("train", 6), ("test", 3)):
        features[split] = rng.standard_normal((count, 4)).astype(dtype)
        np.save(folder / f"{split}-slice.npy", features[split])
        formats.write_labels(folder / f"{split}-labels.txt", csr([[0, 3]] * count, 5), 4)
    return features


def test_folder(tmp_path: Path) -> None:
    features = write_folder(tmp_path / "mine")
    for chosen in ("slice", None):
        data = load("mine", chosen, data_dir=tmp_path)
        assert isinstance(data.train_x, np.memmap)
        assert np.array_equal(data.train_x, features["train"])
        assert np.array_equal(data.test_x, features["test"])
        assert same(data.test_y, csr([[0, 3]] * 3, 5))
        assert (data.name, data.features, data.synthetic) == ("mine", "slice", False)
    assert (data.train_instances, data.test_instances) == (6, 3)
    assert (data.inputs, data.labels) == (4, 5)


@pytest.mark.parametrize("dtype", [np.float16, np.float64, ">f4"])
def test_other_float_types_are_converted(tmp_path: Path, dtype) -> None:
    features = write_folder(tmp_path / "mine", dtype)
    data = load("mine", data_dir=tmp_path)
    assert data.train_x.dtype == np.float32
    assert data.train_x.dtype.isnative
    assert np.array_equal(data.train_x, features["train"].astype(np.float32))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_features_must_be_finite(
    tmp_path: Path, dtype: type, value: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fanin.datasets.dataset.BLOCK_BYTES", 48)  # a few rows at a time
    x = write_folder(tmp_path / "mine", dtype)["train"]
    x[4, 2] = value
    path = tmp_path / "mine" / "train-slice.npy"
    np.save(path, x)
    with pytest.raises(DataError) as caught:
        load("mine", data_dir=tmp_path)
    assert str(caught.value).startswith(str(path))
    assert f"row 4, column 2 (counted from 0) is {value}" in str(caught.value)


def test_value_too_large_for_float32(tmp_path: Path) -> None:
    x = write_folder(tmp_path / "mine", np.float64)["test"]
    x[1, 0] = 1e300
    np.save(tmp_path / "mine" / "test-slice.npy", x)
    with pytest.raises(
        DataError, match=r"test-slice\.npy \(as float32\): row 1, column 0 .* is inf"
    ):
        load("mine", data_dir=tmp_path)


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (np.zeros(6, np.float32), "must be one array"),
        (np.zeros((6, 4), np.int32), "features are int32"),
        (np.zeros((5, 4), np.float32), "5 rows, but .*train-labels.txt has 6 instances"),
        (np.zeros((6, 3), np.float32), "3 inputs for training but 4 for testing"),
    ],
)
def test_features_that_do_not_fit(tmp_path: Path, array: np.ndarray, said: str) -> None:
    write_folder(tmp_path / "mine")
    np.save(tmp_path / "mine" / "train-slice.npy", array)
    with pytest.raises(DataError, match=said):
        load("mine", data_dir=tmp_path)


def test_broken_npy(tmp_path: Path) -> None:
    write_folder(tmp_path / "mine")
    path = tmp_path / "mine" / "train-slice.npy"
    for content in (path.read_bytes()[:-8], b"not an array", b""):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"train-slice\.npy: not a readable \.npy") as caught:
            load("mine", data_dir=tmp_path)
        assert "pickle" not in str(caught.value)


def test_label_counts_must_agree(tmp_path: Path) -> None:
    write_folder(tmp_path / "mine")
    formats.write_labels(tmp_path / "mine" / "test-labels.txt", csr([[0]] * 3, 6), 4)
    with pytest.raises(DataError, match=r"mine .*: 5 labels for training but 6 for testing"):
        load("mine", data_dir=tmp_path)


@pytest.mark.parametrize(
    ("split", "rows", "labels", "said"),
    [
        ("train", 0, 5, "train-labels.txt: 0 instances: at least one"),
        ("test", 0, 5, "test-labels.txt: 0 instances: at least one"),
        ("train", 6, 0, "train-labels.txt: 0 labels: at least one"),
        ("train", 6, 5, "train-labels.txt: no instance has a label"),
        ("test", 3, 5, None),  # nothing can be found there, but all of it can be done
    ],
)
def test_empty_data_are_named(tmp_path: Path, split: str, rows: int, labels: int, said) -> None:
    write_folder(tmp_path / "mine")
    np.save(tmp_path / "mine" / f"{split}-slice.npy", np.zeros((rows, 4), np.float32))
    formats.write_labels(tmp_path / "mine" / f"{split}-labels.txt", csr([[]] * rows, labels), 4)
    if said is None:
        assert load("mine", data_dir=tmp_path).test_y.nnz == 0
        return
    with pytest.raises(DataError) as caught:
        load("mine", data_dir=tmp_path)
    assert str(caught.value).startswith(f"{tmp_path / 'mine'}/{said}")


def test_features_without_inputs_are_named(tmp_path: Path) -> None:
    write_folder(tmp_path / "mine")
    for split, count in (("train", 6), ("test", 3)):
        np.save(tmp_path / "mine" / f"{split}-slice.npy", np.zeros((count, 0), np.float32))
    with pytest.raises(DataError, match=r"mine/train-slice\.npy: 0 inputs"):
        load("mine", data_dir=tmp_path)


@pytest.mark.parametrize("file", ["train-labels.txt", "test-labels.txt", "test-slice.npy"])
def test_missing_file_says_what_it_holds(tmp_path: Path, file: str) -> None:
    write_folder(tmp_path / "mine")
    (tmp_path / "mine" / file).unlink()
    with pytest.raises(DataError, match=f"{file}: missing; it is to hold the {file.split('-')[0]}"):
        load("mine", data_dir=tmp_path)


@pytest.mark.parametrize("file", ["train-labels.txt", "test-slice.npy"])
def test_missing_file_says_what_is_there_in_its_place(tmp_path: Path, file: str) -> None:
    write_folder(tmp_path / "mine")
    path = tmp_path / "mine" / file
    path.rename(tmp_path / "mine" / f"{file}.gz")
    with pytest.raises(DataError, match=rf"missing; \S+{file}\.gz is compressed: unpack it"):
        load("mine", features="slice", data_dir=tmp_path)
    path.symlink_to(tmp_path / "nowhere")
    with pytest.raises(DataError, match=rf"missing; \S+{file} is a link to nothing; it is to"):
        load("mine", features="slice", data_dir=tmp_path)
    path.unlink()
    path.mkdir()
    with pytest.raises(DataError, match=rf"missing; \S+{file} is a folder; it is to hold"):
        load("mine", features="slice", data_dir=tmp_path)


def test_features_must_be_named_if_several(tmp_path: Path) -> None:
    write_folder(tmp_path / "mine")
    np.save(tmp_path / "mine" / "train-cascade.npy", np.zeros((6, 4), np.float32))
    with pytest.raises(DataError, match=r"say which features to load; .* cascade, slice"):
        load("mine", data_dir=tmp_path)


# --- `id:value` text and sparse matrices --------------------------------------------------------


def with_values(rows: list[dict[int, float]], columns: int) -> sparse.csr_array:
    matrix = csr([sorted(row) for row in rows], columns).astype(np.float32)
    matrix.data[:] = [row[i] for row in rows for i in sorted(row)]
    return matrix


def same_values(a: sparse.csr_array, b: sparse.csr_array) -> bool:
    return same(a, b) and a.dtype == b.dtype and np.array_equal(a.data, b.data)


def pairs(row: dict[int, float]) -> str:
    return " ".join(f"{index}:{value!r}" for index, value in row.items())


@st.composite
def pair_rows(draw: st.DrawFn) -> tuple[list[dict[int, float]], int]:
    columns = draw(st.integers(1, 3_000_000))
    value = st.floats(width=32, allow_nan=False, allow_infinity=False)
    row = st.dictionaries(st.integers(0, columns - 1), value, max_size=6)
    return draw(st.lists(row, max_size=30)), columns


@given(data=pair_rows(), labels=st.sampled_from(["", "3", "7,2"]))
@settings(max_examples=100, deadline=None)
def test_features_round_trip(tmp_path_factory: pytest.TempPathFactory, data, labels: str) -> None:
    rows, columns = data
    place, expected = tmp_path_factory.getbasetemp(), with_values(*data)
    lines = [f"{pairs(row)}\n" for row in rows]
    (place / "x.txt").write_text("".join([f"{len(rows)} {columns}\n", *lines]))
    trailing = (f"{labels} {line}" for line in lines)
    (place / "trailing.txt").write_text("".join([f"{len(rows)} {columns} 9\n", *trailing]))
    sparse.save_npz(place / "x.npz", expected)
    assert same_values(formats.read_feature_pairs(place / "x.txt"), expected)
    assert same_values(formats.read_trailing_pairs(place / "trailing.txt"), expected)
    assert same_values(formats.read_feature_matrix(place / "x.npz"), expected)


@given(data=pair_rows(), end=st.sampled_from([b"\n", b"\r\n", b" \n", b"\t\n"]))
@settings(max_examples=100, deadline=None)
def test_fast_and_slow_pairs_agree(data, end: bytes) -> None:
    rows, columns = data
    lines = [pairs(row).replace(" ", "  ").encode() + end for row in rows]
    fast = formats._fast_pairs(lines, columns)
    slow = formats._slow_pairs(lines, columns, Path("x"), 2)
    assert fast is not None
    for a, b in zip(fast, slow, strict=True):
        assert a.dtype == b.dtype and np.array_equal(a, b)


@example(lines=[b":5 1:2-3"])  # as many numbers as two pairs have, if NumPy parts "2-3"
@given(lines=st.lists(st.text("0123:.-+e nai", max_size=12).map(str.encode), max_size=4))
@settings(max_examples=500, deadline=None)
def test_fast_pairs_accept_nothing_that_slow_ones_do_not(lines: list[bytes]) -> None:
    fast = formats._fast_pairs(lines, 40)
    if fast is not None:
        slow = formats._slow_pairs(lines, 40, Path("x"), 2)
        assert all(np.array_equal(a, b) for a, b in zip(fast, slow, strict=True))


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("1", "pair '1' is not `id:value`"),
        (":1", "pair ':1' is not `id:value`"),
        ("x:1", "pair 'x:1' is not `id:value`"),
        ("-1:1", "pair '-1:1' is not `id:value`"),
        ("1.0:1", "pair '1.0:1' is not `id:value`"),
        ("1e0:1", "pair '1e0:1' is not `id:value`"),
        ("0,1 2:1", "pair '0,1' is not `id:value`"),
        ("1:", "pair '1:': '' is no finite float32 number"),
        ("1:x", "pair '1:x': 'x' is no finite float32 number"),
        ("1:1_0", "pair '1:1_0': '1_0' is no finite float32 number"),
        ("1:2:3", "pair '1:2:3': '2:3' is no finite float32 number"),
        ("1:2.3.4", "pair '1:2.3.4': '2.3.4' is no finite float32 number"),
        ("1:nan", "pair '1:nan': 'nan' is no finite float32 number"),
        ("1:-inf", "pair '1:-inf': '-inf' is no finite float32 number"),
        ("1:1e39", "pair '1:1e39': '1e39' is no finite float32 number"),
        ("0:1 4:1", "pair '4:1': id '4' is out of range: by the header, ids are 0 to 3"),
        ("9" * 30 + ":1", f"id '{'9' * 30}' is out of range"),
        ("2:1 1:1 2:0", "pair '2:0': id 2 stands twice in the line"),
    ],
)
@pytest.mark.parametrize("place", [0, 3])
def test_bad_pair_is_named(tmp_path: Path, line: str, said: str, place: int) -> None:
    good = ["0:1 1:0.5", "", "3:-1e-3 0:2"]
    for read, header, before in (
        (formats.read_label_pairs, "4 4", ""),
        (formats.read_feature_pairs, "4 4", ""),
        (formats.read_trailing_pairs, "4 4 9", "8,1 "),
    ):
        path = tmp_path / "pairs.txt"
        lines = [before + text for text in [*good[:place], line, *good[place:]]]
        path.write_text("\n".join([header, *lines]) + "\n")
        with pytest.raises(DataError) as caught:
            read(path)
        assert str(caught.value).startswith(f"{path}:{place + 2}: ")
        assert said in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("3\n0:1\n\n1:1\n", ":1: header '3': expected two integers `rows columns`"),
        ("3 4 5\n0:1\n\n1:1\n", ":1: header '3 4 5': expected two integers"),
        ("3 4\n0:1\n\n", ":4: the file ends after 2 instances but its header says 3"),
        ("3 4\n0:1\n\n1:1\n2:1\n", ":5: one line too many: the header says 3"),
    ],
)
def test_pair_file_must_be_whole(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "pairs.txt"
    path.write_text(text)
    for read in (formats.read_label_pairs, formats.read_feature_pairs):
        with pytest.raises(DataError, match=f"pairs.txt{said}"):
            read(path)


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


def test_values_of_labels(tmp_path: Path) -> None:
    path = tmp_path / "labels.txt"
    path.write_text("3 5\n1:1.0 0:0\n4:0.0\n3:2 2:0.5\n")
    assert same(formats.read_label_pairs(path), csr([[1], [], [2, 3]], 5))
    path.write_text("3 5\n1:1.0\n\n3:1 0:-1\n")
    with pytest.raises(DataError, match=r"labels.txt:4: label 0 has the value -1.0: give"):
        formats.read_label_pairs(path)
    path = tmp_path / "labels.npz"
    sparse.save_npz(path, with_values([{1: 1, 0: 0}, {4: 0}, {3: 2, 2: 0.5}], 5))
    assert same(formats.read_label_matrix(path), csr([[1], [], [2, 3]], 5))
    sparse.save_npz(path, with_values([{1: 1}, {}, {0: -1}], 5))
    with pytest.raises(DataError, match=r"labels.npz: row 2 .*: label 0 has the value -1.0"):
        formats.read_label_matrix(path)


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
    ("stored", "said"),
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
def test_bad_matrix(tmp_path: Path, stored: sparse.csr_array, said: str) -> None:
    sparse.save_npz(tmp_path / "x.npz", stored)
    for read in (formats.read_label_matrix, formats.read_feature_matrix):
        with pytest.raises(DataError, match=f"x.npz: {said}"):
            read(tmp_path / "x.npz")


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


# --- folders in every form ----------------------------------------------------------------------

LABEL_ROWS = {"train": [[3, 0], [2], [], [4, 1, 0], [3], [1]], "test": [[0], [], [4, 2]]}
FEATURE_ROWS = {
    "train": [{0: 1.0, 5: 0.25}, {2: -3.0}, {1: 0.1, 3: 7.0}, {4: 2.0}, {5: 1e-3, 0: 2.0}, {1: 1}],
    "test": [{3: 0.5}, {}, {0: 1.5, 4: -1.0}],
}
LABEL_FORMS = ["own.npz", "own.txt", "repository.npz", "repository.txt", "single"]
FEATURE_FORMS = ["own.npy", "own.npz", "repository.npz", "repository.txt", "single"]


def short(split: str) -> str:
    return {"train": "trn", "test": "tst"}[split]


def write_form(place: Path, labels: str, features: str) -> None:
    """The data above with its labels in one form and its features, `bow`, in another."""
    place.mkdir(exist_ok=True)
    for split, rows in LABEL_ROWS.items():
        write_label_form(place, split, labels, csr([sorted(row) for row in rows], 5))
        write_feature_form(place, split, features, with_values(FEATURE_ROWS[split], 6))


def write_lines(path: Path, header: str, lines: Iterable[str]) -> None:
    path.write_text("".join(f"{line}\n" for line in (header, *lines)))


def write_label_form(place: Path, split: str, form: str, y: sparse.csr_array) -> None:
    rows = LABEL_ROWS[split]
    match form:
        case "own.npz":
            sparse.save_npz(place / f"{split}-labels.npz", y)
        case "own.txt":
            formats.write_labels(place / f"{split}-labels.txt", y, 6)
        case "repository.npz":
            sparse.save_npz(place / f"{short(split)}_X_Y.npz", y)
        case "repository.txt":
            lines = (pairs(dict.fromkeys(row, 1)) for row in rows)
            write_lines(place / f"{short(split)}_X_Y.txt", f"{len(rows)} 5", lines)
        case "single":
            write_single(place, split)


def write_feature_form(place: Path, split: str, form: str, x: sparse.csr_array) -> None:
    rows = FEATURE_ROWS[split]
    match form:
        case "own.npy":
            np.save(place / f"{split}-bow.npy", x.toarray())
        case "own.npz":
            sparse.save_npz(place / f"{split}-bow.npz", x)
        case "repository.npz":
            sparse.save_npz(place / f"{short(split)}_X_Xf.npz", x)
        case "repository.txt":
            write_lines(place / f"{short(split)}_X_Xf.txt", f"{len(rows)} 6", map(pairs, rows))
        case "single":
            write_single(place, split)


def write_single(place: Path, split: str) -> None:
    rows = zip(LABEL_ROWS[split], FEATURE_ROWS[split], strict=True)
    lines = [f"{','.join(map(str, labels))} {pairs(values)}" for labels, values in rows]
    write_lines(place / f"{split}.txt", f"{len(lines)} 6 5", lines)


@pytest.fixture
def three(monkeypatch: pytest.MonkeyPatch) -> None:
    """An SVD small enough for the data above."""
    monkeypatch.setitem(svd.SVD, "n_components", 3)


@pytest.mark.parametrize("labels", LABEL_FORMS)
@pytest.mark.parametrize("features", FEATURE_FORMS)
def test_all_forms_give_the_same_arrays(
    tmp_path: Path, cache: Path, three: None, labels: str, features: str
) -> None:
    write_form(tmp_path / "mine", labels, features)
    data = load("mine", "bow", tmp_path)
    for split, x, y in (("train", data.train_x, data.train_y), ("test", data.test_x, data.test_y)):
        assert np.array_equal(x, with_values(FEATURE_ROWS[split], 6).toarray())
        assert x.dtype == np.float32 and x.flags.c_contiguous
        assert same(y, csr([sorted(row) for row in LABEL_ROWS[split]], 5))
        assert y.dtype == np.bool_
    assert (data.name, data.features, data.synthetic) == ("mine", "bow", False)
    if features != "own.npy":  # which is dense
        reduced = load("mine", "bow-svd512", tmp_path)
        matrices = (with_values(FEATURE_ROWS[split], 6) for split in ("train", "test"))
        for x, expected in zip(
            (reduced.train_x, reduced.test_x), svd.reduce(*matrices), strict=True
        ):
            assert np.array_equal(x, expected) and x.shape[1] == 3
        assert same(reduced.train_y, data.train_y)


@pytest.mark.parametrize("kind", ["labels", "features"])
def test_order_of_preference(tmp_path: Path, kind: str) -> None:
    """All forms in one folder; from the best on, each is spoiled, is complained about, and goes."""
    place = tmp_path / "mine"
    forms = LABEL_FORMS if kind == "labels" else FEATURE_FORMS
    for form in forms:
        write_form(place, *((form, "own.npy") if kind == "labels" else ("own.npz", form)))
    order = (
        ["train-labels.npz", "train-labels.txt", "trn_X_Y.npz", "trn_X_Y.txt", "train.txt"]
        if kind == "labels"
        else ["train-bow.npy", "train-bow.npz", "trn_X_Xf.npz", "trn_X_Xf.txt", "train.txt"]
    )
    for name in order:
        (place / name).write_bytes(b"spoiled")
        with pytest.raises(DataError, match=f"mine/{name}:"):
            load("mine", "bow", tmp_path)
        (place / name).unlink()
    with pytest.raises(DataError, match="missing"):
        load("mine", "bow", tmp_path)


def test_labels_of_the_repository_beside_dense_features(tmp_path: Path) -> None:
    write_form(tmp_path / "mine", "repository.txt", "repository.txt")
    dense = np.ones((6, 4), np.float32)
    np.save(tmp_path / "mine" / "train-slice.npy", dense)
    np.save(tmp_path / "mine" / "test-slice.npy", dense[:3])
    data = load("mine", "slice", tmp_path)
    assert isinstance(data.train_x, np.memmap)
    assert data.inputs == 4 and same(data.test_y, csr([[0], [], [2, 4]], 5))
    with pytest.raises(DataError, match=r"say which features to load; .* bow, bow-svd512, slice"):
        load("mine", None, tmp_path)


def test_sparse_features_with_a_name_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_form(tmp_path / "mine", "own.npz", "own.npz")
    for split in ("train", "test"):
        (tmp_path / "mine" / f"{split}-bow.npz").rename(tmp_path / "mine" / f"{split}-words.npz")
    data = load("mine", None, tmp_path)
    assert data.features == "words"
    assert np.array_equal(data.train_x, with_values(FEATURE_ROWS["train"], 6).toarray())
    monkeypatch.setattr(folder, "memory_limit", lambda: 100)
    with pytest.raises(DataError, match=r"store them as float32 \.npy"):
        load("mine", None, tmp_path)


def test_memory_is_what_the_control_groups_leave(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "_GROUPS", tmp_path)
    monkeypatch.setattr(memory, "_OWN", tmp_path / "own")
    without = memory.available_bytes()
    assert 2**20 < without < 2**50
    (tmp_path / "own").write_text("4:memory:/elsewhere\n0::/outer/inner\n")
    inner = tmp_path / "outer" / "inner"
    inner.mkdir(parents=True)
    (inner / "memory.max").write_text("max\n")
    assert memory.available_bytes() > without // 2
    for folder_, limit, used in ((inner.parent, 90 << 20, 70 << 20), (inner, 80 << 20, 70 << 20)):
        (folder_ / "memory.max").write_text(f"{limit}\n")
        (folder_ / "memory.current").write_text(f"{used}\n")
        (folder_ / "memory.stat").write_text(f"anon 5\ninactive_file {4 << 20}\n")
    # What files in the cache take can be had.
    assert memory.available_bytes() == 14 << 20
    (inner.parent / "memory.max").write_text(f"{60 << 20}\n")
    assert memory.available_bytes() == 0


def test_features_too_large_to_be_made_dense(
    tmp_path: Path, cache: Path, three: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert 2**20 < folder.memory_limit() < 2**50
    write_form(tmp_path / "mine", "own.txt", "repository.txt")
    monkeypatch.setattr(folder, "memory_limit", lambda: 4 * 9 * 6)
    load("mine", "bow", tmp_path)
    monkeypatch.setattr(folder, "memory_limit", lambda: 4 * 9 * 6 - 1)
    with pytest.raises(DataError, match=r"trn_X_Xf.txt and tst_X_Xf.txt: .* 0\.0 GiB.*bow-svd512"):
        load("mine", "bow", tmp_path)
    load("mine", "bow-svd512", tmp_path)


def test_svd_is_cached_by_content(
    tmp_path: Path, cache: Path, three: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_form(tmp_path / "mine", "own.txt", "repository.txt")
    first = load("mine", "bow-svd512", tmp_path)
    (file,) = cache.iterdir()
    assert file.name.startswith("mine-bow-svd512-")
    with monkeypatch.context() as patch:
        patch.delattr(svd, "reduce")  # only the cache can answer
        assert load("mine", "bow-svd512", tmp_path).identity == first.identity
    path = tmp_path / "mine" / "tst_X_Xf.txt"
    path.write_text(path.read_text().replace("3:0.5", "3:0.5 2:1"))
    assert load("mine", "bow-svd512", tmp_path).identity != first.identity
    assert len(list(cache.iterdir())) == 2


def test_sparse_features_that_do_not_fit(tmp_path: Path, cache: Path, three: None) -> None:
    place = tmp_path / "mine"
    write_form(place, "own.txt", "repository.txt")
    good = (place / "trn_X_Xf.txt").read_text()
    bad = {
        "6 rows|5 rows": good.replace("6 6", "5 6").replace("1:1\n", ""),
        "has 6|7 inputs": good.replace("6 6", "6 7"),
        "too few for 3 SVD": "6 2\n" + "0:1\n" * 6,
        "holds no features": "6 6\n" + "\n" * 6,
    }
    for said, text in bad.items():
        (place / "trn_X_Xf.txt").write_text(text)
        if "SVD" in said:
            (place / "tst_X_Xf.txt").write_text("3 2\n0:1\n0:1\n1:1\n")
        with pytest.raises(DataError, match=said):
            load("mine", "bow-svd512", tmp_path)
    assert not cache.exists()


@pytest.mark.parametrize(
    ("features", "gone", "said"),
    [
        ("bow", "tst_X_Y.txt", "test-labels.txt: missing; .*header line `N D L`.*tst_X_Y.txt"),
        ("bow", "tst_X_Xf.txt", "tst_X_Xf.txt: missing; .*`rows columns`.*test.txt will do"),
        ("bow-svd512", "trn_X_Xf.txt", "trn_X_Xf.txt: missing; it is to hold the train features"),
    ],
)
def test_missing_repository_file(tmp_path: Path, features: str, gone: str, said: str) -> None:
    write_form(tmp_path / "mine", "repository.txt", "repository.txt")
    (tmp_path / "mine" / gone).unlink()
    with pytest.raises(DataError, match=said) as caught:
        load("mine", features, tmp_path)
    assert "http://manikvarma.org/downloads/XC/XMLRepository.html" in str(caught.value)


@pytest.mark.parametrize(
    ("features", "origin"), [("slice", "Slice .Jain"), ("cascade", "CascadeXML"), ("else", "")]
)
def test_missing_features_say_where_they_come_from(
    tmp_path: Path, features: str, origin: str
) -> None:
    write_form(tmp_path / "mine", "own.txt", "own.npy")
    with pytest.raises(DataError, match=f"train-{features}.npy: missing; .*{origin}.* here: bow$"):
        load("mine", features, tmp_path)


# --- folders by name ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "there"),
    [
        ("amazon-670k", "Amazon670k"),
        ("amazon-670k", "Amazon-670K"),
        ("Amazon670K", "amazon-670k"),
        ("wiki-500k", "wikipedia-500k"),
        ("mine", "Mine"),
    ],
)
def test_folder_is_found_by_any_spelling(tmp_path: Path, name: str, there: str) -> None:
    (tmp_path / there.lower()).write_text("a file is no folder")
    assert folder.find_folder(tmp_path, name) is None
    (tmp_path / there.lower()).unlink()
    (tmp_path / there).mkdir()
    assert folder.find_folder(tmp_path, name) == tmp_path / there
    (tmp_path / name).mkdir(exist_ok=True)
    assert folder.find_folder(tmp_path, name) == tmp_path / name
    assert folder.find_folder(tmp_path, "other") is None
    assert folder.find_folder(tmp_path / "nowhere", name) is None


def test_other_sizes_than_the_published_ones_are_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_form(tmp_path / "Amazon670k", "own.txt", "own.npy")
    for split in ("train", "test"):
        place = tmp_path / "Amazon670k"
        (place / f"{split}-bow.npy").rename(place / f"{split}-slice.npy")
    assert load("amazon-670k", "slice", tmp_path).labels == 5
    (message,) = [record.getMessage() for record in caplog.records]
    assert "Amazon670k: these are not the published amazon-670k: 5 labels, not 670,091; " in message
    assert "6 training instances, not 490,449; 3 test instances, not 153,025; 6 inp" in message
    caplog.clear()
    (tmp_path / "Amazon670k").rename(tmp_path / "mine")
    load("mine", "slice", tmp_path)
    assert caplog.text == ""


# --- parsed labels, cached ----------------------------------------------------------------------


@pytest.fixture
def label_file(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A label file that is large enough to be cached."""
    monkeypatch.setattr(folder, "CACHED_FROM", 10)
    path = tmp_path / "mine" / "labels.txt"
    path.parent.mkdir()
    formats.write_labels(path, csr([[0, 3], [], [1]], 5), 7)
    return path


def read_once(path: Path) -> tuple[sparse.csr_array, bool]:
    """The labels, and whether they were parsed."""
    parsed = []
    labels = folder.cached(lambda path: parsed.append(path) or formats.read_labels(path))(path)
    return labels, bool(parsed)


def test_labels_are_parsed_once(label_file: Path, cache: Path) -> None:
    first, parsed = read_once(label_file)
    assert parsed
    (file,) = cache.iterdir()
    assert file.name.startswith("mine-labels-") and file.suffix == ".npz"
    again, parsed = read_once(label_file)
    assert not parsed
    assert same(first, again) and first.dtype == again.dtype == np.bool_
    assert first.indices.dtype == again.indices.dtype
    assert again.has_canonical_format and again.data.all()


@pytest.mark.parametrize("change", ["size", "time", "path"])
def test_changed_label_file_is_parsed_anew(label_file: Path, change: str) -> None:
    read_once(label_file)
    before = label_file.stat()
    if change == "path":
        elsewhere = label_file.parent.parent / "elsewhere" / "mine"
        elsewhere.mkdir(parents=True)
        label_file = label_file.rename(elsewhere / label_file.name)
        assert label_file.stat().st_mtime_ns == before.st_mtime_ns
    else:
        rows = [[0, 3], [], [1, 2]] if change == "size" else [[0, 3], [], [2]]
        formats.write_labels(label_file, csr(rows, 5), 7)
        moved = before.st_mtime_ns + (change == "time")
        os.utime(label_file, ns=(before.st_atime_ns, moved))
        assert (label_file.stat().st_size != before.st_size) == (change == "size")
    labels, parsed = read_once(label_file)
    assert parsed and same(labels, formats.read_labels(label_file))


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "other", "range"])
def test_damaged_label_cache_is_made_anew(
    label_file: Path, cache: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    first, _ = read_once(label_file)
    (file,) = cache.iterdir()
    good = file.read_bytes()
    at = good.index(first.indices.tobytes())
    flipped = good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :]
    file.write_bytes({"cut": good[: len(good) // 2], "flip": flipped}.get(damage, b""))
    if damage == "other":
        np.savez(file, train=np.ones(3))
    if damage == "range":
        np.savez(file, indices=first.indices + 2, indptr=first.indptr, shape=np.array([3, 5]))
    labels, parsed = read_once(label_file)
    assert parsed and same(labels, first)
    assert "is damaged" in caplog.text
    assert not read_once(label_file)[1]


def test_labels_do_not_need_a_cache(
    label_file: Path, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache.write_text("a file where the folder should be")
    for _ in range(2):
        labels, parsed = read_once(label_file)
        assert parsed and same(labels, csr([[0, 3], [], [1]], 5))
    assert "cannot be written" in caplog.text and "set FANIN_CACHE" in caplog.text


def test_small_label_files_are_not_cached(tmp_path: Path, cache: Path) -> None:
    write_form(tmp_path / "mine", "single", "own.npy")
    load("mine", "bow", tmp_path)
    assert not cache.exists()


def test_bad_labels_are_not_cached(label_file: Path, cache: Path) -> None:
    label_file.write_text("2 7 5\n0,3\n1,9\n")
    for _ in range(2):
        with pytest.raises(DataError, match="label '9' is out of range"):
            read_once(label_file)
    assert not cache.exists()


# --- Dataset ------------------------------------------------------------------------------------


def parts() -> dict:
    x, y = np.ones((3, 2), np.float32), csr([[0], [1, 3], []], 4)
    return {
        "name": "toy", "features": "ones", "train_x": x, "train_y": y, "test_x": x, "test_y": y,
        "synthetic": True, "source": "this test",
    }  # fmt: skip


def unsorted() -> sparse.csr_array:
    return sparse.csr_array((np.ones(2, bool), [3, 1], [0, 2, 2, 2]), (3, 4))


def out_of_range() -> sparse.csr_array:
    y = csr([[0], [1, 3], []], 4)
    y.indices[2] = 4
    return y


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"test_x": np.full((3, 2), np.nan, np.float32)},
            "test features: row 0, column 0 .* is nan",
        ),
        ({"train_x": np.ones((3, 2))}, "train features must be C-contiguous float32, not float64"),
        ({"train_x": np.ones((2, 3), np.float32).T}, "train features must be C-contiguous"),
        ({"train_x": np.ones(3, np.float32)}, r"train features must be \[instances, inputs\]"),
        (
            {"test_x": np.ones((2, 2), np.float32)},
            "test has 2 rows of features but 3 rows of labels",
        ),
        ({"test_x": np.ones((3, 5), np.float32)}, "2 inputs for training but 5 for testing"),
        ({"test_y": csr([[0], [1], []], 5)}, "4 labels for training but 5 for testing"),
        ({"train_y": unsorted()}, "train labels: indices must be sorted"),
        ({"train_y": out_of_range()}, "train labels: label 4 is out of range: ids are 0 to 3"),
        (
            {"train_y": csr([[0], [1, 1], []], 4)},
            "train labels: indices must be sorted, none twice",
        ),
        ({"train_y": csr([[0], [1], []], 4).astype(float)}, "train labels: must be bool or int8"),
        ({"train_y": csr([[0], [1], []], 4).tocsc()}, "must be a scipy.sparse.csr_array"),
        ({"label_names": ["a", "b"]}, "2 label names for 4 labels"),
        (
            {"test_x": np.ones((0, 2), np.float32), "test_y": csr([], 4)},
            "test labels: 0 instances: at least one is needed",
        ),
        ({"train_x": np.ones((3, 0), np.float32)}, "train features: 0 inputs"),
        ({"train_y": csr([[], [], []], 0)}, "train labels: 0 labels"),
        ({"train_y": csr([[], [], []], 4)}, "train labels: no instance has a label"),
    ],
)
def test_dataset_checks_its_parts(change: dict, said: str) -> None:
    Dataset(**parts())
    with pytest.raises(DataError, match=said) as caught:
        Dataset(**(parts() | change))
    assert "toy (this test)" in str(caught.value)


def test_identity_depends_on_labels_and_features() -> None:
    first = Dataset(**parts()).identity
    assert first == Dataset(**parts()).identity
    assert len(first) == 64
    moved = csr([[0], [1, 2], []], 4)
    nudged = np.nextafter(np.ones((3, 2), np.float32), np.float32(2))
    changes = [{"train_y": moved}, {"test_y": moved}, {"train_x": nudged}, {"test_x": nudged}]
    assert len({first, *(Dataset(**(parts() | change)).identity for change in changes)}) == 5


# --- WordNet ------------------------------------------------------------------------------------


@functools.cache
def splits(cut: frozenset[int] | None = None) -> tuple[wordnet.Split, wordnet.Split, list[str]]:
    return wordnet.read_splits(cut)


def test_committed_file_is_small() -> None:
    assert Path(wordnet.__file__).with_name("wordnet.txt.xz").stat().st_size < 4 * 2**20


@pytest.mark.parametrize(
    ("cut", "train_count", "test_count", "label_count", "positives"),
    [(None, 104_275, 11_051, 64_902, 281_720), (wordnet.SMALL_CUT, 2_877, 314, 2_357, 10_103)],
)
def test_wordnet_counts(
    cut: frozenset[int] | None, train_count: int, test_count: int, label_count: int, positives: int
) -> None:
    train, test, names = splits(cut)
    assert train.labels.shape == (train_count, label_count)
    assert test.labels.shape == (test_count, label_count)
    assert train.labels.nnz == positives
    for split in (train, test):
        assert len(split.keys) == len(split.texts) == split.labels.shape[0]
        assert (np.diff(split.labels.indptr) > 0).all()
    assert np.bincount(train.labels.indices).min() >= wordnet.MIN_POSITIVES
    assert len(set(names)) == label_count
    assert len({*train.keys, *test.keys}) == train_count + test_count


def test_wordnet_rows_are_real() -> None:
    train, test, names = splits()
    rows = {
        key: (text, {names[i] for i in split.labels.indices[start:stop]})
        for split in (train, test)
        for key, text, start, stop in zip(
            split.keys, split.texts, split.labels.indptr[:-1], split.labels.indptr[1:], strict=True
        )
    }
    text, labels = rows["n02084071"]
    assert text.startswith("dog, domestic dog, Canis familiaris; a member of the genus Canis")
    assert {"canine (n02083346)", "domestic animal (n01317541)", "puppy (n01322604)"} <= labels
    text, labels = rows["a00095873"]  # WordNet writes "asleep(p)", "at_peace(p)"
    assert text.startswith("asleep, at peace, at rest, deceased, departed, gone; dead; ")
    assert labels == {"euphemism (n06605046)", "dead person (n09994943)", "dead (a00095280)"}
    text, labels = rows["v01926329"]
    assert text.startswith("run; move fast by using one's feet")
    assert {"runner (n10542761)", "sprint (v01928597)", "travel rapidly (v02055667)"} <= labels


def test_wordnet_small_is_part_of_wordnet() -> None:
    whole_train, whole_test, whole_names = splits()
    train, test, names = splits(wordnet.SMALL_CUT)
    assert set(train.keys) <= set(whole_train.keys)
    assert set(test.keys) <= set(whole_test.keys)
    assert set(names) <= set(whole_names)


# --- features of texts, and their cache ---------------------------------------------------------


@pytest.fixture
def few(cache: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[list[str], list[str]]:
    """A recipe and texts that take milliseconds."""
    monkeypatch.setitem(svd.SVD, "n_components", 3)
    return ["red apple", "green apple", "green pear", "red pear tree", "tree"] * 2, [
        "red tree",
        "pear",
    ]


def test_wordnet_small(cache: Path, caplog: pytest.LogCaptureFixture, capsys) -> None:
    caplog.set_level(logging.INFO, "fanin.datasets")
    data = load("wordnet-small")
    assert (data.train_x.shape, data.test_x.shape) == ((2_877, 512), (314, 512))
    for x in (data.train_x, data.test_x):
        assert np.abs(np.linalg.norm(x, axis=1) - 1).max() < 1e-5
    assert data.label_names is not None
    assert "France (n08929922)" in data.label_names
    assert not data.synthetic
    assert "making tfidf-svd512" in caplog.text
    assert capsys.readouterr().out == ""

    # The nearest class mean, the simplest use of the features, must find what chance does not.
    means = (data.train_y.T.astype(np.float32) @ data.train_x).T
    best = (data.test_x @ (means / np.linalg.norm(means, axis=0))).argmax(1)
    hits = [label in data.test_y[[row]].indices for row, label in enumerate(best)]
    assert np.mean(hits) > 0.3

    caplog.clear()
    again = load("wordnet-small")
    assert "making" not in caplog.text
    assert again.identity == data.identity


def test_features_are_fitted_on_training_texts_only(few) -> None:
    train_texts, test_texts = few
    train, test = text_features.tfidf_svd(train_texts, test_texts)
    other_train, other_test = text_features.tfidf_svd(
        train_texts, ["quite other words", *test_texts]
    )
    assert np.array_equal(train, other_train)
    assert np.array_equal(test, other_test[1:])


def test_cache_is_used_and_depends_on_texts_and_recipe(
    few, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_texts, test_texts = few
    first = text_features.load_text_features("toy", train_texts, test_texts)
    (file,) = cache.iterdir()
    assert file.name.startswith("toy-tfidf-svd512-")
    assert file.suffix == ".npz"
    text_features.load_text_features("toy", train_texts, [*test_texts, "apple"])
    assert len(list(cache.iterdir())) == 2
    monkeypatch.setitem(text_features.TFIDF, "min_df", 1)
    text_features.load_text_features("toy", train_texts, test_texts)
    assert len(list(cache.iterdir())) == 3
    monkeypatch.undo()
    monkeypatch.setenv("FANIN_CACHE", str(cache))
    monkeypatch.setitem(svd.SVD, "n_components", 3)
    monkeypatch.delattr(text_features, "tfidf_svd")  # from here on only the cache can answer
    second = text_features.load_text_features("toy", train_texts, test_texts)
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "other"])
def test_damaged_cache_is_rebuilt(
    few, cache: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    first = text_features.load_text_features("toy", *few)
    (file,) = cache.iterdir()
    good = file.read_bytes()
    if damage == "other":
        np.savez(file, train=first[0][:2], test=first[1])
    else:
        at = good.index(first[0].tobytes()) + 5
        flipped = good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :]
        file.write_bytes({"cut": good[: len(good) // 2], "flip": flipped, "empty": b""}[damage])
    second = text_features.load_text_features("toy", *few)
    assert "is damaged" in caplog.text
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
    caplog.clear()
    text_features.load_text_features("toy", *few)
    assert caplog.text == ""


def test_two_processes_may_make_the_cache_at_once(cache: Path) -> None:
    code = (
        "from fanin.datasets import svd, text_features as t; svd.SVD['n_components'] = 3; "
        "t.load_text_features('toy', ['red apple', 'red pear', 'pear tree', 'apple tree'], ['red'])"
    )
    started = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(2)]
    assert [process.wait(60) for process in started] == [0, 0]
    assert [file.suffix for file in cache.iterdir()] == [".npz"]


def test_cache_that_cannot_be_written(few, cache: Path) -> None:
    cache.write_text("a file where the folder should be")
    with pytest.raises(DataError, match=r"cannot be written .*: set FANIN_CACHE"):
        text_features.load_text_features("toy", *few)


# --- registry -----------------------------------------------------------------------------------


def test_unknown_names_say_what_there_is(tmp_path: Path) -> None:
    assert available() == ["wordnet", "wordnet-small"]
    with pytest.raises(DataError, match="'mine'; fanin comes with wordnet, wordnet-small"):
        load("mine")
    with pytest.raises(DataError, match=f"no folder {tmp_path}/mine; .*train-labels.txt"):
        load("mine", data_dir=tmp_path)
    with pytest.raises(DataError, match="no features named 'slice': there is tfidf-svd512"):
        load("wordnet", "slice")


def test_published_name_without_files_says_where_they_come_from(tmp_path: Path) -> None:
    for data_dir in (None, tmp_path):
        with pytest.raises(DataError, match=r"^Amazon-670K does not come with fanin") as caught:
            load("Amazon-670K", data_dir=data_dir)
        said = str(caught.value)
        assert (f"there is no folder {tmp_path}/Amazon-670K" in said) == (data_dir is not None)
        assert "lay out <data-dir>/Amazon-670K/" in said and "wordnet-small" in said
        for file in ("trn_X_Y.txt", "tst_X_Xf.txt", "train-slice.npy", "test-cascade.npy"):
            assert file in said
    with pytest.raises(DataError, match="eurlex-4k does not come with fanin") as caught:
        load("eurlex-4k")
    assert "slice" not in str(caught.value)


def test_own_folder_goes_before_embedded(tmp_path: Path) -> None:
    write_folder(tmp_path / "wordnet")
    assert load("wordnet", data_dir=tmp_path).labels == 5
