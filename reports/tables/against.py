"""One backend against the other, setup by setup: precision, time and memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from fanin.backends.registry import BACKENDS
from fanin.reports.format import GAP, difference, number
from fanin.reports.metrics import METRICS
from fanin.reports.pairs import Pair, pairs
from fanin.reports.setups import backend_name
from fanin.reports.summary import Row, several_machines, shared_variant
from fanin.reports.table import Cell, Column, Table, make_table
from fanin.reports.tables.cells import MACHINE, SETUP, setup_cell
from fanin.reports.tables.comparison import metric_scale

Field = tuple[Column, Callable[[Pair], Cell | str]]


def against_table(rows: Sequence[Row]) -> Table:
    """Test P@1, time per epoch with and without validation, and memory, of either backend."""
    shared = shared_variant(rows)
    couples = pairs(rows)
    fields: list[Field] = [(SETUP, lambda pair: setup_cell(pair.setup.without(shared)))]
    if several_machines(rows):
        fields.append((MACHINE, lambda pair: str(pair.machine) if pair.machine else GAP))
    for key in ("test_p1", "seconds_per_epoch", "train_seconds_per_epoch", "memory_gib"):
        fields += _metric_fields(key, couples, _label(key, rows))
    _, second = map(backend_name, BACKENDS)
    caption = f"The same setup in both backends; below a ratio of 1 {second} needs less"
    return make_table(caption, fields, couples)


def _label(key: str, rows: Sequence[Row]) -> str:
    """The metric's name, and of memory its kind where all rows have the same."""
    kinds = {row.memory_kind for row in rows} - {None}
    if key == "memory_gib" and len(kinds) == 1:
        return f"memory, {kinds.pop()}"
    return METRICS[key].label


def _metric_fields(key: str, couples: Sequence[Pair], label: str) -> list[Field]:
    """Both figures of a metric and how they compare."""
    scale = metric_scale(METRICS[key], [value for pair in couples for value in pair.both(key)])
    first, second = map(backend_name, BACKENDS)
    fields: list[Field] = [
        (Column(f"{label}, {first} ({scale.unit})"), lambda pair: scale.text(pair.both(key)[0])),
        (Column(f"{label}, {second} ({scale.unit})"), lambda pair: scale.text(pair.both(key)[1])),
    ]
    if key == "test_p1":
        column = Column("difference (points)", meaning=f"{second} minus {first}")
        fields.append((column, lambda pair: difference(pair.difference(key), 2)))
    else:
        column = Column("ratio", meaning=f"{second} / {first}")
        fields.append((column, lambda pair: number(pair.ratio(key), 2)))
    return fields
