"""The result file of a comparison: both backends in lockstep, compared after every step."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Self

from pydantic import Field, model_validator

from fanin.backends.registry import BACKENDS
from fanin.benchmarks.records.base import (
    SCHEMA_VERSION,
    DatasetInfo,
    Machine,
    Memory,
    Precision,
    Record,
    SchemaVersion,
)
from fanin.benchmarks.records.ranges import Count, Magnitude, Moment, Seconds, Size
from fanin.benchmarks.records.task import Task

# Relative.
Tolerance = Annotated[float, Field(ge=0, le=1)]


class Difference(Record):
    """Largest |a - b| over an array, and the same divided by the largest |a|."""

    absolute: Magnitude
    relative: Magnitude


class LockstepStep(Record):
    step: Size = Field(description="counted from 1")
    losses: dict[str, Magnitude] = Field(description="backend -> loss of this step")
    loss: Difference
    arrays: dict[str, Difference] = Field(description="array name -> difference after this step")
    excused: Count = Field(
        description="rewired connections so far on which the backends decided differently because "
        "|weight| lay within rounding of the threshold; the second follows the first there"
    )
    kinks: Count = Field(
        description="intermediate units so far for which the backends disagreed whether ReLU is "
        "active, the input to it being within rounding of 0; the second takes them over from the "
        "first"
    )


class LockstepSide(Record):
    """One backend's half of a lockstep comparison."""

    machine: Machine
    test: Precision = Field(description="P@k after the last step")
    median_step_seconds: Seconds
    memory: Memory


class LockstepResult(Record):
    """Both backends trained on the same batches from the same weights, compared at every step."""

    schema_version: SchemaVersion = SCHEMA_VERSION
    task: Task
    dataset: DatasetInfo
    started: Moment
    finished: Moment
    loss_tolerance: Tolerance
    weight_tolerance: Tolerance
    agreed: bool
    steps: list[LockstepStep] = Field(min_length=1)
    sides: dict[str, LockstepSide]

    @model_validator(mode="after")
    def _fits_itself(self) -> Self:
        """What a file says in one place has to fit what it says in another."""
        for complaint in self._complaints():
            raise ValueError(complaint)
        return self

    def _complaints(self) -> Iterator[str]:
        if self.finished < self.started:
            yield f"finished {self.finished} is before started, {self.started}"
        if self.sides.keys() != BACKENDS.keys():
            yield f"sides are {', '.join(self.sides)}, and not {', '.join(BACKENDS)}"
        if [step.step for step in self.steps] != list(range(1, len(self.steps) + 1)):
            yield "steps are not counted from 1"
        for step in self.steps:
            if step.losses.keys() != self.sides.keys():
                yield f"steps.{step.step - 1}.losses has other backends than sides"
            if step.arrays.keys() != self.steps[0].arrays.keys() or not step.arrays:
                yield f"steps.{step.step - 1}.arrays has other names than the first step"
        if self.agreed and not all(map(self.within, self.steps)):
            yield "agreed is true, but a step differs by more than the tolerances"

    def within(self, step: LockstepStep) -> bool:
        """Whether a step differs by no more than the tolerances."""
        arrays = step.arrays.values()
        return step.loss.relative <= self.loss_tolerance and all(
            difference.relative <= self.weight_tolerance for difference in arrays
        )
