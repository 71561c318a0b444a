"""Text that leaves the process is printed as what it is, and printing it does not fail.

Names and messages come from outside: from paths, data files and result files. A control character
in one of them could move the cursor of a terminal, or colour it. Only the standard library is
imported here, since every process begins with this.
"""

from __future__ import annotations

import io
import logging
import os
import re
import sys
from contextlib import suppress

# Control characters but for newline and tab; separators of lines and what turns the direction of
# writing around; bytes of a path that are no text, which Python has as surrogates.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    r"""The text with escapes such as `\x1b` for what is no character that one can see."""
    return _UNPRINTABLE.sub(lambda match: match[0].encode("unicode_escape").decode("ascii"), text)


class _PrintableFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


def prepare_streams() -> None:
    """Let whatever this process prints go through: a standard stream that is closed takes all of
    it, and what the encoding of another lacks is printed as an escape."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        stream = getattr(sys, name)
        if stream is None:
            # Under the number of the closed one, which the next file would have otherwise: what
            # this process and its children print would go there.
            stream = open(os.devnull, mode, encoding="utf-8")  # noqa: SIM115
            os.set_inheritable(stream.fileno(), True)
            setattr(sys, name, stream)
        elif mode == "w" and isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    if logging.lastResort:  # prints warnings where nobody has set up anything else
        logging.lastResort.setFormatter(_PrintableFormatter())


def log(text: str) -> None:
    """Print a line to standard error, of a child its log: an extra, of which no run is to fail."""
    with suppress(OSError):
        print(printable(text), file=sys.stderr, flush=True)


def drop_output() -> None:
    """Let what standard output has yet to write go nowhere: after an error of it, Python would try
    once more at its end, and end with an exit code of its own."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)
