"""The paper beside ours: the published rows, what we have of each, and how the two compare.

Which task a published row is of, and its figures, come from `records.published`. What we have of it
is an `Ours`: `measured` makes them from result files, `profiled` from shape profiles. Only the same
task counts: another dropout, protocol or storage is another experiment. Nothing is put where a
figure of ours is missing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Literal

from fanin.benchmarks.records.base import DatasetInfo
from fanin.benchmarks.records.published import (
    PublishedRow,
    as_published,
    is_published,
    published_rows,
)
from fanin.benchmarks.records.run import RunResult
from fanin.benchmarks.records.statistics import GIB
from fanin.benchmarks.records.task import Task
from fanin.datasets import PUBLISHED
from fanin.datasets.catalogue import FEATURES
from fanin.reports.machines import device_name, hardware
from fanin.reports.memory import memory_kind
from fanin.reports.profiles import EXTRAPOLATED, SYNTHETIC, profile_values, remark
from fanin.reports.setups import Setup, backend_order
from fanin.reports.summary import Figures, average, figures, is_finished

_PRECISIONS = tuple(f"{split}_p{k}" for split in ("train", "test") for k in (1, 3, 5))
# Memory and time are compared as ratios, the others as differences.
RATIOS = ("memory_gib", "seconds_per_epoch")
# The figures that the paper has of each row, as metric keys.
PUBLISHED_FIGURES = (*_PRECISIONS, "memory_gib", "epochs", "seconds_per_epoch")
# What random labels can tell: how often early stopping waits for precision is not among it.
_SYNTHETIC_TELLS = ("memory_gib", "seconds_per_epoch", "train_seconds_per_epoch")

# Two dense layers that memory is compared with: the paper's own, and one with a fused Adam.
DenseLayer = Literal["published", "fused"]
DENSE_LAYERS: tuple[DenseLayer, ...] = ("published", "fused")
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
    values: Figures = field(default_factory=dict)
    spreads: Figures = field(default_factory=dict)
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

    @property
    def setup(self) -> Setup:
        return setup_of(self.published)

    def compared(self, key: str) -> float | None:
        """Ours over the paper's for memory and time, else ours minus the paper's."""
        own = self.ours.value(key) if self.ours and self.ours.comparable else None
        paper = self.published.values.get(key)
        if own is None or paper is None:
            return None
        return own / paper if key in RATIOS else own - paper


def setup_of(row: PublishedRow) -> Setup:
    """The setup of a published row. What the whole table has in common (the dropout of Wiki-500K)
    is no variant here."""
    return replace(Setup.from_task(row.task, FEATURES[row.task.features]), variant=())


def measured(runs: Iterable[RunResult]) -> list[Ours]:
    """What result files have of published rows; runs of other tasks are left out.

    Repeats are averaged where task, backend, execution, machine and sizes of the data agree. A row
    that was tried and only failed has n = 0 and the mark "failed".
    """
    groups: dict[tuple[Task, str, str], list[RunResult]] = defaultdict(list)
    for run in runs:
        if is_published(run.task):
            groups[as_published(run.task), run.backend, run.task.execution].append(run)
    ours = []
    for (task, backend, execution), group in groups.items():
        # The same seed twice is one repeat, however it came about.
        alike: dict[tuple[object, ...], dict[int, RunResult]] = defaultdict(dict)
        for run in filter(is_finished, group):
            place = hardware(run.machine) if run.machine else None
            alike[place, *_marks(task, run.dataset)][run.task.seed + run.repeat] = run
        if not alike:
            ours.append(Ours(task, backend, execution, n=0, marks=("failed",)))
        for by_seed in alike.values():
            repeats = list(by_seed.values())
            values, spreads = average([figures(run) for run in repeats])
            first = repeats[0]
            ours.append(
                Ours(
                    *(task, backend, execution, len(repeats), values, spreads),
                    memory_kind=memory_kind(first.machine),
                    machine=_device(first),
                    marks=_marks(task, first.dataset),
                    comparable=has_published_sizes(task, first.dataset),
                )
            )
    return ours


def profiled(profiles: Iterable[RunResult]) -> list[Ours]:
    """What shape profiles (random data of the real sizes) have of published rows: memory, and
    times extrapolated. One that did not fit or failed has n = 0 and says why."""
    return [
        Ours(
            as_published(run.task),
            run.backend,
            run.task.execution,
            n=int(is_finished(run)),
            values=profile_values(run),
            memory_kind=memory_kind(run.machine),
            machine=_device(run),
            marks=(remark(run),) if run.failure else (SYNTHETIC, EXTRAPOLATED),
        )
        for run in profiles
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


def _device(run: RunResult) -> str | None:
    return device_name(run.machine) if run.machine else None


def paper_rows(dataset: str, features: str, ours: Iterable[Ours]) -> list[PaperRow]:
    """The published rows of a data set, each as often as we have it, once with a gap if never."""
    by_task: dict[Task, list[Ours]] = defaultdict(list)
    for one in ours:
        by_task[one.task].append(one)
    rows = []
    for published in published_rows(dataset, features):
        several: list[Ours | None] = [*sorted(by_task[published.task], key=_order)]
        rows += [PaperRow(published, one) for one in several or [None]]
    return rows


def _order(ours: Ours) -> tuple[object, ...]:
    return (*backend_order(ours.backend), ours.execution, ours.machine or "", ours.marks)


def saving(row: PaperRow, dense: DenseLayer, whose: Literal["paper", "ours"]) -> float | None:
    """How many times less memory than a dense layer. whose: which memory is compared with it."""
    task = row.published.task
    memory = row.published.values["memory_gib"]
    if whose == "ours":
        own = row.ours.value("memory_gib") if row.ours and row.ours.comparable else None
        if not own or own <= 0:
            return None
        memory = own
    if dense == "fused":
        return fused_dense_gib(task.dataset, task.features) / memory
    return published_dense_gib(task.dataset, task.features) / memory


def published_dense_gib(dataset: str, features: str) -> float:
    """What the paper's own dense layer took."""
    rows = published_rows(dataset, features)
    return next(row.values["memory_gib"] for row in rows if setup_of(row).kind == "Dense")


def dense_weights_gib(dataset: str, features: str) -> float:
    """GiB of a dense layer's weights: inputs x labels x 4 bytes."""
    return FEATURES[features] * PUBLISHED[dataset].labels * _WEIGHT_BYTES / GIB


def fused_dense_gib(dataset: str, features: str) -> float:
    """What a dense layer with a fused Adam has to hold."""
    return FUSED_ADAM * dense_weights_gib(dataset, features)


def paper_note(dataset: str, features: str) -> str:
    """What the memory columns divide by, from the published figures and the data set's sizes."""
    published = published_dense_gib(dataset, features)
    weights = dense_weights_gib(dataset, features)
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
