"""Where the commands write: a console for people, JSON for programs, one line for an error."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, NoReturn

import typer
from rich.console import Console

from fanin.benchmarks.cli.codes import USAGE


def make_console(as_json: bool = False) -> Console:
    """Where people read; standard output is left to JSON when a program reads. A log has no width
    of its own, and rich's guess is too narrow for the tables."""
    stream = sys.stderr if as_json else sys.stdout
    return Console(stderr=as_json, width=None if stream.isatty() else 110)


def print_text(console: Console, text: str) -> None:
    """Print a table or a line as it is, however wide."""
    console.print(text, soft_wrap=True, highlight=False, markup=False)


def print_json(value: Any) -> None:
    print(json.dumps(value, indent=1, allow_nan=False))


def print_report(console: Console, page: Path) -> None:
    """Say where the report is."""
    console.print(f"\nThe report: {page.resolve()}", soft_wrap=True, highlight=False)


def stop(message: str) -> NoReturn:
    """End the command with one line that says what is wrong."""
    typer.echo(f"fanin: {message}", err=True)
    raise typer.Exit(USAGE)
