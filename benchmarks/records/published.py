"""The paper's tables: `benchmarks/published/ecml23.csv`, and which task each row is of.

A published row is the result of one task, the one of `benchmarks/tasks/<dataset>/<features>.json`
with its setup. Only the same task counts: another dropout, protocol or storage is another
experiment. The figures are those of Schultheis & Babbar, ECML-PKDD 2023, arXiv 2306.03725.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import cache

from fanin.benchmarks.records.task import Task
from fanin.benchmarks.records.task_files import TASK_FOLDER, read_tasks, task_files
from fanin.datasets.catalogue import FEATURES

PUBLISHED_FILE = TASK_FOLDER.parent / "published" / "ecml23.csv"
PUBLISHED_MACHINE = "NVIDIA V100"

# The columns that say which row it is; the others are figures, named like the reports' metrics.
_NAMES = ("dataset", "features", "setup", "connectivity", "intermediate")
# The paper's abbreviations of the intermediate sizes; 100k is exact, the others are powers of two.
_ABBREVIATED = {16384: "16k", 32768: "32k", 65536: "65k", 100_000: "100k", 131_072: "131k"}


@dataclass(frozen=True)
class PublishedRow:
    """One row of a published table. task: what reproduces it; values: metric key -> figure."""

    task: Task
    values: dict[str, float]


def intermediate_label(units: int) -> str:
    """`16k` for 16384 and so on as the paper writes them, else the plain number."""
    return _ABBREVIATED.get(units, str(units))


def row_name(task: Task, inputs: int | None) -> tuple[str, int | None, str]:
    """The setup of a task as its row in a published table is named: the model, in small letters,
    the connections of a label, and the intermediate units ("" without an intermediate layer).

    inputs: the width of the data. Where the output layer is dense, a label has as many connections
    as that layer has inputs, or None where the width is not known.
    """
    connectivity = task.connectivity or task.intermediate or inputs
    inner = intermediate_label(task.intermediate) if task.intermediate else ""
    return task.model_name, connectivity, inner


def published_tables() -> list[tuple[str, str]]:
    """Data set and features of every published table, in the order of the file."""
    return list(dict.fromkeys((row["dataset"], row["features"]) for row in _published()))


@cache
def published_rows(dataset: str, features: str) -> tuple[PublishedRow, ...]:
    """The published rows of a data set with its features, in the paper's order; none where the
    paper has no such table. Raises ValueError for a row that is not one task of its file."""
    rows = [r for r in _published() if (r["dataset"], r["features"]) == (dataset, features)]
    if not rows:
        return ()
    file = task_files()[f"{dataset}/{features}"]
    tasks = {row_name(task, FEATURES[features]): task for task in read_tasks(file)}
    published = []
    for row in rows:
        name = (row["setup"].lower(), int(row["connectivity"]), row["intermediate"])
        if name not in tasks:
            raise ValueError(f"{file}: has no task for the row {name} of {PUBLISHED_FILE}")
        values = {column: float(row[column]) for column in row if column not in _NAMES}
        published.append(PublishedRow(as_published(tasks[name]), values))
    return tuple(published)


@cache
def _published() -> tuple[dict[str, str], ...]:
    with PUBLISHED_FILE.open(encoding="utf-8", newline="") as lines:
        return tuple(csv.DictReader(lines))


def as_published(task: Task) -> Task:
    """The task without what a published row says nothing of: repeats, seed and execution."""
    return task.model_copy(update={"repeat": 1, "seed": 0, "execution": "autograd"})


def is_published(task: Task) -> bool:
    """Whether it is the task of a published row, no hyper-parameter changed."""
    rows = published_rows(task.dataset, task.features)
    return as_published(task) in {row.task for row in rows}
