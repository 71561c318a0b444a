"""Test P@1 (y) against what it costs (x): memory of model and optimiser, and time of training.

The bytes are counted from the arrays, so they are the same on every machine. The paper has neither
figure; what it has, the peak of a GPU's allocator and the time per epoch, stands beside ours and is
hollow.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from fanin.backends.recipes import RecipeName
from fanin.benchmarks.records.published import PUBLISHED_MACHINE, PublishedRow
from fanin.reports.format import Scale, memory_scale, number, time_scale
from fanin.reports.metrics import METRICS
from fanin.reports.paper import setup_of
from fanin.reports.plots import style
from fanin.reports.plots.labels import Name, Point, label_points
from fanin.reports.plots.plot import Plot
from fanin.reports.setups import BEST, Setup, backend_name, backend_order
from fanin.reports.summary import Row, several_machines, shared_variant

_MARKERS: dict[RecipeName, dict[str, Any]] = {
    "paper": {"marker": "o", "markersize": 7.5},
    "best": {"marker": "*", "markersize": 13},
}


@dataclass(frozen=True)
class _Cost:
    """What a panel's x axis shows: a figure of ours, and what a published row has like it."""

    key: str
    label: str
    scale: Callable[[Iterable[float | None]], Scale]
    published: Callable[[PublishedRow], float]
    published_label: str


_COSTS = (
    _Cost(
        "counted_gib",
        "parameters + optimiser state, counted",
        memory_scale,
        lambda row: row.values["memory_gib"],
        "peak of the GPU allocator",
    ),
    _Cost(
        "training_seconds",
        "training, choosing included",
        time_scale,
        lambda row: row.values["epochs"] * row.values["seconds_per_epoch"],
        "epochs x time per epoch, with validation",
    ),
)


@dataclass(frozen=True)
class _Mark:
    """One point: a mean, its spreads where there are repeats, and how it looks."""

    name: str
    setup: Setup
    place: Point
    spread: tuple[float | None, float | None] = (None, None)
    is_published: bool = False


def precision_against_cost(
    rows: Sequence[Row], published: Sequence[PublishedRow], title: str
) -> Plot | None:
    """Two panels for each backend, memory and time; None where fewer than two setups or recipes
    have a point. published: rows that were measured on the same data."""
    drawn = [row for row in rows if any(_place(row, cost) for cost in _COSTS)]
    if len({(row.setup.without(row.setup.variant), row.setup.recipe) for row in drawn}) < 2:
        return None
    backends = sorted({row.backend for row in drawn}, key=backend_order)
    with style.drawing():
        figure = style.new_figure((6.4 if published else 4.4) * len(backends))
        panels = figure.subplots(len(backends), len(_COSTS), squeeze=False)
        names = []
        for backend, pair in zip(backends, panels, strict=True):
            for axes, cost in zip(pair, _COSTS, strict=True):
                names.append((axes, _draw_panel(axes, cost, backend, rows, published)))
        _add_legend(figure, drawn, published)
        style.set_heading(figure, f"{title}: test P@1 against cost (up and to the left is better)")
        style.settle(figure)
        for axes, several in names:
            label_points(axes, several)
        best = max(drawn, key=lambda row: row.values["test_p1"] or 0.0)
        return style.finish(
            figure,
            "cost",
            "Precision against cost",
            "Scatter plots of test P@1 in percent against the bytes of parameters and optimiser "
            "state and against the seconds of training, one point per setup and recipe"
            f"{', with the published rows' * bool(published)}. Highest P@1 of ours: "
            f"{best.setup.label} on {backend_name(best.backend)} with "
            f"{number(best.values['test_p1'], 2)} %.",
        )


def _place(row: Row, cost: _Cost) -> Point | None:
    """Cost and precision of a row; None where one of them was not measured, or too small to be."""
    x, y = row.values[cost.key], row.values["test_p1"]
    return (x, y) if x and y is not None else None


def _draw_panel(
    axes: Axes, cost: _Cost, backend: str, rows: Sequence[Row], published: Sequence[PublishedRow]
) -> list[Name]:
    """Returns the names of the points, to be placed when the layout is settled."""
    own = [row for row in rows if row.backend == backend]
    machine = several_machines(rows)
    shared = shared_variant(rows)
    missing = []
    scale = cost.scale(row.values[cost.key] for row in own)
    marks = []
    for row in own:
        place = _place(row, cost)
        at_machine = f" (machine {row.machine})" * (machine and row.machine is not None)
        if place is None:
            missing.append(row.setup.without(shared).label + at_machine)
            continue
        # The marker tells the recipe.
        name = row.setup.without([*shared, BEST]).label + at_machine
        spread = (row.spreads[cost.key], row.spreads["test_p1"])
        marks.append(_Mark(name, row.setup, place, spread))
    for each in published:
        place = (cost.published(each), each.values["test_p1"])
        setup = setup_of(each)
        marks.append(_Mark(setup.label, setup, place, is_published=True))
    marks = [_in_unit(mark, scale) for mark in marks]
    for mark in marks:
        _draw_mark(axes, mark)
    if marks:
        _set_limits(axes, [mark.place for mark in marks])
    axes.set_xlabel(_x_label(cost, scale, published, missing))
    axes.set_ylabel(METRICS["test_p1"].head())
    axes.set_title(backend_name(backend))
    return _join(axes, marks)


def _join(axes: Axes, marks: Iterable[_Mark]) -> list[Name]:
    """A line through the points of a setup, other recipes and the published row, so that one name
    will do for all."""
    groups: dict[str, list[_Mark]] = {}
    for mark in marks:
        groups.setdefault(mark.name, []).append(mark)
    names = []
    for name, several in groups.items():
        places = sorted(mark.place for mark in several)
        colour = several[0].setup.colour
        axes.plot(*zip(*places, strict=True), color=colour, linewidth=1, alpha=0.4, zorder=2)
        # Rightmost first: there is more room.
        names.append(Name(name, colour, places[::-1]))
    return names


def _in_unit(mark: _Mark, scale: Scale) -> _Mark:
    (x, y), (x_spread, y_spread) = mark.place, mark.spread
    x_spread = None if x_spread is None else x_spread * scale.factor
    return replace(mark, place=(x * scale.factor, y), spread=(x_spread, y_spread))


def _draw_mark(axes: Axes, mark: _Mark) -> None:
    colour, (x, y) = mark.setup.colour, mark.place
    x_spread, y_spread = mark.spread
    if x_spread is not None or y_spread is not None:
        axes.errorbar(x, y, y_spread, x_spread, fmt="none", ecolor=colour, elinewidth=1, capsize=2)
    look = _look(mark.setup.recipe, colour, mark.is_published)
    axes.plot(x, y, zorder=2.5 if mark.is_published else 3, **look)


def _look(recipe: RecipeName, colour: str, hollow: bool) -> dict[str, Any]:
    """Shape by recipe; the published rows are hollow."""
    face, edge, width = ("white", colour, 1.4) if hollow else (colour, "white", 0.7)
    return {
        "linestyle": "",
        "markerfacecolor": face,
        "markeredgecolor": edge,
        "markeredgewidth": width,
        **_MARKERS[recipe],
    }


def _set_limits(axes: Axes, places: Sequence[Point]) -> None:
    costs = [x for x, _ in places]
    style.log_x(axes, min(costs) / 1.5, max(costs) * 2)
    axes.set_ylim(*style.padded([y for _, y in places], 0.1))


def _x_label(
    cost: _Cost, scale: Scale, published: Sequence[PublishedRow], missing: Sequence[str]
) -> str:
    lines = [f"{cost.label} ({scale.unit})"]
    if published:
        lines.append(f"hollow: {cost.published_label}, of an {PUBLISHED_MACHINE}")
    if missing:
        lines += textwrap.wrap(f"not measured: {'; '.join(missing)}", 70)
    return "\n".join(lines)


def _add_legend(figure: Figure, rows: Iterable[Row], published: Sequence[PublishedRow]) -> None:
    recipes = {row.setup.recipe for row in rows}
    handles = [
        Line2D([], [], label=f"recipe {recipe}", **_look(recipe, style.GREY, False))
        for recipe in _MARKERS
        if recipe in recipes
    ]
    if published:
        label = f"published: recipe paper, {PUBLISHED_MACHINE}"
        handles.append(Line2D([], [], label=label, **_look("paper", style.GREY, True)))
    figure.legend(handles=handles, loc="outside lower right", ncols=len(handles))
