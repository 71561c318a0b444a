"""One framework per process, for tests as for runs.

A test that needs a framework in its own process carries the marker `torch` or `tensorflow`; with
`@pytest.mark.parametrize("backend", EACH_BACKEND)` (`support/frameworks.py`) each case has its own.
`--framework torch|tensorflow|none` keeps the tests with that marker (`none`: those without one). A
test fails when it has loaded a framework that its process is not meant for. Without the option,
pytest runs itself three times, one framework after the other, and ends with the sum of all three.
Where no files are named, each divides its tests among up to four workers (pytest-xdist); `-n 0` has
none.

Tests with the marker `slurm` are left out where Slurm is not installed.

A test module that imports a framework at its top says so by `pytestmark = pytest.mark.torch`, or
`pytestmark = [pytest.mark.torch, ...]`. The other processes must not import it, so that assignment
is read from its text. Nor does the process of a framework import a module where neither its text
nor that of the conftest.py beside it names the marker or `EACH_BACKEND`: most have no test for it.
"""

from __future__ import annotations

import argparse
import ast
import functools
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import pytest
from frameworks import FRAMEWORKS

# As in fanin's runs, see `parent.child_environment`: it must be set before anything loads OpenMP.
os.environ.setdefault("GOMP_SPINCOUNT", "5000")

PROCESSES = ("none", *FRAMEWORKS)
MARKER = re.compile(rf"\bpytest\.mark\.({'|'.join(FRAMEWORKS)})\b")
LOADED = pytest.StashKey[frozenset[str]]()
OUTCOMES = ("passed", "failed", "error", "skipped", "xfailed", "xpassed")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--framework",
        choices=PROCESSES,
        help="run only the tests with this marker, in this process (default: all, in three)",
    )
    parser.addoption("--outcomes-file", type=Path, help=argparse.SUPPRESS)


def module_framework(path: Path) -> str | None:
    """The framework that a whole test module needs, read from its text."""
    if path.suffix != ".py" or not path.is_file():
        return None
    try:
        statements = ast.parse(path.read_text(encoding="utf-8")).body
    except SyntaxError:
        return None  # pytest names it better when it imports the module
    marks = [
        ast.unparse(statement)
        for statement in statements
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets) == "pytestmark"
    ]
    marker = MARKER.search("".join(marks))
    return marker[1] if marker else None


@functools.cache
def may_need(path: Path, framework: str) -> bool:
    """Whether a test module may have tests for the framework, by its text and its conftest.py's."""
    named = re.compile(rf"\bpytest\.mark\.{framework}\b|\bEACH_BACKEND\b")
    files = {path, path.with_name("conftest.py")} - {Path(__file__)}
    return any(named.search(file.read_text(encoding="utf-8")) for file in files if file.is_file())


# Without the option: a process for each framework.


def pytest_cmdline_main(config: pytest.Config) -> int | None:
    if config.option.framework or config.option.help or config.option.version:
        return None
    started = time.monotonic()
    outcomes: Counter[str] = Counter()
    codes = []
    with tempfile.TemporaryDirectory() as folder:
        for framework in PROCESSES:
            arguments = arguments_for(framework, config)
            if arguments is None:
                continue
            print(f"\n--- framework in the process of the tests: {framework} ---", flush=True)
            file = Path(folder) / f"{framework}.json"
            options = ("--framework", framework, "--outcomes-file", str(file), *workers(config))
            command = (sys.executable, "-P", "-m", "pytest", *arguments, *options)
            try:
                # Workers are started without -P. The root must not be on their path either.
                environment = {**os.environ, "PYTHONSAFEPATH": "1"}
                done = subprocess.run(command, cwd=config.invocation_params.dir, env=environment)
            except KeyboardInterrupt:
                codes.append(pytest.ExitCode.INTERRUPTED)
                break
            codes.append(done.returncode)
            # A process that crashed has written no file.
            outcomes.update(json.loads(file.read_text()) if file.exists() else {"error": 1})
            failed = codes[-1] not in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED)
            if failed and (config.option.maxfail or codes[-1] == pytest.ExitCode.USAGE_ERROR):
                break
    if not config.option.collectonly:
        numbers = [f"{outcomes[name]} {name}" for name in OUTCOMES[:2]]
        numbers += [f"{outcomes[name]} {name}" for name in OUTCOMES[2:] if outcomes[name]]
        print(f"\n{', '.join(numbers)} in {time.monotonic() - started:.2f}s", flush=True)
    return exit_code(codes)


def arguments_for(framework: str, config: pytest.Config) -> list[str] | None:
    """pytest's arguments without the files of other frameworks; None when only those are named."""
    of_others = {
        argument
        for argument in config.args
        if module_framework(config.invocation_params.dir / argument.partition("::")[0])
        not in (None, framework)
    }
    if of_others.issuperset(config.args):
        return None
    return [str(each) for each in config.invocation_params.args if each not in of_others]


def workers(config: pytest.Config) -> tuple[str, ...]:
    """The options for as many workers as there are cores, at most four: each takes a gigabyte or
    two. None where the caller chose, named the files, or wants to see or stop a test as it runs."""
    alone = config.option.usepdb or config.option.capture == "no" or config.option.collectonly
    named = config.args_source is pytest.Config.ArgsSource.ARGS
    # Without pytest-xdist the option does not exist.
    if alone or named or getattr(config.option, "numprocesses", 0) is not None:
        return ()
    # Stealing keeps most tests of a file, and what they share, in one worker.
    return ("--numprocesses", str(min(4, len(os.sched_getaffinity(0)))), "--dist", "worksteal")


def exit_code(codes: list[int]) -> int:
    """pytest's own codes: that no test was collected counts only where it holds everywhere."""
    codes = [code for code in codes if code != pytest.ExitCode.NO_TESTS_COLLECTED] or codes
    return next((code for code in codes if code), 0)


# With the option: the tests of one framework.


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    wanted = config.option.framework
    if module_framework(collection_path) not in (None, wanted):
        return True
    is_module = collection_path.match("test_*.py") and wanted in FRAMEWORKS
    return (is_module and not may_need(collection_path, wanted)) or None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    kept, others = [], []
    if any(item.get_closest_marker("slurm") for item in items):
        from slurm import is_installed

        if not is_installed():
            others = [item for item in items if item.get_closest_marker("slurm")]
            items[:] = [item for item in items if item not in others]
    for item in items:
        needed = [name for name in FRAMEWORKS if item.get_closest_marker(name)] or ["none"]
        (kept if needed == [config.option.framework] else others).append(item)
        if len(needed) > 1:
            raise pytest.UsageError(f"{item.nodeid} needs two frameworks in one process")
        if needed != ["none"] and not may_need(item.path, needed[0]):
            raise pytest.UsageError(
                f"{item.nodeid} would not be found by {needed[0]}'s process: write "
                f"`pytest.mark.{needed[0]}` or `EACH_BACKEND` in its module"
            )
    items[:] = kept
    config.hook.pytest_deselected(items=others)


def newly_loaded(config: pytest.Config) -> str:
    """Frameworks that this process is not meant for and has loaded since the last call."""
    loaded = {
        name
        for name, modules in FRAMEWORKS.items()
        if name != config.option.framework and modules & sys.modules.keys()
    }
    before = config.stash.get(LOADED, frozenset())
    config.stash[LOADED] = frozenset(loaded)
    return " and ".join(sorted(loaded - before))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector):
    report = yield
    if loaded := newly_loaded(collector.config):
        report.outcome = "failed"
        report.longrepr = (
            f"it loads {loaded} in the process for {collector.config.option.framework}: write "
            f"`pytestmark = pytest.mark.{loaded}` at its top, or import {loaded} within the tests"
        )
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item):
    yield
    if loaded := newly_loaded(item.config):
        pytest.fail(
            f"it loads {loaded} in the process for {item.config.option.framework}: "
            f"mark it with `pytest.mark.{loaded}`",
            pytrace=False,
        )


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Tell the process that began this one how the tests went."""
    file = terminalreporter.config.option.outcomes_file
    if file is not None:
        stats = terminalreporter.stats
        file.write_text(json.dumps({name: len(stats.get(name, ())) for name in OUTCOMES}))
