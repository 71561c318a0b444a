"""Shape profiles: what a few steps on random data of the real sizes tell of memory and time.

Times per epoch are extrapolated from medians of the raw times in the result files; there is no
precision, since nothing real was learnt.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence

from fanin.benchmarks.records.run import Extrapolation, RunResult
from fanin.benchmarks.records.statistics import GIB, quartiles
from fanin.reports.setups import Setup, backend_order
from fanin.reports.summary import memory_gib, memory_kind
from fanin.reports.tables import (
    BRIEF_KINDS,
    GAP,
    Cell,
    Column,
    Table,
    departures_caption,
    number,
    shared_departures,
    without,
)

SYNTHETIC, EXTRAPOLATED = "synthetic", "extrapolated"


def shape_values(run: RunResult) -> dict[str, float | None]:
    """Metric key -> figure of one profile: memory_gib, and extrapolated seconds_per_epoch (with
    validation on the test set) and train_seconds_per_epoch; None where it failed."""
    found: dict[str, float | None] = dict.fromkeys(
        ("memory_gib", "seconds_per_epoch", "train_seconds_per_epoch")
    )
    found["memory_gib"] = memory_gib(run.memory, memory_kind(run.machine))
    if run.extrapolation:
        train = train_seconds(run.extrapolation)
        found["train_seconds_per_epoch"] = train
        found["seconds_per_epoch"] = train + evaluation_seconds(run.extrapolation)
    return found


def train_seconds(of: Extrapolation) -> float:
    """Seconds of training an epoch: its steps and its rewirings."""
    rewiring = (of.rewire_seconds or 0.0) * of.rewires_per_epoch
    return statistics.median(of.step_seconds) * of.steps_per_epoch + rewiring


def evaluation_seconds(of: Extrapolation) -> float:
    """Seconds of ranking the labels of the whole test set once."""
    return statistics.median(of.block_seconds) * of.evaluation_blocks


def remark(run: RunResult) -> str:
    """What a reader has to know of a profile beside its figures."""
    if run.failure:
        what = "does not fit" if run.failure.is_too_large else f"failed ({run.failure.kind})"
        return f"{what}: {run.failure.message}"
    steps = len(run.extrapolation.step_seconds) if run.extrapolation else 0
    return f"{SYNTHETIC}; time {EXTRAPOLATED} from {steps} steps"


def shape_table(runs: Iterable[RunResult]) -> Table:
    """One line per profile: memory measured and expected, a step, and an epoch extrapolated."""
    ordered = sorted(runs, key=_order)
    shared = shared_departures([_setup(run) for run in ordered])
    columns = (
        Column("backend", numeric=False),
        Column("setup", numeric=False),
        Column("memory (GiB)", meaning="peak, measured"),
        Column("expected (GiB)", meaning="by `fanin plan`, before it ran"),
        Column("memory kind", numeric=False),
        Column("step (ms)", meaning="median; ± half of the spread between the quartiles"),
        Column("rewiring (s)"),
        Column("training per epoch (s)", meaning="extrapolated"),
        Column("with validation (s)", meaning="extrapolated"),
        Column("remarks", numeric=False, wraps=True),
    )
    return Table(
        departures_caption(
            "Random data of the real sizes (synthetic); times per epoch are extrapolated", shared
        ),
        columns,
        tuple(_line(run, shared) for run in ordered),
    )


def _order(run: RunResult) -> tuple[object, ...]:
    return (*backend_order(run.backend), _setup(run).order)


def _setup(run: RunResult) -> Setup:
    return Setup.of(run.task, run.dataset.inputs if run.dataset else None)


def _line(run: RunResult, shared: Sequence[str]) -> tuple[Cell, ...]:
    setup, values, of = without(_setup(run), shared), shape_values(run), run.extrapolation
    times = [Cell(), Cell()]
    if of:
        times = [
            Cell(
                number(1e3 * statistics.median(of.step_seconds), 1),
                spread=f"±{number(5e2 * _quartile_range(of.step_seconds), 1)}",
            ),
            Cell(number(of.rewire_seconds, 2)),
        ]
    return (
        Cell(run.backend),
        Cell(setup.label, colour=setup.colour),
        Cell(number(values["memory_gib"], 2)),
        Cell(number(of.expected_peak_bytes / GIB, 2) if of else GAP),
        Cell(BRIEF_KINDS.get(memory_kind(run.machine), GAP)),
        *times,
        Cell(number(values["train_seconds_per_epoch"], 0)),
        Cell(number(values["seconds_per_epoch"], 0)),
        Cell(remark(run)),
    )


def _quartile_range(seconds: Sequence[float]) -> float:
    low, _, high = quartiles(seconds)
    return high - low
