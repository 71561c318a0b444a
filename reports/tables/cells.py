"""Cells and columns that several tables share: the setup, a metric, how often it was measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from fanin.reports.format import Scale
from fanin.reports.memory import UNRESOLVED
from fanin.reports.setups import Setup
from fanin.reports.summary import Row
from fanin.reports.table import Cell, Column, text_column

BACKEND = text_column("backend")
SETUP = text_column("setup")
REPEATS = Column("n", meaning="finished repeats; figures are means ± standard deviation")
MACHINE = Column("machine", meaning="number in the list of machines")


def setup_cell(setup: Setup) -> Cell:
    """The whole name of the setup and its colour."""
    return Cell(setup.label, colour=setup.colour)


@dataclass(frozen=True)
class MetricCell:
    """Makes the cells of one metric: mean and spread, printed in the scale of the column.

    best: kind of memory -> the best value among the rows of that kind; the key is None for all
    metrics but memory, since peaks of different kinds are not comparable.
    """

    key: str
    scale: Scale
    best: Mapping[str | None, float] = field(default_factory=dict)

    def __call__(self, row: Row) -> Cell:
        value = row.values[self.key]
        if value is None:
            return Cell()
        text = self.scale.text(value)
        best = self.best.get(comparable_group(self.key, row))
        unresolved = self.key == "memory_gib" and row.is_unresolved
        return Cell(
            text=text + UNRESOLVED * unresolved,
            spread=self.scale.spread(row.spreads[self.key]),
            # Compared as printed: what looks equal is equally good.
            best=best is not None and text == self.scale.text(best) and not unresolved,
        )


def comparable_group(key: str, row: Row) -> str | None:
    """Among which rows a best value is sought: peaks of different kinds are not comparable."""
    return row.memory_kind if key == "memory_gib" else None
