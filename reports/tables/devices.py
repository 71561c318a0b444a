"""What ran on a device: one line for each kind of result."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import datetime

from fanin.benchmarks.records.run import RunResult
from fanin.benchmarks.records.timing import OpTimes, StepResult
from fanin.reports.format import GAP, NOT_RUN
from fanin.reports.table import Table, text_table


def what_ran_table(
    runs: Sequence[RunResult],
    profiles: Sequence[RunResult],
    ops: Sequence[OpTimes],
    steps: Sequence[StepResult],
) -> Table:
    """How many results there are of each kind, of which backends, and from which days."""
    rows = [
        _runs_line("whole runs", runs),
        _runs_line("shape profiles", profiles),
        (
            "op alone",
            f"{len(ops)} shapes" if ops else NOT_RUN,
            "torch" if ops else GAP,
            _days(result.started for result in ops),
        ),
        (
            "training steps",
            f"{len(steps)} processes" if steps else NOT_RUN,
            _names(result.contender.backend for result in steps),
            _days(result.started for result in steps),
        ),
    ]
    return text_table(("what", "results", "backends", "when"), rows)


def _runs_line(name: str, runs: Sequence[RunResult]) -> tuple[str, ...]:
    states = Counter(run.status for run in runs)
    count = ", ".join(f"{n} {state}" for state, n in sorted(states.items())) or NOT_RUN
    return name, count, _names(run.backend for run in runs), _days(run.started for run in runs)


def _names(backends: Iterable[str]) -> str:
    return ", ".join(sorted(set(backends))) or GAP


def _days(moments: Iterable[datetime]) -> str:
    days = sorted({moment.date().isoformat() for moment in moments})
    return " – ".join(dict.fromkeys([days[0], days[-1]])) if days else GAP
