"""The shape profiles: memory measured and expected, a step, and an epoch extrapolated."""

from __future__ import annotations

import statistics
from collections.abc import Iterable

from fanin.benchmarks.records.run import RunResult
from fanin.benchmarks.records.statistics import GIB, quartiles
from fanin.reports.format import GAP, number, spread
from fanin.reports.memory import brief_kind, memory_kind
from fanin.reports.profiles import profile_values, remark
from fanin.reports.setups import Setup, backend_order, shared_departures, with_departures
from fanin.reports.table import Cell, Column, Table, make_table, text_column
from fanin.reports.tables.cells import BACKEND, SETUP, setup_cell


def profile_table(runs: Iterable[RunResult]) -> Table:
    """One line per profile; one that failed has gaps and says why."""
    ordered = sorted(runs, key=lambda run: (*backend_order(run.backend), _setup(run).order))
    shared = shared_departures([_setup(run) for run in ordered])
    caption = "Random data of the real sizes (synthetic); times per epoch are extrapolated"
    return make_table(
        with_departures(caption, shared),
        [
            (BACKEND, lambda run: run.backend),
            (SETUP, lambda run: setup_cell(_setup(run).without(shared))),
            (
                Column("memory (GiB)", meaning="peak, measured"),
                lambda run: number(profile_values(run)["memory_gib"], 2),
            ),
            (Column("expected (GiB)", meaning="by `fanin plan`, before it ran"), _expected),
            (text_column("memory kind"), lambda run: brief_kind(memory_kind(run.machine))),
            (
                Column("step (ms)", meaning="median; ± half of the spread between the quartiles"),
                _step,
            ),
            (Column("rewiring (s)"), _rewiring),
            (
                Column("training per epoch (s)", meaning="extrapolated"),
                lambda run: number(profile_values(run)["train_seconds_per_epoch"], 0),
            ),
            (
                Column("with validation (s)", meaning="extrapolated"),
                lambda run: number(profile_values(run)["seconds_per_epoch"], 0),
            ),
            (text_column("remarks", wraps=True), remark),
        ],
        ordered,
    )


def _setup(run: RunResult) -> Setup:
    return Setup.from_task(run.task, run.dataset.inputs if run.dataset else None)


def expected_gib(run: RunResult) -> float | None:
    """The peak that `fanin plan` expected before the profile ran."""
    return run.extrapolation.expected_peak_bytes / GIB if run.extrapolation else None


def _expected(run: RunResult) -> str:
    return number(expected_gib(run), 2)


def _step(run: RunResult) -> Cell:
    if not run.extrapolation:
        return Cell()
    seconds = run.extrapolation.step_seconds
    low, _, high = quartiles(seconds)
    return Cell(number(1e3 * statistics.median(seconds), 1), spread=spread(5e2 * (high - low), 1))


def _rewiring(run: RunResult) -> str:
    return number(run.extrapolation.rewire_seconds, 2) if run.extrapolation else GAP
