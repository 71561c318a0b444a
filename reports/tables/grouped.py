"""Layers whose labels share their sources, and those with a head, each beside a plain layer, one
with neither: that of nearest memory, and that of nearest training time.

Groups save indices, not weights, so a grouped layer has the bytes of a slightly smaller fan-in
without groups; a dense head takes the bytes of a larger fan-in. Groups also save time, which a
plain layer would spend on a larger fan-in. Only layers of about equal bytes, or of about equal
time, tell what either costs or gains in precision.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from scipy.special import stdtrit

from fanin.reports.format import GAP, difference, number, spread
from fanin.reports.metrics import FIGURES
from fanin.reports.pairs import quotient
from fanin.reports.summary import Row, several_machines, shared_variant
from fanin.reports.table import Cell, Column, Table, make_table, text_column
from fanin.reports.tables.cells import BACKEND, MACHINE, REPEATS, setup_cell

_GROUPING = "grouping="
_SHOWN = ("test_p1", "test_p3", "test_p5", "test_psp5")
_LEVEL = 0.95
# What the two layers have nearly the same of: figure -> its name. The second is compared only where
# repeats differ by less than this share of their mean: else other work shared the machine.
_ALIKE = {"counted_gib": "memory", "training_seconds": "training time"}
_STEADY = 0.1


@dataclass(frozen=True)
class Interval:
    """The difference of two means, and half the width of its interval; None where it cannot be
    told."""

    difference: float | None
    half: float | None


def grouped_tables(rows: Sequence[Row]) -> tuple[Table, ...]:
    """Two tables, at equal memory and at equal training time, with a line for each layer with label
    groups or a head. A table where no layer has a plain one to stand beside is left out."""
    return tuple(table for key in _ALIKE if (table := _table(rows, key)))


def _table(rows: Sequence[Row], alike: str) -> Table | None:
    beside = [
        (row, plain)
        for row in rows
        if not _is_plain(row) and (plain := _nearest_plain(row, rows, alike))
    ]
    if not beside:
        return None
    shared = shared_variant(rows)
    fields: list[tuple[Column, Callable[[tuple[Row, Row]], Cell | str]]] = [
        (BACKEND, lambda pair: pair[0].backend),
        (
            text_column("setup"),
            lambda pair: setup_cell(pair[0].setup.without([*shared, *_groupings(pair[0])])),
        ),
        (
            text_column("grouping", "by what labels come into one group"),
            lambda pair: _grouping(pair[0]),
        ),
        (
            text_column("beside", f"the layer of nearest {_ALIKE[alike]} without groups and head"),
            lambda pair: setup_cell(pair[1].setup.without(shared)),
        ),
        *(
            (Column(f"{name} / beside", meaning=FIGURES[key].meaning), _ratio_cell(key))
            for key, name in _ALIKE.items()
        ),
    ]
    if several_machines(rows):
        fields.insert(1, (MACHINE, lambda pair: str(pair[0].machine or GAP)))
    for key in _SHOWN:
        head = FIGURES[key].label.removeprefix("test ")
        fields.append((Column(f"{head}, difference (points)"), _difference_cell(key)))
    fields.append((REPEATS, lambda pair: str(min(row.n for row in pair))))
    caption = (
        f"Layers with label groups or a head beside plain ones of nearest {_ALIKE[alike]}: "
        "differences of mean test figures, ± half of the 95 % interval (Welch's)"
    )
    return make_table(caption, fields, beside)


def difference_interval(row: Row, other: Row, key: str) -> Interval:
    """The mean of a figure of `row` less that of `other`, with the interval of Welch's t-test
    (Biometrika 34, 1947), which does not take the spreads as equal."""
    a, b = row.values[key], other.values[key]
    if a is None or b is None:
        return Interval(None, None)
    spreads = [(each.spreads[key], each.n) for each in (row, other)]
    parts = [spread**2 / n for spread, n in spreads if spread is not None and n > 1]
    if len(parts) < len(spreads):
        return Interval(a - b, None)
    error = math.sqrt(sum(parts))
    if error == 0:
        return Interval(a - b, 0.0)
    freedom = sum(parts) ** 2 / sum(
        part**2 / (n - 1) for part, (_, n) in zip(parts, spreads, strict=True)
    )
    return Interval(a - b, float(stdtrit(freedom, (1 + _LEVEL) / 2)) * error)


def _difference_cell(key: str) -> Callable[[tuple[Row, Row]], Cell]:
    def cell(pair: tuple[Row, Row]) -> Cell:
        interval = difference_interval(*pair, key)
        decimals = FIGURES[key].decimals
        return Cell(
            difference(interval.difference, decimals), spread=spread(interval.half, decimals)
        )

    return cell


def _ratio_cell(key: str) -> Callable[[tuple[Row, Row]], str]:
    return lambda pair: number(quotient(_compared(pair[1], key), _compared(pair[0], key)), 2)


def _nearest_plain(row: Row, rows: Sequence[Row], key: str) -> Row | None:
    """Of the plain layers that are trained alike, the one whose figure is nearest."""
    value = _compared(row, key)
    variant = set(row.setup.variant) - set(_groupings(row))
    distances = {
        place: abs(math.log(other_value / value))
        for place, other in enumerate(rows)
        if value
        and (other.backend, other.machine) == (row.backend, row.machine)
        and (other.setup.kind, other.setup.intermediate) == (row.setup.kind, row.setup.intermediate)
        and _is_plain(other)
        and set(other.setup.variant) == variant
        and (other_value := _compared(other, key))
    }
    return rows[min(distances, key=distances.__getitem__)] if distances else None


def _compared(row: Row, key: str) -> float | None:
    """A figure of two layers that are alike in it; None for times that are not steady."""
    value, spread = row.values[key], row.spreads[key]
    if key != "training_seconds" or not value:
        return value
    return value if spread is not None and spread < _STEADY * value else None


def _is_plain(row: Row) -> bool:
    return not (row.setup.group_size or row.setup.head)


def _grouping(row: Row) -> str:
    if not row.setup.group_size:
        return GAP
    return ", ".join(_groupings(row)).removeprefix(_GROUPING) or "the recipe's"


def _groupings(row: Row) -> list[str]:
    return [part for part in row.setup.variant if part.startswith(_GROUPING)]
