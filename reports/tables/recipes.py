"""The recipes: what each gains in precision, on rare labels too, and costs in memory and time."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from fanin.reports.format import GAP
from fanin.reports.metrics import FIGURES
from fanin.reports.setups import BEST
from fanin.reports.summary import Row, several_machines, shared_variant
from fanin.reports.table import Cell, Column, Table, make_table, text_column
from fanin.reports.tables.cells import BACKEND, MACHINE, REPEATS, SETUP, setup_cell
from fanin.reports.tables.comparison import metric_cell

_SHOWN = (
    *(f"test_{metric}{k}" for metric in ("p", "psp") for k in (1, 3, 5)),
    *("counted_gib", "choose_seconds", "training_seconds", "seconds_to_99"),
)


def recipes_table(rows: Sequence[Row]) -> Table | None:
    """A line for each setup and its departures; None where all are the paper's recipe as it is."""
    if not any(row.setup.variant for row in rows):
        return None
    shared = shared_variant(rows)

    def departures(row: Row) -> str:
        return ", ".join(row.setup.without([*shared, BEST]).variant)

    fields: list[tuple[Column, Callable[[Row], Cell | str]]] = [
        (BACKEND, lambda row: row.backend),
        (SETUP, lambda row: setup_cell(row.setup.without(row.setup.variant))),
        (text_column("recipe"), lambda row: row.setup.recipe),
    ]
    if any(map(departures, rows)):
        column = text_column("departures", "hyper-parameters other than the recipe's", wraps=True)
        fields.append((column, lambda row: departures(row) or GAP))
    if several_machines(rows):
        fields.append((MACHINE, lambda row: str(row.machine or GAP)))
    for key in _SHOWN:
        metric, cell = FIGURES[key], metric_cell(key, rows)
        head = metric.head(cell.scale.unit).removeprefix("test ")
        fields.append((Column(head, meaning=metric.meaning), cell))
    fields.append((REPEATS, lambda row: str(row.n)))
    caption = (
        "Test precision of each recipe, and its cost: means over n finished repeats, ± standard "
        "deviation"
    )
    return make_table(caption, fields, rows)
