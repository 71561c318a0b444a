"""Runs that are killed end as undisturbed ones, once they are started again."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import scipy.sparse as sp
from damage import DAMAGES
from fakes import figures

from fanin.benchmarks.records.store import read_result, read_results, result_path
from fanin.benchmarks.records.task_files import read_tasks
from fanin.datasets.formats import write_labels

# More by hand: FANIN_KILLS=20 FANIN_KILLED_BACKEND=tensorflow pytest
# tests/benchmarks/harness/test_killed.py
KILLS = int(os.environ.get("FANIN_KILLS", "2"))
BACKEND = os.environ.get("FANIN_KILLED_BACKEND", "torch")


TASKS = {
    "defaults": {
        "dataset": "tiny", "features": "dense40", "epochs": 10 + 2 * KILLS, "learning_rate": 3e-4,
        "connectivity": 8, "intermediate": 64, "rewire_interval": 50,
    },
    "tasks": [
        {"architecture": "dense-stratified"},
        {"architecture": "dense-stratified", "execution": "fused"},
    ],
}  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("resume")
    (folder / "data" / "tiny").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for split, count in (("train", 3000), ("test", 500)):
        y = sp.csr_array(rng.random((count, 300)) < 0.01)
        x = (y @ np.random.default_rng(5).standard_normal((300, 40))).astype(np.float32)
        np.save(folder / "data" / "tiny" / f"{split}-dense40.npy", x)
        write_labels(folder / "data" / "tiny" / f"{split}-labels.txt", y, 40)
    (folder / "tasks.json").write_text(json.dumps(TASKS))
    return folder


def start(place: Path, results: str, *more: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [
            *(sys.executable, "-P", "-m", "fanin.benchmarks", "reproduce"),
            *("--dataset", "tiny", "--features", "dense40", "--data-dir", str(place / "data")),
            *("--tasks", str(place / "tasks.json"), "--results", str(place / results)),
            *("--backend", BACKEND, "--threads", "1", "--checkpoint-minutes", "0", *more),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def child_of(parent: subprocess.Popen[str]) -> psutil.Process | None:
    """The run's process; it stays the parent's only child."""
    with contextlib.suppress(psutil.Error):
        for child in psutil.Process(parent.pid).children():
            return child
    return None


def table(output: str) -> list[str]:
    """Of each row: backend, setup, P@1, P@3, P@5."""
    rows = re.findall(rf"^\| {BACKEND} .*$", output, re.MULTILINE)
    return ["|".join(row.split("|")[1:6]) for row in rows]


@pytest.mark.slow
class TestKilled:
    def test_a_killed_run_ends_as_an_undisturbed_one(self, place):
        done = start(place, "undisturbed")
        expected, errors = done.communicate(timeout=600)
        assert done.returncode == 0, errors
        assert len(table(expected)) == 2
        rng = random.Random(7)
        kills = rounds = 0
        while kills < KILLS:
            rounds += 1
            assert rounds < 4 * KILLS
            process = start(place, "killed")
            while child_of(process) is None and process.poll() is None:
                time.sleep(0.01)
            # While it imports and reads, or else in the midst of the epochs and their checkpoints.
            if rng.random() < 0.7:
                while (line := process.stdout.readline()) and ": epoch" not in line:
                    pass
            time.sleep(rng.uniform(0.0, 4.0))
            child = child_of(process)  # the second task's by now, perhaps
            which = rng.choice(["parent", "child", "both"])
            if process.poll() is None and child and child.is_running():
                kills += 1
                if which != "parent":
                    with contextlib.suppress(psutil.Error):
                        child.kill()
            if which != "child":
                process.kill()
            elif rng.random() < 0.8:  # else the command goes on to the next task
                time.sleep(0.5)
                process.kill()
            process.communicate(timeout=600)
        last = start(place, "killed")
        output, errors = last.communicate(timeout=600)
        assert last.returncode == 0, errors
        if any(r.status == "failed" for r in self.results(place, "killed")):
            output, _ = start(place, "killed").communicate(timeout=600)
        assert table(output) == table(expected)
        pairs = [self.results(place, name) for name in ("killed", "undisturbed")]
        for resumed, expected in zip(*pairs, strict=True):
            assert figures(resumed) == figures(expected)
            assert expected.resumed == 0
        print(f"{kills} kills, resumed {[r.resumed for r in pairs[0]]} times, {rounds} starts")
        assert sum(r.resumed for r in pairs[0]) > 0
        names = {path.name for path in (place / "killed" / "runs").rglob("*") if path.is_file()}
        assert names == {f"{BACKEND}-0.json", f"{BACKEND}-0.log"}

    def results(self, place, name):
        tasks = read_tasks(place / "tasks.json")
        return [read_result(result_path(place / name, task, BACKEND, 0)) for task in tasks]

    def test_a_damaged_checkpoint_changes_no_number(self, place):
        """Each time another file of it is damaged in another way, and the command says so."""
        one = ("--setup", "ffi-8-64", "--execution", "fused")
        done = start(place, "whole", *one)
        errors = done.communicate(timeout=600)[1]
        assert done.returncode == 0, errors
        rng = random.Random(3)
        for _ in range(KILLS // 2):
            process = start(place, "damaged", *one)
            assert process.stdout is not None
            epochs = 0  # at the second one, the first one's checkpoint is written
            while epochs < 2 and (line := process.stdout.readline()):
                epochs += ": epoch" in line
            child = child_of(process)
            process.kill()
            process.communicate(timeout=60)
            if child is not None:
                child.wait(timeout=60)
            (state,) = (place / "damaged").rglob("state.json")
            arrays = json.loads(state.read_text())["files"]
            path = state.parent / rng.choice(["state.json", *arrays])
            rng.choice(DAMAGES)(path)
            last = start(place, "damaged", *one)
            assert last.stdout is not None
            assert "starting anew" in last.stdout.readline(), path
            last.kill()
            last.communicate(timeout=60)
        last = start(place, "damaged", *one)
        errors = last.communicate(timeout=600)[1]
        assert last.returncode == 0, errors
        (damaged,), (whole,) = (read_results(place / name) for name in ("damaged", "whole"))
        assert figures(damaged) == figures(whole)

    def test_a_checkpoint_that_is_of_no_use_is_said(self, place):
        process = start(place, "useless")
        assert process.stdout is not None
        assert "epoch 1" in process.stdout.readline()
        assert "epoch 2" in process.stdout.readline()  # the first one's checkpoint is written
        process.kill()
        process.communicate(timeout=60)
        again = start(place, "useless", "--threads", "2")
        assert "of another number of threads; starting anew" in again.stdout.readline()
        again.kill()
        again.communicate(timeout=60)

    @pytest.mark.parametrize("stopped", [False, True])
    def test_an_orphan_ends_and_writes_nothing(self, place, stopped):
        """Stopped: it notices only later, and meanwhile a second command waits for it."""
        name = f"orphan-{stopped}"
        process = start(place, name)
        assert process.stdout is not None
        assert "epoch 1" in process.stdout.readline()
        assert "epoch 2" in process.stdout.readline()  # the first one's checkpoint is written
        child = child_of(process)
        if stopped:
            child.suspend()
        process.kill()
        process.wait()
        if stopped:
            again = start(place, name)
            time.sleep(3.0)
            assert child_of(again) is None
            assert child.is_running()
            child.resume()
            assert "goes on after epoch" in again.stdout.readline()
            again.kill()
            again.communicate(timeout=60)
        child.wait(timeout=10)
        assert not list((place / name).rglob(f"{BACKEND}-0.json"))
