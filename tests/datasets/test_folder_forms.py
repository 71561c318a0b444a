"""The same data in every form of files: labels, sparse features, their SVD."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from dataset_files import (
    FEATURE_FORMS,
    FEATURE_ROWS,
    LABEL_FORMS,
    LABEL_ROWS,
    csr,
    same,
    same_values,
    with_values,
    write_form,
)

from fanin.datasets import DataError, folder, load, svd


@pytest.mark.parametrize("labels", LABEL_FORMS)
@pytest.mark.parametrize("features", FEATURE_FORMS)
def test_all_forms_give_the_same_arrays(
    tmp_path: Path, cache: Path, three: None, labels: str, features: str
) -> None:
    write_form(tmp_path / "mine", labels, features)
    data = load("mine", "bow", tmp_path)
    for split, x, y in (("train", data.train_x, data.train_y), ("test", data.test_x, data.test_y)):
        expected = with_values(FEATURE_ROWS[split], 6)
        if features == "own.npy":
            assert np.array_equal(x, expected.toarray())
            assert x.dtype == np.float32 and x.flags.c_contiguous
        else:
            assert same_values(x, expected)
        assert same(y, csr([sorted(row) for row in LABEL_ROWS[split]], 5))
        assert y.dtype == np.bool_
    assert (data.name, data.features, data.synthetic) == ("mine", "bow", False)
    assert data.sparse_features == (features != "own.npy")
    assert folder.is_sparse(tmp_path / "mine", "bow") == data.sparse_features
    if data.sparse_features:  # the others can be reduced
        reduced = load("mine", "bow-svd512", tmp_path)
        matrices = (with_values(FEATURE_ROWS[split], 6) for split in ("train", "test"))
        for x, expected in zip(
            (reduced.train_x, reduced.test_x), svd.reduce(*matrices), strict=True
        ):
            assert np.array_equal(x, expected) and x.shape[1] == 3
        assert same(reduced.train_y, data.train_y)


@pytest.mark.parametrize("kind", ["labels", "features"])
def test_order_of_preference(tmp_path: Path, kind: str) -> None:
    """All forms lie in one folder. From the best one on, each is spoiled, named and removed."""
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
    with pytest.raises(DataError, match=r"to load; .* bow, bow-dense, bow-svd512, slice$"):
        load("mine", None, tmp_path)


def test_sparse_features_with_a_name_of_their_own(tmp_path: Path, cache: Path, three: None) -> None:
    write_form(tmp_path / "mine", "own.npz", "own.npz")
    for split in ("train", "test"):
        (tmp_path / "mine" / f"{split}-bow.npz").rename(tmp_path / "mine" / f"{split}-words.npz")
    data = load("mine", None, tmp_path)
    assert data.features == "words"
    assert same_values(data.train_x, with_values(FEATURE_ROWS["train"], 6))
    assert load("mine", "words-svd512", tmp_path).train_x.shape == (6, 3)
    dense = load("mine", "words-dense", tmp_path)
    assert dense.features == "words-dense" and not dense.sparse_features
    for x, same_x in ((data.train_x, dense.train_x), (data.test_x, dense.test_x)):
        assert np.array_equal(x.toarray(), same_x) and same_x.dtype == np.float32
    assert not folder.is_sparse(tmp_path / "mine", "words-dense")
    with pytest.raises(
        DataError, match=r"train-else-dense\.npy: missing; .*words-dense, words-svd"
    ):
        load("mine", "else-dense", tmp_path)
    (tmp_path / "mine" / "test-words.npz").unlink()
    for features in ("words-dense", "words-svd512"):
        with pytest.raises(DataError, match=r"test-words\.npz: missing; .*save_npz"):
            load("mine", features, tmp_path)


def test_zeros_of_files_are_not_features(tmp_path: Path) -> None:
    write_form(tmp_path / "mine", "own.txt", "repository.txt")
    path = tmp_path / "mine" / "trn_X_Xf.txt"
    path.write_text(path.read_text().replace("2:-3.0", "1:0 2:-3.0 5:0.0"))
    assert same_values(load("mine", "bow", tmp_path).train_x, with_values(FEATURE_ROWS["train"], 6))


def test_both_splits_have_the_same_form(tmp_path: Path) -> None:
    write_form(tmp_path / "mine", "own.txt", "own.npz")
    np.save(tmp_path / "mine" / "train-bow.npy", np.ones((6, 6), np.float32))
    with pytest.raises(DataError, match="features of one split are dense and those of the other"):
        load("mine", "bow", tmp_path)


def test_features_too_large_to_be_made_dense(
    tmp_path: Path, cache: Path, three: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert 2**20 < folder.memory_limit() < 2**50
    write_form(tmp_path / "mine", "own.txt", "repository.txt")
    monkeypatch.setattr(folder, "memory_limit", lambda: 4 * 9 * 6)
    load("mine", "bow-dense", tmp_path)
    monkeypatch.setattr(folder, "memory_limit", lambda: 4 * 9 * 6 - 1)
    with pytest.raises(DataError, match=r"trn_X_Xf.txt and tst_X_Xf.txt: .* 0\.2 KiB.*bow-svd512"):
        load("mine", "bow-dense", tmp_path)
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
    for message, text in bad.items():
        (place / "trn_X_Xf.txt").write_text(text)
        if "SVD" in message:
            (place / "tst_X_Xf.txt").write_text("3 2\n0:1\n0:1\n1:1\n")
        with pytest.raises(DataError, match=message):
            load("mine", "bow-svd512", tmp_path)
    assert not list(cache.glob("*"))


@pytest.mark.parametrize(
    ("features", "gone", "message"),
    [
        ("bow", "tst_X_Y.txt", "test-labels.txt: missing; .*header line `N D L`.*tst_X_Y.txt"),
        ("bow", "tst_X_Xf.txt", "tst_X_Xf.txt: missing; .*`rows columns`.*test.txt will do"),
        ("bow-svd512", "trn_X_Xf.txt", "trn_X_Xf.txt: missing; it is to hold the train features"),
    ],
)
def test_missing_repository_file(tmp_path: Path, features: str, gone: str, message: str) -> None:
    write_form(tmp_path / "mine", "repository.txt", "repository.txt")
    (tmp_path / "mine" / gone).unlink()
    with pytest.raises(DataError, match=message) as caught:
        load("mine", features, tmp_path)
    assert "http://manikvarma.org/downloads/XC/XMLRepository.html" in str(caught.value)
