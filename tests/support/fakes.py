"""Small tasks, small data and stand-ins that several tests of the harness share."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import scipy.sparse as sp
from typer.testing import CliRunner

from fanin.benchmarks.cli.app import app
from fanin.benchmarks.records.run import RunResult
from fanin.benchmarks.records.task import Task
from fanin.datasets.formats import write_labels

TASKS = {
    "defaults": {"dataset": "tiny", "features": "dense40", "epochs": 2},
    "tasks": [
        {"architecture": "dense"},
        {"architecture": "sparse", "connectivity": 8},
        {"architecture": "stratified", "connectivity": 8},
        {"architecture": "dense-sparse", "connectivity": 8, "intermediate": 64},
        {"architecture": "dense-stratified", "connectivity": 8, "intermediate": 64},
        {"architecture": "bottleneck", "intermediate": 16},
    ],
}


def make_task(**values) -> Task:
    """A task of a data set that does not exist, with what departs from a dense layer."""
    return Task.model_validate({"dataset": "d", "features": "f", "architecture": "dense", **values})


def write_dataset(folder: Path, instances=60, inputs=40, labels=50, name="tiny") -> Path:
    """A small learnable data set in the folder layout users bring."""
    rng = np.random.default_rng(0)
    (folder / name).mkdir(parents=True)
    for split, count in (("train", instances), ("test", 20)):
        y = rng.random((count, labels)) < 0.05
        y[np.arange(count), rng.integers(0, labels, count)] = True
        x = (y @ np.random.default_rng(5).standard_normal((labels, inputs))).astype(np.float32)
        np.save(folder / name / f"{split}-dense40.npy", x)
        write_labels(folder / name / f"{split}-labels.txt", sp.csr_array(y), inputs)
    return folder


def command(*arguments, module="fanin.benchmarks", **options):
    """The command line, or a module that is a command too, in a process of its own."""
    return subprocess.run(
        [sys.executable, "-P", "-m", module, *map(str, arguments)],
        **{"capture_output": True, "text": True, "check": False, **options},
    )


def figures(result: RunResult) -> dict:
    """All of a result that must not depend on kills."""
    history = [e.model_dump(exclude={"train_seconds", "evaluate_seconds"}) for e in result.history]
    kept = result.model_dump(include={"task", "backend", "repeat", "status", "train", "test"})
    return {**kept, "history": history}


def arguments(place, results, *more):
    """Options that name data, tasks and results below a folder, as the fixture `place` makes it."""
    return (
        *("--dataset", "tiny", "--features", "dense40", "--data-dir", place / "data"),
        *("--tasks", place / "tasks.json", "--results", place / results, *more),
    )


def in_process(*arguments, **options):
    """The command line without a process of its own."""
    return CliRunner().invoke(app, [*map(str, arguments)], **options)


class Noting:
    """A display that notes what it is told."""

    def __init__(self):
        self.lines = []

    def begin(self, *_): ...

    def event(self, event):
        self.lines.append(event["text"])

    def end(self, result, skipped):
        self.lines.append("skipped" if skipped else result.status)
