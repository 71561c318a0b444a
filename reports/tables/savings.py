"""Memory of the dense layer divided by that of the other setups, measured and counted.

Both are stated because they answer different questions: the measured peak contains the framework's
temporaries, of which a dense layer makes many, the counted bytes do not.
"""

from __future__ import annotations

from collections.abc import Sequence

from fanin.reports.format import GAP, times
from fanin.reports.pairs import quotient
from fanin.reports.summary import Row, shared_variant
from fanin.reports.table import Column, Table, make_table
from fanin.reports.tables.cells import BACKEND, SETUP, setup_cell


def savings_table(rows: Sequence[Row]) -> Table | None:
    """How many times less memory than the dense layer; None without a dense layer to compare."""
    dense = {_alike(row): row for row in rows if row.setup.kind == "Dense" and row.n}
    compared = [
        (row, base)
        for row in rows
        if row.n and (base := dense.get(_alike(row))) is not None and row is not base
    ]
    if not compared:
        return None
    shared = shared_variant(rows)
    kinds = sorted({row.memory_kind for row in rows if row.memory_kind})
    return make_table(
        "Memory of the dense layer divided by the setup's",
        [
            (BACKEND, lambda pair: pair[0].backend),
            (SETUP, lambda pair: setup_cell(pair[0].setup.without(shared))),
            (
                Column(f"Dense / setup, measured ({', '.join(kinds) or GAP})"),
                lambda pair: times(_measured(*pair), 1),
            ),
            (
                Column("Dense / setup, counted (parameters + optimiser state)"),
                lambda pair: times(_counted(*pair), 1),
            ),
        ],
        compared,
    )


def _alike(row: Row) -> tuple[object, ...]:
    """What a row has in common with the dense layer that it is compared with."""
    return row.backend, row.machine, row.setup.variant


def _measured(row: Row, dense: Row) -> float | None:
    if row.is_unresolved:
        return None
    return quotient(row.values["memory_gib"], dense.values["memory_gib"])


def _counted(row: Row, dense: Row) -> float | None:
    return quotient(row.values["counted_gib"], dense.values["counted_gib"])
