"""Each published row and, below it, ours: one line for every backend and execution."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from fanin.benchmarks.records.published import PUBLISHED_MACHINE
from fanin.reports.format import (
    GAP,
    NOT_RUN,
    Scale,
    difference,
    number,
    spread,
    time_scale,
    times,
)
from fanin.reports.memory import ALLOCATOR_PEAK, brief_kind
from fanin.reports.metrics import METRICS
from fanin.reports.paper import (
    DENSE_LAYERS,
    FUSED_ADAM,
    PUBLISHED_FIGURES,
    RATIOS,
    DenseLayer,
    PaperRow,
    saving,
)
from fanin.reports.table import Cell, Column, Table, text_column, text_table
from fanin.reports.tables.cells import SETUP, setup_cell

# The paper did not publish the last.
_SHOWN = (*PUBLISHED_FIGURES, "train_seconds_per_epoch")
_SAVINGS: dict[DenseLayer, str] = {
    "published": "published Dense / memory",
    "fused": f"{FUSED_ADAM} x dense weights / memory",
}


def paper_table(rows: Sequence[PaperRow]) -> Table:
    """A published row, then a line for each backend and execution of ours, or one of gaps."""
    own = [row.ours for row in rows if row.ours]
    scale = time_scale(ours.value(key) for ours in own for key in _SHOWN if _is_time(key))
    lines = []
    for _, alike in groupby(rows, key=lambda row: row.published):
        several = list(alike)
        lines.append(_published_line(several[0]))
        lines += [_own_line(row, scale) for row in several]
    caption = (
        "Each published row and, below it, ours: means over n finished repeats, ± standard "
        "deviation; in parentheses ours minus the paper's, for memory and time ours / the paper's"
    )
    return Table(caption, _columns(), tuple(lines))


def _is_time(key: str) -> bool:
    return METRICS[key].unit == "s"


def _columns() -> tuple[Column, ...]:
    columns = [SETUP, text_column("result of"), text_column("execution")]
    for key in _SHOWN:
        columns.append(Column(METRICS[key].head(), meaning=METRICS[key].meaning))
        if key == "memory_gib":
            columns.append(text_column("memory kind", "what the peak was read from"))
    meaning = "how many times less than dense"
    columns += [Column(_SAVINGS[dense], meaning=meaning) for dense in DENSE_LAYERS]
    return (
        *columns,
        Column("n", meaning="finished repeats"),
        text_column("machine", wraps=True),
        text_column("remarks", wraps=True),
    )


def _published_line(row: PaperRow) -> tuple[Cell, ...]:
    cells = [setup_cell(row.setup), Cell("paper"), Cell()]
    for key in _SHOWN:
        # The paper prints whole seconds.
        decimals = 0 if _is_time(key) else METRICS[key].decimals
        cells.append(Cell(number(row.published.values.get(key), decimals)))
        if key == "memory_gib":
            cells.append(Cell(brief_kind(ALLOCATOR_PEAK)))
    cells += [Cell(times(saving(row, dense, "paper"), 1)) for dense in DENSE_LAYERS]
    return (*cells, Cell(), Cell(PUBLISHED_MACHINE), Cell())


def _own_line(row: PaperRow, scale: Scale) -> tuple[Cell, ...]:
    """scale: of times."""
    ours = row.ours
    cells = [setup_cell(row.setup)]
    cells += [Cell(ours.backend), Cell(ours.execution)] if ours else [Cell(NOT_RUN), Cell()]
    for key in _SHOWN:
        cells.append(
            _own_cell(row, key, scale.decimals if _is_time(key) else METRICS[key].decimals)
        )
        if key == "memory_gib":
            cells.append(Cell(brief_kind(ours.memory_kind if ours else None)))
    cells += [Cell(times(saving(row, dense, "ours"), 1)) for dense in DENSE_LAYERS]
    if ours is None:
        return (*cells, Cell("0"), Cell(), Cell())
    marks = "; ".join(ours.marks)
    return (*cells, Cell(str(ours.n)), Cell(ours.machine or GAP), Cell(marks or GAP))


def _own_cell(row: PaperRow, key: str, decimals: int) -> Cell:
    value = row.ours.value(key) if row.ours else None
    if value is None or row.ours is None:
        return Cell()
    compared = row.compared(key)
    against = times(compared, 2) if key in RATIOS else difference(compared, decimals)
    return Cell(
        text=number(value, decimals),
        spread=spread(row.ours.spread(key), decimals),
        against="" if compared is None else against,
    )


def beside_paper_table(rows: Sequence[PaperRow]) -> Table:
    """Memory and time per epoch alone, ours beside the paper's on one line."""
    heads = ("setup", "ours", "paper GiB", "GiB", "ratio", "paper s/epoch", "s/epoch", "ratio")
    return text_table((*heads, "remarks"), map(_beside_line, rows))


def _beside_line(row: PaperRow) -> tuple[str, ...]:
    ours = row.ours
    cells = [row.setup.label, f"{ours.backend} {ours.execution}" if ours else NOT_RUN]
    for key, decimals in (("memory_gib", 2), ("seconds_per_epoch", 0)):
        cells.append(number(row.published.values[key], decimals))
        cells.append(number(ours.value(key) if ours else None, decimals))
        cells.append(number(row.compared(key), 2))
    return (*cells, "; ".join(ours.marks) if ours and ours.marks else GAP)
