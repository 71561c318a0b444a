"""Findings about a data folder: each flaw is named with its numbers, and others are not."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from dataset_files import csr
from scipy import sparse

from fanin.datasets import DataError, load
from fanin.datasets.tools import blocks
from fanin.datasets.tools.check import check_folder

TRAIN, TEST = 40, 10


@pytest.fixture(params=["npy", "npz"])
def folder(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A data set without a flaw, with dense or sparse features `a` of 6 inputs and 4 labels."""
    (tmp_path / "mine").mkdir()
    write_labels(tmp_path / "mine", "train", [[i % 4, 0] if i % 4 else [0] for i in range(TRAIN)])
    write_labels(tmp_path / "mine", "test", [[i % 4] for i in range(TEST)])
    for split, count in (("train", TRAIN), ("test", TEST)):
        x = np.random.default_rng(count).integers(1, 100, (count, 6)) / 8
        write_features(tmp_path / "mine", split, x, request.param)
    return tmp_path / "mine"


def write_labels(folder: Path, split: str, rows: list[list[int]], labels: int = 4) -> None:
    y = csr([sorted(row) for row in rows], labels)
    sparse.save_npz(folder / f"{split}-labels.npz", y)


def write_features(folder: Path, split: str, x: np.ndarray, form: str) -> None:
    if form == "npy":
        np.save(folder / f"{split}-a.npy", x.astype(np.float32))
    else:
        sparse.save_npz(folder / f"{split}-a.npz", sparse.csr_array(x.astype(np.float32)))


def change(folder: Path, split: str, index: object, value: float) -> None:
    """Set some features of a split."""
    (path,) = folder.glob(f"{split}-a.*")
    x = np.load(path) if path.suffix == ".npy" else sparse.load_npz(path).toarray()
    x[index] = value  # type: ignore[index]
    write_features(folder, split, x, path.suffix[1:])


def findings(folder: Path, level: str) -> list[str]:
    return [
        f"{each.what}: {each.advice}"
        for each in check_folder(folder).findings
        if each.level == level
    ]


def only(folder: Path, level: str) -> str:
    (finding,) = findings(folder, level)
    return finding


def test_data_without_a_flaw(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "ENTRIES", 7)  # many blocks give the same
    report = check_folder(folder)
    assert report.is_usable
    assert {each.level for each in report.findings} == {"fact"}
    facts = findings(folder, "fact")
    assert facts[0].startswith(
        "train: 40 instances, 4 labels, 70 positives; 1.75 labels an instance, at most 2; 17.50 "
        "instances a label, at most 40"
    )
    assert facts[1].startswith(
        "train: head: 1 % of the labels (1) have 57.1 % of the positives; tail: 0 labels"
    )
    assert facts[4].startswith("a, train: 40 instances, 6 inputs, 100 % not 0; values 0.")


def test_labels_that_cannot_be_learnt(folder: Path) -> None:
    write_labels(folder, "train", [[0, 1]] * TRAIN, labels=9)
    write_labels(folder, "test", [[0], [1, 2], [2, 3]] + [[0]] * 7, labels=9)
    unseen, never = findings(folder, "warning")
    assert unseen.startswith(
        "test: 2 of 9 labels (2, 3) without a training instance, 25 % of the test positives: no "
    )
    assert never.startswith("5 of 9 labels (4, 5, 6, 7, 8) never positive in either split: ")


def test_instances_without_labels(folder: Path) -> None:
    write_labels(folder, "train", [[], []] + [[0, 1, 2, 3]] * 38)
    assert only(folder, "warning").startswith("train: 2 instances (5 %) without a label: they only")
    write_labels(folder, "train", [[]] * TRAIN)
    assert only(folder, "unusable").startswith("train: no instance has a label: there is nothing")
    write_labels(folder, "train", [[0, 1, 2, 3]] * TRAIN)
    write_labels(folder, "test", [[]] * TEST)
    assert only(folder, "warning").startswith("test: no instance has a label, so every precision")


def test_inputs_that_tell_nothing(folder: Path) -> None:
    for split in ("train", "test"):
        change(folder, split, (slice(None), [1, 3]), 0)
        change(folder, split, (slice(None), 4), 2.5)
    change(folder, "test", (5, 3), 1)
    zero, constant, unseen = findings(folder, "warning")
    assert zero.startswith("a, train: 2 of 6 inputs (1, 3) always 0: they tell nothing apart")
    assert constant.startswith("a, train: 1 of 6 inputs (4) the same for all instances: ")
    assert unseen.startswith("a: 1 of 6 inputs (3) of the test split only: ")


def test_zeros_are_values_too(folder: Path) -> None:
    """An input that is 5 or 0 is not the same for all instances."""
    change(folder, "train", (slice(0, 20), 0), 0)
    change(folder, "train", (slice(20, None), 0), 5)
    assert not findings(folder, "warning")
    assert (
        "a, train: 40 instances, 6 inputs, 91.7 % not 0; values 0 to" in findings(folder, "fact")[4]
    )


def test_instances_without_features(folder: Path) -> None:
    change(folder, "train", 7, 0)
    change(folder, "test", 2, 0)
    warnings = findings(folder, "warning")
    assert warnings[0].startswith("a, train: 1 instances (2.5 %) have zeros alone: ")
    assert warnings[1].startswith("a, test: 1 instances (10 %) have zeros alone: ")
    change(folder, "train", slice(None), 0)
    assert "holds no features, only zeros" in only(folder, "unusable")


def test_equal_instances_and_leaks(folder: Path) -> None:
    change(folder, "train", [3, 4, 5], 9)
    change(folder, "test", [0, 1], 9)
    repeated, tested, leaks = findings(folder, "warning")
    assert repeated.startswith("a, train: 2 instances (5 %) are equal to an earlier one: keep one")
    assert tested.startswith("a, test: 1 instances (10 %) are equal to an earlier one: ")
    assert leaks.startswith("a: 2 test instances (20 %) are equal to a training instance: ")


def test_equal_texts(folder: Path) -> None:
    for split, count in (("train", TRAIN), ("test", TEST)):
        lines = (json.dumps({"text": f"{i}"}) + "\n" for i in range(count))
        (folder / f"{split}-texts.jsonl").write_text("".join(lines))
    assert only(folder, "warning").startswith("texts: 10 test instances (100 %) are equal to a tra")
    (folder / "test-texts.jsonl").write_text('{"text": "new"}\n')
    assert only(folder, "unusable").startswith("texts, test: 1, but 10 instances have labels: ")


def test_files_that_do_not_fit(folder: Path) -> None:
    form = next(folder.glob("train-a.*")).suffix[1:]
    write_features(folder, "test", np.arange(54).reshape(9, 6) + 1, form)
    assert "test-a" in only(folder, "unusable")
    assert "9 rows, but there are 10 test instances" in only(folder, "unusable")
    write_features(folder, "test", np.arange(50).reshape(10, 5) + 1, form)
    assert only(folder, "unusable").startswith("a: 6 inputs for training, 5 for testing: make both")
    write_labels(folder, "test", [[0]] * TEST, labels=5)
    assert "4 labels for training but 5 for testing" in findings(folder, "unusable")[0]


def test_a_bad_file_does_not_hide_the_others(folder: Path) -> None:
    change(folder, "train", (1, 2), np.nan)
    (folder / "test-labels.npz").write_bytes(b"PK")
    (folder / "labels.txt").write_text("a\n")
    (folder / "filter_labels_train.txt").write_text("0 9\n")
    labels, left_out, names, values = findings(folder, "unusable")
    assert "test-labels.npz: not a readable sparse .npz file" in labels
    assert "filter_labels_train.txt:1: label '9' is out of range" in left_out
    assert "labels.txt: 1 lines, but there are 4 labels" in names
    assert "train-a" in values and "nan" in values


def test_compressed_features(folder: Path) -> None:
    (folder / "trn_X_Xf.txt.gz").touch()
    (folder / "tst_X_Xf.txt.gz").touch()
    train, test = findings(folder, "unusable")
    assert train.startswith(f"{folder / 'trn_X_Xf.txt.gz'}: compressed: unpack it with gunzip")
    assert test.startswith(f"{folder / 'tst_X_Xf.txt.gz'}: compressed")


def test_missing_parts(folder: Path) -> None:
    for path in folder.glob("test-a.*"):
        path.unlink()
    assert "no test features 'a'" in only(folder, "unusable")
    for path in folder.glob("*-a.*"):
        path.unlink()
    assert only(folder, "unusable").startswith(f"{folder}: no train features: put train-<features>")
    (folder / "train-labels.npz").unlink()
    assert "train-labels.txt: missing" in findings(folder, "unusable")[0]
    with pytest.raises(DataError, match="mine/no: no folder"):
        check_folder(folder / "no")


def test_what_training_refuses_is_unusable(folder: Path) -> None:
    """Whatever file is cut off or missing: both say so."""
    for path in sorted(folder.iterdir()):
        content = path.read_bytes()
        for damaged in (b"", content[: len(content) // 2], content[:-1], content):
            path.write_bytes(damaged)
            try:
                load("mine", "a", folder.parent)
                is_refused = False
            except DataError:
                is_refused = True
            assert check_folder(folder).is_usable != is_refused, (path, len(damaged))
            assert is_refused == (damaged != content)
        path.write_bytes(content)
