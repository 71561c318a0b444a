"""One process at a time for each result file."""

from __future__ import annotations

import os
import subprocess

import pytest

from fanin.benchmarks.harness import lock


class TestLock:
    def test_the_second_is_told_who_has_it(self, tmp_path):
        path = tmp_path / "torch-0.lock"
        told = rf"torch-0: process {os.getpid()} is running this"
        with lock.locked(path), pytest.raises(lock.BusyError, match=told):
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
