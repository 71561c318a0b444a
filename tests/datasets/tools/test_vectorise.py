"""TF-IDF of texts in a data folder, and the vectoriser that is kept beside it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy import sparse
from sklearn.feature_extraction.text import TfidfVectorizer

from fanin.datasets import DataError
from fanin.datasets.text_features import CHARACTER_TFIDF, TFIDF
from fanin.datasets.tools import vectorise
from fanin.datasets.tools.convert import FORMS, convert_folder
from fanin.datasets.tools.files import kinds_in
from fanin.datasets.tools.vectorise import Vectoriser, features_with, make_features

rng = np.random.default_rng(0)
TRAIN = [" ".join(f"wörd{i}" for i in rng.integers(0, 40, 12)) for _ in range(60)]
TEST = ["wörd1 wörd2 wörd2 unknown", "", *TRAIN[:3]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "mine").mkdir()
    for split, texts in (("train", TRAIN), ("test", TEST)):
        lines = (json.dumps({"text": text}) + "\n" for text in texts)
        (tmp_path / "mine" / f"{split}-texts.jsonl").write_text("".join(lines))
    return tmp_path / "mine"


def test_files_hold_what_scikit_learn_makes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vectorise, "AT_ONCE", 2)
    files = make_features(folder, "tfidf", "words", None, None, False)
    names = ["train-tfidf.npz", "test-tfidf.npz", "tfidf.features.json"]
    assert [path.name for path in files] == names
    expected = TfidfVectorizer(dtype=np.float32, **TFIDF)
    for path, x in zip(
        files, (expected.fit_transform(TRAIN), expected.transform(TEST)), strict=False
    ):
        stored = sparse.load_npz(path)
        assert stored.format == "csr" and stored.dtype == np.float32
        assert np.array_equal(stored.toarray(), x.toarray())
        assert sparse.csr_array(stored).has_sorted_indices
    assert not list(folder.glob(".*"))


def test_a_kept_vectoriser_makes_the_same_features(folder: Path) -> None:
    for name, units, components in (("a", "words", None), ("b", "characters", 5)):
        *_, kept = make_features(folder, name, units, 1, components, False)
        vectoriser = Vectoriser.load(kept)
        for split, texts in (("train", TRAIN), ("test", TEST)):
            x = vectoriser.features(texts)
            if components is None:
                assert isinstance(x, sparse.csr_array)
                stored = sparse.load_npz(folder / f"{split}-a.npz")
                assert np.array_equal(stored.toarray(), x.toarray())
            else:
                stored = np.load(folder / f"{split}-b.npy")
                assert stored.dtype == x.dtype == np.float32
                assert x.shape == (len(texts), components) == stored.shape
                assert np.abs(stored - x).max() < 1e-5
                lengths = np.linalg.norm(stored, axis=1)
                assert np.abs(lengths[np.array(texts) != ""] - 1).max() < 1e-5
        assert vectoriser.inputs == x.shape[1]
    assert vectoriser.tfidf == CHARACTER_TFIDF | {"min_df": 1}


def test_features_of_another_folder(folder: Path, tmp_path: Path) -> None:
    *_, kept = make_features(folder, "tfidf", "words", None, None, False)
    other = tmp_path / "other"
    other.mkdir()
    for split, texts in (("train", TEST), ("test", TRAIN)):
        (other / f"{split}-texts.txt").write_text("".join(f"{text}\n" for text in texts))
    files = features_with(kept, other, False)
    assert [path.name for path in files] == ["train-tfidf.npz", "test-tfidf.npz"]
    for split, before in (("train", "test"), ("test", "train")):
        stored = [
            sparse.load_npz(place / f"{name}-tfidf.npz").toarray()
            for place, name in ((other, split), (folder, before))
        ]
        assert np.array_equal(*stored)


def test_a_folder_without_texts_of_a_split_gets_no_features(folder: Path, tmp_path: Path) -> None:
    *_, kept = make_features(folder, "tfidf", "words", None, None, False)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "train-texts.txt").write_text("wörd1\n")
    with pytest.raises(DataError, match=r"test-texts.jsonl: missing"):
        features_with(kept, tmp_path / "other", False)
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["train-texts.txt"]


def test_nothing_is_replaced_without_force(folder: Path) -> None:
    make_features(folder, "tfidf", "words", None, None, False)
    before = {path: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(DataError, match=r"tfidf.features.json: exists: give --force"):
        make_features(folder, "tfidf", "words", 1, None, False)
    with pytest.raises(DataError, match=r"train-tfidf.npz: exists: give --force"):
        features_with(folder / "tfidf.features.json", folder, False)
    assert before == {path: path.read_bytes() for path in folder.iterdir()}
    make_features(folder, "tfidf", "characters", 1, None, True)
    assert before[folder / "train-tfidf.npz"] != (folder / "train-tfidf.npz").read_bytes()


@pytest.mark.parametrize(
    ("texts", "components", "message"),
    [
        (["a b", ""], None, r"train-texts.jsonl: no term stands in 2 texts \("),
        (TRAIN[:4], 5, r"train-texts.jsonl: 4 texts with \d+ terms are too few for 5 SVD comp"),
        ([], None, r"train-texts.jsonl: no term stands in 2 texts"),
    ],
)
def test_too_few_texts(
    folder: Path, texts: list[str], components: int | None, message: str
) -> None:
    lines = (json.dumps({"text": text}) + "\n" for text in texts)
    (folder / "train-texts.jsonl").write_text("".join(lines))
    with pytest.raises(DataError, match=message):
        make_features(folder, "a", "words", None, components, False)
    assert len(list(folder.iterdir())) == 2


def test_a_bad_text_of_the_test_split(folder: Path) -> None:
    with (folder / "test-texts.jsonl").open("a") as file:
        file.write("{")
    with pytest.raises(DataError, match=r"test-texts.jsonl:6: '{': expected a line"):
        make_features(folder, "a", "words", None, None, False)
    assert not (folder / "a.features.json").exists()


def test_damaged_vectorisers(folder: Path) -> None:
    *_, kept = make_features(folder, "a", "words", None, 3, False)
    good = json.loads(kept.read_text())
    for wrong in (
        {**good, "schema_version": 2},
        {**good, "idf": good["idf"][1:]},
        {**good, "idf": [float("nan"), *good["idf"][1:]]},
        {**good, "terms": [good["terms"][0], *good["terms"][:-1]]},
        {**good, "tfidf": {**good["tfidf"], "tokenizer": "os.system"}},
        {**good, "components": 4},
        {key: value for key, value in good.items() if key != "terms"},
        [],
    ):
        kept.write_text(json.dumps(wrong))
        with pytest.raises(DataError, match=r"a.features.(json|npy)"):
            Vectoriser.load(kept)
    content = json.dumps(good)
    kept.write_text(content[: len(content) // 2])
    with pytest.raises(DataError, match=r"a.features.json: no vectoriser that `fanin data"):
        Vectoriser.load(kept)
    kept.write_text(content)
    (folder / "a.features.npy").write_bytes(b"")
    with pytest.raises(DataError, match=r"a.features.npy: not a readable .npy file"):
        Vectoriser.load(kept)


@pytest.mark.parametrize("components", [None, 5])
@pytest.mark.parametrize("form", FORMS)
def test_converted_data_keep_the_vectoriser(folder: Path, form: str, components) -> None:
    """Under the name that the features have in their new form."""
    make_features(folder, "own", "characters", 1, components, False)
    for split, texts in (("train", TRAIN), ("test", TEST)):
        labels = sparse.csr_array(np.ones((len(texts), 2), bool))
        sparse.save_npz(folder / f"{split}-labels.npz", labels)
    other = folder.parent / "other"
    convert_folder(folder, other, form, "own", False, force=False)
    name = "own" if form in ("npz", "npy") else "bow"
    assert kinds_in(other) == [name]
    again = Vectoriser.load(other / f"{name}.features.json").features(TEST)
    expected = Vectoriser.load(folder / "own.features.json").features(TEST)
    assert again.shape == expected.shape and abs(again - expected).max() == 0
