"""Part `sanitize`: compute-sanitizer's memcheck, then racecheck, over one call of every op.

The child is `python -m fanin.benchmarks.gpu_parts.sanitize --child`: the small cases of `correct`,
whose results are checked as well. Without a GPU (dry run) it runs without the tool.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence

import torch

from fanin.benchmarks.gpu_parts import part
from fanin.benchmarks.gpu_parts.correct.cases import small_run
from fanin.benchmarks.records.gpu import Row, SanitizeRow

CHECKS = ("memcheck", "racecheck")
TOOL = "compute-sanitizer"
# The tool exits with this where it found something, and else with the child's own code.
_FOUND = 86
_KEPT_LINES = 8


class UnavailableError(RuntimeError):
    """The tool is missing, or cannot look at this device."""


def command(check: str) -> list[str]:
    """How the tool is called. The frameworks' own API errors (say, asking whether memory can be
    had) are none of ours."""
    options = ["--tool", check, "--error-exitcode", str(_FOUND), "--report-api-errors", "no"]
    return [TOOL, *options, "--print-limit", "20"]


def run(row: SanitizeRow, device: str, seed: int, seconds: float) -> None:
    """Fill the row. Raises UnavailableError for a tool that did not look."""
    child = [sys.executable, "-P", "-m", "fanin.benchmarks.gpu_parts.sanitize", "--child"]
    child += [device, str(seed)]
    before: list[str] = []
    if device != "cpu":
        if not shutil.which(TOOL):
            raise UnavailableError(f"{TOOL} is not on the PATH; it is part of the CUDA toolkit")
        before, row.tool = command(row.check), f"{TOOL} --tool {row.check}"
    try:
        done = subprocess.run(
            [*before, *child],
            # Out of torch's cache any address would be allocated memory.
            env={**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=max(30.0, seconds),
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise UnavailableError(f"stopped after {error.timeout:.0f} s, the budget's end") from error
    row.exit_code = done.returncode
    row.summary = telling_lines(done.stdout)
    if before and re.search(r"not supported|Target application terminated before", done.stdout):
        raise UnavailableError(f"{TOOL} did not check: {'; '.join(row.summary)}")
    row.passed = done.returncode == 0
    if not row.passed:
        row.reason = "; ".join(row.summary) or f"exit code {done.returncode}"


def telling_lines(output: str) -> list[str]:
    """The tool's summary, the first errors, and what the child found wrong. Where there are none,
    how many calls were right, or the end of what was printed."""
    lines = [line.removeprefix("=========").strip() for line in output.splitlines()]
    wanted = [
        line
        for line in lines
        if re.search(r"SUMMARY|^Error|^Invalid|hazard|not supported|FAILED|Error:", line)
    ]
    if wanted:
        others = [line for line in wanted if "SUMMARY" not in line]
        return [line for line in wanted if "SUMMARY" in line] + others[:_KEPT_LINES]
    if cases := sum(line.startswith("ok ") for line in lines):
        return [f"{cases} calls ok"]
    return [line for line in lines if line][-_KEPT_LINES:]


def failed(row: Row) -> bool:
    return isinstance(row, SanitizeRow) and row.passed is False


def main(arguments: Sequence[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["--child"]:
        return small_run(torch.device(arguments[1]), int(arguments[2]))
    options = part.read_options(arguments)
    start = time.monotonic()
    made = []
    for check in CHECKS:
        row = SanitizeRow(key=check, check=check)

        def work(row: SanitizeRow = row) -> None:
            left = options.seconds - (time.monotonic() - start)
            run(row, options.device, options.seed, left)

        made.append(part.Job(row, work))
    return part.conduct("sanitize", options, made, failed)


if __name__ == "__main__":
    sys.exit(main())
