"""Runs tasks, each in a child process of its own, and keeps what they measured.

A finished run is skipped the next time, a failed one is tried again, and one that was stopped or
killed goes on from its checkpoint. The children send events (see `child`); a `Display` shows them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from fanin.benchmarks.harness.checkpoint import checkpoint_folder, remove_checkpoint
from fanin.benchmarks.harness.lock import add_holder, locked
from fanin.benchmarks.harness.request import (
    RESTARTS,
    Options,
    Request,
    begun,
    failed,
    with_options,
)
from fanin.benchmarks.harness.together import RANK_MODULE
from fanin.benchmarks.measuring.process import Child, how_ended
from fanin.benchmarks.records.files import checksum, remove_leftovers, written_at
from fanin.benchmarks.records.run import Profile, RunResult
from fanin.benchmarks.records.store import ResultError, read_result, write_result
from fanin.datasets import find_folder
from fanin.datasets.folder import FILES_IN
from fanin.kernels import build_info

# What each profile's child process runs.
MODULES: dict[Profile, str] = {
    "train": "fanin.benchmarks.harness.child",
    "shapes": "fanin.benchmarks.harness.profile",
}
# What it runs instead where several processes train: the agent that starts them. Where a launcher
# has started several commands, it is one of these processes itself.
AGENT_MODULE = "fanin.benchmarks.harness.agent"


class Runs(Protocol):
    """Tells other commands of a run; `launched.Runs` is torch's."""

    def tell(self, request: Request) -> tuple[str, ...]: ...


class Display(Protocol):
    """Shows progress; `cli.progress` is the terminal's."""

    def begin(self, request: Request, number: int, count: int) -> None: ...
    def event(self, event: dict[str, Any]) -> None: ...
    def end(self, result: RunResult, skipped: bool) -> None: ...


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
    cannot be known without reading them, so this only looks at their dates."""
    reasons, options = [], request.options
    if result.machine:
        was = "cpu" if result.machine.device == "cpu" else "cuda"
        if options.device not in ("auto", was):
            reasons.append(f"it ran on {was}, and --device {options.device} is asked for")
        if result.machine.processes != options.processes:
            reasons.append(
                f"it ran with --processes {result.machine.processes}, and {options.processes} is "
                "asked for"
            )
        then, now = result.machine.kernels, build_info()["instruction_set"]
        if was == "cpu" and then.split()[-1] != now:
            reasons.append(f"it ran with {then}, and {now} is what would run now")
    folder = options.data_dir and find_folder(options.data_dir, request.task.dataset)
    source = result.dataset.source if result.dataset else ""
    if source.startswith(FILES_IN) and not folder:
        reasons.append(f"it read {source}, and no --data-dir is given")
    if folder and source:
        if Path(source.removeprefix(FILES_IN)).resolve() != folder.resolve():
            reasons.append(f"it read {source}, and {folder} is asked for")
        files = [path for path in folder.iterdir() if path.is_file()]
        changed = [p for p in files if p.stat().st_mtime > result.started.timestamp()]
        if changed:
            reasons.append(f"{min(changed)} has changed since")
    return reasons


def lacking_weights(request: Request, result: RunResult) -> str | None:
    """What is wrong with the weights of a finished result: there are none, or the file is damaged
    or of another run. None where nothing is wrong, or no weights are asked for."""
    path = request.weights_path
    if path is None:
        return None
    if result.weights_checksum is None or not path.is_file():
        return "without its weights"
    if checksum(path) != result.weights_checksum:
        return f"with other weights than those in {path}"
    return None


def data_of(request: Request) -> tuple[str, str]:
    """What a run loads: data set and features."""
    return request.task.dataset, request.task.features


def usable(request: Request, before: RunResult, display: Display) -> RunResult | None:
    """A finished result, if it has all that is asked for now; the display is told what it lacks,
    or what may be out of date."""
    if lack := lacking_weights(request, before):
        text = f"finished before {lack}, and runs again to save them"
        display.event({"event": "note", "text": text})
        return None
    for doubt in doubts(request, before):
        text = f"finished before, and is skipped; but {doubt}. --force repeats it"
        display.event({"event": "note", "text": text})
    return before


def run_all(
    todo: list[Request], options: Options, display: Display, runs: Runs | None = None
) -> list[RunResult]:
    """Run what is not finished yet, in order. After a run whose data cannot be used no other is
    tried on the same data. runs: see `run_one`. KeyboardInterrupt passes after the child is gone;
    BusyError where another process is running the same."""
    results = []
    unusable = set()
    for number, request in enumerate(todo, 1):
        display.begin(request, number, len(todo))
        with locked(request.path.with_suffix(".lock")) as lock:
            for path in (request.path, request.path.with_suffix(".safetensors")):
                remove_leftovers(path)
            before = None if options.force else finished(request)
            done = before and usable(request, before, display)
            if done:  # killed between writing the result and this
                remove_checkpoint(checkpoint_folder(request.path))
            elif data_of(request) in unusable:
                continue
            result = done or run_one(request, display, lock, runs)
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


def run_one(request: Request, display: Display, lock: int, runs: Runs | None = None) -> RunResult:
    """Run one request in a child process; a child that dies is a failed result. The child inherits
    the `lock` (a descriptor). runs: tells the commands of other ranks, where a launcher started
    several; one that loses its process there makes this one's end, and all start again."""
    result = begun(request)
    before = written_at(request.path)
    log = log_path(request.path)
    module = MODULES[request.options.profile]
    if request.options.processes > 1:
        module = RANK_MODULE if runs else AGENT_MODULE
    how = ""
    for _ in range(1 + RESTARTS if runs else 1):
        if how:
            display.event({"event": "note", "text": f"{how}; going on from its checkpoint"})
            request = with_options(request, force=False)  # which would remove the checkpoint
        arguments = runs.tell(request) if runs else ()
        with Child(module, *arguments, log=log, inherited=(lock,)) as child:
            add_holder(lock, f" with its child {child.process.pid}")
            child.send(request.model_dump(mode="json"))
            for event in child.messages():
                display.event(event)
            code = child.process.wait()
        if written_at(request.path) not in (None, before):
            return read_result(request.path)
        how = f"the run's process ended with {how_ended(code)}"
    remove_leftovers(request.path)  # what it had reserved on the disk
    tail = log.read_text(encoding="utf-8", errors="replace")[-2000:]
    message = f"{how} and left no result; its output: {log}"
    write_result(request.path, failed(result, "ProcessDied", message, tail))
    return result
