"""What is written as a file of any form is read back as it was."""

from __future__ import annotations

from pathlib import Path

import pytest
from dataset_files import csr, label_rows, pair_rows, pairs, same, same_values, with_values
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from fanin.datasets import DataError, formats


@given(data=label_rows())
@settings(max_examples=100, deadline=None)
def test_labels_round_trip(tmp_path_factory: pytest.TempPathFactory, data) -> None:
    rows, labels = data
    path = tmp_path_factory.getbasetemp() / "round-trip.txt"
    expected = csr([sorted(row) for row in rows], labels)
    formats.write_labels(path, expected, inputs=7)
    assert path.read_text().splitlines()[0] == f"{len(rows)} 7 {labels}"
    assert same(formats.read_labels(path), expected)


def test_feature_pairs_and_empty_instances(tmp_path: Path) -> None:
    path = tmp_path / "train-labels.txt"
    path.write_bytes(b"5 100 9\n8,1 3:0.5 99:1.5\n\n 3:0.5\n2\r\n0")
    assert same(formats.read_labels(path), csr([[1, 8], [], [], [2], [0]], 9))


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


def test_pairs_left_out(tmp_path: Path) -> None:
    path = tmp_path / "filter_labels_test.txt"
    path.write_bytes(b"2 4\r\n0 1\n\n 0\t0 \n2 4\n")
    assert same(formats.read_left_out(path, (3, 5)), csr([[0, 1], [], [4]], 5))
    path.write_bytes(b"")
    assert same(formats.read_left_out(path, (3, 5)), csr([[], [], []], 5))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"0 1\n3 0\n", ":2: instance '3' is out of range: ids are 0 to 2"),
        (b"0 5\n", ":1: label '5' is out of range: ids are 0 to 4"),
        (b"0 1\n0\n", ":2: '0': expected two integers, `instance label`"),
        (b"0 1 2\n", ":1: '0 1 2': expected two integers"),
        (b"-1 2\n", ":1: '-1 2': expected two integers"),
        (b"0 1.0\n", ":1: '0 1.0': expected two integers"),
        (b"0:1\n", ":1: '0:1': expected two integers"),
        (b"\x1f\x8b\x00\n", ":1: .*: expected two integers"),
        (b"0 " + b"9" * 5000, ":1: label '99.*' is out of range"),
    ],
)
def test_pairs_left_out_that_are_none(tmp_path: Path, text: bytes, message: str) -> None:
    path = tmp_path / "filter_labels_test.txt"
    path.write_bytes(text)
    with pytest.raises(DataError, match=message):
        formats.read_left_out(path, (3, 5))
