"""Text files as a whole: blocks, headers, files that are cut off or no plain text."""

from __future__ import annotations

import bz2
import errno
import gzip
import io
import os
from pathlib import Path

import pytest
from dataset_files import csr, same

from fanin.datasets import DataError, formats, text_files

GOOD = ["0,1", "2 5:0.5", "", "3,0"]


def test_bad_line_in_a_later_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_files, "BLOCK_BYTES", 10)
    path = tmp_path / "labels.txt"
    path.write_text("8 10 4\n" + "1,2\n" * 7 + "7\n")
    with pytest.raises(DataError, match=r"labels\.txt:9: label '7'"):
        formats.read_labels(path)
    path.write_text("8 10 4\n" + "1,2\n" * 7 + "3\n")
    assert same(formats.read_labels(path), csr([[1, 2]] * 7 + [[3]], 4))


@pytest.mark.parametrize("header", ["", "4 10", "4 10 x", "4 10 4 1", "-4 10 4"])
def test_bad_header(tmp_path: Path, header: str) -> None:
    path = tmp_path / "labels.txt"
    path.write_text("\n".join([header, *GOOD]) + "\n")
    with pytest.raises(DataError, match=r"labels\.txt:1: header .*expected three integers `N D L`"):
        formats.read_labels(path)


@pytest.mark.parametrize("number", ["12345678901", "9" * 5000])
def test_header_with_too_large_a_number(tmp_path: Path, number: str) -> None:
    path = tmp_path / "labels.txt"
    path.write_text("\n".join([f"4 10 {number}", *GOOD]) + "\n")
    message = rf":1: '{number[:57]}.*' in the header is too large: at most 999999999$"
    with pytest.raises(DataError, match=message):
        formats.read_labels(path)


def test_text_that_is_not_plain(tmp_path: Path) -> None:
    path = tmp_path / "labels.txt"
    text = "\n".join(["4 10 4", *GOOD]) + "\n"
    for content, message in (
        (gzip.compress(text.encode()), "compressed by gzip: unpack it with gunzip"),
        (bz2.compress(text.encode()), "compressed by bzip2: unpack it with bunzip2"),
        (text.encode("utf-16"), "UTF-16 text: save it as UTF-8"),
        (b"\xfe\xff" + text.encode("utf-16-be"), "UTF-16 text: save it as UTF-8"),
    ):
        path.write_bytes(content)
        with pytest.raises(DataError, match=rf"labels\.txt: {message}"):
            formats.read_labels(path)


def test_too_few_and_too_many_lines(tmp_path: Path) -> None:
    path = tmp_path / "labels.txt"
    path.write_text("\n".join(["5 10 4", *GOOD]) + "\n")
    with pytest.raises(DataError, match=r"labels\.txt:6: the file ends after 4 .* says 5"):
        formats.read_labels(path)
    path.write_text("\n".join(["3 10 4", *GOOD]) + "\n")
    with pytest.raises(DataError, match=r"labels\.txt:5: one line too many: the header says 3"):
        formats.read_labels(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("3\n0:1\n\n1:1\n", ":1: header '3': expected two integers `rows columns`"),
        ("3 4 5\n0:1\n\n1:1\n", ":1: header '3 4 5': expected two integers"),
        ("3 4\n0:1\n\n", ":4: the file ends after 2 instances but its header says 3"),
        ("3 4\n0:1\n\n1:1\n2:1\n", ":5: one line too many: the header says 3"),
    ],
)
def test_pair_file_must_be_whole(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "pairs.txt"
    path.write_text(text)
    for read in (formats.read_label_pairs, formats.read_feature_pairs):
        with pytest.raises(DataError, match=f"pairs.txt{message}"):
            read(path)


def test_a_text_file_that_cannot_be_read_on_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that fails while the file is open: the system then says no name."""

    class Failing(io.BytesIO):
        def read(self, *_: object) -> bytes:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(Path, "open", lambda *_: Failing())
    with pytest.raises(OSError, match=f"Input/output error: '{tmp_path / 'labels.txt'}'"):
        formats.read_labels(tmp_path / "labels.txt")
