"""Data sets by name."""

from __future__ import annotations

from pathlib import Path

import pytest
from dataset_files import write_folder, write_form

from fanin.datasets import DataError, available, has_sparse_features, load


def test_unknown_names_say_what_there_is(tmp_path: Path) -> None:
    assert available() == ["wordnet", "wordnet-small"]
    with pytest.raises(DataError, match="'mine'; fanin comes with wordnet, wordnet-small"):
        load("mine")
    with pytest.raises(DataError, match=f"no folder {tmp_path}/mine; .*train-labels.txt"):
        load("mine", data_dir=tmp_path)
    with pytest.raises(
        DataError, match=r"no features named 'slice': there are tfidf-svd512 and tfidf$"
    ):
        load("wordnet", "slice")


def test_published_name_without_files_says_where_they_come_from(tmp_path: Path) -> None:
    for data_dir in (None, tmp_path):
        with pytest.raises(DataError, match=r"^Amazon-670K does not come with fanin") as caught:
            load("Amazon-670K", data_dir=data_dir)
        message = str(caught.value)
        assert (f"there is no folder {tmp_path}/Amazon-670K" in message) == (data_dir is not None)
        assert "lay out <data-dir>/Amazon-670K/" in message and "wordnet-small" in message
        for file in ("trn_X_Y.txt", "tst_X_Xf.txt", "train-slice.npy", "test-cascade.npy"):
            assert file in message
    with pytest.raises(DataError, match="eurlex-4k does not come with fanin") as caught:
        load("eurlex-4k")
    assert "slice" not in str(caught.value)


def test_own_folder_goes_before_embedded(tmp_path: Path) -> None:
    write_folder(tmp_path / "wordnet")
    assert load("wordnet", data_dir=tmp_path).labels == 5


def test_where_features_are_sparse(tmp_path: Path) -> None:
    write_form(tmp_path / "mine", "own.txt", "repository.txt")
    for dataset, features, data_dir, expected in (
        ("wordnet", "tfidf", None, True),
        ("wordnet", "tfidf", tmp_path, True),
        ("wordnet", "tfidf-svd512", None, False),
        ("mine", "bow", tmp_path, True),
        ("Mine", "bow", tmp_path, True),
        ("mine", "bow-svd512", tmp_path, False),
        ("mine", "tfidf", tmp_path, False),
        ("mine", "bow", None, False),
    ):
        assert has_sparse_features(dataset, features, data_dir) == expected
