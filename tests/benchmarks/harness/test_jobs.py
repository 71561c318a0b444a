"""Runs as real jobs: processes of this machine, and a real Slurm of three nodes."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from fakes import arguments, command, figures, write_dataset
from slurm import NODES, running

from fanin.backends.registry import BACKENDS
from fanin.benchmarks.harness.queues import LocalQueue
from fanin.benchmarks.records.store import read_results

pytestmark = pytest.mark.slow

SLURM = pytest.param("slurm", marks=pytest.mark.slurm)


@pytest.fixture(scope="module")
def slurm():
    """A Slurm; its folder has a short path, since munge's socket lies there."""
    made = tempfile.TemporaryDirectory(prefix="fanin-slurm-")
    with made as folder, running(Path(folder)) as slurm:
        yield slurm


@pytest.fixture
def environment(request):
    """The environment of a command whose jobs go to that cluster."""

    def of(cluster):
        return request.getfixturevalue("slurm").environment if cluster == "slurm" else os.environ

    return of


def all_figures(folder: Path) -> list[dict]:
    """All of the result files that depends on neither time nor machine nor on taking up."""
    kept = []
    for result in read_results(folder):
        names = {"dataset", "train_ranking", "test_ranking", "weights_checksum"}
        machine = result.machine.model_dump(include={"threads", "device", "framework", "code"})
        more = {**result.model_dump(include=names), "machine": machine}
        kept.append({**figures(result), **more})
    return kept


def wait_until(is_so: Callable[[], object], process: subprocess.Popen | None = None) -> None:
    deadline = time.monotonic() + 300
    while not is_so():
        assert time.monotonic() < deadline
        assert process is None or process.poll() is None, process.communicate()
        time.sleep(0.1)


GRID = ("--setup", "dense", "--setup", "ffi-8-64", "--threads", "1")


@pytest.fixture(scope="module")
def without(place):
    """Two setups in both backends, without jobs."""
    done = command("reproduce", *arguments(place, "without", *GRID))
    assert done.returncode == 0, done.stdout + done.stderr
    return all_figures(place / "without")


@pytest.mark.parametrize("cluster", ["local", SLURM])
def test_a_grid_has_the_same_results_as_without(place, without, environment, cluster):
    """Not all jobs at once."""
    given = arguments(place, cluster, *GRID, "--cluster", cluster, "--at-once", "3")
    done = command("reproduce", *given, env=environment(cluster))
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(without) == 4
    assert all_figures(place / cluster) == without
    assert re.search(r"tensorflow +\| FFI 8-64", done.stdout)
    assert ("4 runs submitted, each 3.0 GiB, 1 CPU," in done.stdout) == (cluster == "slurm")
    left = {path.name for path in (place / cluster / "runs").rglob("*") if path.is_file()}
    assert left == {f"{name}-0.{kind}" for name in BACKENDS for kind in ("json", "log")}
    assert not (place / cluster / "jobs").exists()
    again = command("reproduce", *given, env=environment(cluster))
    assert again.stdout.count("finished before, skipped") == 4


@pytest.mark.parametrize("cluster", ["local", SLURM])
def test_a_job_of_several_processes_has_the_result_of_one(place, without, environment, cluster):
    """A run that is one job, which starts two processes."""
    given = ("--setup", "ffi-8-64", "--backend", "torch", "--processes", "2", "--threads", "2")
    results = f"several-{cluster}"
    done = command(
        "reproduce",
        *arguments(place, results, *given, "--cluster", cluster),
        env=environment(cluster),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (several,) = read_results(place / results)
    assert several.machine.processes == len(several.memory_of_ranks) == 2
    (one,) = (
        result
        for result in read_results(place / "without")
        if (result.backend, result.task) == ("torch", several.task)
    )
    assert (several.test, several.train) == (one.test, one.train)
    losses = [epoch.loss for epoch in one.history]
    assert [epoch.loss for epoch in several.history] == pytest.approx(losses, rel=1e-5)


class Long:
    """A command whose one run takes a while: torch, 40 epochs, each with a checkpoint."""

    GIVEN = (
        *("--dataset", "tiny", "--features", "dense40", "--setup", "ffi-8-64", "--backend"),
        *("torch", "--epochs", "40", "--threads", "1", "--checkpoint-minutes", "0"),
    )

    def __init__(self, place: Path) -> None:
        self.place = place
        if not (place / "long").exists():
            write_dataset(place / "long", instances=3000, labels=300)

    def start(self, results: str, *more: str, env=None) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [
                *(sys.executable, "-P", "-m", "fanin.benchmarks", "reproduce", *self.GIVEN),
                *("--tasks", str(self.place / "tasks.json")),
                *("--data-dir", str(self.place / "long")),
                *("--results", str(self.place / results), *more),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=env,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    def suspend(self, results: str, process: subprocess.Popen[str]) -> psutil.Process:
        """The run's own process, which stands still once there is a checkpoint: it cannot end
        before the test has done what it wants to."""
        folder = self.place / results
        wait_until(lambda: [*folder.rglob("*.checkpoint/state.json")], process)
        (lock,) = folder.rglob("*.lock")
        child = psutil.Process(int(re.search(r"child (\d+)", lock.read_text())[1]))
        child.suspend()
        return child

    def job(self, results: str) -> str:
        (record,) = (self.place / results).rglob("*.job")
        return re.search(r'"job": "([^"]+)"', record.read_text())[1]

    def end(self, process: subprocess.Popen[str]) -> str:
        output, errors = process.communicate(timeout=600)
        assert process.returncode == 0, output + errors
        return output

    def resumed(self, results: str) -> int:
        (result,) = read_results(self.place / results)
        return result.resumed


@pytest.fixture(scope="module")
def long(place):
    long = Long(place)
    long.end(long.start("undisturbed"))
    return long


def kill_local(long: Long, results: str) -> None:
    """As the system does it where memory is short: the job, and not the run's own process."""
    for process in psutil.Process(int(long.job(results))).children(recursive=True):
        if "submitit.core._submit" in process.cmdline():
            process.kill()


@pytest.mark.parametrize("cluster", ["local", SLURM])
def test_a_killed_job_is_taken_up_again(long, environment, cluster, request):
    results = f"killed-{cluster}"
    process = long.start(results, "--cluster", cluster, env=environment(cluster))
    child = long.suspend(results, process)
    if cluster == "local":
        kill_local(long, results)
        child.resume()  # and it notices that it is alone
    else:
        slurm = request.getfixturevalue("slurm")
        slurm.run("scancel", "--signal=KILL", long.job(results))
    output = long.end(process)
    assert "without a result" in output and "submitted again, 1 of 2 times" in output
    assert re.search(r"taken up again on|goes on after epoch", output)
    assert all_figures(long.place / results) == all_figures(long.place / "undisturbed")
    assert long.resumed(results) == 1


@pytest.mark.slurm
class TestTakenUpBySlurm:
    """Nobody has to watch: the command is gone, and comes back for the result."""

    @pytest.mark.parametrize("cause", ["node", "preemption", "time"])
    def test_a_job_that_slurm_ends(self, long, slurm, cause):
        results = f"ended-by-{cause}"
        process = long.start(results, "--cluster", "slurm", env=slurm.environment)
        long.suspend(results, process)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 130 and "with 1 job under way" in errors
        job = long.job(results)
        node = slurm.run("squeue", "--noheader", "--format=%N", f"--jobs={job}").strip()
        assert node in NODES
        if cause == "node":
            slurm.kill_node(node)
        elif cause == "preemption":
            script = "#!/bin/sh\nsleep 1\n"
            urgent = (
                "--partition=urgent",
                f"--nodelist={node}",
                "--exclusive",
                "--output=/dev/null",
            )
            subprocess.run(["sbatch", *urgent], input=script, text=True, env=slurm.environment)
        else:  # the signal by which Slurm says that the time is nearly over
            slurm.run("scancel", "--signal=USR2", job)
        wait_until(lambda: self.waits(slurm, job))
        # Slurm lets a job that it has queued again wait for two minutes.
        wait_until(lambda: self.may_start(slurm, job))
        output = long.end(long.start(results, "--cluster", "slurm", env=slurm.environment))
        if cause == "node":
            # Not before: Slurm 22.05's controller crashes at times when it gives a job that it has
            # queued again to a node which has just returned.
            slurm.start_node(node)
        # It may have come to its end before anybody watched it again.
        assert f"with a job already: {job}" in output or "finished before, skipped" in output
        assert "Restarts=1" in slurm.run("scontrol", "show", "job", job)
        assert all_figures(long.place / results) == all_figures(long.place / "undisturbed")
        assert long.resumed(results) == 1

    def waits(self, slurm, job) -> bool:
        return "PENDING" in slurm.run("squeue", "--noheader", "--format=%T", f"--jobs={job}")

    def may_start(self, slurm, job) -> bool:
        slurm.run("scontrol", "update", f"JobId={job}", "StartTime=now", check=False)
        shown = slurm.run("squeue", "--noheader", "--format=%T %r", f"--jobs={job}", check=False)
        return "BeginTime" not in shown


@pytest.mark.parametrize("cluster", ["local", SLURM])
def test_ctrl_c_cancels_as_asked(long, environment, cluster):
    results = f"cancelled-{cluster}"
    asked = ("--cluster", cluster, "--on-interrupt", "cancel")
    process = long.start(results, *asked, env=environment(cluster))
    long.suspend(results, process)
    (folder,) = (long.place / results / "jobs").iterdir()
    assert works(folder)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130 and "stopped and cancelled 1 job;" in errors
    wait_until(lambda: not works(folder))
    assert not list((long.place / results).rglob("torch-0.json"))
    long.end(long.start(results, *asked, env=environment(cluster)))
    assert long.resumed(results) == 1


def works(folder: Path) -> bool:
    """Whether a process of a job works that was submitted with this folder."""
    lines = (each.info["cmdline"] or () for each in psutil.process_iter(["cmdline"]))
    return any("submitit" in " ".join(line) and str(folder) in line for line in lines)


def test_local_jobs_outlive_the_command_and_its_output(long):
    """Ctrl-C of a terminal reaches all processes of its group; a closed one, its session."""
    process = long.start("left", "--cluster", "local", "--json")
    child = long.suspend("left", process)
    job = long.job("left")
    os.kill(int(job), signal.SIGINT)
    os.kill(int(job), signal.SIGHUP)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)  # it holds none of the streams
    assert process.returncode == 130 and f"to cancel: `kill {job}`" in errors
    assert job in LocalQueue().states()
    again = long.start("left", "--cluster", "local")
    assert f"1 run with a job already: {job}" in again.stdout.readline()
    child.resume()
    long.end(again)
    assert all_figures(long.place / "left") == all_figures(long.place / "undisturbed")
    assert long.resumed("left") == 0
