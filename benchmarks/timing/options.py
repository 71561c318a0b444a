"""An option that takes one of some names: for the commands of `timing`, and for `cli` above it."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import typer


def one_of(names: Collection[str], help: str) -> Any:
    """An option that takes one of these names; or, of a list, each of them."""

    def known(value: Any) -> Any:
        for one in value if isinstance(value, list | tuple) else (value,):
            if one is not None and one not in names:
                raise typer.BadParameter(f"unknown {one!r}; there are {', '.join(names)}")
        return value

    return typer.Option(help=help, metavar="|".join(names), callback=known)
