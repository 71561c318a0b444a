"""What a command prints at its end: the tables of runs, shape profiles and comparisons as text."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import groupby

from fanin.benchmarks.records.compare import LockstepResult
from fanin.benchmarks.records.run import RunResult
from fanin.reports.format import Scale, memory_scale, time_scale
from fanin.reports.memory import UNRESOLVED_NOTE
from fanin.reports.setups import with_departures
from fanin.reports.summary import Row, by_dataset, shared_variant, summarise
from fanin.reports.table import Cell, Column, Table, make_table
from fanin.reports.tables.cells import BACKEND, SETUP, MetricCell
from fanin.reports.tables.comparison import metric_cell
from fanin.reports.tables.lockstep import differences_table, sides_table
from fanin.reports.tables.processes import processes_table
from fanin.reports.tables.profiles import profile_table
from fanin.reports.tables.protocols import brief_protocols


def runs_text(runs: Iterable[RunResult]) -> str:
    """The comparison in about 100 columns, one table per data set.

    Test P@k in percent, memory, epochs and wall-clock time per epoch with and without validation,
    means over n repeats; the full columns stand in `comparison.md`.
    """
    runs = list(runs)
    text = "\n".join(_runs_section(*section) for section in by_dataset(summarise(runs)))
    if several := processes_table(runs):
        text += f"\n{several.caption}\n{several.markdown()}\n"
    return text


def _runs_section(title: str, rows: Sequence[Row]) -> str:
    shared = shared_variant(rows)
    kinds = sorted({row.memory_kind for row in rows if row.memory_kind})
    note = (
        f"Test P@k in percent; {brief_protocols(rows)}\n"
        f"memory: {', '.join(kinds) or 'not measured'}; train: s/epoch without validation"
    )
    if any(row.is_unresolved for row in rows):
        note += f"\n{UNRESOLVED_NOTE}"
    text = f"{with_departures(title, shared)}\n{note}\n{_runs_table(rows, shared).markdown()}\n"
    if any(row.setup.recipe == "best" for row in rows):
        table = _recipes_table(rows, shared)
        text += f"\n{table.caption}\n{table.markdown()}\n"
    return text


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
            *(_without_spread(head, cell) for head, cell in shown),
            (Column("n"), lambda row: str(row.n)),
        ],
        rows,
    )


def _recipes_table(rows: Sequence[Row], shared: Sequence[str]) -> Table:
    """What recipes are for and what they cost, as far as the other table does not have it."""
    heads = {
        **{f"test_psp{k}": f"PSP@{k}" for k in (1, 3, 5)},
        "counted_gib": memory_scale(row.values["counted_gib"] for row in rows).unit,
        "choose_seconds": "choose",
        "training_seconds": "train",
        "seconds_to_99": "99 %",
    }
    return make_table(
        "Rare labels (test PSP@k in percent); parameters + optimiser state, counted; seconds of\n"
        "choosing, of training with it, and of that until 99 % of the best epoch's validation P@1",
        [
            (BACKEND, lambda row: row.backend),
            (SETUP, lambda row: row.setup.without(shared).label),
            *(_without_spread(head, metric_cell(key, rows)) for key, head in heads.items()),
        ],
        rows,
    )


def _without_spread(head: str, cell: MetricCell) -> tuple[Column, Callable[[Row], Cell]]:
    """A column of means alone: spreads would not fit."""
    return Column(head), lambda row: replace(cell(row), spread="")


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
