"""The data set in numbers: its sizes and where it comes from."""

from __future__ import annotations

from collections.abc import Sequence

from fanin.benchmarks.records.base import DatasetInfo
from fanin.benchmarks.records.compare import LockstepResult
from fanin.benchmarks.records.run import RunResult
from fanin.reports.format import number
from fanin.reports.setups import dataset_label
from fanin.reports.summary import known_datasets
from fanin.reports.table import Cell, Column, Table, text_column

_COLUMNS = (
    text_column("data set"),
    text_column("features"),
    Column("labels"),
    Column("inputs", meaning="width of a feature vector"),
    Column("train instances"),
    Column("test instances"),
    Column("labels / instance", meaning="training set"),
    Column("instances / label", meaning="training set"),
    text_column("source"),
)


def counts_table(runs: Sequence[RunResult], locksteps: Sequence[LockstepResult]) -> Table:
    """One line per data set and features of these results; gaps for one that no run could load."""
    known = known_datasets(runs, locksteps)
    tasks = [*(run.task for run in runs), *(each.task for each in locksteps)]
    names = dict.fromkeys((task.dataset, task.features) for task in tasks)
    rows = [_line(dataset, features, known.get((dataset, features))) for dataset, features in names]
    return Table("The data set in numbers", _COLUMNS, tuple(rows))


def _line(dataset: str, features: str, info: DatasetInfo | None) -> tuple[Cell, ...]:
    if info is None:
        return (Cell(dataset), Cell(features), *[Cell()] * 7)
    source = info.source
    if info.left_out_pairs:
        source += f"; evaluation leaves out the scores of {number(info.left_out_pairs, 0)} pairs"
    if info.train_stored is not None:
        stored = number(info.train_stored / info.train_instances, 1)
        features += f", sparse: {stored} values an instance"
    texts = (
        dataset_label(dataset, info.synthetic),
        features,
        number(info.labels, 0),
        number(info.inputs, 0),
        number(info.train_instances, 0),
        number(info.test_instances, 0),
        number(info.train_positives / info.train_instances, 2),
        number(info.train_positives / info.labels, 2),
        source,
    )
    return tuple(map(Cell, texts))
