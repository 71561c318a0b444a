"""The frame of a part's process: its options, its budget, and its file.

A part hands over its jobs in order. They are run while the budget lasts; what was not reached stays
in the file as such, and the next call with the same code on the same device goes on there.
"""

from __future__ import annotations

import argparse
import json
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch

from fanin.backends.torch.device import TorchDevice
from fanin.benchmarks.gpu_parts.provenance import checkout, cuda, device_name
from fanin.benchmarks.measuring import machine
from fanin.benchmarks.records.gpu import (
    FILES,
    KernelReport,
    PartFile,
    PartName,
    Row,
    read_part,
    write_part,
)
from fanin.kernels.threads import thread_count

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

    @property
    def torch_device(self) -> torch.device:
        return torch.device(self.device)


def read_options(arguments: Sequence[str] | None = None) -> Options:
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
    """row: what is worked on, and where `run` puts what it finds. An exception is a gap in it."""

    row: Row
    run: Callable[[], None]


def now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)


def begin(part: PartName, options: Options, jobs: Sequence[Job]) -> PartFile:
    """The part's file with every row not reached, but for those that an earlier call with the same
    code on the same device has finished, if that one had a gap."""
    report = None
    if options.compile_report:
        report = [KernelReport(**each) for each in json.loads(options.compile_report.read_text())]
    commit, modified = checkout()
    part_file = FILES[part](
        part=part,
        dry_run=options.dry_run,
        started=now(),
        finished=now(),
        minutes=options.minutes,
        device=device_name(options.torch_device),
        machine=machine.describe_machine(TorchDevice(options.device, 0), thread_count(0)),
        cuda=cuda(options.torch_device),
        commit=commit,
        modified=modified,
        compile_report=report,
        compile_report_reason=options.compile_report_reason,
        rows=[job.row for job in jobs],
    )
    if options.path.exists():
        before = read_part(options.path)
        unfinished = any(row.state == "not reached" for row in before.rows)
        if _is_same_code(before, part_file) and unfinished and before.dry_run == options.dry_run:
            known = {row.key: row for row in before.rows if row.state != "not reached"}
            part_file.rows = [known.get(row.key, row) for row in part_file.rows]
            part_file.started = before.started
            if known:
                print(f"going on: {len(known)} of {len(jobs)} rows are there already", flush=True)
    return part_file


def _is_same_code(a: PartFile, b: PartFile) -> bool:
    """Whether two files are of the same code, fanin's and torch's, on the same device."""
    return (a.device, a.cuda.driver, a.machine.framework, a.machine.code) == (
        *(b.device, b.cuda.driver, b.machine.framework, b.machine.code),
    )


def conduct(
    part: PartName, options: Options, jobs: Sequence[Job], failed: Callable[[Row], bool]
) -> int:
    """Run the jobs and keep the file; the process's exit code, FAILED where `failed` says so of a
    row."""
    start = time.monotonic()
    part_file = begin(part, options, jobs)
    written = 0.0
    for number, job in enumerate(jobs):
        row = job.row
        if part_file.rows[number] is not row:  # an earlier call has it
            continue
        if time.monotonic() - start >= options.seconds:
            row.reason = f"not reached within the budget of {options.minutes:g} minutes"
            continue
        print(f"[{number + 1}/{len(jobs)}] {row.key}", flush=True)
        begun = time.monotonic()
        row.started, row.state = now(), "done"
        try:
            job.run()
        except Exception as error:  # a gap that says why; the others are still wanted
            row.state = "gap"
            row.reason = _first_line(error)
        row.seconds = round(time.monotonic() - begun, 3)
        if failed(row) or row.state == "gap":
            print(f"  {'FAILED' if failed(row) else 'gap'}: {row.reason}", flush=True)
        if time.monotonic() - written > _WRITE_SECONDS:
            part_file.finished = now()
            write_part(options.path, part_file)
            written = time.monotonic()
    part_file.finished = now()
    write_part(options.path, part_file)
    return FAILED if any(failed(row) for row in part_file.rows) else 0


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"
