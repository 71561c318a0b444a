"""One process at a time for each result file."""

from __future__ import annotations

import errno
import os
import subprocess

import pytest

from fanin.benchmarks.harness import lock


class TestLock:
    def test_the_second_is_told_who_has_it(self, tmp_path):
        path = tmp_path / "torch-0.lock"
        message = rf"torch-0: process {os.getpid()} is running this"
        with lock.locked(path), pytest.raises(lock.BusyError, match=message):
            lock._acquire(path, 0.0)
        assert not path.exists()
        with lock.locked(path, patience=0.0):
            pass

    def test_a_child_that_inherits_it_holds_it(self, tmp_path):
        path = tmp_path / "torch-0.lock"
        handle = lock._acquire(path, 0.0)
        with subprocess.Popen(["sleep", "60"], pass_fds=(handle,)) as child:
            os.close(handle)
            with pytest.raises(lock.BusyError), lock.locked(path, patience=0.0):
                pass
            child.kill()
        with lock.locked(path, patience=5.0):
            pass

    def test_a_file_system_without_locks(self, tmp_path, monkeypatch, caplog):
        def flock(*_):
            raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

        monkeypatch.setattr(lock.fcntl, "flock", flock)
        lock._warn.cache_clear()
        for name in ("torch-0.lock", "torch-1.lock"):
            with lock.locked(tmp_path / name, patience=0.0) as handle:
                lock.add_holder(handle, "x")
        assert not list(tmp_path.iterdir())
        (text,) = caplog.messages
        assert text.startswith("the file system of the results has no locks (No locks available)")

    def test_who_holds_it_is_an_extra(self, tmp_path, monkeypatch):
        def write(*_):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(lock.os, "write", write)
        with lock.locked(tmp_path / "torch-0.lock", patience=0.0):
            pass
