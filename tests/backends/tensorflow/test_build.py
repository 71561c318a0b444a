"""How the op library is compiled at first use, and kept."""

from __future__ import annotations

import concurrent.futures
import os

import pytest

from fanin.backends.tensorflow.native import build

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


def test_two_that_compile_at_once_leave_one_whole_file(monkeypatch, tmp_path):
    """With a compiler that writes the known result slowly and in two steps."""
    whole = build.compiled_ops()
    compiler = tmp_path / "g++"
    compiler.write_text(
        '#!/bin/sh\nwhile [ "$1" != -o ]; do shift; done\n'
        f'head -c 999 {whole} >"$2"; sleep 0.5; cat {whole} >"$2"\n'
    )
    compiler.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("FANIN_CACHE", str(tmp_path / "cache"))
    target = tmp_path / "cache" / whole.name
    with concurrent.futures.ThreadPoolExecutor() as pool:
        running = [pool.submit(build.compiled_ops) for _ in range(2)]
        while not all(future.done() for future in running):
            assert not target.exists() or target.stat().st_size == whole.stat().st_size
    assert [future.result() for future in running] == [target, target]
    assert list((tmp_path / "cache").iterdir()) == [target]
