"""A folder of the user: labels and dense features, and what is said of files that do not fit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from dataset_files import csr, same, write_folder, write_form

from fanin.datasets import DataError, folder, formats, load


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
    monkeypatch.setattr("fanin.datasets.dataset.BLOCK_BYTES", 48)  # a few instances at a time
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
    ("array", "message"),
    [
        (np.zeros(6, np.float32), "must be one array"),
        (np.zeros((6, 4), np.int32), "features are int32"),
        (np.zeros((5, 4), np.float32), "5 rows, but .*train-labels.txt has 6 instances"),
        (np.zeros((6, 3), np.float32), "3 inputs for training but 4 for testing"),
    ],
)
def test_features_that_do_not_fit(tmp_path: Path, array: np.ndarray, message: str) -> None:
    write_folder(tmp_path / "mine")
    np.save(tmp_path / "mine" / "train-slice.npy", array)
    with pytest.raises(DataError, match=message):
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
    ("split", "rows", "labels", "message"),
    [
        ("train", 0, 5, "train-labels.txt: 0 instances: at least one"),
        ("test", 0, 5, "test-labels.txt: 0 instances: at least one"),
        ("train", 6, 0, "train-labels.txt: 0 labels: at least one"),
        ("train", 6, 5, "train-labels.txt: no instance has a label"),
        ("test", 3, 5, None),  # no prediction can be right, but training and testing work
    ],
)
def test_empty_data_are_named(tmp_path: Path, split: str, rows: int, labels: int, message) -> None:
    write_folder(tmp_path / "mine")
    np.save(tmp_path / "mine" / f"{split}-slice.npy", np.zeros((rows, 4), np.float32))
    formats.write_labels(tmp_path / "mine" / f"{split}-labels.txt", csr([[]] * rows, labels), 4)
    if message is None:
        assert load("mine", data_dir=tmp_path).test_y.nnz == 0
        return
    with pytest.raises(DataError) as caught:
        load("mine", data_dir=tmp_path)
    assert str(caught.value).startswith(f"{tmp_path / 'mine'}/{message}")


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


@pytest.mark.parametrize(
    ("name", "folder_name"),
    [
        ("amazon-670k", "Amazon670k"),
        ("amazon-670k", "Amazon-670K"),
        ("Amazon670K", "amazon-670k"),
        ("wiki-500k", "wikipedia-500k"),
        ("mine", "Mine"),
    ],
)
def test_folder_is_found_by_any_spelling(tmp_path: Path, name: str, folder_name: str) -> None:
    (tmp_path / folder_name.lower()).write_text("a file is no folder")
    assert folder.find_folder(tmp_path, name) is None
    (tmp_path / folder_name.lower()).unlink()
    (tmp_path / folder_name).mkdir()
    assert folder.find_folder(tmp_path, name) == tmp_path / folder_name
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
    for split in ("train", "test"):
        (place / f"{split}-slice.npy").rename(place / f"{split}-bow.npy")
    load("amazon-670k", "bow", tmp_path)
    assert caplog.text.rstrip().endswith("; 6 inputs, not 135,909")
    caplog.clear()
    (place / "train-bow.npy").rename(place / "train-slice.npy")
    (place / "test-bow.npy").rename(place / "test-slice.npy")
    (tmp_path / "Amazon670k").rename(tmp_path / "mine")
    load("mine", "slice", tmp_path)
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("features", "origin"), [("slice", "Slice .Jain"), ("cascade", "CascadeXML"), ("else", "")]
)
def test_missing_features_say_where_they_come_from(
    tmp_path: Path, features: str, origin: str
) -> None:
    write_form(tmp_path / "mine", "own.txt", "own.npy")
    with pytest.raises(DataError, match=f"train-{features}.npy: missing; .*{origin}.* here: bow$"):
        load("mine", features, tmp_path)
