"""What a number or a date of a file may be: the ranges of the fields of result and task files.

The bounds are wide: whatever a run can measure lies within them, and what a report computes from it
is finite, and a date that exists. Pydantic's message names the field and the bound.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

from pydantic import AwareDatetime, Field

# Larger whole numbers are not exact in float64, nor in some readers of JSON.
MOST = 2**53

Count = Annotated[int, Field(ge=0, le=MOST)]
# A count of what there is at least one of.
Size = Annotated[int, Field(ge=1, le=MOST)]
# Rounding may bring a computed one above 1.
Fraction = Annotated[float, Field(ge=0, le=1 + 1e-9)]
# From a nanosecond to more than thirty years.
Seconds = Annotated[float, Field(ge=1e-9, le=1e9)]
# How often something happens, on average.
Rate = Annotated[float, Field(ge=0, le=1e15)]
# Losses and differences are float32 numbers, or sums of them.
Magnitude = Annotated[float, Field(ge=0, le=1e40)]
# Of a task, and so of each epoch. Losses are means over the labels: without Adam, which divides a
# gradient by its size, a rate has to be of the order of their number.
LearningRate = Annotated[float, Field(gt=0, le=1e9)]
# Weight decay, which a learning rate multiplies, and L2.
Decay = Annotated[float, Field(ge=0, le=1000)]
# A clock that was never set says 1970.
Moment = Annotated[
    AwareDatetime,
    Field(ge=datetime(1970, 1, 1, tzinfo=UTC), lt=datetime(3000, 1, 1, tzinfo=UTC)),
]
