"""What a number or a date of a file may be: the ranges of the fields of result and task files.

A bound is wide: whatever a run can measure lies within, and nothing that a report computes with it
is infinite, or no date. Pydantic's message names the field and the bound.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

from pydantic import AwareDatetime, Field

# Whole numbers above it are not exact everywhere: in float64, and in other readers of JSON.
MOST = 2**53

Count = Annotated[int, Field(ge=0, le=MOST)]
# Of what has to be there.
Size = Annotated[int, Field(ge=1, le=MOST)]
# A computed one may be above 1 by rounding.
Fraction = Annotated[float, Field(ge=0, le=1 + 1e-9)]
# From what a clock can tell to more than thirty years.
Seconds = Annotated[float, Field(ge=1e-9, le=1e9)]
# How often something happens, on average.
Rate = Annotated[float, Field(ge=0, le=1e15)]
# Losses and differences are float32 numbers, or sums of them.
Magnitude = Annotated[float, Field(ge=0, le=1e40)]
# Of a task, and so of each epoch.
LearningRate = Annotated[float, Field(gt=0, le=1000)]
# A clock that was never set says 1970.
Moment = Annotated[
    AwareDatetime,
    Field(ge=datetime(1970, 1, 1, tzinfo=UTC), lt=datetime(3000, 1, 1, tzinfo=UTC)),
]
