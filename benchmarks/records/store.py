"""Where result files lie, and how they are written and read.

One run is one JSON file, `<results>/runs/<dataset>/<features>/<task slug>/<backend>-<repeat>.json`.
A shape profile lies in `<results>/shapes/...` in the same way, and a comparison of the backends in
`<results>/lockstep/<dataset>/<features>/<task slug>.json`. The paths are readable functions of the
task.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

from pydantic import TypeAdapter

from fanin.benchmarks.records import json_text
from fanin.benchmarks.records.base import SCHEMA_VERSION
from fanin.benchmarks.records.compare import LockstepResult
from fanin.benchmarks.records.files import try_writing, write_atomically
from fanin.benchmarks.records.run import Profile, RunResult
from fanin.benchmarks.records.task import Task
from fanin.benchmarks.records.timing import (
    FloorTimes,
    OpTimes,
    PredictTimes,
    RankTimes,
    StepResult,
    WordsTimes,
)

FOLDERS: dict[Profile, str] = {"train": "runs", "shapes": "shapes"}

_T = TypeVar("_T")


class ResultError(ValueError):
    """A result file that cannot be read; the message names the file."""


def result_path(
    folder: Path, task: Task, backend: str, repeat: int, profile: Profile = "train"
) -> Path:
    below = folder / FOLDERS[profile] / task.dataset / task.features
    return below / task.slug / f"{backend}-{repeat}.json"


def lockstep_path(folder: Path, task: Task) -> Path:
    return folder / "lockstep" / task.dataset / task.features / f"{task.slug}.json"


def write_result(path: Path, result: RunResult | LockstepResult) -> None:
    write_atomically(path, result.model_dump_json(indent=1) + "\n")


def read(path: Path, schema: type[_T]) -> _T:
    try:
        text = path.read_text(encoding="utf-8")
        json_text.parse(text)  # refuses what pydantic takes: a key that stands twice
        return TypeAdapter(schema).validate_json(text)
    except OSError as error:
        raise ResultError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ResultError(
            f"{path}: not UTF-8 text; delete it or move it elsewhere, and run its task again"
        ) from error
    except ValueError as error:
        raise ResultError(
            f"{path}: not a result file of schema {SCHEMA_VERSION}: {json_text.explain(error)}; "
            "delete it or move it elsewhere, and run its task again"
        ) from error


def read_op_times(path: Path) -> list[OpTimes]:
    """What `kernels` wrote."""
    return read(path, list[OpTimes])


def read_steps(path: Path) -> list[StepResult]:
    """What `step` wrote."""
    return read(path, list[StepResult])


def read_floor_times(path: Path) -> FloorTimes:
    """What `floor` wrote."""
    return read(path, FloorTimes)


def read_predict_times(path: Path) -> PredictTimes:
    """What `predict` wrote."""
    return read(path, PredictTimes)


def read_rank_times(path: Path) -> RankTimes:
    """What `ranks` wrote."""
    return read(path, RankTimes)


def read_words_times(path: Path) -> WordsTimes:
    """What `text` wrote."""
    return read(path, WordsTimes)


def read_result(path: Path) -> RunResult:
    return read(path, RunResult)


def _check_place(path: Path, expected: Path) -> None:
    # A copy beside the original would count as another repeat.
    if path != expected:
        raise ResultError(
            f"{path}: its contents belong to {expected}; move it there, and keep copies elsewhere"
        )


def read_results(
    folder: Path, profile: Profile = "train", without: Collection[Path] = ()
) -> Iterator[RunResult]:
    """All runs of a profile below the results folder, in the order of their paths, but for the
    files `without`."""
    for path in sorted((folder / FOLDERS[profile]).glob("*/*/*/[!.]*.json")):
        if path in without:
            continue
        run = read_result(path)
        _check_place(path, result_path(folder, run.task, run.backend, run.repeat, profile))
        is_profile = run.extrapolation is not None
        if run.status == "finished" and is_profile != (profile == "shapes"):
            kind = "shape profile" if is_profile else "run"
            raise ResultError(f"{path}: is the result of a {kind}; move it elsewhere")
        yield run


def read_lockstep(folder: Path, without: Collection[Path] = ()) -> Iterator[LockstepResult]:
    """All comparisons step by step below the results folder, in the order of their paths, but for
    the files `without`."""
    for path in sorted((folder / "lockstep").glob("*/*/[!.]*.json")):
        if path in without:
            continue
        comparison = read(path, LockstepResult)
        _check_place(path, lockstep_path(folder, comparison.task))
        yield comparison


def check_folder(folder: Path, written: Iterable[Path], replaced: Collection[Path] = ()) -> None:
    """Try now what the end of a command needs: after hours of training it would be too late.

    Raises ResultError where a file of the results folder cannot be read, those aside that will be
    `replaced`, since the report reads all of them; OSError where one of those to be `written`, or
    the report, could not be.
    """
    for profile in FOLDERS:
        for _ in read_results(folder, profile, replaced):
            pass
    for _ in read_lockstep(folder, replaced):
        pass
    for target in sorted({folder, *(path.parent for path in written)}):
        try_writing(target)
    if report_folder(folder).exists():
        try_writing(report_folder(folder))


def report_folder(folder: Path) -> Path:
    """Where the report of a results folder is written, if not elsewhere."""
    return folder / "report"
