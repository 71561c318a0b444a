"""The two queues of jobs: Slurm's, and processes of this machine. submitit submits to both.

What state jobs are in is asked of `squeue`, which every Slurm has. submitit would ask `sacct`,
which needs a database that many clusters are without.
"""

from __future__ import annotations

import os
import platform
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import psutil

from fanin.benchmarks.harness.job import Job
from fanin.benchmarks.measuring.machine import runs_on_cpu

# The states of `squeue` in which a job has come to its end.
_ENDS = {
    *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL"),
    *("OUT_OF_MEMORY", "PREEMPTED", "REVOKED", "TIMEOUT"),
}
_LOCAL_MODULE = "submitit.local._local"
# A process of this machine has no other limit of time than its user's patience.
_YEAR_MINUTES = 365 * 24 * 60
_CANCEL_SECONDS = 20.0


class ClusterError(RuntimeError):
    """Jobs cannot be submitted or asked about; the message says why."""


@dataclass(frozen=True)
class JobState:
    """text: as the queue calls it. reason: why a job waits."""

    text: str
    reason: str = ""

    @property
    def is_active(self) -> bool:
        return self.text not in _ENDS

    @property
    def is_running(self) -> bool:
        return self.text in ("RUNNING", "COMPLETING")


class Queue(Protocol):
    """A queue of jobs. identity: a job id is one in this queue alone. poll_seconds: how often its
    states may be asked for. shares_this_machine: whether all jobs run beside this command."""

    identity: str
    poll_seconds: float
    shares_this_machine: bool

    def states(self) -> dict[str, JobState]:
        """This user's jobs, also some that have ended. Raises ClusterError."""

    def submit(self, folder: Path, jobs: Sequence[Job], parameters: dict[str, Any]) -> list[str]:
        """Submit jobs, which write into the folder; their ids. Raises ClusterError."""

    def cancel(self, ids: Sequence[str]) -> None: ...

    def cancel_command(self, ids: Sequence[str]) -> str:
        """What a person would type for that."""


class SlurmQueue:
    identity = "slurm"
    poll_seconds = 5.0
    shares_this_machine = False

    def __init__(self) -> None:
        missing = [name for name in ("sbatch", "squeue", "scancel") if not shutil.which(name)]
        if missing:
            raise ClusterError(
                f"--cluster slurm needs Slurm's {', '.join(missing)}, which this machine does not "
                "have; --cluster local needs no Slurm"
            )

    def states(self) -> dict[str, JobState]:
        asked = ("--noheader", "--array", "--states=all", "--format=%i|%T|%r")
        lines = _run("squeue", f"--user={os.getuid()}", *asked).splitlines()
        fields = (line.split("|", 2) for line in lines if line.count("|") >= 2)
        return {
            job: JobState(state, reason if state == "PENDING" else "")
            for job, state, reason in fields
        }

    def submit(self, folder: Path, jobs: Sequence[Job], parameters: dict[str, Any]) -> list[str]:
        return _submit("slurm", folder, jobs, parameters)

    def cancel(self, ids: Sequence[str]) -> None:
        _run("scancel", *ids)

    def cancel_command(self, ids: Sequence[str]) -> str:
        return " ".join(("scancel", *dict.fromkeys(job.partition("_")[0] for job in ids)))


class LocalQueue:
    """Processes of this machine. They outlive the command, and write nothing to its streams."""

    poll_seconds = 1.0
    shares_this_machine = True

    def __init__(self) -> None:
        self.identity = f"local {platform.node()}"

    def states(self) -> dict[str, JobState]:
        processes = psutil.process_iter(["pid", "cmdline"])
        return {
            str(each.info["pid"]): JobState("RUNNING")
            for each in processes
            if _LOCAL_MODULE in (each.info["cmdline"] or ())
        }

    def submit(self, folder: Path, jobs: Sequence[Job], parameters: dict[str, Any]) -> list[str]:
        with _detached():
            return _submit("local", folder, jobs, {**parameters, "timeout_min": _YEAR_MINUTES})

    def cancel(self, ids: Sequence[str]) -> None:
        trees = []
        for job in ids:
            with suppress(psutil.Error):
                process = psutil.Process(int(job))
                trees += [process, *process.children(recursive=True)]
                process.terminate()
        _, left = psutil.wait_procs(trees, _CANCEL_SECONDS)
        for process in left:
            with suppress(psutil.Error):
                process.kill()

    def cancel_command(self, ids: Sequence[str]) -> str:
        return " ".join(("kill", *ids))


QUEUES: dict[str, Callable[[], Queue]] = {"local": LocalQueue, "slurm": SlurmQueue}


def uses_gpu(device: str) -> bool:
    """Whether a run with that `--device` would take a GPU of this machine."""
    return not runs_on_cpu(device)


def _run(*command: str) -> str:
    """What a program of Slurm's prints. Raises ClusterError with what it complains about."""
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode:
        raise ClusterError(f"{command[0]}: {done.stderr.strip() or f'code {done.returncode}'}")
    return done.stdout


def _submit(
    cluster: str, folder: Path, jobs: Sequence[Job], parameters: dict[str, Any]
) -> list[str]:
    try:
        import submitit
    except ImportError as error:
        raise ImportError("--cluster needs submitit: pip install 'fanin[cluster]'") from error
    retries = parameters.pop("retries")
    executor = submitit.AutoExecutor(folder, cluster, slurm_max_num_timeout=retries)
    executor.update_parameters(**parameters)
    # As -P does it: no folder of the current one may be taken for a package.
    before = os.environ.get("PYTHONSAFEPATH")
    os.environ["PYTHONSAFEPATH"] = "1"
    try:
        with executor.batch():
            submitted = [executor.submit(job) for job in jobs]
    except (submitit.core.utils.FailedJobError, submitit.core.utils.FailedSubmissionError) as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise ClusterError(f"the jobs were not submitted: {error}") from error
    finally:
        os.environ.pop("PYTHONSAFEPATH")
        os.environ.update({} if before is None else {"PYTHONSAFEPATH": before})
    return [job.job_id for job in submitted]


@contextmanager
def _detached() -> Iterator[None]:
    """Processes begun within have no part in this terminal: Ctrl-C and its end do not reach them,
    and they hold none of its streams. submitit has no parameter for that."""
    ignored = {each: signal.signal(each, signal.SIG_IGN) for each in (signal.SIGINT, signal.SIGHUP)}
    kept = [os.dup(number) for number in range(3)]
    nothing = os.open(os.devnull, os.O_RDWR)
    try:
        for number in range(3):
            os.dup2(nothing, number)
        yield
    finally:
        for number, copy in enumerate(kept):
            os.dup2(copy, number)
        for each in (*kept, nothing):
            os.close(each)
        for each, handler in ignored.items():
            signal.signal(each, handler)
