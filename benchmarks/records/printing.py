"""Text is printed as text, and printing it does not fail.

Names and messages come from outside: from paths, data files and result files. A control character
in one of them could move the cursor of a terminal, or colour it. Only the standard library is
imported, since every process begins with this file.
"""

from __future__ import annotations

import io
import logging
import os
import re
import sys
from contextlib import suppress

# Control characters except newline and tab; separators of lines; marks that change the direction of
# writing; surrogates, which stand for the bytes of a path that are no text.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    r"""The text, with an escape such as `\x1b` for each character that cannot be seen."""
    return _UNPRINTABLE.sub(lambda match: match[0].encode("unicode_escape").decode("ascii"), text)


def number_of(number: int, what: str) -> str:
    """`1 job`, `2 jobs`."""
    return f"{number:,} {what}{'s' * (number != 1)}"


class _PrintableFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


def prepare_streams() -> None:
    """Make printing safe: a standard stream that is closed takes all text and keeps none, and a
    character that the encoding of a stream lacks is printed as an escape."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        stream = getattr(sys, name)
        if stream is None:
            # It gets the number of the closed stream. Otherwise the next file would get it, and
            # what this process and its children print would go into that file.
            stream = open(os.devnull, mode, encoding="utf-8")  # noqa: SIM115
            os.set_inheritable(stream.fileno(), True)
            setattr(sys, name, stream)
        elif mode == "w" and isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    if logging.lastResort:  # prints warnings where nobody has set up anything else
        logging.lastResort.setFormatter(_PrintableFormatter())


def log(text: str) -> None:
    """Print a line to standard error, which is a child's log. No run fails because of it."""
    with suppress(OSError):
        print(printable(text), file=sys.stderr, flush=True)


def drop_output() -> None:
    """Drop what standard output has not written yet. After an error, Python would try to write it
    once more at its end, and exit with a code of its own."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)
