"""The frame of a part's process: its options, its budget, what it runs on, and its file.

A part hands over its jobs in order. They are run while the budget lasts; what was not reached stays
in the file as such, and the next call with the same code on the same device goes on there.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import secrets
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch

from fanin.benchmarks.gpu_parts.results import (
    KernelReport,
    Machine,
    PartFile,
    PartName,
    Row,
    read,
    write,
)
from fanin.benchmarks.gpu_parts.tables import text
from fanin.benchmarks.measuring import machine as measure
from fanin.kernels import build_info, processor

ROOT = Path(__file__).resolve().parents[2]
# Exit code of a part in which something failed.
FAILED = 1
# A file is written at most this often, except at the end.
_WRITE_SECONDS = 2.0


@dataclass(frozen=True)
class Options:
    """What `fanin.benchmarks.gpu` tells a part's process. seconds: until no new row is begun."""

    path: Path
    device: str
    dry_run: bool
    seconds: float
    minutes: float
    seed: int
    compile_report: Path | None
    compile_report_reason: str | None


def options(arguments: Sequence[str] | None = None) -> Options:
    """Read a part's command line; without a seed a fresh one is drawn."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--path", type=Path, required=True)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--seconds", type=float, default=540.0)
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--seed", type=int, default=secrets.randbits(31))
    parser.add_argument("--compile-report", type=Path)
    parser.add_argument("--compile-report-reason")
    return Options(**vars(parser.parse_args(arguments)))


@dataclass(frozen=True)
class Job:
    """row: who it is, and where `run` puts what it finds; an exception is a gap in the row."""

    row: Row
    run: Callable[[], None]


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def machine(device: torch.device) -> Machine:
    """Describe where this process runs."""
    library, properties = build_info(), None
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
    commit, modified = _commit()
    return Machine(
        device=properties.name if properties else "cpu",
        capability=f"{properties.major}.{properties.minor}" if properties else None,
        device_memory_bytes=properties.total_memory if properties else None,
        driver=_driver(),
        cuda=torch.version.cuda,
        nvcc=_nvcc(),
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        processor=processor(),
        cores=measure.cores(),
        python=platform.python_version(),
        torch=torch.__version__,
        library=f"fanin {library['version']}",
        architectures=library["cuda"],
        instruction_set=library["instruction_set"],
        code=measure.code_identity(),
        commit=commit,
        modified=modified,
    )


def _driver() -> str | None:
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
        version = pynvml.nvmlSystemGetDriverVersion()
    except pynvml.NVMLError:
        return None
    return version if isinstance(version, str) else version.decode()


def _nvcc() -> str | None:
    nvcc = shutil.which("nvcc")
    if not nvcc:
        return None
    said = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=False).stdout
    found = re.search(r"release [\d.]+, V([\d.]+)", said)
    return found[1] if found else None


def _commit() -> tuple[str | None, bool | None]:
    """Commit of the checkout that this file lies in, and whether files of it were changed."""

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=False
            )
        except FileNotFoundError:
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    # An installed fanin may lie below somebody else's repository.
    if not (ROOT / ".git").exists() or (commit := git("rev-parse", "HEAD")) is None:
        return None, None
    # Results that the parts write are no change of the code.
    changed = git("status", "--porcelain", "--", ".", ":!benchmarks/results")
    return commit, None if changed is None else bool(changed)


def begin(part: PartName, given: Options, device: torch.device, jobs: Sequence[Job]) -> PartFile:
    """The part's file with every row not reached, but for those that an earlier call with the same
    code on the same device has finished, if that one had a gap."""
    report = None
    if given.compile_report:
        report = [KernelReport(**row) for row in json.loads(given.compile_report.read_text())]
    result = PartFile(
        part=part,
        dry_run=given.dry_run,
        started=now(),
        finished=now(),
        minutes=given.minutes,
        machine=machine(device),
        compile_report=report,
        compile_report_reason=given.compile_report_reason,
        rows=[job.row for job in jobs],
    )
    if given.path.exists():
        before = read(given.path)
        alike = all(
            getattr(before.machine, name) == getattr(result.machine, name)
            for name in ("device", "driver", "torch", "code")
        )
        unfinished = any(row.state == "not reached" for row in before.rows)
        if alike and unfinished and before.dry_run == given.dry_run:
            known = {row.key: row for row in before.rows if row.state != "not reached"}
            result.rows = [known.get(row.key, row) for row in result.rows]
            result.started = before.started
            if known:
                print(f"going on: {len(known)} of {len(jobs)} rows are there already", flush=True)
    return result


def conduct(
    part: PartName,
    given: Options,
    device: torch.device,
    jobs: Sequence[Job],
    failed: Callable[[Row], bool],
) -> int:
    """Run the jobs, keep the file and print the part's table; the process's exit code, FAILED where
    `failed` says so of a row."""
    start = time.monotonic()
    result = begin(part, given, device, jobs)
    written = 0.0
    for number, job in enumerate(jobs):
        if result.rows[number] is not job.row:
            continue
        if time.monotonic() - start >= given.seconds:
            job.row.reason = f"not reached within the budget of {given.minutes:g} minutes"
            continue
        print(f"[{number + 1}/{len(jobs)}] {job.row.key}", flush=True)
        begun = time.monotonic()
        job.row.started, job.row.state = now(), "done"
        try:
            job.run()
        except Exception as error:  # a gap that says why; the others are still wanted
            job.row.state = "gap"
            job.row.reason = _said(error)
        job.row.seconds = round(time.monotonic() - begun, 3)
        if failed(job.row) or job.row.state == "gap":
            print(f"  {'FAILED' if failed(job.row) else 'gap'}: {job.row.reason}", flush=True)
        if time.monotonic() - written > _WRITE_SECONDS:
            result.finished = now()
            write(given.path, result)
            written = time.monotonic()
    result.finished = now()
    write(given.path, result)
    print(f"\n{text(result)}\n{given.path}", flush=True)
    return FAILED if any(failed(row) for row in result.rows) else 0


def _said(error: Exception) -> str:
    """One line of an exception."""
    words = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {words[0]}"
