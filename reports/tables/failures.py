"""The runs that ended in an error."""

from __future__ import annotations

from collections.abc import Sequence

from fanin.benchmarks.records.run import RunResult
from fanin.reports.format import GAP
from fanin.reports.setups import Setup
from fanin.reports.summary import known_datasets
from fanin.reports.table import Cell, Column, Table, make_table, text_column
from fanin.reports.tables.cells import BACKEND, SETUP, setup_cell


def failures_table(runs: Sequence[RunResult]) -> Table | None:
    """One line per failed run with its error; None when there are none."""
    failed = [run for run in runs if run.status == "failed"]
    if not failed:
        return None
    known = known_datasets(runs)

    def setup(run: RunResult) -> Cell:
        info = known.get((run.task.dataset, run.task.features))
        return setup_cell(Setup.from_task(run.task, info.inputs if info else None))

    return make_table(
        "Runs that ended in an error; they are tried again next time",
        [
            (SETUP, setup),
            (BACKEND, lambda run: run.backend),
            (Column("repeat", meaning="from 0"), lambda run: str(run.repeat)),
            (text_column("error"), _error),
        ],
        failed,
    )


def _error(run: RunResult) -> str:
    return f"{run.failure.kind}: {run.failure.message}" if run.failure else GAP
