"""Step by step: relative differences of loss and weights between the backends, and what is
tolerated."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes

from fanin.benchmarks.records.compare import LockstepResult, LockstepStep
from fanin.reports.format import scientific
from fanin.reports.plots import style
from fanin.reports.plots.labels import Name, label_ends
from fanin.reports.plots.plot import Plot
from fanin.reports.setups import shared_departures
from fanin.reports.tables.lockstep import Comparison, ordered_comparisons

_INCHES = 3.0  # height of a panel


@dataclass(frozen=True)
class _Panel:
    """What is drawn against the steps, and what is tolerated."""

    name: str
    value: Callable[[LockstepStep], float]
    tolerance: Callable[[LockstepResult], float]

    def values(self, comparison: Comparison) -> list[float]:
        return [self.value(step) for step in comparison.result.steps]


def _loss(step: LockstepStep) -> float:
    return step.loss.relative


def _weights(step: LockstepStep) -> float:
    return max((array.relative for array in step.arrays.values()), default=0.0)


_PANELS = (
    _Panel("loss", _loss, lambda result: result.loss_tolerance),
    _Panel(
        "weights, the array that differs most", _weights, lambda result: result.weight_tolerance
    ),
)


def lockstep_differences(locksteps: Sequence[LockstepResult], title: str) -> Plot | None:
    """Two panels with a log axis, one line per setup."""
    comparisons = [each for each in ordered_comparisons(locksteps) if each.result.steps]
    if not comparisons:
        return None
    shared = shared_departures([each.setup for each in comparisons])
    with style.drawing():
        figure = style.new_figure(_INCHES + 1.2)
        panels = list(zip(figure.subplots(1, len(_PANELS)), _PANELS, strict=True))
        names = [(axes, _draw_panel(axes, panel, comparisons, shared)) for axes, panel in panels]
        exact = any(0 in panel.values(each) for panel in _PANELS for each in comparisons)
        remark = "; a line at the lower edge means exactly equal" if exact else ""
        style.set_heading(figure, f"{title}: both backends step by step{remark}")
        for axes, names_of_lines in names:
            label_ends(axes, names_of_lines, _INCHES)
        agreed = sum(each.result.agreed for each in comparisons)
        return style.finish(
            figure,
            "lockstep",
            "Step by step",
            "Line plots of the relative difference between the backends at every step, of the "
            "loss and of the weights, with dashed lines at the tolerances. "
            f"{agreed} of {len(comparisons)} setups agreed.",
        )


def _draw_panel(
    axes: Axes, panel: _Panel, comparisons: Sequence[Comparison], shared: Sequence[str]
) -> list[Name]:
    """Draws all lines; returns their names, which stand at the ends of the lines."""
    series = [panel.values(each) for each in comparisons]
    tolerances = [panel.tolerance(each.result) for each in comparisons]
    positive = [value for values in series for value in values if value > 0]
    # A log axis has no 0: what is exactly equal is drawn at the lower edge.
    floor = min([*positive, *tolerances]) / 3
    names = []
    for each, values in zip(comparisons, series, strict=True):
        steps = [step.step for step in each.result.steps]
        shown = [value if value > 0 else floor for value in values]
        colour = each.setup.colour
        axes.plot(
            steps,
            shown,
            color=colour,
            linewidth=1.3,
            marker="o" if len(steps) == 1 else "",
            markersize=3,
        )
        end = (float(steps[-1]), shown[-1])
        names.append(Name(each.setup.without(shared).label, colour, [end]))
    for tolerance in sorted(set(tolerances)):
        _draw_tolerance(axes, tolerance)
    axes.set_yscale("log")
    axes.set_ylim(floor / 1.5, max([*positive, *tolerances]) * 4)
    axes.set_xlabel("training step")
    axes.set_ylabel("relative difference (log scale)")
    axes.set_title(f"Relative difference of {panel.name}")
    style.count_x(axes)
    return names


def _draw_tolerance(axes: Axes, tolerance: float) -> None:
    axes.axhline(tolerance, color=style.DARK, linestyle="--", linewidth=1.1)
    axes.annotate(
        f"tolerance {scientific(tolerance)}",
        (0, tolerance),
        xycoords=("axes fraction", "data"),
        xytext=(4, 3),
        textcoords="offset points",
        fontsize=8,
        color=style.DARK,
    )
