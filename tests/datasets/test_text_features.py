"""Features of texts: what they are fitted on, and how they are cached."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import sparse

from fanin.datasets import DataError, svd, text_features
from fanin.datasets import cache as array_cache


@pytest.fixture
def few(cache: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[list[str], list[str]]:
    """A recipe and texts that take milliseconds."""
    monkeypatch.setitem(svd.SVD, "n_components", 3)
    return ["red apple", "green apple", "green pear", "red pear tree", "tree"] * 2, [
        "red tree",
        "pear",
    ]


def test_features_are_fitted_on_training_texts_only(few) -> None:
    train_texts, test_texts = few
    train, test = text_features.tfidf_svd(train_texts, test_texts)
    other_train, other_test = text_features.tfidf_svd(
        train_texts, ["quite other words", *test_texts]
    )
    assert np.array_equal(train, other_train)
    assert np.array_equal(test, other_test[1:])


def test_too_few_texts_or_terms(few, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="2 training texts are too few for 3 SVD components"):
        text_features.tfidf_svd(["red apple", "red pear"], ["red"])
    monkeypatch.setitem(svd.SVD, "n_components", 6)
    with pytest.raises(DataError, match="5 terms in the training texts are too few for 6 SVD"):
        text_features.tfidf_svd(*few)


def test_words_as_they_are(few) -> None:
    train_texts, test_texts = few
    train, test = text_features.tfidf_words(train_texts, ["pear apple pear", "else"])
    assert train.shape == (10, 5) and test.shape == (2, 5)
    for x in (train, test):
        assert isinstance(x, sparse.csr_array) and x.dtype == np.float32
        assert x.has_canonical_format
    # apple, green, pear, red, tree; pear is there twice, apple as frequent in the training texts.
    assert test.indices.tolist() == [0, 2]
    assert test.data[1] == pytest.approx((1 + np.log(2)) * test.data[0])
    assert np.square(test.data).sum() == pytest.approx(1)
    with pytest.raises(DataError, match=r"^1 training texts: .*: give more$"):
        text_features.tfidf_words(["red apple"], test_texts)


def test_characters_of_words(few) -> None:
    """Words that have only parts in common are alike; as whole words they are not."""
    train_texts = ["Apfelbaum", "Birnbaum", "Fischteich", "Fischnetz"] * 2
    words, _ = text_features.tfidf_svd(train_texts, ["Apfel"])
    parts, _ = text_features.tfidf_svd(train_texts, ["Apfel"], text_features.CHARACTER_TFIDF)
    assert abs(words[2] @ words[3]) < 0.01
    assert parts[2] @ parts[3] > 0.5


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
        array_cache.store(file, train=first[0][:2], test=first[1])
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


def test_cache_that_cannot_be_written(few, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is said before minutes of work."""
    cache.write_text("a file where the folder should be")
    monkeypatch.delattr(text_features, "tfidf_svd")
    with pytest.raises(DataError, match=r"cannot be written .*: set FANIN_CACHE"):
        text_features.load_text_features("toy", *few)
