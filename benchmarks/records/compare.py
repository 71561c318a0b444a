"""The result file of a comparison: both backends in lockstep, compared after every step."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import Field

from fanin.benchmarks.records.base import (
    SCHEMA_VERSION,
    DatasetInfo,
    Machine,
    Memory,
    Precision,
    Record,
)
from fanin.benchmarks.records.task import Task


class Difference(Record):
    """Largest |a - b| over an array, and the same divided by the largest |a|."""

    absolute: float
    relative: float


class LockstepStep(Record):
    step: int = Field(description="counted from 1")
    losses: dict[str, float] = Field(description="backend -> loss of this step")
    loss: Difference
    arrays: dict[str, Difference] = Field(description="array name -> difference after this step")
    excused: int = Field(
        description="rewired connections so far on which the backends decided differently because "
        "|weight| lay within rounding of the threshold; the second follows the first there"
    )
    kinks: int = Field(
        description="intermediate units so far for which the backends disagreed whether ReLU is "
        "active, the input to it being within rounding of 0; the second takes them over from the "
        "first"
    )


class LockstepSide(Record):
    """One backend's half of a lockstep comparison."""

    machine: Machine
    test: Precision = Field(description="P@k after the last step")
    median_step_seconds: float
    memory: Memory


class LockstepResult(Record):
    """Both backends trained on the same batches from the same weights, compared at every step."""

    schema_version: Literal[1] = SCHEMA_VERSION
    task: Task
    dataset: DatasetInfo
    started: datetime
    finished: datetime
    loss_tolerance: float = Field(description="relative")
    weight_tolerance: float = Field(description="relative")
    agreed: bool
    steps: list[LockstepStep]
    sides: dict[str, LockstepSide]
