"""Part `shapes`: every published row at its real sizes, through the harness' shape profiles.

The most telling rows first: the fused execution of all tables, then autograd. Each row is a result
file as `fanin reproduce --profile shapes` writes it, so `fanin report --results
benchmarks/results/<device>` shows them; a row that has one is not run again. A dry run profiles one
row that a CPU does in seconds, at its real sizes too, for fewer steps.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from fanin.benchmarks.gpu_parts import part
from fanin.benchmarks.harness.parent import run_all
from fanin.benchmarks.harness.request import Options, Request, requests
from fanin.benchmarks.records.gpu import Row, ShapeRow
from fanin.benchmarks.records.run import RunResult
from fanin.benchmarks.records.store import result_path
from fanin.benchmarks.records.task import Task
from fanin.benchmarks.records.task_files import files_of, read_tasks

TABLES = (
    ("amazon-670k", "slice"),
    ("amazon-670k", "cascade"),
    ("wiki-500k", "slice"),
    ("wiki-500k", "cascade"),
    ("amazon-3m", "cascade"),
)
EXECUTIONS = ("fused", "autograd")
STEPS, DRY_STEPS = 20, 2
DRY_SETUP = "ffi-32"


def tasks(dry_run: bool) -> list[Task]:
    """All published rows in each execution, in the order in which they are run."""
    published = [
        task
        for execution in EXECUTIONS
        for table in TABLES
        for path in files_of(*table)
        for task in read_tasks(path, {"execution": execution})
    ]
    if not dry_run:
        return published
    return [
        task
        for task in published
        if task.setup_name == DRY_SETUP and (task.dataset, task.features) == TABLES[0]
    ]


class Silent:
    """A display that shows nothing; the part prints its rows itself."""

    def begin(self, request: Request, number: int, count: int) -> None: ...
    def event(self, event: dict[str, Any]) -> None: ...
    def end(self, result: RunResult, skipped: bool) -> None: ...


def jobs(options: part.Options) -> list[part.Job]:
    folder = options.path.parent.parent
    steps = DRY_STEPS if options.dry_run else STEPS
    how = Options(results=folder, device=options.device, profile="shapes", steps=steps)
    made = []
    for task in tasks(options.dry_run):
        path = result_path(folder, task, "torch", 0, "shapes")
        row = ShapeRow(
            key=f"{task.dataset} {task.features} {task.slug}",
            dataset=task.dataset,
            features=task.features,
            setup=task.slug,
            execution=task.execution,
            file=path.relative_to(folder).as_posix(),
        )

        def run(row: ShapeRow = row, task: Task = task) -> None:
            (result,) = run_all(requests([task], ["torch"], how), how, Silent())
            if result.failure:
                row.reason = f"{result.failure.kind}: {result.failure.message}"
                if result.failure.is_too_large:  # an answer
                    row.state = "gap"
                else:
                    row.failure = row.reason

        made.append(part.Job(row, run))
    return made


def failed(row: Row) -> bool:
    return isinstance(row, ShapeRow) and row.failure is not None


def main(arguments: Sequence[str] | None = None) -> int:
    options = part.read_options(arguments)
    return part.conduct("shapes", options, jobs(options), failed)


if __name__ == "__main__":
    sys.exit(main())
