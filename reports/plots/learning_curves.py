"""Learning curves: validation P@1 and training loss against epochs and wall-clock time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate

from matplotlib.axes import Axes

from fanin.benchmarks.records.run import Epoch, RunResult
from fanin.reports.plots import style
from fanin.reports.plots.labels import NAME_INCHES, Name, label_ends
from fanin.reports.plots.plot import Plot
from fanin.reports.setups import Setup, backend_marker, backend_name, backend_order
from fanin.reports.summary import is_finished

_INCHES = 2.5  # least height of a panel


@dataclass(frozen=True)
class _Panel:
    """One of the panels below each other: what is drawn against what."""

    name: str
    y_label: str
    value: Callable[[Epoch], float]
    by_time: bool

    @property
    def x_label(self) -> str:
        return "wall-clock time (s), training and validation" if self.by_time else "epoch"

    def title(self, backend: str) -> str:
        return f"{backend_name(backend)}: {self.name} by {'time' if self.by_time else 'epoch'}"


def _percent(epoch: Epoch) -> float:
    return 100 * epoch.validation.at_1


def _loss(epoch: Epoch) -> float:
    return epoch.loss


_PANELS = (
    _Panel("validation P@1", "validation P@1 (%)", _percent, by_time=False),
    _Panel("validation P@1", "validation P@1 (%)", _percent, by_time=True),
    _Panel("training loss", "mean loss", _loss, by_time=False),
)


def learning_curves(runs: Sequence[RunResult], title: str, shared: Sequence[str]) -> Plot | None:
    """One column of panels a backend, one line per setup; of its repeats the first is drawn."""
    drawn = _first_repeats(runs)
    if not drawn:
        return None
    backends = sorted({run.backend for run in drawn}, key=backend_order)
    dashed = any(Setup.from_task(run.task, None).is_fused_variant(shared) for run in drawn)
    most = max(sum(run.backend == backend for run in drawn) for backend in backends)
    inches = max(_INCHES, (most + 1) * NAME_INCHES)  # the names stand below each other
    with style.drawing():
        figure = style.new_figure(0.5 + len(_PANELS) * (inches + 0.55))
        axes_grid = figure.subplots(len(_PANELS), len(backends), squeeze=False, sharey="row")
        names: list[tuple[Axes, list[Name]]] = []
        for column, backend in enumerate(backends):
            lines = _lines([run for run in drawn if run.backend == backend])
            for axes, panel in zip(axes_grid[:, column], _PANELS, strict=True):
                names.append((axes, [_draw_line(axes, panel, *line, shared) for line in lines]))
                _describe_panel(axes, panel, backend)
        for axes, panel in zip(axes_grid[:, 0], _PANELS, strict=True):
            axes.set_ylabel(panel.y_label)
        _scale_losses(axes_grid[-1], drawn)
        remark = f"first repeat{', fused dashed' if dashed else ''}"
        style.set_heading(figure, f"{title}: learning curves ({remark})")
        for axes, names_of_lines in names:
            label_ends(axes, names_of_lines, inches)
        return style.finish(
            figure,
            "curves",
            "Learning curves",
            f"Line plots for {' and '.join(map(backend_name, backends))}: validation P@1 in "
            "percent against epochs and against wall-clock seconds, and the mean training loss "
            "against epochs, one line per setup.",
        )


def _first_repeats(runs: Sequence[RunResult]) -> list[RunResult]:
    """Of each task in each backend the first repeat that has finished."""
    first: dict[tuple[str, str], RunResult] = {}
    for run in sorted(runs, key=lambda run: run.repeat):
        if is_finished(run) and run.history:
            first.setdefault((run.backend, run.task.slug), run)
    return list(first.values())


def _lines(runs: Sequence[RunResult]) -> list[tuple[Setup, RunResult]]:
    """The runs with their setups, in the order of the tables."""
    lines = [
        (Setup.from_task(run.task, run.dataset.inputs if run.dataset else None), run)
        for run in runs
    ]
    return sorted(lines, key=lambda line: line[0].order)


def _draw_line(
    axes: Axes, panel: _Panel, setup: Setup, run: RunResult, shared: Sequence[str]
) -> Name:
    """Draws one run; returns its name, which stands at the end of the line."""
    history = run.history
    x: list[float] = [epoch.epoch for epoch in history]
    if panel.by_time:
        x = list(accumulate(epoch.train_seconds + epoch.evaluate_seconds for epoch in history))
    y = [panel.value(epoch) for epoch in history]
    axes.plot(
        x,
        y,
        "--" if setup.is_fused_variant(shared) else "-",
        color=setup.colour,
        linewidth=1.6,
        marker=backend_marker(run.backend),
        markersize=3 if len(x) <= 40 else 0,
    )
    return Name(setup.without(shared).label, setup.colour, [(float(x[-1]), float(y[-1]))])


def _describe_panel(axes: Axes, panel: _Panel, backend: str) -> None:
    axes.set_title(panel.title(backend))
    axes.set_xlabel(panel.x_label)
    axes.tick_params(labelleft=True)
    if panel.by_time:
        axes.set_xlim(left=0)
    else:
        style.count_x(axes)


def _scale_losses(row: Sequence[Axes], runs: Sequence[RunResult]) -> None:
    """A log axis where the losses span more than a factor of ten."""
    losses = [epoch.loss for run in runs for epoch in run.history]
    if min(losses) > 0 and max(losses) / min(losses) > 10:
        for axes in row:
            axes.set_yscale("log")
