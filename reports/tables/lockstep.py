"""Both backends step by step: the largest differences between them, and what each reached."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from fanin.benchmarks.records.compare import LockstepResult, LockstepSide
from fanin.reports.format import GAP, aligned_scientific, memory_scale, number, scientific
from fanin.reports.memory import counted_gib, memory_gib, memory_kind
from fanin.reports.metrics import METRICS
from fanin.reports.setups import Setup, backend_order, shared_departures, with_departures
from fanin.reports.table import Cell, Column, Table, make_table, text_column
from fanin.reports.tables.cells import BACKEND, SETUP, setup_cell

Kind = Literal["relative", "absolute"]


@dataclass(frozen=True)
class Comparison:
    """A comparison step by step, the setup that it is of, and what the tables show of it."""

    setup: Setup
    result: LockstepResult

    def largest_loss(self, kind: Kind) -> float | None:
        """Largest difference of the loss over all steps; None without steps."""
        return max((getattr(step.loss, kind) for step in self.result.steps), default=None)

    def largest_weights(self, kind: Kind) -> float | None:
        """Largest difference of any array over all steps."""
        differences = (diff for step in self.result.steps for diff in step.arrays.values())
        return max((getattr(diff, kind) for diff in differences), default=None)

    @property
    def most_different_array(self) -> str:
        differences = (
            (diff.relative, name)
            for step in self.result.steps
            for name, diff in step.arrays.items()
        )
        return max(differences, default=(0.0, GAP))[1]

    @property
    def excused_rewires(self) -> int | None:
        # The counts run over the steps, so the last step has all of them.
        return self.result.steps[-1].excused if self.result.steps else None

    @property
    def excused_units(self) -> int | None:
        return self.result.steps[-1].kinks if self.result.steps else None

    @property
    def verdict(self) -> str:
        return "yes" if self.result.agreed else "NO"


def ordered_comparisons(locksteps: Iterable[LockstepResult]) -> list[Comparison]:
    """Step-by-step comparisons with their setups, in the order of the tables."""
    named = [Comparison(Setup.from_task(one.task, one.dataset.inputs), one) for one in locksteps]
    return sorted(named, key=lambda each: each.setup.order)


def lockstep_table(locksteps: Iterable[LockstepResult]) -> Table:
    """Per setup the largest differences between the backends over all steps, and the verdict."""
    ordered = ordered_comparisons(locksteps)
    shared = shared_departures([each.setup for each in ordered])
    return make_table(
        with_departures("Both backends on the same batches, compared at every step", shared),
        [
            (SETUP, lambda each: setup_cell(each.setup.without(shared))),
            (Column("steps"), lambda each: number(len(each.result.steps), 0)),
            (
                Column("loss, largest relative difference"),
                lambda each: scientific(each.largest_loss("relative")),
            ),
            (Column("tolerance"), lambda each: scientific(each.result.loss_tolerance)),
            (
                Column("loss, largest absolute difference"),
                lambda each: scientific(each.largest_loss("absolute")),
            ),
            (
                Column("weights, largest relative difference"),
                lambda each: scientific(each.largest_weights("relative")),
            ),
            (text_column("in array"), lambda each: each.most_different_array),
            (Column("tolerance"), lambda each: scientific(each.result.weight_tolerance)),
            (
                Column("weights, largest absolute difference"),
                lambda each: scientific(each.largest_weights("absolute")),
            ),
            (
                Column(
                    "excused rewires",
                    meaning="connections whose |weight| lay within rounding of the rewiring "
                    "threshold",
                ),
                lambda each: number(each.excused_rewires, 0),
            ),
            (
                Column(
                    "excused units",
                    meaning="intermediate units for which the input to ReLU lay within rounding "
                    "of 0",
                ),
                lambda each: number(each.excused_units, 0),
            ),
            (text_column("agreed"), lambda each: each.verdict),
        ],
        ordered,
    )


def differences_table(locksteps: Iterable[LockstepResult]) -> Table:
    """The same in a few columns for a terminal, in the order in which they were made."""
    return make_table(
        "Largest differences over all steps",
        [
            (SETUP, lambda each: each.setup.without(each.setup.variant).label),
            (Column("steps"), lambda each: str(len(each.result.steps))),
            (
                Column("loss rel."),
                lambda each: aligned_scientific(each.largest_loss("relative")),
            ),
            (
                Column("weights abs."),
                lambda each: aligned_scientific(each.largest_weights("absolute")),
            ),
            (
                Column("weights rel."),
                lambda each: aligned_scientific(each.largest_weights("relative")),
            ),
            (
                Column("excused"),
                lambda each: str((each.excused_rewires or 0) + (each.excused_units or 0)),
            ),
            (Column("agree"), lambda each: each.verdict),
        ],
        [Comparison(Setup.from_task(one.task, None), one) for one in locksteps],
    )


@dataclass(frozen=True)
class _Side:
    """What one backend reached with one setup."""

    setup: Setup
    backend: str
    result: LockstepSide

    @property
    def peak_gib(self) -> float | None:
        return memory_gib(self.result.memory, memory_kind(self.result.machine))


def sides_table(locksteps: Iterable[LockstepResult]) -> Table:
    """What each backend reached and cost in the step-by-step comparison."""
    ordered = ordered_comparisons(locksteps)
    shared = shared_departures([each.setup for each in ordered])
    sides = [
        _Side(each.setup.without(shared), backend, each.result.sides[backend])
        for each in ordered
        for backend in sorted(each.result.sides, key=backend_order)
    ]
    return make_table(
        with_departures("Each backend after these steps", shared), _side_fields(sides), sides
    )


def _side_fields(sides: Sequence[_Side]) -> list[tuple[Column, Callable[[_Side], Cell | str]]]:
    peaks = memory_scale(side.peak_gib for side in sides)
    counted = memory_scale(counted_gib(side.result.memory) for side in sides)
    after = "after the last step"
    return [
        (SETUP, lambda side: setup_cell(side.setup)),
        (BACKEND, lambda side: side.backend),
        (
            Column(METRICS["test_p1"].head(), meaning=after),
            lambda side: number(100 * side.result.test.at_1, 2),
        ),
        (
            Column(METRICS["test_p3"].head(), meaning=after),
            lambda side: number(100 * side.result.test.at_3, 2),
        ),
        (
            Column(METRICS["test_p5"].head(), meaning=after),
            lambda side: number(100 * side.result.test.at_5, 2),
        ),
        (
            Column("median step (ms)"),
            lambda side: number(1000 * side.result.median_step_seconds, 2),
        ),
        (Column(METRICS["memory_gib"].head(peaks.unit)), lambda side: peaks.text(side.peak_gib)),
        (text_column("memory kind"), lambda side: memory_kind(side.result.machine) or GAP),
        (
            Column(METRICS["counted_gib"].head(counted.unit)),
            lambda side: counted.text(counted_gib(side.result.memory)),
        ),
    ]
