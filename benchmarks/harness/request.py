"""What a run is asked to do, and the result that it begins with."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from fanin.benchmarks.harness.together import processes_here
from fanin.benchmarks.records.base import Failure
from fanin.benchmarks.records.printing import printable
from fanin.benchmarks.records.run import Profile, RunResult
from fanin.benchmarks.records.store import result_path
from fanin.benchmarks.records.task import Task
from fanin.kernels.threads import thread_count

# How often a run of several processes starts again by itself when it has lost one.
RESTARTS = 3


class Options(BaseModel):
    """How tasks are run, apart from what they say themselves; `cli.options` says what each means.

    JSON has no word for inf or nan, and a child gets them as JSON: they are refused.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    results: Path = Path("results")
    data_dir: Path | None = None
    device: str = "auto"
    threads: int = 0
    processes: int = 1
    force: bool = False
    save_weights: bool = False
    checkpoint_minutes: float = 1.0
    profile: Profile = "train"
    steps: int = 20


class Request(BaseModel):
    """All that one run needs to know; a child process gets it as JSON."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    task: Task
    backend: str
    repeat: int
    options: Options

    @property
    def seed(self) -> int:
        """The run's own seed."""
        return self.task.seed + self.repeat

    @property
    def threads(self) -> int:
        """CPU threads of each process of the run: an even share of the machine's."""
        return max(1, thread_count(self.options.threads) // processes_here())

    @property
    def path(self) -> Path:
        """The run's result file."""
        options = self.options
        return result_path(options.results, self.task, self.backend, self.repeat, options.profile)

    @property
    def weights_path(self) -> Path | None:
        """Where its weights are to be kept, if they are. A shape profile has none to keep."""
        is_kept = self.options.save_weights and self.options.profile == "train"
        return self.path.with_suffix(".safetensors") if is_kept else None


def with_options(request: Request, **changed: object) -> Request:
    """The request with other options."""
    return request.model_copy(update={"options": request.options.model_copy(update=changed)})


def requests(tasks: Iterable[Task], backends: Iterable[str], options: Options) -> list[Request]:
    """One request per task, repeat and backend; the backends alternate, so that what is compared
    ran close together in time."""
    backends = list(backends)
    return [
        Request(task=task, backend=backend, repeat=repeat, options=options)
        for task in tasks
        # Sizes are the same in every repeat.
        for repeat in range(task.repeat if options.profile == "train" else 1)
        for backend in backends
    ]


def begun(request: Request) -> RunResult:
    """The result of a run that starts now; what the run measures is filled in on the way."""
    now = datetime.now(UTC)
    return RunResult(
        status="finished",
        task=request.task,
        backend=request.backend,
        repeat=request.repeat,
        started=now,
        finished=now,
    )


def end_moment(started: datetime) -> datetime:
    """Now, and not before the start: a clock may be set back."""
    return max(started, datetime.now(UTC))


def failed(result: RunResult, kind: str, message: str, output: str) -> RunResult:
    """The result of a run that began so and ended in an error."""
    result.status, result.finished = "failed", end_moment(result.started)
    # Printable, since JSON cannot hold a path that is no text.
    result.failure = Failure(kind=kind, message=printable(message), traceback=printable(output))
    return result
