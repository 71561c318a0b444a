"""The same setup in both backends, side by side: for the table and the plot of one against the
other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fanin.backends.registry import BACKENDS
from fanin.reports.setups import Setup
from fanin.reports.summary import Row


@dataclass(frozen=True)
class Pair:
    """The same setup in both backends; None where one has not run it."""

    setup: Setup
    first: Row | None
    second: Row | None

    @property
    def machine(self) -> int | None:
        """Number of the hardware that both ran on."""
        row = self.first or self.second
        return row.machine if row else None

    def ratio(self, key: str) -> float | None:
        """second / first of a metric; None when either is missing, or an unresolved peak."""
        rows = (self.first, self.second)
        if key == "memory_gib" and any(row.is_unresolved for row in rows if row):
            return None
        return quotient(*self.both(key))

    def difference(self, key: str) -> float | None:
        """second - first of a metric; None when either is missing."""
        first, second = self.both(key)
        return None if first is None or second is None else second - first

    def both(self, key: str) -> tuple[float | None, float | None]:
        """A metric in either backend; gaps where the two are not comparable."""
        kinds = {row.memory_kind for row in (self.first, self.second) if row}
        if key == "memory_gib" and len(kinds) > 1:
            # An allocator's peak against a resident set would say nothing.
            return None, None
        return (
            self.first.values[key] if self.first else None,
            self.second.values[key] if self.second else None,
        )


def quotient(first: float | None, second: float | None) -> float | None:
    """second / first; None where either is missing, or nothing to divide by."""
    return second / first if first and second is not None else None


def by_setup(rows: Sequence[Row]) -> dict[tuple[Setup, int | None], dict[str, Row]]:
    """(setup, machine) -> backend -> row, in the order of the tables.

    A setup that only failed is in it once without a row, so that its gap is seen.
    """
    groups: dict[tuple[Setup, int | None], dict[str, Row]] = {}
    for row in rows:
        if row.n:
            groups.setdefault((row.setup, row.machine), {})[row.backend] = row
    measured = {setup for setup, _ in groups}
    for row in rows:
        if row.setup not in measured:
            groups.setdefault((row.setup, None), {})
    return dict(sorted(groups.items(), key=lambda item: (item[0][0].order, item[0][1] or 0)))


def pairs(rows: Sequence[Row]) -> list[Pair]:
    """Each setup that any backend ran, torch beside TensorFlow, on the same hardware."""
    first, second = BACKENDS
    return [Pair(setup, by.get(first), by.get(second)) for (setup, _), by in by_setup(rows).items()]
