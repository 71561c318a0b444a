"""Shows a fit while it goes on: a bar on a terminal or in a notebook, else a line per epoch."""

from __future__ import annotations

import time
from types import TracebackType
from typing import SupportsFloat

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

# Seconds between two updates: on a GPU, reading a loss waits for the device.
_SECONDS = 0.2


class FitProgress:
    """A context; shows nothing where it is not `shown`. steps: of all epochs."""

    def __init__(self, steps: int, shown: bool) -> None:
        self._console = Console(markup=False, emoji=False, highlight=False, quiet=not shown)
        is_live = shown and (self._console.is_terminal or self._console.is_jupyter)
        self._shows_lines = shown and not is_live
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[facts]}", markup=False),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
            disable=not is_live,
        )
        self._bar = self._progress.add_task("fitting", total=steps, facts="")
        self._steps = 0
        self._last = 0.0
        self._precision = ""

    def __enter__(self) -> FitProgress:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def phase(self, name: str) -> None:
        """Show what is done between steps."""
        self._progress.update(self._bar, facts=name)

    def step(self, loss: SupportsFloat) -> None:
        """A step was made."""
        self._steps += 1
        if self._progress.disable or (now := time.monotonic()) < self._last + _SECONDS:
            return
        self._last = now
        facts = f"loss {float(loss):.4g}{self._precision}"
        self._progress.update(self._bar, completed=self._steps, facts=facts)

    def epoch(self, number: int, loss: float, precision: float | None) -> None:
        """An epoch is over. precision: P@3 on the validation instances, where there are some."""
        self._precision = "" if precision is None else f"  P@3 {100 * precision:.2f}"
        if self._shows_lines:
            self._console.print(f"epoch {number}  loss {loss:.4g}{self._precision}")
