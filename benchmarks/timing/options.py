"""The options that commands of `timing` share. `one_of`, an option that takes one of some names, is
also for `cli` above it."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Any

import typer

USUAL_INPUTS = (768, 32_768)
SeveralInputs = Annotated[
    list[int] | None,
    typer.Option(
        min=1,
        help=f"Inputs of the layer; repeatable; default {' and '.join(map(str, USUAL_INPUTS))}.",
    ),
]
# Of labels, inputs, connections and the like.
SizeOption = Annotated[int, typer.Option(min=1)]
Rounds = Annotated[int, typer.Option(min=1, help="Rounds.")]
ResultFile = Annotated[Path | None, typer.Option("--json", help="Write machine and seconds here.")]


def one_of(names: Collection[str], help: str) -> Any:
    """An option that takes one of these names; or, of a list, each of them."""

    def known(value: Any) -> Any:
        for one in value if isinstance(value, list | tuple) else (value,):
            if one is not None and one not in names:
                raise typer.BadParameter(f"unknown {one!r}; there are {', '.join(names)}")
        return value

    return typer.Option(help=help, metavar="|".join(names), callback=known)
