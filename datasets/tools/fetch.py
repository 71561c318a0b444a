"""Published data sets: fetched from a direct address, or a text says how to get them.

pooch checks the file. A download that stopped goes on from where it was.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from fanin.datasets.catalogue import DOWNLOADS, PUBLISHED, Download, canonical_name
from fanin.datasets.dataset import DataError
from fanin.datasets.file_errors import naming
from fanin.datasets.folder import REPOSITORY, layout
from fanin.datasets.registry import EMBEDDED
from fanin.datasets.tools.new_folder import check_new

CHUNK = 1 << 20
SECONDS = 30  # how long a server may be silent

Show = Callable[[int, int | None], None]  # bytes so far, and of how many if that is known


def file_name(address: str) -> str:
    """The name of the file at an address. Raises DataError for what is no address of a file."""
    parts = urlsplit(address)
    name = Path(unquote(parts.path)).name
    if parts.scheme not in ("http", "https") or not re.fullmatch(
        r"[A-Za-z0-9][A-Za-z0-9._-]*", name
    ):
        raise DataError(f"{address}: no address of a file: give http://... or https://...")
    return name


def direct(name: str, address: str | None, checksum: str | None) -> Download:
    """Where a data set can be fetched from: an address that the user gives, or the catalogue's.

    Raises DataError where there is none; it says what to do by hand.
    """
    if address is None:
        if canonical_name(name) not in DOWNLOADS:
            raise DataError(by_hand(name))
        return DOWNLOADS[canonical_name(name)]
    file_name(address)
    if checksum is not None and not re.fullmatch(r"(\w+:)?[0-9a-fA-F]{32,}", checksum):
        raise DataError(f"{checksum}: no checksum: give its kind and hex digits, sha256:...")
    return Download(address, checksum)


def by_hand(name: str) -> str:
    """Where to click for a data set, and what to put where."""
    if name in EMBEDDED:
        return f"{name} comes with fanin: there is nothing to fetch"
    entry = PUBLISHED.get(canonical_name(name))
    if entry is None:
        known = ", ".join(PUBLISHED)
        return f"no published data set {name!r}: there are {known}; or give --address"
    return (
        f"{entry.name} has no direct address: open {REPOSITORY.rpartition(' ')[2]}, download its "
        f"files by the link there and unpack them; {layout(entry.name)}. That page, and what it "
        "links to, state the licences. `fanin data check` then says whether a file is missing"
    )


def fetch(download: Download, folder: Path, force: bool, show: Show) -> Path:
    """Fetch a file into a folder; returns its path. A download that stopped goes on.

    Raises DataError for an address that does not answer, and for a file with another checksum,
    which is removed.
    """
    import pooch
    import requests

    name = file_name(download.address)
    path = folder / name
    check_new(path, force)
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f".{name}.part"
    checked = folder / f".{name}.new"

    def get(address: str, made: str, _: Any) -> None:
        _download(address, part, show)
        os.replace(part, made)
        _tag(part).unlink(missing_ok=True)

    pooch.get_logger().setLevel("WARNING")
    try:
        pooch.retrieve(download.address, download.checksum, checked.name, folder, downloader=get)
    except requests.RequestException as error:
        raise DataError(
            f"{download.address}: cannot be fetched ({error}): try again, what has come is kept"
        ) from error
    except ValueError as error:
        raise DataError(
            f"{download.address}: what came is not what it should be ({error}): try again, or give "
            "the right --checksum"
        ) from error
    os.replace(checked, path)
    return path


def _tag(part: Path) -> Path:
    """The file that holds the version of a part, as the server names it."""
    return part.with_name(f"{part.name}.version")


def _download(address: str, part: Path, show: Show) -> None:
    """Fetch what is missing of a file into `part`."""
    import requests

    tag = _tag(part)
    done = part.stat().st_size if part.exists() and tag.exists() else 0
    headers = {"Accept-Encoding": "identity"}
    if done:
        # A server that has another version by now sends all of it.
        headers |= {"Range": f"bytes={done}-", "If-Range": tag.read_text("ascii")}
    with requests.get(address, headers=headers, stream=True, timeout=SECONDS) as answer:
        if answer.status_code == 416:  # no byte is missing, or the part is too long: begin anew
            part.unlink()
            return _download(address, part, show)
        answer.raise_for_status()
        version = answer.headers.get("ETag") or answer.headers.get("Last-Modified")
        if answer.status_code != 206:
            done = 0
            tag.unlink(missing_ok=True)
            if version and version.isascii():
                with naming(tag):
                    tag.write_text(version, "ascii")
        length = answer.headers.get("Content-Length", "")
        total = done + int(length) if length.isdigit() else None
        with naming(part), part.open("r+b" if done else "wb") as file:
            file.seek(done)
            for chunk in answer.iter_content(CHUNK):
                file.write(chunk)
                done += len(chunk)
                show(done, total)
    if total is not None and done != total:
        raise requests.ConnectionError(f"it ended after {done} of {total} bytes")
