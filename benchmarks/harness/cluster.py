"""Runs tasks as jobs that submitit starts: of Slurm, or processes of this machine, which take the
same path. All that is to run is submitted at once, for Slurm as one array, and then watched.

A job leaves a result file as any run does, and events beside it (`job`). Beside them lies which job
has the run, `<backend>-<repeat>.job`: the next command goes on to watch a job that still works.
Slurm itself takes jobs up again after a preemption or when a node fails; a job that ended without a
result is submitted again from here.
"""

from __future__ import annotations

import json
import math
import shutil
import time
import uuid
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from fanin.benchmarks.harness.job import EventReader, Job, events_path, visible_gpus
from fanin.benchmarks.harness.parent import Display, finished, usable
from fanin.benchmarks.harness.plan import Plan
from fanin.benchmarks.harness.queues import QUEUES, ClusterError, JobState, uses_gpu
from fanin.benchmarks.harness.request import Options, Request, begun, failed, with_options
from fanin.benchmarks.records.files import write_atomically
from fanin.benchmarks.records.printing import number_of
from fanin.benchmarks.records.run import RunResult
from fanin.benchmarks.records.statistics import GIB
from fanin.benchmarks.records.store import read_result, write_result
from fanin.datasets.memory import available_bytes, size_text
from fanin.kernels.threads import cores, thread_count

OnInterrupt = Literal["leave", "cancel"]

# Above what a plan counts: Python, the framework, the job's own process.
_PROCESS_BYTES = 2 * GIB
_MEMORY_MARGIN = 1.25
# Plans of times are right within a factor of about two; reading data and starting come on top.
_TIME_MARGIN = 2.0
_START_MINUTES = 30
_POLL_SECONDS = 1.0


class StoppedError(KeyboardInterrupt):
    """Ctrl-C came; the message says what became of the jobs."""


class Screen(Protocol):
    """Shows many runs at once; `cli.progress` is the terminal's."""

    def line(self) -> Display: ...
    def say(self, text: str) -> None: ...
    def count(self, ended: int, total: int, facts: str) -> None: ...


@dataclass(frozen=True)
class Resources:
    """What each job asks for."""

    memory_bytes: int
    minutes: int
    cpus: int
    gpus: int

    @classmethod
    def of(cls, plans: Iterable[Plan], options: Options) -> Resources:
        """Enough for the largest of the plans: all tasks of an array ask for the same."""
        plans = list(plans)
        # Of each process, all of which a job starts.
        memory = max(plan.expected.peak_bytes + plan.data_bytes for plan in plans)
        process_bytes = _MEMORY_MARGIN * memory + _PROCESS_BYTES
        # A shape profile makes a few steps.
        trains = options.profile == "train"
        hours = max(plan.hours / plan.task.repeat for plan in plans) if trains else 0.0
        return cls(
            memory_bytes=math.ceil(options.processes * process_bytes / GIB) * GIB,
            minutes=_START_MINUTES + math.ceil(60 * _TIME_MARGIN * hours),
            cpus=thread_count(options.threads),
            gpus=1 if options.device == "cuda" else 0,
        )

    def __str__(self) -> str:
        gpus = f", {self.gpus} GPU" * bool(self.gpus)
        cpus = number_of(self.cpus, "CPU")
        return f"{size_text(self.memory_bytes)}, {cpus}{gpus}, {self.minutes} minutes"


@dataclass(frozen=True)
class Cluster:
    """Where and how jobs are run.

    at_once: so many of them; None for as many as there is room for. retries: how often a job that
    was killed, or ran out of time, is taken up again. settings: sbatch's long options.
    """

    name: str
    at_once: int | None = None
    retries: int = 2
    on_interrupt: OnInterrupt = "leave"
    settings: dict[str, str] = field(default_factory=dict)


@dataclass
class _Run:
    """A run that is to be done, and its job."""

    number: int
    request: Request
    display: Display
    events: EventReader
    job: str | None = None
    folders: list[Path] = field(default_factory=list)
    submitted: int = 0
    begun: int = 0
    is_gone: bool = False
    left_failure: bool = False
    is_ending: bool = False
    is_skipped: bool = False
    result: RunResult | None = None

    @property
    def record(self) -> Path:
        """The file that says which job has this run."""
        return self.request.path.with_suffix(".job")

    def read_events(self, count: int) -> None:
        """Hand on what the job did since the last time."""
        for event in self.events.new():
            match event:
                case {"event": "begin"}:
                    self.begun, self.left_failure = self.begun + 1, False
                    self.display.begin(self.request, self.number, count)
                    if self.begun > 1:
                        text = f"taken up again on {event.get('node')}"
                        self.display.event({"event": "note", "text": text})
                case {"event": "died"}:
                    self.left_failure = True
                case {"event": "end"}:
                    self.is_ending, self.is_skipped = True, bool(event.get("skipped"))
                case _:
                    self.display.event(event)
        # On a shared disk a new file may be seen later than another one's new lines.
        if self.is_ending and self.request.path.exists():
            self.end(read_result(self.request.path), self.is_skipped)

    def end(self, result: RunResult, skipped: bool) -> None:
        self.result = result
        self.display.end(result, skipped)
        self.record.unlink(missing_ok=True)
        events_path(self.request.path).unlink(missing_ok=True)


class Grid:
    """All runs of one command, and their jobs."""

    def __init__(
        self, todo: list[Request], cluster: Cluster, resources: Resources, screen: Screen
    ) -> None:
        self._cluster, self._resources, self._screen = cluster, resources, screen
        self._queue = QUEUES[cluster.name]()
        self._runs = [
            _Run(number, request, screen.line(), EventReader(events_path(request.path)))
            for number, request in enumerate(todo, 1)
        ]
        self._states: dict[str, JobState] = {}
        self._asked = -math.inf
        self._trouble = ""
        self._at_once = cluster.at_once or len(todo)
        if cluster.at_once is None and self._queue.shares_this_machine:
            room = min(cores() // resources.cpus, available_bytes() // resources.memory_bytes)
            self._at_once = 1 if uses_gpu(todo[0].options.device) else max(1, room)

    def run(self) -> list[RunResult]:
        """The results, in the order of the requests. StoppedError after Ctrl-C."""
        try:
            self._begin()
            while self._left():
                self._submit([run for run in self._left() if run.job is None])
                time.sleep(_POLL_SECONDS)
                self._look()
                self._show()
        except KeyboardInterrupt:
            raise StoppedError(self._stop()) from None
        return [run.result for run in self._runs if run.result]

    def _left(self) -> list[_Run]:
        return [run for run in self._runs if run.result is None]

    def _begin(self) -> None:
        """Leave out what is finished, and take over what another command has submitted."""
        self._states = self._queue.states()
        for run in self._runs:
            if self._is_taken_over(run):
                continue
            before = None if run.request.options.force else finished(run.request)
            if before:
                run.display.begin(run.request, run.number, len(self._runs))
                if done := usable(run.request, before, run.display):
                    run.end(done, skipped=True)
            if run.result is None:
                events_path(run.request.path).unlink(missing_ok=True)
                run.record.unlink(missing_ok=True)
        if taken := [run.job for run in self._left() if run.job]:
            runs = number_of(len(taken), "run")
            self._screen.say(f"{runs} with a job already: {', '.join(taken)}")

    def _is_taken_over(self, run: _Run) -> bool:
        with suppress(OSError, ValueError, KeyError, TypeError):
            record = json.loads(run.record.read_text(encoding="utf-8"))
            is_ours = record["queue"] == self._queue.identity
            if is_ours and self._is_active(record["job"]):
                run.folders, run.submitted = [Path(record["folder"])], 1
                run.job = record["job"]
                return True
        return False

    def _is_active(self, job: str) -> bool:
        return job in self._states and self._states[job].is_active

    def _submit(self, waiting: list[_Run]) -> None:
        if self._queue.shares_this_machine:
            busy = sum(run.job is not None for run in self._left())
            waiting = waiting[: max(0, self._at_once - busy)]
        if not waiting:
            return
        results = waiting[0].request.options.results
        folder = results.resolve() / "jobs" / uuid.uuid4().hex[:8]
        gpus = visible_gpus() if self._queue.shares_this_machine else None
        jobs = [Job(_for_job(run.request, self._resources), gpus) for run in waiting]
        ids = self._queue.submit(folder, jobs, self._parameters())
        for run, job in zip(waiting, ids, strict=True):
            run.job, run.is_gone = job, False
            run.folders.append(folder)
            run.submitted += 1
            record = {"queue": self._queue.identity, "job": job, "folder": str(folder)}
            write_atomically(run.record, json.dumps(record))
        self._asked = time.monotonic()  # a new job may be unknown for a moment
        if not self._queue.shares_this_machine:
            name = ids[0].partition("_")[0]
            runs = number_of(len(ids), "run")
            self._screen.say(f"job {name}: {runs} submitted, each {self._resources}")

    def _parameters(self) -> dict[str, Any]:
        needs = self._resources
        settings = dict(self._cluster.settings)
        # submitit has to know it: by the time that is left it tells preemption from lack of time.
        minutes = int(settings.pop("time", needs.minutes))
        return {
            "name": "fanin",
            "mem_gb": needs.memory_bytes // GIB,
            "timeout_min": minutes,
            "retries": self._cluster.retries,
            "cpus_per_task": needs.cpus,
            "gpus_per_node": needs.gpus or None,
            "slurm_array_parallelism": self._at_once,
            "slurm_additional_parameters": {"requeue": True, **settings},
            # Slurm 22.05 no longer hands it on by itself.
            "slurm_srun_args": [f"--cpus-per-task={needs.cpus}"],
        }

    def _look(self) -> None:
        """Read events, and now and then the states of the jobs."""
        asks = time.monotonic() - self._asked >= self._queue.poll_seconds
        if asks:
            self._asked = time.monotonic()
            try:
                self._states = self._queue.states()
            except ClusterError as error:  # it may be starting anew
                self._trouble, asks = str(error), False
            else:
                self._trouble = ""
        for run in self._left():
            run.read_events(len(self._runs))
            if asks and run.job and run.result is None:
                is_gone = not self._is_active(run.job)
                # Its last events may be on their way: only the second time in a row it counts.
                if is_gone and run.is_gone:
                    self._take_up(run)
                run.is_gone = is_gone

    def _take_up(self, run: _Run) -> None:
        """Have a run submitted again whose job ended without a result."""
        assert run.job
        folder = run.folders[-1]
        state = self._states[run.job].text if run.job in self._states else "gone"
        message = f"job {run.job} ended ({state}) without a result; its output: {folder}"
        if run.submitted <= self._cluster.retries:
            again = f"submitted again, {run.submitted} of {self._cluster.retries} times"
            self._screen.say(f"{message}; {again}")
            run.job = None
            return
        if run.left_failure:  # the run's own process was killed, and not the job
            return run.end(read_result(run.request.path), skipped=False)
        result = failed(begun(run.request), "ProcessDied", message, _output(folder, run.job))
        path = run.request.path
        if not path.exists() or read_result(path).status == "failed":
            write_result(path, result)
        run.end(result, skipped=False)

    def _ended(self) -> int:
        return len(self._runs) - len(self._left())

    def _show(self) -> None:
        """Show how many jobs run, and why others wait, or that the queue does not answer."""
        if self._trouble:
            return self._screen.count(self._ended(), len(self._runs), self._trouble)
        states = [self._states.get(run.job or "") for run in self._left()]
        running = sum(state is not None and state.is_running for state in states)
        reasons = {state.reason for state in states if state and state.reason} - {"None"}
        why = f" ({', '.join(sorted(reasons))})" if reasons else ""
        facts = f"{running} running, {len(states) - running} waiting{why}"
        self._screen.count(self._ended(), len(self._runs), facts)

    def _stop(self) -> str:
        """Leave or cancel the jobs; the message about that."""
        active = [run for run in self._left() if run.job]
        ids = [run.job for run in active if run.job]
        jobs = number_of(len(ids), "job")
        idle = len(self._left()) - len(active)
        more = f"; {number_of(idle, 'run')} not submitted" if idle else ""
        kept = "what has finished is kept"
        if not ids:
            return f"stopped, no job is under way{more}; {kept}"
        if self._cluster.on_interrupt == "cancel":
            self._queue.cancel(ids)
            return f"stopped and cancelled {jobs}{more}; {kept}, the same command goes on"
        ends = self._queue.cancel_command(ids)
        return (
            f"stopped watching, with {jobs} under way{more}; {kept}, the same command watches "
            f"again; to cancel: `{ends}`"
        )

    def remove_folders(self) -> None:
        """Remove what submitit wrote, but for runs that failed."""
        failed_in = {f for run in self._runs for f in run.folders if not _is_finished(run.result)}
        for folder in {f for run in self._runs for f in run.folders} - failed_in:
            shutil.rmtree(folder, ignore_errors=True)
            with suppress(OSError):
                folder.parent.rmdir()


def _is_finished(result: RunResult | None) -> bool:
    return result is not None and result.status == "finished"


def _for_job(request: Request, resources: Resources) -> Request:
    """The request as a job gets it: its node may have other cores and another current folder."""
    results = request.options.results.resolve()
    return with_options(request, results=results, threads=resources.cpus)


def _output(folder: Path, job: str) -> str:
    """The end of what a job printed."""
    texts = []
    for path in sorted(folder.glob(f"{job}_*_log.*")):
        with suppress(OSError):
            texts.append(path.read_text(encoding="utf-8", errors="replace")[-2000:])
    return "\n".join(texts)


def run_as_jobs(
    todo: list[Request], cluster: Cluster, resources: Resources, screen: Screen
) -> list[RunResult]:
    """Run what is not finished yet as jobs; all results, in the order of `todo`.

    Raises ClusterError where jobs cannot be submitted, ImportError without submitit, StoppedError
    after Ctrl-C.
    """
    grid = Grid(todo, cluster, resources, screen)
    results = grid.run()
    grid.remove_folders()
    return results
