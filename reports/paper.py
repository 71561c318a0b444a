"""The paper beside ours: the published rows, what we have of each, and the table of both.

A published row is the result of one task, the one of `benchmarks/tasks/<dataset>/<features>.json`
with its setup. What we have of it comes as `Ours`, from whatever source; `measured` makes them from
result files. Only the same task counts: another dropout, protocol or storage is another experiment.
Published figures are those of `benchmarks/published/ecml23.csv` (Schultheis & Babbar, ECML-PKDD
2023, arXiv 2306.03725), and nothing is put where a figure of ours is missing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby

import pandas as pd

from fanin.benchmarks.records.base import DatasetInfo, Machine
from fanin.benchmarks.records.published import (
    PUBLISHED_MACHINE,
    PublishedRow,
    as_published,
    intermediate_label,
    is_published,
    published_rows,
)
from fanin.benchmarks.records.run import RunResult
from fanin.benchmarks.records.statistics import GIB
from fanin.benchmarks.records.task import Task
from fanin.datasets import PUBLISHED
from fanin.datasets.catalogue import FEATURES
from fanin.reports.metrics import METRICS
from fanin.reports.setups import Setup, backend_order
from fanin.reports.shapes import EXTRAPOLATED, SYNTHETIC, remark, shape_values
from fanin.reports.summary import (
    ALLOCATOR_PEAK,
    average,
    figures,
    hardware,
    is_finished,
    memory_kind,
    on_gpu,
)
from fanin.reports.tables import BRIEF_KINDS, GAP, Cell, Column, Table, number, time_decimals

_PRECISIONS = tuple(f"{split}_p{k}" for split in ("train", "test") for k in (1, 3, 5))
# Memory and time are compared as ratios, the others as differences.
_RATIOS = ("memory_gib", "seconds_per_epoch")
_COLUMNS = (*_PRECISIONS, "memory_gib", "epochs", "seconds_per_epoch")
# The paper did not publish the last.
_SHOWN = (*_COLUMNS, "train_seconds_per_epoch")
# What random labels can tell: how often early stopping waits for precision is not among it.
_SYNTHETIC_TELLS = ("memory_gib", "seconds_per_epoch", "train_seconds_per_epoch")

# Weights, gradient and the two moments of Adam: what a dense layer with a fused Adam holds. The
# published dense layer holds three temporaries of that size more.
FUSED_ADAM = 4
_WEIGHT_BYTES = 4


@dataclass(frozen=True)
class Ours:
    """What one backend and execution have of one published row, on one machine.

    task: as `as_published` gives it. values, spreads: metric key -> mean and sample standard
    deviation over n repeats; what is missing is a gap. machine: in words. marks: what a reader has
    to know, such as "synthetic" (then no precision is ever shown) or "extrapolated". comparable:
    whether the data have the published sizes; if not, figures are shown but not compared.
    """

    task: Task
    backend: str
    execution: str
    n: int
    values: dict[str, float | None] = field(default_factory=dict)
    spreads: dict[str, float | None] = field(default_factory=dict)
    memory_kind: str | None = None
    machine: str | None = None
    marks: tuple[str, ...] = ()
    comparable: bool = True

    def value(self, key: str) -> float | None:
        return self.values.get(key) if self._tells(key) else None

    def spread(self, key: str) -> float | None:
        return self.spreads.get(key) if self._tells(key) else None

    def _tells(self, key: str) -> bool:
        return SYNTHETIC not in self.marks or key in _SYNTHETIC_TELLS


@dataclass(frozen=True)
class PaperRow:
    """A published row beside ours; None where it has not been run."""

    published: PublishedRow
    ours: Ours | None

    def compared(self, key: str) -> float | None:
        """Ours over the paper's for memory and time, else ours minus the paper's."""
        own = self.ours.value(key) if self.ours and self.ours.comparable else None
        paper = self.published.values.get(key)
        if own is None or paper is None:
            return None
        return own / paper if key in _RATIOS else own - paper


def setup_of(row: PublishedRow) -> Setup:
    """The setup of a published row. What the whole table has in common (the dropout of Wiki-500K)
    is no variant here."""
    return replace(Setup.of(row.task, FEATURES[row.task.features]), variant=())


def dense_gib(dataset: str, features: str) -> float:
    """GiB of a dense layer's weights: inputs x labels x 4 bytes."""
    return FEATURES[features] * PUBLISHED[dataset].labels * _WEIGHT_BYTES / GIB


def measured(runs: Iterable[RunResult]) -> list[Ours]:
    """What result files have of published rows; runs of other tasks are left out.

    Repeats are averaged where task, backend, execution, machine and sizes of the data agree. A row
    that was tried and only failed has n = 0 and the mark "failed".
    """
    groups: dict[tuple[Task, str, str], list[RunResult]] = defaultdict(list)
    for run in runs:
        if is_published(run.task):
            groups[as_published(run.task), run.backend, run.task.execution].append(run)
    found = []
    for (task, backend, execution), group in groups.items():
        # The same seed twice is one repeat, however it came about.
        alike: dict[tuple[object, ...], dict[int, RunResult]] = defaultdict(dict)
        for run in filter(is_finished, group):
            where = hardware(run.machine) if run.machine else None
            alike[where, *_marks(task, run.dataset)][run.task.seed + run.repeat] = run
        if not alike:
            found.append(Ours(task, backend, execution, n=0, marks=("failed",)))
        for by_seed in alike.values():
            repeats = list(by_seed.values())
            values, spreads = average([figures(run) for run in repeats])
            first = repeats[0]
            found.append(
                Ours(
                    *(task, backend, execution, len(repeats), values, spreads),
                    memory_kind=memory_kind(first.machine),
                    machine=_machine(first.machine),
                    marks=_marks(task, first.dataset),
                    comparable=has_published_sizes(task, first.dataset),
                )
            )
    return found


def profiled(shapes: Iterable[RunResult]) -> list[Ours]:
    """What shape profiles (random data of the real sizes) have of published rows: memory, and
    times extrapolated. One that did not fit or failed has n = 0 and says why."""
    return [
        Ours(
            as_published(run.task),
            run.backend,
            run.task.execution,
            n=int(is_finished(run)),
            values=shape_values(run),
            memory_kind=memory_kind(run.machine),
            machine=_machine(run.machine),
            marks=(remark(run),) if run.failure else (SYNTHETIC, EXTRAPOLATED),
        )
        for run in shapes
        if is_published(run.task)
    ]


def has_published_sizes(task: Task, info: DatasetInfo | None) -> bool:
    """Whether data have the labels, inputs and instances of the published set of that name."""
    real = PUBLISHED.get(task.dataset)
    if info is None or real is None:
        return False
    return (info.labels, info.inputs, info.train_instances, info.test_instances) == (
        real.labels,
        FEATURES.get(task.features),
        real.train_instances,
        real.test_instances,
    )


def _marks(task: Task, info: DatasetInfo | None) -> tuple[str, ...]:
    marks = []
    if info is not None and info.synthetic:
        marks.append(SYNTHETIC)
    if not has_published_sizes(task, info):
        marks.append(
            f"other data: {info.labels:,} labels, {info.inputs:,} inputs, "
            f"{info.train_instances:,} + {info.test_instances:,} instances"
            if info
            else "other data: of unknown sizes"
        )
    return tuple(marks)


def _machine(machine: Machine | None) -> str | None:
    if machine is None:
        return None
    if on_gpu(machine):
        return machine.gpu or "a GPU"
    return f"{machine.processor}, {machine.cores} cores"


def paper_rows(dataset: str, features: str, ours: Iterable[Ours]) -> list[PaperRow]:
    """The published rows of a data set, each as often as we have it, once with a gap if never."""
    by_task: dict[Task, list[Ours]] = defaultdict(list)
    for one in ours:
        by_task[one.task].append(one)
    rows = []
    for row in published_rows(dataset, features):
        found: list[Ours | None] = [*sorted(by_task[row.task], key=_order)]
        rows += [PaperRow(row, one) for one in found or [None]]
    return rows


def _order(ours: Ours) -> tuple[object, ...]:
    return (*backend_order(ours.backend), ours.execution, ours.machine or "", ours.marks)


def saving(row: PaperRow, of: str, whose: str) -> float | None:
    """How many times less memory than a dense layer. of: "published" is the paper's own dense
    layer, "fused" one with a fused Adam; whose: the memory of "paper" or "ours"."""
    task = row.published.task
    memory = row.published.values["memory_gib"]
    if whose == "ours":
        own = row.ours.value("memory_gib") if row.ours and row.ours.comparable else None
        if not own or own <= 0:
            return None
        memory = own
    if of == "fused":
        return FUSED_ADAM * dense_gib(task.dataset, task.features) / memory
    return _published_dense(task.dataset, task.features) / memory


def _published_dense(dataset: str, features: str) -> float:
    rows = published_rows(dataset, features)
    return next(row.values["memory_gib"] for row in rows if setup_of(row).kind == "Dense")


_SAVINGS = (
    ("published", "published Dense / memory"),
    ("fused", f"{FUSED_ADAM} x dense weights / memory"),
)


def paper_table(rows: Sequence[PaperRow]) -> Table:
    """A published row, then a line for each backend and execution of ours, or one of gaps."""
    seconds = time_decimals(
        row.ours.value(key) for row in rows if row.ours for key in _SHOWN if "seconds" in key
    )
    lines = []
    for _, alike in groupby(rows, key=lambda row: row.published):
        several = list(alike)
        lines.append(_paper_line(several[0]))
        lines += [_own_line(row, seconds) for row in several]
    columns = [Column("setup", False), Column("result of", False), Column("execution", False)]
    for key in _SHOWN:
        metric = METRICS[key]
        columns.append(Column(metric.head(), meaning=metric.meaning))
        if key == "memory_gib":
            columns.append(Column("memory kind", False, "what the peak was read from"))
    columns += [Column(head, meaning="how many times less than dense") for _, head in _SAVINGS]
    columns.append(Column("n", meaning="finished repeats"))
    columns.append(Column("machine", False, wraps=True))
    columns.append(Column("remarks", False, wraps=True))
    caption = (
        "Each published row and, below it, ours: means over n finished repeats, ± standard "
        "deviation; in parentheses ours minus the paper's, for memory and time ours / the paper's"
    )
    return Table(caption, tuple(columns), tuple(lines))


def _paper_line(row: PaperRow) -> tuple[Cell, ...]:
    setup, values = setup_of(row.published), row.published.values
    cells = [Cell(setup.label, colour=setup.colour), Cell("paper"), Cell()]
    for key in _SHOWN:
        # The paper prints whole seconds.
        digits = 0 if "seconds" in key else METRICS[key].decimals
        cells.append(Cell(number(values.get(key), digits)))
        if key == "memory_gib":
            cells.append(Cell(BRIEF_KINDS[ALLOCATOR_PEAK]))
    cells += [Cell(_times(saving(row, of, "paper"), 1)) for of, _ in _SAVINGS]
    return (*cells, Cell(), Cell(PUBLISHED_MACHINE), Cell())


def _own_line(row: PaperRow, seconds: int) -> tuple[Cell, ...]:
    """seconds: decimals of times."""
    setup, ours = setup_of(row.published), row.ours
    cells = [Cell(setup.label, colour=setup.colour)]
    cells += [Cell(ours.backend), Cell(ours.execution)] if ours else [Cell("not run"), Cell()]
    for key in _SHOWN:
        cells.append(_own_cell(row, key, seconds if "seconds" in key else METRICS[key].decimals))
        if key == "memory_gib":
            cells.append(Cell(BRIEF_KINDS.get(ours.memory_kind if ours else None, GAP)))
    cells += [Cell(_times(saving(row, of, "ours"), 1)) for of, _ in _SAVINGS]
    if ours is None:
        return (*cells, Cell("0"), Cell(), Cell())
    marks = "; ".join(ours.marks)
    return (*cells, Cell(str(ours.n)), Cell(ours.machine or GAP), Cell(marks or GAP))


def _own_cell(row: PaperRow, key: str, digits: int) -> Cell:
    value = row.ours.value(key) if row.ours else None
    if value is None or row.ours is None:
        return Cell()
    spread, compared = row.ours.spread(key), row.compared(key)
    against = ""
    if compared is not None:
        # z: no negative zero.
        against = _times(compared, 2) if key in _RATIOS else f"{compared:+z.{digits}f}"
    return Cell(
        text=number(value, digits),
        spread="" if spread is None else f"±{number(spread, digits)}",
        against=against,
    )


def _times(ratio: float | None, digits: int) -> str:
    return GAP if ratio is None else f"{ratio:,.{digits}f} x"


def paper_note(dataset: str, features: str) -> str:
    """What the memory columns divide by, from the published figures and the data set's sizes."""
    weights = dense_gib(dataset, features)
    published = _published_dense(dataset, features)
    return (
        f"The published dense layer took {published:.2f} GiB, {published / weights:.1f} x the "
        f"{weights:.2f} GiB of its weights ({FEATURES[features]:,} inputs x "
        f"{PUBLISHED[dataset].labels:,} labels x {_WEIGHT_BYTES} bytes): weights, gradient, two "
        "moments and temporaries. A dense layer with a fused Adam does without the temporaries and "
        f"needs {FUSED_ADAM} x, {FUSED_ADAM * weights:.2f} GiB; the saving is stated against both. "
        "The paper's memory is the peak of TensorFlow's GPU allocator; a resident set (RSS) is "
        "another measure, so read a ratio of the two as a rough guide. Time per epoch includes "
        "validation in both; training alone was not published. Only runs of the published "
        "hyper-parameters count, in protocol “paper”."
    )


def paper_frame(rows: Iterable[PaperRow]) -> pd.DataFrame:
    """Published rows beside ours as a pandas table, one line per backend, execution and machine.

    Columns: dataset, features, setup, connectivity, intermediate, backend, execution, n, machine,
    memory_kind, marks; per published figure `<metric>_paper`, `_ours`, `_std` and `_difference`
    (ours minus the paper's) or for memory and time `_ratio` (ours / the paper's);
    `train_seconds_per_epoch_ours` (the paper has none); and `saving_published_dense_<whose>` and
    `saving_fused_dense_<whose>`, how many times less memory than the published dense layer and than
    4 x a dense layer's weights. What was not measured or not run is missing (NaN), n is then 0.
    """
    records = [_record(row) for row in rows]
    frame = pd.DataFrame.from_records(records)
    for column in frame.columns:
        if column.endswith(_NUMBERS):
            frame[column] = frame[column].astype("float64")
    return frame


_NUMBERS = ("_paper", "_ours", "_std", "_difference", "_ratio")


def _record(row: PaperRow) -> dict[str, object]:
    setup, task, ours = setup_of(row.published), row.published.task, row.ours
    record: dict[str, object] = {
        "dataset": task.dataset,
        "features": task.features,
        "setup": setup.kind,
        "connectivity": setup.connectivity,
        "intermediate": intermediate_label(setup.intermediate) if setup.intermediate else None,
        "backend": ours.backend if ours else None,
        "execution": ours.execution if ours else None,
        "n": ours.n if ours else 0,
        "machine": ours.machine if ours else None,
        "memory_kind": ours.memory_kind if ours else None,
        "marks": "; ".join(ours.marks) or None if ours else None,
    }
    for key in _COLUMNS:
        record[f"{key}_paper"] = row.published.values[key]
        record[f"{key}_ours"] = ours.value(key) if ours else None
        record[f"{key}_std"] = ours.spread(key) if ours else None
        record[f"{key}_{'ratio' if key in _RATIOS else 'difference'}"] = row.compared(key)
    training = "train_seconds_per_epoch"
    record[f"{training}_ours"] = ours.value(training) if ours else None
    for of, _ in _SAVINGS:
        for whose in ("paper", "ours"):
            record[f"saving_{of}_dense_{whose}"] = saving(row, of, whose)
    return record
