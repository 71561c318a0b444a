"""Where the commands write: a console for people, JSON for programs, one line for an error.

All that is printed comes through here: a name or a message from outside is printed as plain text.
"""

from __future__ import annotations

import errno
import json
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import typer
from rich.console import Console
from rich.table import Table

from fanin.benchmarks.cli.codes import FAILED, USAGE
from fanin.benchmarks.records.printing import drop_output, printable
from fanin.datasets.file_errors import naming

# Errors of the machine, where nothing is wrong with the command line: a disk or a quota is full, a
# disk is broken, or no memory, descriptor or process is left.
_OF_MACHINE = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO),
    *(errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.EAGAIN),
)


def make_console(as_json: bool = False) -> Console:
    """Where people read; standard output is left to JSON when a program reads. A log has no width
    of its own, and rich's guess is too narrow for the tables."""
    stream = sys.stderr if as_json else sys.stdout
    return Console(
        stderr=as_json,
        width=None if stream.isatty() else 110,
        # Otherwise rich changes what stands in brackets or between colons, and colours numbers.
        markup=False,
        emoji=False,
        highlight=False,
    )


def print_text(console: Console, text: str, style: str = "") -> None:
    """Print a table or a line as it is, however wide."""
    with _printing():
        console.print(printable(text), style=style, soft_wrap=True)


def print_facts(console: Console, facts: dict[str, str]) -> None:
    """Print names and what each of them is, wrapped to the width of the terminal."""
    table = Table(show_header=False, box=None)
    for name, value in facts.items():
        table.add_row(name, printable(value))
    with _printing():
        console.print(table)


def print_json(value: Any) -> None:
    with _printing():
        print(json.dumps(value, indent=1, allow_nan=False), flush=True)


def print_lines(lines: Iterable[str]) -> None:
    """Print lines of a stream, and hand them on at once."""
    with _printing():
        for line in lines:
            print(line)
        sys.stdout.flush()


def print_report(console: Console, page: Path) -> None:
    """Say where the report is."""
    print_text(console, f"The report: {page.resolve()}")


@contextmanager
def _printing() -> Iterator[None]:
    try:
        with naming("standard output"):
            yield
    except OSError:
        drop_output()
        raise


def stop(message: str, code: int = USAGE) -> NoReturn:
    """End the command with one line that says what is wrong."""
    typer.echo(printable(f"fanin: {message}"), err=True)
    raise typer.Exit(code)


def stop_for(error: OSError) -> NoReturn:
    """End the command with what the system says, and about which file."""
    text = f"{error.filename}: {error.strerror}" if error.filename else str(error)
    stop(text, FAILED if error.errno in _OF_MACHINE else USAGE)
