"""Downloads from a server of this machine: whole, cut off, damaged, changed in between."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest

from fanin.datasets import DataError, catalogue
from fanin.datasets.catalogue import PUBLISHED, Download
from fanin.datasets.tools import fetch as module
from fanin.datasets.tools.fetch import by_hand, direct, fetch

CONTENT = bytes(range(256)) * 4000


class Handler(BaseHTTPRequestHandler):
    """Serves `content` under any name but /missing, and knows ranges as most servers do."""

    content = CONTENT
    ends_after: int | None = None  # bytes, after which the connection breaks
    knows_ranges = True
    asked: ClassVar[list[str | None]] = []

    def do_GET(self) -> None:
        self.asked.append(self.headers.get("Range"))
        if self.path == "/missing":
            return self.send_error(404)
        tag = f'"{hashlib.md5(self.content).hexdigest()}"'
        first = 0
        wanted = self.headers.get("Range")
        if wanted and self.knows_ranges and self.headers.get("If-Range") == tag:
            first = int(wanted.removeprefix("bytes=").rstrip("-"))
        if first >= len(self.content):
            return self.send_error(416)
        self.send_response(206 if first else 200)
        self.send_header("ETag", tag)
        self.send_header("Content-Length", str(len(self.content) - first))
        self.end_headers()
        self.wfile.write(self.content[first : self.ends_after])

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def address(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(Handler, "asked", [])
    monkeypatch.setattr(module, "CHUNK", 1 << 14)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def checksum(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def get(address: str, folder: Path, known: str | None = None, force: bool = False) -> list[int]:
    shown: list[int] = []

    def show(done: int, total: int | None) -> None:
        assert total == len(Handler.content)
        shown.append(done)

    path = fetch(Download(f"{address}/set.zip", known), folder, force, show)
    assert path == folder / "set.zip"
    assert path.read_bytes() == Handler.content
    assert [each.name for each in folder.iterdir()] == ["set.zip"]
    return shown


@pytest.mark.parametrize("known", [None, checksum(CONTENT)])
def test_whole(address: str, tmp_path: Path, known: str | None) -> None:
    shown = get(address, tmp_path / "data", known)
    assert len(shown) > 10 and shown == sorted(shown) and shown[-1] == len(CONTENT)
    with pytest.raises(DataError, match=r"set.zip: exists: give --force"):
        get(address, tmp_path / "data", known)
    get(address, tmp_path / "data", known, force=True)


@pytest.mark.parametrize("known", [None, checksum(CONTENT)])
def test_it_goes_on_where_it_stopped(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, known: str | None
) -> None:
    monkeypatch.setattr(Handler, "ends_after", 600_000)
    with pytest.raises(DataError, match=r"set.zip: cannot be fetched .*what has come is kept"):
        get(address, tmp_path, known)
    assert not (tmp_path / "set.zip").exists()
    begun = (tmp_path / ".set.zip.part").stat().st_size
    assert 500_000 < begun <= 600_000
    monkeypatch.setattr(Handler, "ends_after", None)
    assert min(get(address, tmp_path, known)) > begun
    assert Handler.asked == [None, f"bytes={begun}-"]


@pytest.mark.parametrize("change", ["another version", "no ranges", "all is here"])
def test_it_begins_anew_where_it_has_to(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    monkeypatch.setattr(Handler, "ends_after", 600_000)
    with pytest.raises(DataError, match="cannot be fetched"):
        get(address, tmp_path)
    monkeypatch.setattr(Handler, "ends_after", None)
    if change == "another version":
        monkeypatch.setattr(Handler, "content", CONTENT[::-1])
    elif change == "no ranges":
        monkeypatch.setattr(Handler, "knows_ranges", False)
    else:
        (tmp_path / ".set.zip.part").write_bytes(CONTENT)
    assert min(get(address, tmp_path)) <= 1 << 14


def test_another_checksum(address: str, tmp_path: Path) -> None:
    (tmp_path / "set.zip").write_text("old")
    with pytest.raises(DataError, match=r"set.zip: what came is not what it should be .*hash"):
        get(address, tmp_path, checksum(b"x"), force=True)
    assert [(each.name, each.read_text()) for each in tmp_path.iterdir()] == [("set.zip", "old")]


def test_no_answer(address: str, tmp_path: Path) -> None:
    for place in (f"{address}/missing", "http://127.0.0.1:9/set.zip"):
        with pytest.raises(DataError, match=rf"{place}: cannot be fetched"):
            fetch(Download(place, None), tmp_path, False, lambda *_: None)
    assert not list(tmp_path.iterdir())


def test_where_from(monkeypatch: pytest.MonkeyPatch) -> None:
    known = Download("https://example.org/a.zip", checksum(b"a"))
    monkeypatch.setitem(catalogue.DOWNLOADS, "eurlex-4k", known)
    assert direct("EURLex-4K", None, None) == known
    assert direct("eurlex-4k", "https://mirror/b.zip", None) == Download(
        "https://mirror/b.zip", None
    )
    for address in ("ftp://x/y.zip", "set.zip", "https://x/", "https://x/..", "https://x/.a"):
        with pytest.raises(DataError, match="no address of a file"):
            direct("mine", address, None)
    with pytest.raises(DataError, match="sha256:12: no checksum"):
        direct("mine", "https://x/a.zip", "sha256:12")


@pytest.mark.parametrize("name", PUBLISHED)
def test_by_hand(name: str) -> None:
    """Where to click, and what to put where."""
    text = by_hand(name)
    assert "open http://manikvarma.org/downloads/XC/XMLRepository.html" in text
    assert f"lay out <data-dir>/{name}/" in text and "licences" in text
    if name not in catalogue.DOWNLOADS:
        with pytest.raises(DataError, match=f"^{name} has no direct address"):
            direct(name, None, None)


def test_nothing_to_fetch() -> None:
    assert by_hand("wordnet") == "wordnet comes with fanin: there is nothing to fetch"
    assert by_hand("nowhere").startswith("no published data set 'nowhere': there are eurlex-4k")
