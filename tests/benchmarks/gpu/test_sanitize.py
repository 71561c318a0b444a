"""Part `sanitize`, with a stand-in for compute-sanitizer."""

from __future__ import annotations

import os
import stat

import pytest

from fanin.benchmarks.gpu_parts import sanitize
from fanin.benchmarks.records.gpu import SanitizeRow

pytestmark = pytest.mark.torch


@pytest.fixture
def tool(tmp_path, monkeypatch):
    """A stand-in that looks at nothing and says what it is told to."""

    def make(says, code):
        path = tmp_path / sanitize.TOOL
        path.write_text(f"#!/bin/sh\ncat <<'E'\n{says}\nE\nexit {code}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
        row = SanitizeRow(key="memcheck", check="memcheck")
        sanitize.run(row, "cuda", 1, 60.0)
        return row

    return make


def test_errors_fail_the_part(tool):
    row = tool(
        "========= Invalid __global__ read of size 4 bytes\n=========     at forward_kernel\n"
        "========= ERROR SUMMARY: 3 errors",
        86,
    )
    assert sanitize.failed(row) and row.exit_code == 86
    assert row.tool == "compute-sanitizer --tool memcheck"
    assert row.summary[0] == "ERROR SUMMARY: 3 errors"
    assert "Invalid __global__ read of size 4 bytes" in row.summary


def test_none_pass(tool):
    row = tool("ok top_k\n========= ERROR SUMMARY: 0 errors", 0)
    assert row.passed and not sanitize.failed(row)


def test_a_device_that_it_cannot_look_at_is_a_gap(tool):
    with pytest.raises(sanitize.UnavailableError, match=r"did not check: .*not supported"):
        tool("========= Error: Device not supported", 1)


def test_a_missing_tool_is_a_gap(monkeypatch):
    monkeypatch.setattr(sanitize.shutil, "which", lambda name: None)
    row = SanitizeRow(key="memcheck", check="memcheck")
    with pytest.raises(sanitize.UnavailableError, match="compute-sanitizer is not on the PATH"):
        sanitize.run(row, "cuda", 1, 60.0)
