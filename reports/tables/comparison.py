"""The comparison: the published columns of one data set, every backend and setup."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from fanin.benchmarks.records.run import RunResult
from fanin.reports.format import GAP, Scale, count_scale, memory_scale, time_scale
from fanin.reports.memory import MEMORY_NOTE, UNRESOLVED_NOTE, brief_kind
from fanin.reports.metrics import FIGURES, HIGHLIGHTED, METRICS, Metric
from fanin.reports.summary import Row, by_dataset, several_machines, shared_variant, summarise
from fanin.reports.table import Cell, Column, Table, heading, make_table, text_column
from fanin.reports.tables.cells import (
    BACKEND,
    MACHINE,
    REPEATS,
    SETUP,
    MetricCell,
    comparable_group,
)
from fanin.reports.tables.protocols import protocols

Field = tuple[Column, Callable[[Row], Cell | str]]


def comparison_table(rows: Sequence[Row]) -> Table:
    """One line per row, with all metrics; the best values are marked."""
    fields = [*_setup_fields(rows), *_metric_fields(rows), (REPEATS, lambda row: str(row.n))]
    caption = "One row per backend and setup: means over n finished repeats, ± standard deviation"
    if any(row.is_unresolved for row in rows):
        caption += f". {UNRESOLVED_NOTE}"
    return make_table(caption, fields, rows)


def _setup_fields(rows: Sequence[Row]) -> list[Field]:
    """Which setup a line is about; departures and machines only where the rows differ in them."""
    shared = shared_variant(rows)

    def variant(row: Row) -> str:
        return ", ".join(row.setup.without(shared).variant)

    fields: list[Field] = [
        (BACKEND, lambda row: row.backend),
        (SETUP, lambda row: Cell(row.setup.kind, colour=row.setup.colour)),
        (
            Column("connectivity", meaning="connections per label"),
            lambda row: _or_gap(row.setup.connectivity),
        ),
        (
            Column("intermediate", meaning="units of the intermediate layer"),
            lambda row: _or_gap(row.setup.intermediate_label),
        ),
    ]
    if any(row.setup.group_size for row in rows):
        column = Column("group size", meaning="labels that share their sources")
        fields.insert(3, (column, lambda row: _or_gap(row.setup.group_size)))
    if any(row.setup.head for row in rows):
        meaning = "output layer of the most frequent labels, and their share"
        fields.insert(2, (text_column("head", meaning), lambda row: _or_gap(row.setup.head)))
    if any(variant(row) for row in rows):
        meaning = "departures from the default hyper-parameters"
        fields.append((text_column("variant", meaning, wraps=True), lambda r: variant(r) or GAP))
    if several_machines(rows):
        fields.append((MACHINE, lambda row: _or_gap(row.machine)))
    return fields


def _or_gap(value: object) -> str:
    return GAP if value is None else str(value)


def _metric_fields(rows: Sequence[Row]) -> list[Field]:
    fields: list[Field] = []
    for key, metric in METRICS.items():
        scale = metric_scale(metric, [row.values[key] for row in rows])
        best = _best(key, rows) if key in HIGHLIGHTED else {}
        column = Column(metric.head(scale.unit), meaning=metric.meaning)
        fields.append((column, MetricCell(key, scale, best)))
        if key == "memory_gib":
            column = text_column("memory kind", MEMORY_NOTE)
            fields.append((column, lambda row: brief_kind(row.memory_kind)))
    return fields


def metric_cell(key: str, rows: Sequence[Row]) -> MetricCell:
    """Makes the cells of a metric, for a column of these rows."""
    return MetricCell(key, metric_scale(FIGURES[key], [row.values[key] for row in rows]))


def metric_scale(metric: Metric, values: Iterable[float | None]) -> Scale:
    """How a column of this metric is printed: its unit, and decimals that suit its values."""
    match metric.unit:
        case "GiB":
            return memory_scale(values)
        case "s":
            return time_scale(values)
        case "":
            return count_scale(values)
    return Scale(metric.unit, 1.0, metric.decimals)


def _best(key: str, rows: Iterable[Row]) -> dict[str | None, float]:
    """The best value of a metric, for each group of rows that can be compared."""
    choose = max if METRICS[key].better == "higher" else min
    best: dict[str | None, float] = {}
    for row in rows:
        value = row.values[key]
        if value is None or (key == "memory_gib" and row.is_unresolved):
            continue
        group = comparable_group(key, row)
        best[group] = choose(best.get(group, value), value)
    return best


def comparison_section(title: str, rows: Sequence[Row]) -> str:
    """The table as Markdown under its heading, with the protocol and what all runs share."""
    shared = shared_variant(rows)
    remark = "".join(f"Protocol: {protocol}.\n\n" for protocol in protocols(rows))
    remark += f"All runs: {', '.join(shared)}.\n\n" if shared else ""
    table = comparison_table(rows)
    return (
        f"{heading(title)}{remark}{table.markdown()}\n\n"
        f"{table.caption}. Memory kind: {MEMORY_NOTE}.\n"
    )


def comparison_markdown(runs: Iterable[RunResult]) -> str:
    """The comparison of all runs as Markdown, one table per data set and features.

    Reads well on a terminal too; empty without runs. Means over repeats, em-dashes for gaps.
    """
    sections = by_dataset(summarise(list(runs)))
    return "\n".join(comparison_section(title, rows) for title, rows in sections)
