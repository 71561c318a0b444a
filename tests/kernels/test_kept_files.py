"""Files of the cache: known as damaged whatever happened to them, and where they lie."""

from __future__ import annotations

import ctypes
import errno
import os
import pwd
from pathlib import Path

import pytest

from fanin.kernels.kept_files import (
    CacheError,
    cache_folder,
    is_whole,
    keeping,
    replacing_folder,
)

CONTENTS = b"what took minutes to make"


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    path = tmp_path / "cache" / "kept.so"
    with keeping(path) as made:
        assert not path.exists()
        made.write_bytes(CONTENTS)
    return path


def test_a_kept_file_begins_with_its_contents(kept: Path) -> None:
    assert is_whole(kept)
    assert kept.read_bytes().startswith(CONTENTS)
    assert list(kept.parent.iterdir()) == [kept]


def test_every_damage_is_noticed(kept: Path, caplog: pytest.LogCaptureFixture) -> None:
    good = kept.read_bytes()
    flipped = [
        good[:at] + bytes([good[at] ^ bit]) + good[at + 1 :]
        for at in range(len(good))
        for bit in (1, 128)
    ]
    cut = [good[:size] for size in range(len(good))]
    zeroed = [b"\0" * len(good), good[:5] + b"\0" * (len(good) - 5)]
    for damaged in (*flipped, *cut, *zeroed, good + b"\0", CONTENTS):
        kept.write_bytes(damaged)
        caplog.clear()
        assert not is_whole(kept)
        assert f"{kept} is damaged (its checksum is wrong): making it anew" in caplog.text


def test_what_is_not_there_is_nothing_to_tell_of(
    kept: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert not is_whole(kept.with_name("other"))
    assert not is_whole(kept / "below")
    assert not caplog.text
    assert not is_whole(kept.parent)
    assert "cannot be read (Is a directory)" in caplog.text


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyError()])
def test_what_is_not_finished_leaves_nothing(kept: Path, error: Exception) -> None:
    before = kept.read_bytes()
    with (
        pytest.raises((CacheError, KeyError)) as caught,
        keeping(kept) as made,
    ):
        made.write_bytes(b"half")
        raise error
    if isinstance(error, OSError):
        assert str(caught.value) == (
            f"{kept}: cannot be written (No space left on device): set FANIN_CACHE to a folder "
            "that can be written"
        )
    assert kept.read_bytes() == before and list(kept.parent.iterdir()) == [kept]


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(CacheError, match=r"kept: cannot be written \(.*\): set FANIN_CACHE"),
        keeping(tmp_path / "file" / "kept"),
    ):
        raise AssertionError("made before it was known that it cannot be written")


def test_where_the_cache_lies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("FANIN_CACHE", "~/kept")
    assert cache_folder() == tmp_path / "kept"
    monkeypatch.delenv("FANIN_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "~/caches")
    assert tmp_path in cache_folder().parents
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == tmp_path / ".cache" / "fanin"


@pytest.mark.parametrize("chosen", [None, "~/kept", "~nobody-of-that-name/kept"])
def test_a_user_without_a_home(monkeypatch: pytest.MonkeyPatch, chosen: str | None) -> None:
    def unknown(_: object) -> None:
        raise KeyError  # as for a user id without an entry in /etc/passwd

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    for name in ("HOME", "XDG_CACHE_HOME", "FANIN_CACHE"):
        monkeypatch.delenv(name, raising=False)
    if chosen:
        monkeypatch.setenv("FANIN_CACHE", chosen)
    with pytest.raises(CacheError, match=r"no cache folder .*: set FANIN_CACHE to a folder"):
        cache_folder()


def test_a_file_system_without_flushes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refusing(_: int) -> None:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr(os, "fsync", refusing)
    with keeping(tmp_path / "kept") as made:
        made.write_bytes(CONTENTS)
    assert is_whole(tmp_path / "kept")


def test_others_may_read_what_the_mask_lets_them(tmp_path: Path) -> None:
    """A folder of kept files may belong to several users."""
    mask = os.umask(0o027)
    try:
        with keeping(tmp_path / "kept") as made:
            made.write_bytes(CONTENTS)
    finally:
        os.umask(mask)
    assert (tmp_path / "kept").stat().st_mode & 0o777 == 0o640


def test_names_need_not_be_flushed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Some network file systems refuse that for folders."""
    opened = os.open

    def refusing(path: object, *arguments: int) -> int:
        if Path(path).is_dir():
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return opened(path, *arguments)

    monkeypatch.setattr(os, "open", refusing)
    with keeping(tmp_path / "kept") as made:
        made.write_bytes(CONTENTS)
    assert is_whole(tmp_path / "kept")


def test_a_folder_that_cannot_be_replaced_stays(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """On a file system that exchanges no folders, and refuses the new one its name."""
    folder, rename = tmp_path / "saved", os.rename
    folder.mkdir()
    (folder / "old").touch()

    def refusing(source: Path, target: Path) -> None:
        if (Path(source) / "new").exists():
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        rename(source, target)

    monkeypatch.setattr(ctypes, "CDLL", lambda _: object())
    monkeypatch.setattr(os, "rename", refusing)
    with pytest.raises(OSError, match=os.strerror(errno.EIO)), replacing_folder(folder) as made:
        (made / "new").touch()
    assert list(tmp_path.rglob("*")) == [folder, folder / "old"]
