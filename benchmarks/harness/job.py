"""One run as a job of a cluster: what the job does, and the file by which it tells how far it is.

The job is a parent process as `parent` has it, for one run. Its events go to a file beside the
result file, on a disk that the command which submitted it can read (see `cluster`).
"""

from __future__ import annotations

import json
import os
import platform
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from fanin.benchmarks.harness.checkpoint import checkpoint_folder, remove_checkpoint
from fanin.benchmarks.harness.parent import run_all
from fanin.benchmarks.harness.request import Request, with_options
from fanin.benchmarks.records.run import RunResult

if TYPE_CHECKING:
    from submitit.core.utils import DelayedSubmission

# Events of steps come several times a second; a file on a shared disk needs fewer.
_STEP_SECONDS = 2.0
# Clusters seldom let a job live on for longer after SIGTERM.
_GRACE_SECONDS = 600.0
_GPUS = "CUDA_VISIBLE_DEVICES"


def events_path(result: Path) -> Path:
    """Where the events of the run with that result file go."""
    return result.with_suffix(".events")


class Recorder:
    """A `parent.Display` that appends each event to a file, as a line of JSON.

    The file is opened for each line: then other machines see it, also by NFS. An error of the disk
    ends no training.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._last = 0.0

    def begin(self, request: Request, number: int, count: int) -> None:
        self.event({"event": "begin", "node": platform.node()})

    def event(self, event: dict[str, Any]) -> None:
        now = time.monotonic()
        if event["event"] == "step":
            if now - self._last < _STEP_SECONDS and event["done"] < event["total"]:
                return
            self._last = now
        # A line that a kill cut short must not spoil this one.
        with suppress(OSError), self._path.open("a", encoding="utf-8") as file:
            file.write(f"\n{json.dumps(event)}\n")

    def end(self, result: RunResult, skipped: bool) -> None:
        is_killed = result.failure is not None and result.failure.kind == "ProcessDied"
        self.event({"event": "died" if is_killed else "end", "skipped": skipped})


class EventReader:
    """Reads what a `Recorder` appends to a file, whole lines only."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read = 0

    def new(self) -> Iterator[dict[str, Any]]:
        """The events since the last call; none while the file is not there."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._read)
                text = file.read()
        except OSError:
            return
        text = text[: text.rfind(b"\n") + 1]
        self._read += len(text)
        for line in text.splitlines():
            with suppress(ValueError):
                event = json.loads(line)
                if isinstance(event, dict) and "event" in event:
                    yield event


class _EndedError(BaseException):
    """SIGTERM came."""


@contextmanager
def _sigterm_raises() -> Iterator[None]:
    def end(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise _EndedError

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@dataclass(frozen=True)
class Job:
    """What a job does: one run, taken up where an earlier job, or this one, has left it.

    gpus: CUDA_VISIBLE_DEVICES of the command, for jobs on its machine, where submitit sets it to
    another value; None elsewhere.
    """

    request: Request
    gpus: dict[str, str] | None

    def __call__(self) -> None:
        if self.gpus is not None:
            os.environ.pop(_GPUS, None)
            os.environ.update(self.gpus)
        request, events = self.request, events_path(self.request.path)
        if request.options.force and not events.exists():
            # Only the first time: a job that is taken up again goes on.
            request.path.unlink(missing_ok=True)
            remove_checkpoint(checkpoint_folder(request.path))
        request = with_options(request, force=False)
        try:
            with _sigterm_raises():
                run_all([request], request.options, Recorder(events))
        except _EndedError:
            # The run's process is gone. This one waits until Slurm ends it: Slurm queues again only
            # those preempted jobs that did not end by themselves.
            if os.environ.get("SUBMITIT_EXECUTOR") == "slurm":
                time.sleep(_GRACE_SECONDS)
            raise SystemExit(128 + signal.SIGTERM) from None

    def checkpoint(self) -> DelayedSubmission:
        """What submitit queues again when the time of a job is over: the same."""
        from submitit.core.utils import DelayedSubmission

        return DelayedSubmission(self)


def visible_gpus() -> dict[str, str]:
    """What the environment says about the GPUs that this process may use."""
    return {_GPUS: os.environ[_GPUS]} if _GPUS in os.environ else {}
