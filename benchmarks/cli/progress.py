"""Shows runs while they go on: live bars on a terminal, a line per epoch elsewhere."""

from __future__ import annotations

import statistics
import time
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from fanin.benchmarks.cli.output import print_text
from fanin.benchmarks.harness.request import Request
from fanin.benchmarks.records.run import RunResult


class Line:
    """A `parent.Display` of one run at a time, with one bar of a terminal that may have more."""

    def __init__(self, terminal: Terminal) -> None:
        self._terminal = terminal
        self._bar: TaskID | None = None
        self._title = ""
        self._started = 0.0
        self._loss = ""
        self._precision = ""

    def begin(self, request: Request, number: int, count: int) -> None:
        task = request.task
        repeat = f" repeat {request.repeat + 1}/{task.repeat}" if task.repeat > 1 else ""
        self._title = f"[{number}/{count}] {task.title} {request.backend}{repeat}"
        self._started = time.monotonic()
        self._loss = self._precision = ""
        self._remove_bar()
        self._bar = self._terminal.bars.add_task(self._title, total=None, facts="")

    def event(self, event: dict[str, Any]) -> None:
        match event["event"]:
            case "phase":
                self._update(facts=event["name"])
                return
            case "note":
                self._terminal.say(f"{self._title}: {event['text']}", "yellow")
            case "resumed":
                self._terminal.say(f"{self._title}: goes on after epoch {event['epoch']}", "dim")
            case "step":
                self._loss = f"loss {event['loss']:.4g}"
                self._update(completed=event["done"], total=event["total"], facts=self._facts())
            case "epoch":
                at = event["validation"]
                self._precision = f"P@1 {100 * at['at_1']:.2f}  P@3 {100 * at['at_3']:.2f}"
                self._update(facts=self._facts())
                if not self._terminal.console.is_terminal:
                    seconds = event["train_seconds"] + event["evaluate_seconds"]
                    self._terminal.say(
                        f"{self._title}: epoch {event['epoch']}  loss {event['loss']:.4g}  "
                        f"{self._precision}  {seconds:.1f} s"
                    )

    def end(self, result: RunResult, skipped: bool) -> None:
        self._remove_bar()
        seconds = time.monotonic() - self._started
        if result.failure:
            self._terminal.say(
                f"{self._title}: failed: {result.failure.kind}: {result.failure.message}", "red"
            )
        elif skipped:
            self._terminal.say(
                f"{self._title}: finished before, skipped (--force repeats it)", "dim"
            )
        elif result.test:
            self._terminal.say(
                f"{self._title}: test P@1 {100 * result.test.at_1:.2f}  "
                f"P@3 {100 * result.test.at_3:.2f}  P@5 {100 * result.test.at_5:.2f}  "
                f"{len(result.history)} epochs in {seconds:.0f} s",
                "green",
            )
        elif result.extrapolation:
            step = statistics.median(result.extrapolation.step_seconds)
            self._terminal.say(
                f"{self._title}: {1e3 * step:.1f} ms a step, in {seconds:.0f} s", "green"
            )

    def _facts(self) -> str:
        return "  ".join(part for part in (self._loss, self._precision) if part)

    def _update(self, **values: Any) -> None:
        if self._bar is not None:
            self._terminal.bars.update(self._bar, **values)

    def _remove_bar(self) -> None:
        if self._bar is not None:
            self._terminal.bars.remove_task(self._bar)
        self._bar = None


class Terminal:
    """A rich console with bars: `line()` makes one for each run that goes on beside others."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[facts]}", markup=False),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._all: TaskID | None = None
        self._output_error: OSError | None = None

    def __enter__(self) -> Terminal:
        self.bars.start()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self.bars.stop()
        if self._output_error and kind is None:
            raise self._output_error

    def line(self) -> Line:
        """A display for one run at a time."""
        return Line(self)

    def count(self, ended: int, total: int, facts: str) -> None:
        """A bar of all runs, above their own bars."""
        if self._all is None:
            self._all = self.bars.add_task("all runs", facts="")
        self.bars.update(self._all, completed=ended, total=total, facts=facts)

    def say(self, text: str, style: str = "") -> None:
        try:
            print_text(self.console, text, style)
        except BrokenPipeError:
            raise  # nobody wants to know any more
        except OSError as error:  # a full disk, say: no training is lost because of it
            self._output_error = self._output_error or error
