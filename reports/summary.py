"""From runs to rows: one row per data set, features, backend and setup, averaged over repeats.

Derived figures (percent, GiB, seconds per epoch, means, spreads) are made here and only here; the
result files hold what was measured. A figure that was not measured stays None all the way.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby

from fanin.backends.starting import looks_at_data
from fanin.benchmarks.records.base import AtK, DatasetInfo
from fanin.benchmarks.records.compare import LockstepResult
from fanin.benchmarks.records.run import Epoch, RunResult
from fanin.reports.machines import Hardware, hardware, number_hardware
from fanin.reports.memory import counted_gib, memory_gib, memory_kind
from fanin.reports.metrics import FIGURES
from fanin.reports.setups import (
    Setup,
    backend_order,
    dataset_label,
    shared_departures,
)

# Metric key -> figure; None where it was not measured.
Figures = dict[str, float | None]


@dataclass(frozen=True)
class Row:
    """Means over the finished repeats of one setup on one backend.

    values: metric key -> mean over the repeats that measured it, None where none did. spreads:
    metric key -> sample standard deviation, None for fewer than two measurements. n: finished
    repeats; 0 for a setup that was tried and only failed. machine: number of the hardware,
    from 1, None when n is 0.
    """

    dataset: str
    features: str
    backend: str
    setup: Setup
    machine: int | None
    memory_kind: str | None
    values: Figures
    spreads: Figures
    n: int

    @property
    def is_unresolved(self) -> bool:
        """Whether the measured peak is below the bytes of the arrays alone: the process found room
        in what its baseline already had, so the peak says less than the model needs."""
        peak, counted = self.values["memory_gib"], self.values["counted_gib"]
        return peak is not None and counted is not None and peak < counted


def figures(run: RunResult) -> Figures:
    """Every metric of one finished run; None where the run did not measure it."""
    values: Figures = dict.fromkeys(FIGURES)
    for split, precision in (("train", run.train), ("test", run.test)):
        if precision is not None:
            values |= _percent_at_k(f"{split}_p", precision)
    if run.test_ranking is not None:
        for metric in ("ndcg", "psp", "psndcg"):
            values |= _percent_at_k(f"test_{metric}", getattr(run.test_ranking, metric))
    values["memory_gib"] = memory_gib(run.memory, memory_kind(run.machine))
    values["counted_gib"] = counted_gib(run.memory)
    epochs = len(run.history)
    if epochs:
        values["epochs"] = float(epochs)
    if epochs and run.timing is not None:
        train, evaluate = run.timing.train_seconds, run.timing.evaluate_seconds
        # The paper's time per epoch is that of Keras' fit, which includes the validation.
        values["seconds_per_epoch"] = (train + evaluate) / epochs
        values["train_seconds_per_epoch"] = train / epochs
    return values | _training_times(run)


def _training_times(run: RunResult) -> Figures:
    """The times of `COSTS`; nothing of what is not known."""
    if run.timing is None:
        return {}
    values: Figures = {"choose_seconds": run.timing.choose_seconds}
    if run.timing.choose_seconds is None and looks_at_data(run.task.recipe_values):
        # Another process chose, before this one went on, and what that took is not known.
        return values
    chosen = run.timing.choose_seconds or 0.0
    values["training_seconds"] = chosen + run.timing.train_seconds
    until = _seconds_to_share(run.history, 0.99)
    values["seconds_to_99"] = None if until is None else chosen + until
    return values


def _seconds_to_share(history: Sequence[Epoch], share: float) -> float | None:
    """Seconds of training until validation P@1 reaches this share of the best epoch's; None where
    nothing was learnt."""
    best = max((epoch.validation.at_1 for epoch in history), default=0.0)
    if best == 0:
        return None
    seconds = accumulate(epoch.train_seconds for epoch in history)
    return next(
        until
        for until, epoch in zip(seconds, history, strict=True)
        if epoch.validation.at_1 >= share * best
    )


def _percent_at_k(key: str, metric: AtK) -> Figures:
    return {
        f"{key}1": 100 * metric.at_1,
        f"{key}3": 100 * metric.at_3,
        f"{key}5": 100 * metric.at_5,
    }


def average(measured: Sequence[Figures]) -> tuple[Figures, Figures]:
    """Means and sample standard deviations of the `figures` of repeats; gaps where none has one."""
    values: Figures = {}
    spreads: Figures = {}
    for key in FIGURES:
        known = [value for each in measured if (value := each[key]) is not None]
        values[key] = statistics.fmean(known) if known else None
        spreads[key] = statistics.stdev(known) if len(known) > 1 else None
    return values, spreads


def is_finished(run: RunResult) -> bool:
    return run.status == "finished"


def known_datasets(
    runs: Iterable[RunResult], locksteps: Iterable[LockstepResult] = ()
) -> dict[tuple[str, str], DatasetInfo]:
    """(data set, features) -> its description, from any result that got as far as loading it."""
    known: dict[tuple[str, str], DatasetInfo] = {}
    results: list[RunResult | LockstepResult] = [*runs, *locksteps]
    for result in results:
        if result.dataset is not None:
            known.setdefault((result.task.dataset, result.task.features), result.dataset)
    return known


def summarise(runs: Sequence[RunResult]) -> list[Row]:
    """One row per data set, features, backend, setup and hardware, in the order of the tables.

    Repeats made on different hardware are not averaged. A setup whose every run failed gets a row
    of gaps with n = 0, so that it is missed.
    """
    datasets = known_datasets(runs)
    numbers = number_hardware(run.machine for run in runs if is_finished(run))
    groups: dict[tuple[str, str, str, str], list[RunResult]] = defaultdict(list)
    for run in runs:
        groups[run.task.dataset, run.task.features, run.backend, run.task.slug].append(run)
    rows: list[Row] = []
    for (name, features, _, _), group in groups.items():
        rows += _rows_of_a_task(group, datasets.get((name, features)), numbers)
    return sorted(
        rows,
        key=lambda row: (
            row.dataset,
            row.features,
            backend_order(row.backend),
            row.setup.order,
            row.machine or 0,
        ),
    )


def _rows_of_a_task(
    runs: Sequence[RunResult], info: DatasetInfo | None, numbers: dict[Hardware, int]
) -> Iterator[Row]:
    """The rows of one task in one backend: one for each hardware, or one of gaps."""
    task, backend = runs[0].task, runs[0].backend
    alike: dict[int | None, list[RunResult]] = defaultdict(list)
    for run in filter(is_finished, runs):
        alike[numbers[hardware(run.machine)] if run.machine else None].append(run)
    for machine, repeats in alike.items() or [(None, [])]:
        values, spreads = average([figures(run) for run in repeats])
        yield Row(
            dataset=dataset_label(task.dataset, info.synthetic if info else False),
            features=task.features,
            backend=backend,
            setup=Setup.from_task(task, info.inputs if info else None),
            machine=machine,
            memory_kind=memory_kind(repeats[0].machine) if repeats else None,
            values=values,
            spreads=spreads,
            n=len(repeats),
        )


def by_dataset(rows: Iterable[Row]) -> Iterator[tuple[str, list[Row]]]:
    """The rows of each data set and its features, with their title."""
    for (name, features), group in groupby(rows, key=lambda row: (row.dataset, row.features)):
        yield f"{name}, {features} features", list(group)


def shared_variant(rows: Iterable[Row]) -> list[str]:
    """Departures from the default hyper-parameters that all rows have in common."""
    return shared_departures([row.setup for row in rows])


def several_machines(rows: Iterable[Row]) -> bool:
    """Whether a table has to say on which machine a row was made."""
    return len({row.machine for row in rows} - {None}) > 1
