"""Files are written whole or not at all, whatever the file system can, and errors name them."""

from __future__ import annotations

import errno
import os

import numpy as np
import pytest

from fanin.benchmarks.records import files
from fanin.benchmarks.records.files import (
    flush,
    reserving,
    save_array,
    try_writing,
    write_atomically,
)


def refusing(number):
    """A call of the system that fails so."""

    def call(*arguments):
        raise OSError(number, os.strerror(number))

    return call


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM])
def test_what_is_no_need_is_left_out(tmp_path, monkeypatch, number):
    for name in ("fsync", "chmod", "fchmod"):
        monkeypatch.setattr(os, name, refusing(number))
    write_atomically(tmp_path / "a", "text")
    write_atomically(tmp_path / "a", b"other")
    flush(tmp_path / "a")
    flush(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_bytes() == b"other"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_what_is_lost_is_an_error_that_names_the_file(tmp_path, monkeypatch, number):
    path = tmp_path / "a"
    write_atomically(path, "before")
    monkeypatch.setattr(os, "fsync", refusing(number))
    with pytest.raises(OSError, match=os.strerror(number)) as caught:
        write_atomically(path, "after")
    assert (caught.value.errno, caught.value.filename) == (number, str(path))
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
    assert path.read_text() == "before"
    with pytest.raises(OSError, match=str(path)):
        flush(path)


def test_others_may_read_what_the_mask_lets_them(tmp_path):
    mask = os.umask(0o027)
    try:
        write_atomically(tmp_path / "a", "text")
    finally:
        os.umask(mask)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640


def test_an_array_on_a_full_disk(tmp_path, monkeypatch):
    path, array = tmp_path / "a.npy", np.zeros(5)
    path.symlink_to("/dev/full")
    with pytest.raises(OSError, match=f"No space left on device: '{path}'"):
        save_array(path, array)
    path.unlink()

    def save(*_):
        raise OSError("5 requested and 3 written")  # all that NumPy says

    monkeypatch.setattr(np, "save", save)
    with pytest.raises(OSError, match=f"5 requested and 3 written: '{path}'"):
        save_array(path, array)
    monkeypatch.setattr(files, "write_atomically", refusing(errno.ENOSPC))
    with pytest.raises(OSError, match=f"No space left on device: '{path}'") as caught:
        save_array(path, array)
    assert caught.value.errno == errno.ENOSPC


def test_a_trial_leaves_nothing(tmp_path):
    try_writing(tmp_path / "made" / "for it")
    assert not list((tmp_path / "made" / "for it").iterdir())
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match="file/x"):
        try_writing(tmp_path / "file" / "x")


def test_a_reserve_is_there_while_it_is_needed(tmp_path):
    path = tmp_path / "torch-0.json"
    with pytest.raises(KeyError), reserving(path):
        (reserve,) = tmp_path.iterdir()
        assert reserve.name.startswith(".torch-0.json.")  # so that leftovers of a kill are removed
        assert reserve.stat().st_size > 10_000
        raise KeyError
    assert not list(tmp_path.iterdir())


def test_a_reserve_that_a_full_disk_cuts_short_takes_no_place(tmp_path):
    path = tmp_path / "torch-0.json"
    (tmp_path / ".torch-0.json.reserve").symlink_to("/dev/full")
    with pytest.raises(OSError, match=f"No space left on device: '{path}'"), reserving(path):
        pass
    assert not list(tmp_path.iterdir())
