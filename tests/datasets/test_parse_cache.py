"""Parsed labels and features are cached, and parsed anew for another file or a damaged cache."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from dataset_files import csr, same, same_values, write_form
from scipy import sparse

from fanin.datasets import DataError, formats, load, parse_cache
from fanin.datasets import cache as array_cache


@pytest.fixture
def label_file(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A label file that is large enough to be cached."""
    monkeypatch.setattr(parse_cache, "CACHED_FROM", 10)
    path = tmp_path / "mine" / "labels.txt"
    path.parent.mkdir()
    formats.write_labels(path, csr([[0, 3], [], [1]], 5), 7)
    return path


def read_once(path: Path) -> tuple[sparse.csr_array, bool]:
    """The labels, and whether they were parsed."""
    parsed = []
    labels = parse_cache.cached(lambda path: parsed.append(path) or formats.read_labels(path))(path)
    return labels, bool(parsed)


def test_labels_are_parsed_once(label_file: Path, cache: Path) -> None:
    first, parsed = read_once(label_file)
    assert parsed
    (file,) = cache.iterdir()
    assert file.name.startswith("mine-labels-") and file.suffix == ".npz"
    again, parsed = read_once(label_file)
    assert not parsed
    assert same(first, again) and first.dtype == again.dtype == np.bool_
    assert first.indices.dtype == again.indices.dtype
    assert again.has_canonical_format and again.data.all()


@pytest.mark.parametrize("form", ["repository.txt", "single"])
def test_features_are_parsed_once(
    tmp_path: Path, cache: Path, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parse_cache, "CACHED_FROM", 10)
    write_form(tmp_path / "mine", "own.npz", form)
    first = load("mine", "bow", tmp_path)
    assert len(list(cache.iterdir())) == 2
    with monkeypatch.context() as patch:
        patch.delattr(formats, "read_text")  # only the cache can answer
        again = load("mine", "bow", tmp_path)
    assert again.identity == first.identity
    for one, two in ((first.train_x, again.train_x), (first.test_x, again.test_x)):
        assert same_values(one, two)


def test_a_label_file_is_known_by_its_contents_alone(label_file: Path) -> None:
    first, _ = read_once(label_file)
    before = label_file.stat()
    formats.write_labels(label_file, csr([[0, 3], [], [2]], 5), 7)
    os.utime(label_file, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = label_file.stat()
    assert (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    labels, parsed = read_once(label_file)
    assert parsed and same(labels, csr([[0, 3], [], [2]], 5))
    formats.write_labels(label_file, first, 7)
    labels, parsed = read_once(label_file)
    assert not parsed and same(labels, first)


def test_what_another_parser_made_is_not_taken(label_file: Path) -> None:
    read_once(label_file)
    label_file.write_text("3 5\n0:1\n\n1:0\n")
    pairs = parse_cache.cached(formats.read_label_pairs)(label_file)
    assert same(pairs, csr([[0], [], []], 5))
    with pytest.raises(DataError):
        read_once(label_file)


@pytest.mark.parametrize("name", ["x" * 255, "\udcff \U0001f600"])
def test_any_name_of_a_file_will_do(label_file: Path, name: str) -> None:
    path = label_file.rename(label_file.with_name(name))
    read_once(path)
    assert not read_once(path)[1]


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "other", "range"])
def test_damaged_parse_cache_is_made_anew(
    label_file: Path, cache: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    first, _ = read_once(label_file)
    (file,) = cache.iterdir()
    good = file.read_bytes()
    at = good.index(first.indices.tobytes())
    flipped = good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :]
    file.write_bytes({"cut": good[: len(good) // 2], "flip": flipped}.get(damage, b""))
    if damage == "other":
        array_cache.store(file, train=np.ones(3))
    if damage == "range":
        indices, shape = first.indices + 2, np.array([3, 5])
        array_cache.store(file, indices=indices, indptr=first.indptr, shape=shape)
    labels, parsed = read_once(label_file)
    assert parsed and same(labels, first)
    assert "is damaged" in caplog.text
    assert not read_once(label_file)[1]


@pytest.mark.parametrize("lacking", ["folder", "home"])
def test_labels_do_not_need_a_cache(
    label_file: Path,
    cache: Path,
    lacking: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cache.write_text("a file where the folder should be")
    if lacking == "home":
        monkeypatch.setenv("FANIN_CACHE", "~nobody-of-that-name")
    for _ in range(2):
        labels, parsed = read_once(label_file)
        assert parsed and same(labels, csr([[0, 3], [], [1]], 5))
    assert "is parsed at every start" in caplog.text and "set FANIN_CACHE" in caplog.text


def test_small_label_files_are_not_cached(tmp_path: Path, cache: Path) -> None:
    write_form(tmp_path / "mine", "single", "own.npy")
    load("mine", "bow", tmp_path)
    assert not cache.exists()


def test_bad_labels_are_not_cached(label_file: Path, cache: Path) -> None:
    label_file.write_text("2 7 5\n0,3\n1,9\n")
    for _ in range(2):
        with pytest.raises(DataError, match="label '9' is out of range"):
            read_once(label_file)
    assert not cache.exists()
