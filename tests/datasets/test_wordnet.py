"""The embedded WordNet sets: their counts, some known synsets, features that tell labels apart."""

from __future__ import annotations

import functools
import logging
from pathlib import Path

import numpy as np
import pytest
from damage import cut, flip, zero_block

from fanin.datasets import DataError, load, wordnet


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
    assert train.positives.shape == (train_count, label_count)
    assert test.positives.shape == (test_count, label_count)
    assert train.positives.nnz == positives
    for split in (train, test):
        assert len(split.keys) == len(split.texts) == split.positives.shape[0]
        assert (np.diff(split.positives.indptr) > 0).all()
    assert np.bincount(train.positives.indices).min() >= wordnet.MIN_POSITIVES
    assert len(set(names)) == label_count
    assert len({*train.keys, *test.keys}) == train_count + test_count


def test_wordnet_rows_are_real() -> None:
    train, test, names = splits()
    instances = {
        key: (text, {names[i] for i in split.positives[[number]].indices})
        for split in (train, test)
        for number, (key, text) in enumerate(zip(split.keys, split.texts, strict=True))
        if key in ("n02084071", "a00095873", "v01926329")
    }
    text, labels = instances["n02084071"]
    assert text.startswith("dog, domestic dog, Canis familiaris; a member of the genus Canis")
    assert {"canine (n02083346)", "domestic animal (n01317541)", "puppy (n01322604)"} <= labels
    text, labels = instances["a00095873"]  # WordNet writes "asleep(p)", "at_peace(p)"
    assert text.startswith("asleep, at peace, at rest, deceased, departed, gone; dead; ")
    assert labels == {"euphemism (n06605046)", "dead person (n09994943)", "dead (a00095280)"}
    text, labels = instances["v01926329"]
    assert text.startswith("run; move fast by using one's feet")
    assert {"runner (n10542761)", "sprint (v01928597)", "travel rapidly (v02055667)"} <= labels


def test_wordnet_small_is_part_of_wordnet() -> None:
    whole_train, whole_test, whole_names = splits()
    train, test, names = splits(wordnet.SMALL_CUT)
    assert set(train.keys) <= set(whole_train.keys)
    assert set(test.keys) <= set(whole_test.keys)
    assert set(names) <= set(whole_names)


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


def test_words_of_wordnet() -> None:
    data, reduced = load("wordnet-small", "tfidf"), load("wordnet-small")
    assert data.sparse_features and data.features == "tfidf"
    assert (data.train_x.shape, data.test_x.shape) == ((2_877, 2_733), (314, 2_733))
    assert (data.train_y != reduced.train_y).nnz == 0
    assert data.label_names == reduced.label_names


@pytest.mark.parametrize("damage", [zero_block, flip, cut])
def test_a_damaged_file_is_named(damage, tmp_path, monkeypatch):
    file = tmp_path / "wordnet.txt.xz"
    file.write_bytes(Path(wordnet.__file__).with_name(file.name).read_bytes())
    damage(file)
    monkeypatch.setattr(wordnet.resources, "files", lambda package: tmp_path)
    with pytest.raises(DataError, match=r"wordnet\.txt\.xz: damaged .*: install fanin anew"):
        wordnet.read_synsets.__wrapped__()
