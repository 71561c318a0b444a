"""Other ranking metrics beside precision: nDCG, PSP and PSnDCG on the test instances."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from fanin.reports.format import Scale
from fanin.reports.metrics import METRICS, RANKINGS
from fanin.reports.summary import Row, shared_variant
from fanin.reports.table import Cell, Column, Table, make_table
from fanin.reports.tables.cells import BACKEND, REPEATS, SETUP, MetricCell, setup_cell


def rankings_table(rows: Sequence[Row]) -> Table | None:
    """A line for each row that has any of them; None where no row has."""
    shown = {key: METRICS[key] for key in ("test_p1", "test_p3", "test_p5")} | RANKINGS
    ranked = [row for row in rows if any(row.values[key] is not None for key in RANKINGS)]
    if not ranked:
        return None
    shared = shared_variant(rows)
    fields: list[tuple[Column, Callable[[Row], Cell | str]]] = [
        (BACKEND, lambda row: row.backend),
        (SETUP, lambda row: setup_cell(row.setup.without(shared))),
    ]
    for key, metric in shown.items():
        column = Column(metric.head().removeprefix("test "), meaning=metric.meaning)
        fields.append((column, MetricCell(key, Scale(metric.unit, 1.0, metric.decimals))))
    fields.append((REPEATS, lambda row: str(row.n)))
    caption = "Test metrics; PSP and PSnDCG weigh labels by inverse propensity"
    return make_table(caption, fields, ranked)
