"""Conversion between forms: the same data in each, and nothing left of one that fails."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import pytest
from dataset_files import FEATURE_ROWS, LABEL_ROWS, csr, same, same_values, with_values, write_form
from scipy import sparse

from fanin.datasets import DataError
from fanin.datasets.folder import feature_files
from fanin.datasets.tools import blocks
from fanin.datasets.tools.convert import FORMS, convert_files, convert_folder
from fanin.datasets.tools.files import find_packed, label_path


def stacked(matrix: blocks.Blocks) -> sparse.csr_array:
    return sparse.csr_array(sparse.vstack(list(matrix.blocks)))


def check_data(folder: Path) -> None:
    """The folder holds the data of `write_form`."""
    for split, rows in LABEL_ROWS.items():
        y = stacked(blocks.label_blocks(label_path(folder, split, may_be_packed=True)))
        assert same(y, csr([sorted(row) for row in rows], 5))
        path = find_packed(folder, split, feature_files("bow"))
        assert path
        x = stacked(blocks.feature_blocks(path))
        assert same_values(x, with_values(FEATURE_ROWS[split], 6))


def convert(source: Path, out: Path, form: str, compressed: bool = False) -> list[str]:
    return convert_folder(source, out, form, None, compressed, force=False)


@pytest.mark.parametrize(("form", "compressed"), [*product(FORMS, (False, True))])
def test_from_each_form_to_each(tmp_path: Path, form: str, compressed: bool) -> None:
    write_form(tmp_path / "source", "own.txt", "own.npz")
    (tmp_path / "source" / "labels.txt").write_text("a\nb\nc\nd\ne\n")
    (tmp_path / "source" / "filter_labels_test.txt").write_text("0 1\n")
    files = convert(tmp_path / "source", tmp_path / "first", form, compressed)
    assert {"labels.txt", "filter_labels_test.txt"} < set(files)
    assert any(name.endswith(".gz") for name in files) == (compressed and form in FORMS[2:])
    check_data(tmp_path / "first")
    for other in FORMS:
        convert(tmp_path / "first", tmp_path / other, other)
        check_data(tmp_path / other)


def test_what_is_read_by_training_is_what_was_converted(tmp_path: Path) -> None:
    write_form(tmp_path / "source", "repository.txt", "repository.txt")
    convert(tmp_path / "source", tmp_path / "out", "npz")
    stored = sparse.load_npz(tmp_path / "out" / "train-bow.npz")
    assert same_values(sparse.csr_array(stored), with_values(FEATURE_ROWS["train"], 6))
    assert sparse.load_npz(tmp_path / "out" / "train-labels.npz").dtype == bool


def test_every_float32_survives_text(tmp_path: Path) -> None:
    bits = np.random.default_rng(0).integers(0, 2**32, 3000, np.uint32).view(np.float32)
    values = bits[np.isfinite(bits) & (bits != 0)][:2800].reshape(7, 400)
    write_form(tmp_path / "source", "own.txt", "own.npz")
    for split, x in (("train", values[:6]), ("test", values[:3])):
        sparse.save_npz(tmp_path / "source" / f"{split}-bow.npz", sparse.csr_array(x))
    convert(tmp_path / "source", tmp_path / "text", "text")
    read = stacked(blocks.feature_blocks(tmp_path / "text" / "train.txt"))
    assert np.array_equal(read.toarray(), values[:6])


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    write_form(tmp_path / "data" / "source", "own.txt", "repository.txt")
    path = tmp_path / "data" / "source" / "tst_X_Xf.txt"
    path.write_text(path.read_text() + "9:1\n")
    for form in FORMS:
        with pytest.raises(DataError, match=r"tst_X_Xf.txt:5: one line too many"):
            convert(tmp_path / "data" / "source", tmp_path / "data" / "out", form)
        assert [p.name for p in (tmp_path / "data").iterdir()] == ["source"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("labels.txt", b"a\nb\n", "labels.txt: 2 lines, but there are 5 labels"),
        ("labels.txt", b"a\nb\nc\nd\n\xff\n", "labels.txt: no UTF-8"),
        ("filter_labels_test.txt", b"0 1\n0 5\n", "filter_labels_test.txt:2: label '5' is out of"),
        ("filter_labels_train.txt", b"a b\n", "filter_labels_train.txt:1: 'a b'"),
    ],
)
def test_what_is_copied_fits_the_labels(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    write_form(tmp_path / "source", "own.txt", "own.npz")
    (tmp_path / "source" / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        convert(tmp_path / "source", tmp_path / "out", "npz")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("train", "test"), [("1 3 2", "1 4 2"), ("1 3 2", "1 3 4")])
def test_both_splits_count_the_same(tmp_path: Path, train: str, test: str) -> None:
    for split, header in (("train", train), ("test", test)):
        (tmp_path / f"{split}.txt").write_text(f"{header}\n0 1:1\n")
    how = {"compressed": False, "force": False}
    with pytest.raises(DataError, match=r"test.txt: 4 (labels|inputs), but .*train.txt has [23]"):
        convert_files(
            tmp_path / "train.txt", tmp_path / "test.txt", tmp_path / "out", "npz", 0.1, 0, **how
        )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("seed", range(12))
def test_a_small_file_has_both_splits(tmp_path: Path, seed: int) -> None:
    path = tmp_path / "all.txt"
    path.write_text("3 3 2\n0 1:1\n1 2:1\n0 0:1\n")
    convert_files(path, None, tmp_path / "out", "npz", 0.1, seed, compressed=False, force=False)
    sizes = [sparse.load_npz(tmp_path / "out" / f"{s}-bow.npz").shape[0] for s in ("train", "test")]
    assert min(sizes) and sum(sizes) == 3


def test_other_instances_than_labels(tmp_path: Path) -> None:
    write_form(tmp_path / "source", "own.txt", "own.npy")
    np.save(tmp_path / "source" / "test-bow.npy", np.ones((4, 6), np.float32))
    with pytest.raises(DataError, match=r"test-bow.npy: 4 rows, but .*test-labels.txt has 3 inst"):
        convert(tmp_path / "source", tmp_path / "out", "text")


def test_what_is_there_is_replaced_by_force_alone(tmp_path: Path) -> None:
    write_form(tmp_path / "source", "own.txt", "own.npz")
    out = tmp_path / "out"
    out.mkdir()
    (out / "notes.md").write_text("mine")
    (out / "train-old.npy").write_text("old")
    (out / "old.features.json").write_text("{}")
    with pytest.raises(DataError, match=r"out: holds old.features.json, train-old.npy: name anoth"):
        convert(tmp_path / "source", out, "npz")
    assert len(list(out.iterdir())) == 3
    convert_folder(tmp_path / "source", out, "npz", None, False, force=True)
    check_data(out)
    names = {path.name for path in out.iterdir()}
    assert "notes.md" in names and not names & {"train-old.npy", "old.features.json"}


def test_several_features_must_be_named(tmp_path: Path) -> None:
    write_form(tmp_path / "source", "own.txt", "own.npz")
    np.save(tmp_path / "source" / "train-a.npy", np.eye(6, dtype=np.float32))
    np.save(tmp_path / "source" / "test-a.npy", np.eye(3, 6, dtype=np.float32))
    with pytest.raises(DataError, match=r"source: say which features to convert: a, bow"):
        convert(tmp_path / "source", tmp_path / "out", "npz")
    convert_folder(tmp_path / "source", tmp_path / "out", "npz", "a", False, force=False)
    x = sparse.load_npz(tmp_path / "out" / "train-a.npz")
    assert np.array_equal(x.toarray(), np.eye(6))
    with pytest.raises(DataError, match=r"source: no train features 'b'; .*here: a, bow"):
        convert_folder(tmp_path / "source", tmp_path / "b", "npz", "b", False, force=False)


@pytest.fixture
def single(tmp_path: Path) -> Path:
    """A file `N D L` of 300 instances, each of them twice."""
    lines = [f"{i % 7},{7 + i % 3} {i % 50}:1.5 {50 + i % 31}:{i + 1}" for i in range(150)] * 2
    path = tmp_path / "all.txt"
    path.write_text("300 100 10\n" + "".join(f"{line}\n" for line in lines))
    return path


def test_one_file_is_split_by_its_instances(tmp_path: Path, single: Path) -> None:
    def parts(seed: int, name: str) -> list[sparse.csr_array]:
        out = tmp_path / name
        convert_files(single, None, out, "npz", 0.3, seed, compressed=False, force=False)
        return [sparse.load_npz(out / f"{split}-bow.npz") for split in ("train", "test")]

    train, test = parts(0, "a")
    assert train.shape[0] + test.shape[0] == 300
    assert 45 < test.shape[0] < 135
    rows = [{tuple(row) for row in part.toarray().tolist()} for part in (train, test)]
    assert not rows[0] & rows[1]
    labels = sparse.load_npz(tmp_path / "a" / "train-labels.npz")
    for x, y in zip(train.toarray(), labels.toarray(), strict=True):
        number = int(x[50:].max()) - 1
        assert y.nonzero()[0].tolist() == [number % 7, 7 + number % 3]
    again = parts(0, "b")
    other = parts(1, "c")
    assert same_values(sparse.csr_array(again[1]), sparse.csr_array(test))
    assert not same_values(sparse.csr_array(other[1]), sparse.csr_array(test))


def test_two_files(tmp_path: Path, single: Path) -> None:
    how = {"compressed": False, "force": False}
    convert_files(single, single, tmp_path / "out", "text", 0.0, 0, **how)
    for split in ("train", "test"):
        text = (tmp_path / "out" / f"{split}.txt").read_text()
        assert text == single.read_text()
    with pytest.raises(DataError, match=r"all.txt: 0 of 300 instances would be for testing"):
        convert_files(single, None, tmp_path / "none", "text", 0.0, 0, **how)
