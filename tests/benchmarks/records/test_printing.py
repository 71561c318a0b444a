"""Text from outside is printed as what it is, wherever it goes."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from fanin.benchmarks.records.printing import number_of, printable


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain, with\ttab\nand 日本語 — ±", None),
        ("\x1b[31mred\x07", r"\x1b[31mred\x07"),
        ("\r\x00\x7f\x85\x9b", r"\r\x00\x7f\x85\x9b"),
        ("turned \u202e around\u2066\u2028", r"turned \u202e around\u2066\u2028"),
        (os.fsdecode(b"data\xff"), r"data\udcff"),
        ("[red] :smile: <b>", None),
    ],
)
def test_control_characters_are_shown(text, expected):
    assert printable(text) == (text if expected is None else expected)
    assert printable(printable(text)) == printable(text)


def test_one_and_several_are_named_so():
    named = [number_of(number, "job") for number in (0, 1, 2, 1000)]
    assert named == ["0 jobs", "1 job", "2 jobs", "1,000 jobs"]


def prepared(program, **options):
    """A program that begins as fanin's processes do."""
    start = "from fanin.benchmarks.records.printing import *; prepare_streams()\n"
    return subprocess.run(
        [sys.executable, "-P", "-c", start + program],
        check=False,
        stderr=subprocess.PIPE,
        **options,
    )


def test_what_an_encoding_lacks_has_a_substitute():
    env = {**os.environ, "PYTHONIOENCODING": "latin-1"}
    done = prepared("print('\\xb1 \\u2014')", stdout=subprocess.PIPE, env=env)
    assert (done.returncode, done.stdout) == (0, b"\xb1 \\u2014\n"), done.stderr


def test_a_closed_stream_takes_everything_and_nobody_else_gets_it(tmp_path):
    program = f"""
import os, sys
file = open({str(tmp_path / "file")!r}, "w")
print("to nobody")
sys.stdin.read()
os.system("echo from a child")
file.close()
"""
    done = prepared(program, preexec_fn=lambda: (os.close(0), os.close(1)))
    assert (done.returncode, done.stderr) == (0, b"")
    assert (tmp_path / "file").read_text() == ""


def test_warnings_are_printable():
    done = prepared("import logging; logging.getLogger('x').warning('in %s', 'a\\x1b')")
    assert done.stderr == b"in a\\x1b\n"
