"""How the op library is compiled at first use, and kept."""

from __future__ import annotations

import concurrent.futures
import os
import subprocess
import sys

import numpy as np
import pytest

from fanin.backends.tensorflow import FixedFanIn, ops
from fanin.backends.tensorflow.native import build
from fanin.kernels.kept_files import is_whole

pytestmark = pytest.mark.tensorflow


def test_the_compiled_op_is_cached_and_a_missing_compiler_is_named(monkeypatch, tmp_path):
    compiled = build.compiled_ops()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert build.compiled_ops() == compiled
    monkeypatch.setenv("FANIN_CACHE", str(tmp_path / "empty"))
    with pytest.raises(ImportError, match=r"needs g\+\+.*apt install g\+\+"):
        build.compiled_ops()


def test_a_failing_compiler_is_quoted(monkeypatch, tmp_path):
    compiler = tmp_path / "g++"
    compiler.write_text("#!/bin/sh\necho 'ops.cc:1: error: no such luck' >&2\nexit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("FANIN_CACHE", str(tmp_path / "cache"))
    with pytest.raises(ImportError, match="no such luck"):
        build.compiled_ops()
    assert not list((tmp_path / "cache").iterdir())


@pytest.fixture
def empty_cache(monkeypatch, tmp_path):
    """Where the op will lie, with a compiler that writes the known result slowly, in two steps."""
    whole = build.compiled_ops()
    compiler = tmp_path / "g++"
    compiler.write_text(
        '#!/bin/sh\nwhile [ "$1" != -o ]; do shift; done\n'
        f'head -c 999 {whole} >"$2"; sleep 0.5; cat {whole} >"$2"\n'
    )
    compiler.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("FANIN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / whole.name


def test_two_that_compile_at_once_leave_one_whole_file(empty_cache):
    with concurrent.futures.ThreadPoolExecutor() as pool:
        running = [pool.submit(build.compiled_ops) for _ in range(2)]
        while not all(future.done() for future in running):
            assert not empty_cache.exists() or is_whole(empty_cache)
    assert [future.result() for future in running] == [empty_cache, empty_cache]
    assert list(empty_cache.parent.iterdir()) == [empty_cache]


@pytest.mark.parametrize("damage", ["cut", "empty", "zeroed", "flipped"])
def test_a_damaged_op_is_compiled_anew(empty_cache, damage, caplog):
    """To load a part of one ends the process."""
    good = build.compiled_ops().read_bytes()
    middle = len(good) // 2
    damaged = {
        "cut": good[:1000],
        "empty": b"",
        "zeroed": good[:4096] + bytes(4096) + good[8192:],
        "flipped": good[:middle] + bytes([good[middle] ^ 1]) + good[middle + 1 :],
    }
    empty_cache.write_bytes(damaged[damage])
    assert build.compiled_ops() == empty_cache
    assert f"{empty_cache} is damaged" in caplog.text
    assert empty_cache.read_bytes() == good


@pytest.mark.parametrize("cache", ["folder", "home"])
def test_a_cache_that_cannot_be_used_is_named_by_the_layer(cache, monkeypatch, tmp_path):
    """Keras would show the number of an OSError, and no more."""
    (tmp_path / "folder").touch()
    chosen = {"folder": str(tmp_path / "folder" / "cache"), "home": "~nobody-of-that-name"}
    monkeypatch.setenv("FANIN_CACHE", chosen[cache])
    ops.ops.cache_clear()
    with pytest.raises(ImportError, match="set FANIN_CACHE to a folder that can be written"):
        FixedFanIn(labels=6, fan_in=4)(np.ones((2, 8), np.float32))
    monkeypatch.undo()
    assert FixedFanIn(labels=6, fan_in=4)(np.ones((2, 8), np.float32)).shape == (2, 6)


def test_an_op_that_cannot_be_loaded_is_named(monkeypatch, tmp_path):
    """As one of another machine that shares the cache."""
    (tmp_path / "ops.so").write_text("no library")
    monkeypatch.setattr(ops, "compiled_ops", lambda: tmp_path / "ops.so")
    ops.ops.cache_clear()
    with pytest.raises(ImportError, match=r"ops\.so: cannot be loaded .*; remove it"):
        ops.ops()


@pytest.mark.slow
def test_an_op_that_cannot_be_compiled_does_not_keep_the_package_from_being_imported(tmp_path):
    """Dense layers need none. Whoever does is told at the import, and by the error."""
    program = """
import numpy as np
from fanin.backends.tensorflow import FixedFanIn
print("imported", flush=True)
FixedFanIn(labels=6, fan_in=4)(np.ones((2, 8), np.float32))
"""
    (tmp_path / "file").touch()
    done = subprocess.run(
        [sys.executable, "-P", "-c", program],
        env={**os.environ, "FANIN_CACHE": str(tmp_path / "file" / "cache")},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (1, "imported\n")
    assert "RuntimeWarning: fanin's ops are not registered: " in done.stderr
    assert "ImportError: " in done.stderr and "set FANIN_CACHE" in done.stderr
