"""Data sets: file formats and their errors, the embedded WordNet sets, the feature cache."""

from __future__ import annotations

import functools
import logging
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from fanin.datasets import (
    DataError,
    Dataset,
    available,
    formats,
    load,
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
    fast = formats._parse_fast(lines, labels)
    slow = formats._parse_slowly(lines, labels, Path("x"), 2)
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
    monkeypatch.setattr(formats, "BLOCK_LINES", 3)
    path = tmp_path / "labels.txt"
    path.write_text("8 10 4\n" + "1,2\n" * 7 + "7\n")
    with pytest.raises(DataError, match=r"labels\.txt:9: label '7'"):
        formats.read_labels(path)
    path.write_text("8 10 4\n" + "1,2\n" * 7 + "3\n")
    assert same(formats.read_labels(path), csr([[1, 2]] * 7 + [[3]], 4))


@pytest.mark.parametrize(
    "header", ["", "4 10", "4 10 x", "4 10 4 1", "-4 10 4", "4 10 " + "9" * 5000]
)
def test_bad_header(tmp_path: Path, header: str) -> None:
    path = tmp_path / "labels.txt"
    path.write_text("\n".join([header, *GOOD]) + "\n")
    with pytest.raises(DataError, match=r"labels\.txt:1: header .*expected three integers `N D L`"):
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
    assert data.describe() == {
        "train_instances": 6,
        "test_instances": 3,
        "inputs": 4,
        "labels": 5,
        "labels_per_instance": 2.0,
        "instances_per_label": 2.4,
    }


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
        with pytest.raises(DataError, match=r"train-slice\.npy: not a readable \.npy file"):
            load("mine", data_dir=tmp_path)


def test_label_counts_must_agree(tmp_path: Path) -> None:
    write_folder(tmp_path / "mine")
    formats.write_labels(tmp_path / "mine" / "test-labels.txt", csr([[0]] * 3, 6), 4)
    with pytest.raises(DataError, match=r"mine .*: 5 labels for training but 6 for testing"):
        load("mine", data_dir=tmp_path)


@pytest.mark.parametrize("file", ["train-labels.txt", "test-labels.txt", "test-slice.npy"])
def test_missing_file_says_what_it_holds(tmp_path: Path, file: str) -> None:
    write_folder(tmp_path / "mine")
    (tmp_path / "mine" / file).unlink()
    with pytest.raises(DataError, match=f"{file}: missing; it is to hold the {file.split('-')[0]}"):
        load("mine", data_dir=tmp_path)


def test_features_must_be_named_if_several(tmp_path: Path) -> None:
    write_folder(tmp_path / "mine")
    np.save(tmp_path / "mine" / "train-cascade.npy", np.zeros((6, 4), np.float32))
    with pytest.raises(DataError, match=r"say which features to load; .* cascade, slice"):
        load("mine", data_dir=tmp_path)


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
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FANIN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


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
    with pytest.raises(DataError, match="'Amazon-670K'; fanin comes with wordnet, wordnet-small"):
        load("Amazon-670K")
    with pytest.raises(DataError, match=f"no folder {tmp_path}/Amazon-670K; .*train-labels.txt"):
        load("Amazon-670K", data_dir=tmp_path)
    with pytest.raises(DataError, match="no features named 'slice': there is tfidf-svd512"):
        load("wordnet", "slice")


def test_own_folder_goes_before_embedded(tmp_path: Path) -> None:
    write_folder(tmp_path / "wordnet")
    assert load("wordnet", data_dir=tmp_path).labels == 5
