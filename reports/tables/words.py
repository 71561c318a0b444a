"""Trainings on sparse features, fanin beside Omikuji, from `timing.text`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median

from fanin.benchmarks.records.timing import TrainerName, WordsTimes, WordsTraining
from fanin.reports.format import number
from fanin.reports.table import Column, Table, make_table, text_column

_Row = tuple[WordsTimes, TrainerName, list[WordsTraining]]


def words_introduction(results: Sequence[WordsTimes]) -> str:
    """What the table's figures were made on and what they mean."""
    first = results[0]
    versions = sorted({f"{t.trainer} {t.version}" for each in results for t in each.trainings})
    return (
        f"Real data, {first.machine.processor}, {first.machine.cores} cores, {first.threads} "
        f"threads, {', '.join(versions)} (three trees, its\ndefaults); test P@k in percent, "
        "medians over n (with the least and the most). Other work shared the\ncores: CPU seconds "
        "tell more than seconds. Peak: resident set of the process while it trained, Python and\n"
        "data included, and above that before the training, in which fanin has its data already "
        "and\nOmikuji has not."
    )


def words_table(results: Sequence[WordsTimes]) -> Table:
    """One row per data set and trainer."""
    rows: list[_Row] = [
        (each, trainer, [t for t in each.trainings if t.trainer == trainer])
        for each in sorted(results, key=lambda each: each.dataset.name)
        for trainer in dict.fromkeys(t.trainer for t in each.trainings)
    ]
    return make_table(
        "",
        [
            (
                text_column("data set"),
                lambda row: f"{row[0].dataset.name}, {row[0].dataset.labels:,} labels",
            ),
            (text_column("trained by"), lambda row: _name(row[0], row[1])),
            *((Column(f"P@{k}"), _precision(k)) for k in (1, 3, 5)),
            (Column("CPU s"), lambda row: _seconds([t.cpu_seconds for t in row[2]])),
            (Column("s"), lambda row: _seconds([t.seconds for t in row[2]])),
            (Column("peak MiB"), lambda row: number(_mib(row[2], above=False), 0)),
            (Column("above, MiB"), lambda row: number(_mib(row[2], above=True), 0)),
            (Column("n"), lambda row: str(len(row[2]))),
        ],
        rows,
    )


def _name(times: WordsTimes, trainer: TrainerName) -> str:
    return f"omikuji, {times.trees} trees" if trainer == "omikuji" else trainer


def _seconds(times: Sequence[float]) -> str:
    """The median, and the least and the most where there are several."""
    least, middle, most = (number(f(times), 1) for f in (min, median, max))
    return middle if len(times) < 2 else f"{middle} ({least}–{most})"


def _precision(k: int) -> Callable[[_Row], str]:
    def cell(row: _Row) -> str:
        return number(100 * median([getattr(t.precision, f"at_{k}") for t in row[2]]), 2)

    return cell


def _mib(trainings: Sequence[WordsTraining], *, above: bool) -> float | None:
    peaks = [t.peak_bytes - above * t.baseline_bytes for t in trainings if t.peak_bytes is not None]
    return median(peaks) / 2**20 if peaks else None
