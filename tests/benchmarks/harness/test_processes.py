"""Runs that several processes do together: one result, whatever becomes of one of the processes."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import shutil
import subprocess
import sys
import time

import psutil
import pytest
from fakes import command, figures, write_dataset

from fanin.benchmarks.records.store import read_results

pytestmark = pytest.mark.torch

# More by hand: FANIN_KILLS=20 pytest --framework torch tests/benchmarks/harness/test_processes.py
KILLS = int(os.environ.get("FANIN_KILLS", "2"))
TASKS = {
    "defaults": {
        "dataset": "tiny", "features": "dense40", "epochs": 16, "connectivity": 8,
        "rewire_interval": 3, "execution": "fused", "batch_size": 8,
    },
    "tasks": [{"architecture": "dense-stratified", "intermediate": 64}],
}  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    write_dataset(folder / "data", instances=600)
    (folder / "tasks.json").write_text(json.dumps(TASKS))
    return folder


def options(place, results, *more):
    return (
        *("reproduce", "--dataset", "tiny", "--features", "dense40", "--backend", "torch"),
        *("--data-dir", place / "data", "--tasks", place / "tasks.json"),
        *("--results", place / results, "--checkpoint-minutes", "0", "--threads", "2", *more),
    )


def result(place, results):
    (only,) = read_results(place / results)
    return only


@pytest.fixture(scope="module")
def undisturbed(place):
    done = command(*options(place, "undisturbed", "--processes", "2", "--save-weights"))
    assert done.returncode == 0, done.stderr
    return result(place, "undisturbed")


@pytest.mark.slow
def test_two_processes_give_what_one_gives(place, undisturbed):
    done = command(*options(place, "one"))
    assert done.returncode == 0, done.stderr
    one = result(place, "one")
    assert undisturbed.machine.processes == 2 and one.machine.processes == 1
    for two_epoch, epoch in zip(undisturbed.history, one.history, strict=True):
        assert two_epoch.loss == pytest.approx(epoch.loss, rel=1e-5)
        assert two_epoch.validation == epoch.validation
        assert two_epoch.rewired == epoch.rewired
    assert undisturbed.test == one.test and undisturbed.train == one.train
    first, second = undisturbed.memory_of_ranks
    assert one.memory_of_ranks == [] and one.timing.median_communication_seconds is None
    assert undisturbed.memory.parameter_bytes == first.parameter_bytes + second.parameter_bytes
    assert first.parameter_bytes < one.memory.parameter_bytes
    timing = undisturbed.timing
    assert 0 < timing.median_communication_seconds < timing.median_step_seconds
    again = " ".join(command(*options(place, "undisturbed")).stdout.split())
    assert "it ran with --processes 2, and 1 is asked for" in again


def ranks_of(agents_parent):
    """The processes of the run, by their ranks."""
    ranks = {}
    with contextlib.suppress(psutil.Error):
        for process in psutil.Process(agents_parent.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if "fanin.benchmarks.harness.rank" in process.cmdline():
                    ranks[int(process.environ()["RANK"])] = process
    return ranks


def started(place, results, env=None):
    """A run, and the two processes that do it."""
    call = [sys.executable, "-P", "-m", "fanin.benchmarks"]
    call += map(str, options(place, results, "--processes", "2"))
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    run = subprocess.Popen(call, **streams, text=True, env=env)
    while len(ranks := ranks_of(run)) < 2:
        assert run.poll() is None, run.communicate()[0]
        time.sleep(0.05)
    return run, ranks


def wait_for_checkpoint(run, place, results):
    while not any((place / results).rglob("state.json")) and run.poll() is None:
        time.sleep(0.02)


def all_gone(processes):
    """Whether they end within seconds."""
    return not psutil.wait_procs([*processes], timeout=10)[1]


@pytest.mark.slow
@pytest.mark.parametrize("number", range(KILLS))
def test_a_run_goes_on_after_one_of_its_processes_was_killed(place, undisturbed, number):
    """Wherever it was: to the same numbers."""
    rng, results = random.Random(number), f"killed-{number}"
    run, ranks = started(place, results)
    if number % 2 == 0:
        wait_for_checkpoint(run, place, results)
    # From the checkpoint to the end it takes longer than a second.
    time.sleep(rng.uniform(0, 3 if number % 2 else 1))
    ranks[rng.choice([0, 1])].kill()
    assert all_gone(ranks.values())
    output = run.communicate(timeout=600)[0]
    assert run.returncode == 0, output
    assert re.search("the process of rank [01] ended with .*going on", " ".join(output.split()))
    assert figures(result(place, results)) == figures(undisturbed)
    if number % 2 == 0:
        assert result(place, results).resumed == 1
    assert not list((place / results).rglob("*.checkpoint"))


@pytest.mark.slow
def test_a_command_that_is_killed_leaves_nothing_but_its_checkpoint(place, undisturbed, tmp_path):
    """As many processes take it up, or one."""
    run, ranks = started(place, "both", env={**os.environ, "TMPDIR": str(tmp_path)})
    wait_for_checkpoint(run, place, "both")
    run.kill()
    assert all_gone(ranks.values())
    run.communicate()
    assert not list(tmp_path.glob("fanin-*")) and not list(tmp_path.glob("torchelastic*"))
    shutil.copytree(place / "both", place / "fewer")
    for results, processes in (("both", 2), ("fewer", 1)):
        done = command(*options(place, results, "--processes", processes))
        assert done.returncode == 0, done.stderr
        taken_up = result(place, results)
        assert (taken_up.resumed, taken_up.machine.processes) == (1, processes)
        assert taken_up.test == undisturbed.test
    assert figures(result(place, "both")) == figures(undisturbed)


@pytest.mark.slow
def test_a_launcher_of_torch_starts_the_processes(place, undisturbed):
    """One command in each process, and a run after the other in all of them."""
    launcher = [sys.executable, "-P", "-m", "torch.distributed.run", "--standalone"]
    launcher += ["--nproc-per-node", "2", "-m", "fanin.benchmarks"]
    call = [*launcher, *map(str, options(place, "launched", "--repeat", "2"))]
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    first, second = read_results(place / "launched")
    assert first.machine.processes == second.machine.processes == 2
    assert first.test == undisturbed.test and len(first.memory_of_ranks) == 2
    assert [epoch.loss for epoch in first.history] == [e.loss for e in undisturbed.history]
    assert second.status == "finished"
    assert done.stdout.count("The report:") == 1  # one command speaks


@pytest.mark.slow
def test_what_fails_by_itself_is_not_tried_again(place):
    """More processes than label groups."""
    grouped = {"architecture": "dense-stratified", "intermediate": 64, "group_size": 32}
    (place / "grouped.json").write_text(json.dumps({**TASKS, "tasks": [grouped]}))
    chosen = ("--processes", "3", "--tasks", place / "grouped.json")
    done = command(*options(place, "too-many", *chosen))
    assert done.returncode == 1, done.stderr
    failure = result(place, "too-many").failure
    assert failure.kind == "ValueError"
    assert failure.message == (
        "output has 2 label groups of 32, too few for 3 ranks: each needs at least one"
    )
    assert "going on" not in done.stdout


def test_tensorflow_says_why_it_does_not_train_with_several_processes(place):
    arguments = [*options(place, "refused", "--processes", "2"), "--backend", "tensorflow"]
    done = command(*arguments)
    assert done.returncode == 2
    assert "--processes 2: TensorFlow trains with one process: Keras' distribution" in done.stderr
    assert not (place / "refused").exists()
