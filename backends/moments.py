"""What an optimizer keeps for each weight, and what becomes of it where a connection moves.

A moment tells of the connection's old input, so it starts again. An average of weights, which some
optimizers put in the weights' place, takes the weight that the connection has now. Only the
optimizer's definition says which array is which. So each framework has a table of its own
optimizers (`optimizers.py`), and an optimizer that is not in the table is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# What an array starts with: a number, or the name of the optimizer's option that tells it; WEIGHT
# for an average of weights; None for what is not kept for each weight and stays as it is.
Start = float | str | None
WEIGHT = "weight"

# Arrays shaped as the weights, each with the number that it starts with; None for the weight.
Resets = list[tuple[Any, float | None]]


def starts_of(
    optimizer: object, package: str, table: Mapping[str, Mapping[str, Start]]
) -> Mapping[str, Start]:
    """What the table says of this optimizer. package: the name of the framework, so that others of
    the same name are told apart. ValueError for an optimizer that is not in the table."""
    for kind in type(optimizer).__mro__:
        if kind.__name__ in table and kind.__module__.split(".")[0] == package:
            return table[kind.__name__]
    raise ValueError(
        f"rewiring knows nothing of what {type(optimizer).__name__} keeps for each weight, only of "
        f"{package}'s own {', '.join(table)}; hand over one of these or none, and then what "
        f"{type(optimizer).__name__} keeps of moved connections stays as it is"
    )


def start_of(optimizer: object, starts: Mapping[str, Start], name: str) -> Start:
    """What an array of that name starts with. ValueError for one that the table does not have, as
    a class of the user's own may add."""
    if name not in starts:
        raise ValueError(
            f"rewiring knows nothing of {name!r}, which this {type(optimizer).__name__} keeps for "
            f"each weight beside {', '.join(starts)}; hand over none"
        )
    return starts[name]


def reset_of(
    array: Any, start: float | str, options: Mapping[str, Any]
) -> tuple[Any, float | None]:
    """The entry of `Resets` for an array with this start. options: the optimizer's, by name."""
    if start == WEIGHT:
        return array, None
    return array, float(options[start] if isinstance(start, str) else start)
