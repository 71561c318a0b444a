"""Runs tasks, each in a child process of its own, and keeps what they measured.

A finished run is skipped the next time, a failed one is tried again, and one that was stopped or
killed goes on from its checkpoint. The children send events (see `run`); a `Display` shows them.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TextIO

from fanin.benchmarks.harness.checkpoint import checkpoint_folder, remove_checkpoint
from fanin.benchmarks.harness.child import Request, begun, failed
from fanin.benchmarks.harness.lock import locked
from fanin.benchmarks.records.files import remove_leftovers
from fanin.benchmarks.records.run import Profile, RunResult
from fanin.benchmarks.records.store import ResultError, read_result, result_path, write_result
from fanin.benchmarks.records.task import Task
from fanin.datasets import find_folder
from fanin.datasets.folder import FILES_IN
from fanin.kernels import build_info


@dataclass(frozen=True)
class Options:
    """How tasks are run, apart from what they say themselves."""

    results: Path
    data_dir: Path | None = None
    device: str = "auto"
    threads: int = 0
    force: bool = False
    save_weights: bool = False
    checkpoint_minutes: float = 1.0
    profile: Profile = "train"
    steps: int = 20


# What each profile's child process runs.
MODULES: dict[Profile, str] = {
    "train": "fanin.benchmarks.harness.child",
    "shapes": "fanin.benchmarks.harness.profile",
}


class Display(Protocol):
    """Shows progress; see `progress` for the terminal's."""

    def begin(self, request: Request, number: int, count: int) -> None: ...
    def event(self, event: dict[str, Any]) -> None: ...
    def end(self, result: RunResult, skipped: bool) -> None: ...


def requests(tasks: Iterable[Task], backends: Iterable[str], options: Options) -> list[Request]:
    """One request per task, repeat and backend; the backends alternate, so that what is compared
    ran close together in time."""
    backends = list(backends)
    made = []
    for task in tasks:
        # Sizes are the same in every repeat.
        for repeat in range(task.repeat if options.profile == "train" else 1):
            for backend in backends:
                path = result_path(options.results, task, backend, repeat, options.profile)
                saved = options.save_weights and options.profile == "train"
                weights = path.with_suffix(".safetensors") if saved else None
                made.append(
                    Request(
                        task=task,
                        backend=backend,
                        repeat=repeat,
                        path=path,
                        data_dir=options.data_dir,
                        device=options.device,
                        threads=options.threads,
                        weights=weights,
                        profile=options.profile,
                        steps=options.steps,
                        checkpoint_minutes=options.checkpoint_minutes,
                        force=options.force,
                    )
                )
    return made


def finished(request: Request) -> RunResult | None:
    """The result of an earlier run of the same task, if it finished.

    A file that cannot be read is an error, not a reason to run for hours again silently.
    """
    if not request.path.exists():
        return None
    result = read_result(request.path)
    if result.status != "finished":
        return None
    # The path leaves out how many repeats were asked for, and nothing else.
    if result.task.model_copy(update={"repeat": request.task.repeat}) != request.task:
        raise ResultError(f"{request.path}: holds another task; repeat it with --force")
    return result


def doubts(request: Request, result: RunResult) -> list[str]:
    """Why a finished result may not be what is asked for now. Whether data are still the same
    cannot be said without reading them, so this only looks at their dates."""
    found = []
    if result.machine:
        was = "cpu" if result.machine.device == "cpu" else "cuda"
        if request.device not in ("auto", was):
            found.append(f"it ran on {was}, and --device {request.device} is asked for")
        then, now = result.machine.kernels, build_info()["instruction_set"]
        if was == "cpu" and then.split()[-1] != now:
            found.append(f"it ran with {then}, and {now} is what would run now")
    folder = request.data_dir and find_folder(request.data_dir, request.task.dataset)
    source = result.dataset.source if result.dataset else ""
    if source.startswith(FILES_IN) and not folder:
        found.append(f"it read {source}, and no --data-dir is given")
    if folder and source:
        if Path(source.removeprefix(FILES_IN)).resolve() != folder.resolve():
            found.append(f"it read {source}, and {folder} is asked for")
        files = [path for path in folder.iterdir() if path.is_file()]
        changed = [p for p in files if p.stat().st_mtime > result.started.timestamp()]
        if changed:
            found.append(f"{min(changed)} has changed since")
    return found


def data_of(request: Request) -> tuple[str, str]:
    """What a run loads: data set and features."""
    return request.task.dataset, request.task.features


def run_all(todo: list[Request], options: Options, display: Display) -> list[RunResult]:
    """Run what is not finished yet, in order. After a run whose data cannot be used no other is
    tried on the same data. KeyboardInterrupt passes after the child is gone; BusyError where
    another process is running the same."""
    results = []
    unusable = set()
    for number, request in enumerate(todo, 1):
        display.begin(request, number, len(todo))
        with locked(request.path.with_suffix(".lock")) as lock:
            for path in (request.path, request.path.with_suffix(".safetensors")):
                remove_leftovers(path)
            before = done = None if options.force else finished(request)
            if done and request.weights and not request.weights.exists():
                done = None
                again = "finished before without its weights, and runs again to save them"
                display.event({"event": "note", "text": again})
            for doubt in doubts(request, done) if done else ():
                text = f"finished before, and is skipped; but {doubt}. --force repeats it"
                display.event({"event": "note", "text": text})
            if done:  # killed between writing the result and this
                remove_checkpoint(checkpoint_folder(request.path))
            elif data_of(request) in unusable:
                continue
            result = done or run_one(request, display, lock)
            if before and result.status == "failed":
                write_result(request.path, before)  # which was good, but for its weights
        display.end(result, skipped=done is not None)
        results.append(result)
        if result.failure and result.failure.is_of_data:
            unusable.add(data_of(request))
    return results


def log_path(path: Path) -> Path:
    """Where the child's own output goes."""
    return path.with_suffix(".log")


def child_environment() -> dict[str, str]:
    """The environment of a child process: quiet frameworks, and threads that wait shortly."""
    usual = {"TF_CPP_MIN_LOG_LEVEL": "2", "TF_ENABLE_ONEDNN_OPTS": "1", "PYTHONUNBUFFERED": "1"}
    if "OMP_WAIT_POLICY" not in os.environ:
        # GNU OpenMP's threads spin 300,000 times before they sleep: milliseconds, and that at the
        # end of each loop once another program has one of the cores. Small models then take 60 to
        # 180 times as long, with this 3 to 6 times; on an idle machine it costs little.
        usual["GOMP_SPINCOUNT"] = "5000"
    return {**usual, **os.environ, "TF_FORCE_GPU_ALLOW_GROWTH": "true"}


def start_child(
    module: str, log: Path, inherited: tuple[int, ...] = ()
) -> tuple[subprocess.Popen[str], TextIO]:
    """Start `python -m module` with a pipe of its own, whose number is its argument; the process
    and the pipe's reading end. What the child prints goes into `log`; `inherited` are descriptors
    that it keeps open. It takes the end of its standard input for the end of this process."""
    log.parent.mkdir(parents=True, exist_ok=True)
    reading, writing = os.pipe()
    with log.open("w", encoding="utf-8") as output:
        child = subprocess.Popen(
            # -P: the current folder stays off sys.path, where a `datasets` folder would shadow
            # another package of that name.
            [sys.executable, "-P", "-m", module, str(writing)],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            pass_fds=(writing, *inherited),
            env=child_environment(),
            start_new_session=True,  # Ctrl-C reaches this process alone, which ends the child
            text=True,
        )
    os.close(writing)
    return child, os.fdopen(reading, encoding="utf-8")


def run_one(request: Request, display: Display, lock: int) -> RunResult:
    """Run one request in a child process; a child that dies is a failed result. The child inherits
    the `lock` (a descriptor)."""
    result = begun(request)
    before = request.path.stat().st_mtime_ns if request.path.exists() else None
    log = log_path(request.path)
    child, events = start_child(MODULES[request.profile], log, (lock,))
    os.write(lock, f" with its child {child.pid}".encode())
    try:
        assert child.stdin is not None
        with suppress(BrokenPipeError):  # it is dead already; what follows finds out how
            print(request.model_dump_json(), file=child.stdin, flush=True)
        with events:
            for line in events:
                display.event(json.loads(line))
        code = child.wait()
    except BaseException:
        child.kill()
        child.wait()
        raise
    written = request.path.stat().st_mtime_ns if request.path.exists() else None
    if written is not None and written != before:
        return read_result(request.path)
    tail = log.read_text(encoding="utf-8", errors="replace")[-2000:]
    how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    message = f"the run's process ended with {how} and left no result; its output: {log}"
    write_result(request.path, failed(result, "ProcessDied", message, tail))
    return result
