"""`fanin merge`: bring result folders of several machines together into one."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated

import typer

from fanin.benchmarks.cli.options import AsJson, text_path
from fanin.benchmarks.cli.output import make_console, print_json, print_report, print_text, stop
from fanin.benchmarks.records.compare import LockstepResult
from fanin.benchmarks.records.files import checksum, write_atomically
from fanin.benchmarks.records.printing import number_of
from fanin.benchmarks.records.run import RunResult
from fanin.benchmarks.records.store import (
    FOLDERS,
    check_folder,
    lockstep_path,
    read_lockstep,
    read_results,
    result_path,
)
from fanin.datasets.file_errors import naming
from fanin.kernels import kept_files
from fanin.reports.pages.report import write_report


def merge(
    folders: Annotated[
        list[Path],
        typer.Argument(help="Result folders.", exists=True, file_okay=False, show_default=False),
    ],
    into: Annotated[
        Path,
        typer.Option(
            help="The folder that gets all of their results; it may have some already.",
            file_okay=False,
            callback=text_path,
            show_default=False,
        ),
    ],
    as_json: AsJson = False,
) -> None:
    """Bring the result folders of several machines together, then write the report.

    Result files are copied as they are, so each names the machine that it is of, and saved weights
    go with them. Equal files pass. Where two folders have different results of the same run, all
    such files are named and nothing is written.

    Example: `fanin merge from-one from-two --into results`.
    """
    check_folder(into, ())
    same: dict[Path, list[_Result]] = {}
    # What `into` has already comes first: it stays as it is.
    for folder in (into, *folders):
        results = _results(folder)
        if not results and folder is not into:
            stop(f"{folder}: no result files below it")
        for result in results:
            same.setdefault(result.place, []).append(result)
    if conflicts := [text for results in same.values() for text in _conflicts(results)]:
        stop("nothing was written; keep one of each, and merge again\n" + "\n".join(conflicts))
    check_folder(into, [into / place for place in same])
    copied = 0
    for place, results in same.items():
        target = into / place
        weights = target.with_suffix(".safetensors")
        kept = next((each.weights for each in results if each.weights.is_file()), None)
        if kept and not weights.exists():
            with naming(weights), kept_files.replacing(weights) as temporary:
                shutil.copyfile(kept, temporary)
        if not target.exists():
            write_atomically(target, results[0].content)
            copied += 1
    page = write_report(into)
    if as_json:
        print_json({"results": len(same), "copied": copied, "report": str(page.resolve())})
    else:
        console = make_console()
        print_text(console, f"{number_of(len(same), 'result')} in {into}, {copied} of them new")
        print_report(console, page)


@dataclass(frozen=True)
class _Result:
    """A result file. place: its path below the results folder."""

    folder: Path
    place: Path
    read: RunResult | LockstepResult

    @cached_property
    def content(self) -> bytes:
        return (self.folder / self.place).read_bytes()

    @property
    def weights(self) -> Path:
        """Where its weights lie, if they were saved."""
        return (self.folder / self.place).with_suffix(".safetensors")

    @property
    def description(self) -> str:
        """Where it lies, and what tells it from another of the same run."""
        read = self.read
        if isinstance(read, RunResult):
            machine, state = read.machine, str(read.status)
        else:
            machine = next((side.machine for side in read.sides.values()), None)
            state = "agreed" if read.agreed else "drifted apart"
        on = f" on {machine.processor}" if machine else ""
        return f"{self.folder / self.place}: {state}{on}, {read.finished:%Y-%m-%d %H:%M}"


def _results(folder: Path) -> list[_Result]:
    """All that the report of a results folder would read."""
    results = [
        _Result(folder, result_path(Path(), run.task, run.backend, run.repeat, profile), run)
        for profile in FOLDERS
        for run in read_results(folder, profile)
    ]
    return results + [
        _Result(folder, lockstep_path(Path(), comparison.task), comparison)
        for comparison in read_lockstep(folder)
    ]


def _conflicts(results: list[_Result]) -> list[str]:
    """What is wrong with the results of one run: several that differ, or weights of another."""
    if len({each.content for each in results}) > 1:
        return [f"different results of one run:{_listed(each.description for each in results)}"]
    saved = results[0].read.weights_checksum if isinstance(results[0].read, RunResult) else None
    return [
        f"{each.weights}: not the weights that its result file names"
        for each in results
        if each.weights.is_file() and checksum(each.weights) != saved
    ]


def _listed(lines: Iterable[str]) -> str:
    return "".join(f"\n  {line}" for line in lines)
