"""Parsed labels are cached, and parsed anew for another file or a damaged cache."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from dataset_files import csr, same, write_form
from scipy import sparse

from fanin.datasets import DataError, formats, label_cache, load


@pytest.fixture
def label_file(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A label file that is large enough to be cached."""
    monkeypatch.setattr(label_cache, "CACHED_FROM", 10)
    path = tmp_path / "mine" / "labels.txt"
    path.parent.mkdir()
    formats.write_labels(path, csr([[0, 3], [], [1]], 5), 7)
    return path


def read_once(path: Path) -> tuple[sparse.csr_array, bool]:
    """The labels, and whether they were parsed."""
    parsed = []
    labels = label_cache.cached(lambda path: parsed.append(path) or formats.read_labels(path))(path)
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


@pytest.mark.parametrize("change", ["size", "time", "path"])
def test_changed_label_file_is_parsed_anew(label_file: Path, change: str) -> None:
    read_once(label_file)
    before = label_file.stat()
    if change == "path":
        elsewhere = label_file.parent.parent / "elsewhere" / "mine"
        elsewhere.mkdir(parents=True)
        label_file = label_file.rename(elsewhere / label_file.name)
        assert label_file.stat().st_mtime_ns == before.st_mtime_ns
    else:
        rows = [[0, 3], [], [1, 2]] if change == "size" else [[0, 3], [], [2]]
        formats.write_labels(label_file, csr(rows, 5), 7)
        moved = before.st_mtime_ns + (change == "time")
        os.utime(label_file, ns=(before.st_atime_ns, moved))
        assert (label_file.stat().st_size != before.st_size) == (change == "size")
    labels, parsed = read_once(label_file)
    assert parsed and same(labels, formats.read_labels(label_file))


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "other", "range"])
def test_damaged_label_cache_is_made_anew(
    label_file: Path, cache: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    first, _ = read_once(label_file)
    (file,) = cache.iterdir()
    good = file.read_bytes()
    at = good.index(first.indices.tobytes())
    flipped = good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :]
    file.write_bytes({"cut": good[: len(good) // 2], "flip": flipped}.get(damage, b""))
    if damage == "other":
        np.savez(file, train=np.ones(3))
    if damage == "range":
        np.savez(file, indices=first.indices + 2, indptr=first.indptr, shape=np.array([3, 5]))
    labels, parsed = read_once(label_file)
    assert parsed and same(labels, first)
    assert "is damaged" in caplog.text
    assert not read_once(label_file)[1]


def test_labels_do_not_need_a_cache(
    label_file: Path, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache.write_text("a file where the folder should be")
    for _ in range(2):
        labels, parsed = read_once(label_file)
        assert parsed and same(labels, csr([[0, 3], [], [1]], 5))
    assert "cannot be written" in caplog.text and "set FANIN_CACHE" in caplog.text


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
