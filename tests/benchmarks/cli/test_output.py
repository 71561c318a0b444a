"""What commands print: names from outside as they are, on whatever standard output there is."""

from __future__ import annotations

import errno
import importlib.util
import io
import json
import os
import sys

import pytest
from fakes import command, in_process, make_task
from rich.console import Console

from fanin.backends.registry import BACKENDS
from fanin.benchmarks.cli import report as report_command
from fanin.benchmarks.cli.output import make_console, print_text
from fanin.benchmarks.cli.progress import Terminal
from fanin.benchmarks.harness.request import Options, Request, begun, failed
from fanin.benchmarks.records.store import write_result

HOSTILE = "out[lr=0.1] [/final] :smile: 12 'a' \x1b[31m"
SHOWN = r"out[lr=0.1] [/final] :smile: 12 'a' \x1b[31m"


@pytest.fixture
def results(tmp_path):
    """A results folder with a hostile name and one run that failed."""
    folder = tmp_path / HOSTILE.replace("/", "") / "x[" / "final]"
    options = Options(results=folder)
    request = Request(task=make_task(), backend="torch", repeat=0, options=options)
    write_result(request.path, failed(begun(request), "ValueError", "so it is", ""))
    return folder


def shown(folder):
    return str(folder).replace("\x1b", r"\x1b")


class TestNames:
    def test_the_page_is_named_as_it_is(self, results):
        done = in_process("report", "--results", results)
        assert done.exit_code == 0, done.output
        assert done.stdout == f"The report: {shown(results)}/report/index.html\n"
        answer = json.loads(in_process("report", "--results", results, "--json").stdout)
        assert answer == {"report": f"{results}/report/index.html"}

    def test_an_error_names_a_path_as_it_is(self, tmp_path):
        done = in_process("report", "--results", tmp_path / "[red]\x1bx")
        assert done.exit_code == 2
        assert done.output.startswith(rf"fanin: {tmp_path}/[red]\x1bx: no results")

    def test_install_hints_are_whole(self, monkeypatch):
        find_spec = importlib.util.find_spec
        monkeypatch.setattr(
            importlib.util, "find_spec", lambda name: None if name in BACKENDS else find_spec(name)
        )
        lines = in_process("info").stdout.splitlines()
        for name, backend in BACKENDS.items():
            (line,) = (line for line in lines if f"backend {name} " in line)
            assert line.rstrip().endswith(f"missing: {backend.install}")
            assert "fanin[" in line

    def test_a_line_beside_a_bar_is_no_markup(self):
        console = make_console()
        console.file = io.StringIO()
        terminal = Terminal(console)
        display = terminal.line()
        request = Request(task=make_task(), backend="[b]", repeat=0, options=Options())
        display.begin(request, 1, 2)
        display.event({"event": "phase", "name": "[/b]"})
        display.event({"event": "note", "text": HOSTILE})
        console.print(terminal.bars.get_renderable())
        note, bar = console.file.getvalue().splitlines()
        assert note == f"[1/2] d dense [b]: {SHOWN}"
        assert bar.startswith("[1/2] d dense [b]") and "[/b]" in bar


class TestStandardOutput:
    """Processes of their own, since it is the system's."""

    @pytest.mark.slow
    @pytest.mark.parametrize("encoding", ["latin-1", "ascii:strict"])
    def test_an_encoding_that_lacks_something(self, results, encoding):
        moved = results.rename(results.parent / "\u2014")
        env = {**os.environ, "PYTHONIOENCODING": encoding}
        done = command("report", "--results", moved, env=env)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout == f"The report: {shown(results.parent)}/\\u2014/report/index.html\n"

    @pytest.mark.slow
    @pytest.mark.parametrize("name", ["info", "info --json", "--help", "info --help"])
    def test_a_full_disk_is_named_with_code_1(self, name):
        with open("/dev/full", "w") as full:
            done = command(*name.split(), capture_output=False, stdout=full, stderr=-1)
        assert done.returncode == 1
        assert done.stderr == "fanin: standard output: No space left on device\n"

    @pytest.mark.slow
    def test_one_that_is_closed(self, results):
        closed = {"preexec_fn": lambda: os.close(1)}
        for given in (("info",), ("info", "--json"), ("report", "--results", results)):
            done = command(*given, capture_output=False, stderr=-1, **closed)
            assert (done.returncode, done.stderr) == (0, "")
        assert (results / "report" / "index.html").is_file()


@pytest.mark.parametrize(
    ("number", "code"),
    [
        *((errno.ENOSPC, 1), (errno.EDQUOT, 1), (errno.EIO, 1)),
        *((errno.EACCES, 2), (errno.ENAMETOOLONG, 2)),
    ],
)
def test_errors_of_the_system_have_a_file_and_a_code(monkeypatch, number, code):
    def write_report(*_):
        raise OSError(number, os.strerror(number), "some/file")

    monkeypatch.setattr(report_command, "write_report", write_report)
    done = in_process("report")
    assert done.exit_code == code
    assert done.output == f"fanin: some/file: {os.strerror(number)}\n"


def test_a_console_whose_disk_is_full_says_that_it_is_the_output(monkeypatch):
    class Full(io.StringIO):
        def write(self, _):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("fanin.benchmarks.cli.output.drop_output", lambda: None)
    console, ended = Console(file=Full()), []
    with pytest.raises(OSError, match="No space left on device: 'standard output'"):
        print_text(console, "a")
    # Runs go on to their end, and the command says it then.
    full = pytest.raises(OSError, match="No space left on device: 'standard output'")
    with full, Terminal(console) as terminal:
        display = terminal.line()
        request = Request(task=make_task(), backend="torch", repeat=0, options=Options())
        display.begin(request, 1, 1)
        display.event({"event": "note", "text": "a"})
        display.end(failed(begun(request), "ValueError", "so it is", ""), skipped=False)
        ended.append(True)
    assert ended


@pytest.mark.parametrize("option", ["--data-dir", "--results"])
def test_a_path_that_is_no_text(tmp_path, option):
    folder = tmp_path / os.fsdecode(b"data\xff")
    folder.mkdir()
    done = in_process("reproduce", option, folder)
    assert done.exit_code == 2
    encoding = sys.getfilesystemencoding()
    assert done.output == (
        f"fanin: {option} {tmp_path}/data\\udcff is no {encoding} text: rename the folder, or link "
        "to it\n"
    )


@pytest.mark.parametrize(
    ("option", "name"),
    [("--dataset", "my data"), ("--dataset", "a/b"), ("--features", "x\x1b"), ("--dataset", ".x")],
)
@pytest.mark.parametrize("command_name", ["reproduce", "compare", "plan"])
def test_a_name_is_answered_about_the_name(tmp_path, command_name, option, name):
    (tmp_path / "my data").mkdir()
    done = in_process(command_name, "--data-dir", tmp_path, "--dataset", "d", option, name)
    assert done.exit_code == 2
    assert done.output.startswith(f"fanin: {option} {name!r}: a name has 1 to 200 of the letters")


def test_features_that_were_not_named_are_answered_too(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "train-my features.npy").touch()
    done = in_process("plan", "--data-dir", tmp_path, "--dataset", "mine")
    assert done.exit_code == 2
    assert done.output.startswith("fanin: features 'my features': a name has 1 to 200")


@pytest.mark.parametrize("command_name", ["reproduce", "compare", "plan"])
def test_a_setting_has_the_bound_of_its_option(command_name):
    done = in_process(command_name, env={"OMP_NUM_THREADS": "20000"})
    assert done.exit_code == 2
    assert done.output.startswith("fanin: OMP_NUM_THREADS=20000: at most 1024 threads")
    done = in_process(command_name, "--threads", "20000")
    assert done.exit_code == 2
