"""What a command prints at its end: the tables of runs, shape profiles and comparisons as text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import groupby

from fanin.benchmarks.records.compare import LockstepResult
from fanin.benchmarks.records.run import RunResult
from fanin.reports.format import Scale, memory_scale, time_scale
from fanin.reports.memory import UNRESOLVED_NOTE
from fanin.reports.setups import with_departures
from fanin.reports.summary import Row, by_dataset, shared_variant, summarise
from fanin.reports.table import Column, Table, make_table
from fanin.reports.tables.cells import BACKEND, SETUP, MetricCell
from fanin.reports.tables.lockstep import differences_table, sides_table
from fanin.reports.tables.profiles import profile_table
from fanin.reports.tables.protocols import brief_protocols


def runs_text(runs: Iterable[RunResult]) -> str:
    """The comparison in about 100 columns, one table per data set.

    Test P@k in percent, memory, epochs and wall-clock time per epoch with and without validation,
    means over n repeats; the full columns stand in `comparison.md`.
    """
    return "\n".join(_runs_section(*section) for section in by_dataset(summarise(list(runs))))


def _runs_section(title: str, rows: Sequence[Row]) -> str:
    shared = shared_variant(rows)
    kinds = sorted({row.memory_kind for row in rows if row.memory_kind})
    note = (
        f"Test P@k in percent; {brief_protocols(rows)}\n"
        f"memory: {', '.join(kinds) or 'not measured'}; train: s/epoch without validation"
    )
    if any(row.is_unresolved for row in rows):
        note += f"\n{UNRESOLVED_NOTE}"
    return f"{with_departures(title, shared)}\n{note}\n{_runs_table(rows, shared).markdown()}\n"


def _runs_table(rows: Sequence[Row], shared: Sequence[str]) -> Table:
    memory = memory_scale(row.values["memory_gib"] for row in rows)
    times = ("seconds_per_epoch", "train_seconds_per_epoch")
    seconds = time_scale(row.values[key] for row in rows for key in times)
    percent = Scale("%", 1.0, 2)
    shown = (
        ("P@1", MetricCell("test_p1", percent)),
        ("P@3", MetricCell("test_p3", percent)),
        ("P@5", MetricCell("test_p5", percent)),
        (memory.unit, MetricCell("memory_gib", memory)),
        ("epochs", MetricCell("epochs", Scale("", 1.0, 1))),
        ("s/epoch", MetricCell("seconds_per_epoch", seconds)),
        ("train", MetricCell("train_seconds_per_epoch", seconds)),
    )
    return make_table(
        "",
        [
            (BACKEND, lambda row: row.backend),
            (SETUP, lambda row: row.setup.without(shared).label),
            # Spreads would not fit.
            *(
                (Column(head), lambda row, cell=cell: replace(cell(row), spread=""))
                for head, cell in shown
            ),
            (Column("n"), lambda row: str(row.n)),
        ],
        rows,
    )


def profiles_text(runs: Iterable[RunResult]) -> str:
    """The shape profiles, one table per data set and features; those of one stand together."""
    parts = []
    for (dataset, features), group in groupby(
        runs, key=lambda run: (run.task.dataset, run.task.features)
    ):
        table = profile_table(group)
        parts.append(f"{dataset}, {features} features\n{table.caption}\n{table.markdown()}\n")
    return "\n".join(parts)


def comparisons_text(locksteps: Sequence[LockstepResult]) -> str:
    """The comparisons step by step: the largest differences, then what each backend reached."""
    tables = (differences_table(locksteps), sides_table(locksteps))
    return "\n\n".join(f"{table.caption}\n{table.markdown()}" for table in tables)
