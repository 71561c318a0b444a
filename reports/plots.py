"""The plots: rows and runs of one data set in, pictures with their descriptions out.

Each function draws one picture or returns None when nothing of it was measured. Colour is the
setup (`setups.COLOURS`), marker shape or panel is the backend, hollow or dashed is the fused of two
executions; lines and points carry their names where they stand, so that a picture reads without its
text. Drawn on Figure objects rather than through pyplot: no display, no global state.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from matplotlib.transforms import Bbox

from fanin.backends.interface import BACKENDS
from fanin.benchmarks.records.compare import LockstepResult
from fanin.benchmarks.records.run import RunResult
from fanin.reports.metrics import METRICS
from fanin.reports.setups import BACKEND_NAMES, FUSED, Setup, backend_order
from fanin.reports.summary import Row, is_finished
from fanin.reports.tables import (
    by_setup,
    memory_unit,
    number,
    ordered_locksteps,
    pairs,
    scientific,
    shared_departures,
    shared_variant,
    time_decimals,
    without,
)

WIDTH = 10.5  # inches; the page shows it at about 1000 pixels, so 9 points read like body text
DPI = 150
MARKERS = {"torch": "o", "tensorflow": "s"}
GREY = "#666666"
_STYLE: dict[Any, Any] = {
    "font.size": 9.0,
    "axes.titlesize": 10.0,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.7,
    "axes.axisbelow": True,
    "axes.edgecolor": GREY,
    "xtick.color": "#333333",
    "ytick.color": "#333333",
    "legend.frameon": False,
    "hatch.linewidth": 0.6,
}
# Leaders run plainly to their point: cutting them off at outlines takes most of the drawing time.
_UNCLIPPED: dict[str, Any] = {"patchA": None, "shrinkA": 0, "shrinkB": 0}


@dataclass(frozen=True)
class Plot:
    """A finished picture: file stem, heading, text alternative and the PNG itself."""

    name: str
    title: str
    alt: str
    png: bytes


def backend_name(backend: str) -> str:
    return BACKEND_NAMES.get(backend, backend)


def _figure(height: float) -> Figure:
    figure = Figure(figsize=(WIDTH, height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _finish(figure: Figure, name: str, title: str, alt: str) -> Plot:
    stream = io.BytesIO()
    figure.savefig(stream, format="png", facecolor="white")
    return Plot(name, title, alt, stream.getvalue())


def _ink(colour: str) -> str:
    """The colour darkened enough to be read as small text on white."""
    red, green, blue = to_rgb(colour)
    light = 0.299 * red + 0.587 * green + 0.114 * blue
    factor = min(1.0, 0.42 / light) if light else 1.0
    return to_hex((red * factor, green * factor, blue * factor))


def _plain(value: float, _: int | None = None) -> str:
    """Tick labels of a log axis as people write them: 0.5, 20, 1,000."""
    return f"{value:,.10g}"


def _log_x(axes: Axes, low: float, high: float) -> None:
    """A log x axis from `low` to `high` with enough labelled ticks to read values off."""
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    wide = high / low > 10
    subs = [1.0, 2, 5] if wide else [1, 1.5, 2, 3, 4, 5, 6, 8]
    axes.xaxis.set_major_locator(LogLocator(subs=subs, numticks=30))
    axes.xaxis.set_major_formatter(FuncFormatter(_plain))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _spread_apart(values: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Positions near `values` at least `gap` apart and within [low, high] where they fit."""
    order = np.argsort(values, kind="stable")
    # Blocks of touching labels move together: [sum of wished starts, number of labels].
    blocks: list[list[float]] = []
    for index in order:
        blocks.append([float(values[index]), 1.0])
        while len(blocks) > 1:
            (above, n_above), (below, n_below) = blocks[-2], blocks[-1]
            if above / n_above + n_above * gap <= below / n_below:
                break
            blocks[-2:] = [[above + below - n_below * n_above * gap, n_above + n_below]]
    placed = []
    for total, count in blocks:
        start = total / count
        start = max(low, min(start, high - (count - 1) * gap))
        placed += [start + i * gap for i in range(int(count))]
    # Clamping at an edge can push a block into its neighbour: once upwards, once downwards.
    for i in range(1, len(placed)):
        placed[i] = max(placed[i], placed[i - 1] + gap)
    if placed and placed[-1] > high:
        placed[-1] = high
        for i in range(len(placed) - 2, -1, -1):
            placed[i] = min(placed[i], placed[i + 1] - gap)
    result = [0.0] * len(placed)
    for index, place in zip(order, placed, strict=True):
        result[int(index)] = place
    return result


def _label_ends(axes: Axes, ends: Sequence[tuple[float, float, str, str]], inches: float) -> None:
    """Names of lines right of the panel, each joined to its end (x, y, text, colour).

    inches: height of the panel, about; decides how close two names may stand.
    """
    if not ends:
        return
    axes.get_xlim(), axes.get_ylim()  # settles the limits, which the transform below depends on
    to_axes = axes.transData + axes.transAxes.inverted()
    heights = [float(to_axes.transform((x, y))[1]) for x, y, _, _ in ends]
    places = _spread_apart(heights, 0.155 / inches, 0.02, 0.98)
    for (x, y, text, colour), place in zip(ends, places, strict=True):
        axes.annotate(
            f" {text}",
            xy=(x, y),
            xycoords="data",
            xytext=(1.03, place),
            textcoords="axes fraction",
            fontsize=8,
            color=_ink(colour),
            va="center",
            ha="left",
            annotation_clip=False,
            # Dotted and grey, so that nobody takes it for the rest of a line that stopped early.
            arrowprops={
                "arrowstyle": "-",
                "color": "#999999",
                "linewidth": 0.7,
                "linestyle": ":",
                "relpos": (0.0, 0.5),
                **_UNCLIPPED,
            },
        )


def _label_points(
    axes: Axes, named: Sequence[tuple[str, str, Sequence[tuple[float, float]]]]
) -> None:
    """Names (text, colour, the points it may stand at), moved until none covers another, a point or
    the line that joins its points.

    Call when limits and layout are final: places are sought in pixels.
    """
    figure = axes.get_figure(root=True)
    assert figure is not None
    renderer = FigureCanvasAgg(figure).get_renderer()
    panel = axes.get_window_extent(renderer)
    unit = DPI / 72
    taken = [
        Bbox.from_bounds(x - 5 * unit, y - 5 * unit, 10 * unit, 10 * unit)
        for _, _, points in named
        for x, y in axes.transData.transform(points)
    ]
    for _, _, points in named:
        pixels = axes.transData.transform(points)
        for start, end in pairwise(pixels):
            pieces = 2 + int(np.hypot(*(end - start)) / (4 * unit))
            taken += [
                Bbox.from_bounds(x - unit, y - unit, 2 * unit, 2 * unit)
                for x, y in np.linspace(start, end, pieces)
            ]
    # Right of the point reads best, then left, above, below, and the slanted directions.
    angles = np.deg2rad([0, 180, 90, 270, 35, 325, 145, 215, 60, 300, 120, 240])
    for text, colour, points in named:
        drawn = axes.text(0, 0, text, fontsize=8)
        size = drawn.get_window_extent(renderer)
        drawn.remove()

        def free(box: Bbox) -> bool:
            inside = (
                panel.x0 <= box.x0
                and box.x1 <= panel.x1
                and panel.y0 <= box.y0
                and box.y1 <= panel.y1
            )
            return inside and not any(box.overlaps(other) for other in taken)

        candidates = (
            (x, y, distance, _beside(axes, (x, y), size, distance * unit, angle))
            for distance in (8, 12, 18, 26, 36, 48, 62, 78)
            for x, y in points
            for angle in angles
        )
        # Where no place is free the name stands right of its point after all.
        first = next(candidates)
        x, y, distance, box = next((each for each in (first, *candidates) if free(each[3])), first)
        taken.append(box)
        px, py = axes.transData.transform((x, y))
        axes.annotate(
            text,
            xy=(x, y),
            xytext=(
                ((box.x0 + box.x1) / 2 - px) / unit,
                ((box.y0 + box.y1) / 2 - py) / unit,
            ),
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=8,
            color=_ink(colour),
            annotation_clip=False,
            arrowprops=(
                {"arrowstyle": "-", "color": "#999999", "linewidth": 0.7, **_UNCLIPPED}
                if distance > 12
                else None
            ),
        )


def _beside(
    axes: Axes, point: tuple[float, float], size: Bbox, distance: float, angle: float
) -> Bbox:
    """The pixels of a text of this size that stands off a point in a direction."""
    px, py = axes.transData.transform(point)
    dx, dy = np.cos(angle) * distance, np.sin(angle) * distance
    aside = 0.0 if dx > 0.1 * distance else 1.0 if dx < -0.1 * distance else 0.5
    left = px + dx - size.width * aside
    return Bbox.from_bounds(left, py + dy - size.height / 2, size.width, size.height)


def _is_fused(setup: Setup, shared: Sequence[str]) -> bool:
    """Whether a setup is to be told from the same one in the framework's own execution."""
    return FUSED in without(setup, shared).variant


def _marker(backend: str, colour: str, hollow: bool) -> dict[str, Any]:
    """How a point looks: shape by backend, hollow for the fused of two executions."""
    face, edge, width = ("white", colour, 1.8) if hollow else (colour, "white", 0.7)
    return {
        "linestyle": "",
        "marker": MARKERS.get(backend, "D"),
        "markerfacecolor": face,
        "markeredgecolor": edge,
        "markeredgewidth": width,
    }


def _legend(axes: Axes, rows: Iterable[Row], shared: Sequence[str]) -> None:
    """The backends of these rows, and the executions where there are two."""
    rows = list(rows)
    backends = sorted({row.backend for row in rows}, key=backend_order)
    looks = [(backend_name(backend), backend, False) for backend in backends]
    if any(_is_fused(row.setup, shared) for row in rows):
        looks += [("autograd: filled", backends[0], False), ("fused: hollow", backends[0], True)]
    handles = [
        Line2D([], [], markersize=7, label=name, **_marker(backend, GREY, hollow))
        for name, backend, hollow in looks
    ]
    axes.legend(handles=handles, loc="lower right")


def _padded(
    values: Sequence[float], share: float = 0.08, least: float = 1.0
) -> tuple[float, float]:
    low, high = min(values), max(values)
    room = max((high - low) * share, least)
    return low - room, high + room


def memory_against_precision(rows: Sequence[Row], title: str) -> Plot | None:
    """Memory (x) against test P@1 (y); the two backends of a setup are joined by a line."""
    kinds = sorted(
        {
            row.memory_kind
            for row in rows
            if row.memory_kind
            and row.values["memory_gib"] is not None
            and row.values["test_p1"] is not None
        }
    )
    if not kinds:
        return None
    shared = shared_variant(rows)
    with matplotlib.rc_context(_STYLE):
        figure = _figure(5.0)
        panels = figure.subplots(1, len(kinds), squeeze=False)[0]
        for axes, kind in zip(panels, kinds, strict=True):
            _memory_panel(axes, [row for row in rows if row.memory_kind == kind], kind, shared)
        figure.suptitle(
            f"{title}: test P@1 against memory (up and to the left is better)",
            fontweight="bold",
            fontsize=10.5,
            x=0.01,
            ha="left",
        )
        figure.draw_without_rendering()
        figure.set_layout_engine("none")
        for axes, kind in zip(panels, kinds, strict=True):
            _name_setups(axes, [row for row in rows if row.memory_kind == kind], shared)
        best = max(rows, key=lambda row: row.values["test_p1"] or 0.0)
        return _finish(
            figure,
            "memory",
            "Memory against precision",
            f"Scatter plot of test P@1 in percent against {' and '.join(kinds)} in GiB or MiB, one "
            f"point per setup and backend. Highest P@1: {best.setup.label} on "
            f"{backend_name(best.backend)} with {number(best.values['test_p1'], 2)} %.",
        )


def _points(rows: Iterable[Row], factor: float) -> list[tuple[float, float, Row]]:
    return [
        (memory * factor, precision, row)
        for row in rows
        if (memory := row.values["memory_gib"]) is not None
        and (precision := row.values["test_p1"]) is not None
    ]


def _memory_panel(axes: Axes, rows: Sequence[Row], kind: str, shared: Sequence[str]) -> None:
    unit, factor, _ = memory_unit(row.values["memory_gib"] for row in rows)
    points = _points(rows, factor)
    by_setup: dict[tuple[Setup, int | None], list[tuple[float, float]]] = {}
    for x, y, row in points:
        by_setup.setdefault((row.setup, row.machine), []).append((x, y))
        look = _marker(row.backend, row.setup.colour, _is_fused(row.setup, shared))
        axes.plot(x, y, markersize=7.5, zorder=3, **look)
    for (setup, _), ends in by_setup.items():
        style = "--" if _is_fused(setup, shared) else "-"
        axes.plot(*zip(*ends, strict=True), style, color=setup.colour, lw=1, alpha=0.5, zorder=2)
    memories = [x for x, _, _ in points]
    if min(memories) > 0 and max(memories) / min(memories) > 4:
        _log_x(axes, min(memories) / 1.35, max(memories) * 1.6)
    else:
        axes.set_xlim(*_padded(memories, 0.15, 1e-3))
    axes.set_ylim(*_padded([y for _, y, _ in points]))
    axes.set_xlabel(f"memory: {kind} ({unit})")
    axes.set_ylabel(METRICS["test_p1"].head())
    _legend(axes, (row for _, _, row in points), shared)


def _name_setups(axes: Axes, rows: Sequence[Row], shared: Sequence[str]) -> None:
    """One name per setup, at either of its points; the other one hangs on the joining line."""
    _, factor, _ = memory_unit(row.values["memory_gib"] for row in rows)
    anchors: dict[tuple[Setup, int | None], list[tuple[float, float]]] = {}
    for x, y, row in _points(rows, factor):
        anchors.setdefault((row.setup, row.machine), []).append((x, y))
    _label_points(
        axes,
        [
            # Rightmost first: there is more room on that side of a joined pair.
            (without(setup, shared).label, setup.colour, sorted(points, reverse=True))
            for (setup, _), points in anchors.items()
        ],
    )


def time_per_epoch(rows: Sequence[Row], title: str) -> Plot | None:
    """Horizontal bars: training and validation of one epoch, per setup, both backends."""
    timed = [row for row in rows if row.values["seconds_per_epoch"] is not None]
    if not timed:
        return None
    shared = shared_variant(rows)
    groups = by_setup(rows)
    several_machines = len({machine for _, machine in groups} - {None}) > 1
    backends = sorted({row.backend for row in timed}, key=backend_order)
    decimals = time_decimals(row.values["seconds_per_epoch"] for row in timed)
    longest = max(row.values["seconds_per_epoch"] or 0.0 for row in timed)
    with matplotlib.rc_context(_STYLE):
        slot = len(backends) + 0.7
        figure = _figure(1.3 + 0.19 * slot * len(groups))
        axes = figure.subplots()
        ticks, names = [], []
        for g, ((setup, machine), by) in enumerate(groups.items()):
            where = f" (machine {machine})" if several_machines else ""
            for b, backend in enumerate(backends):
                y = g * slot + b
                ticks.append(y)
                label = without(setup, shared).label + where
                names.append(f"{label}   " * (b == 0) + backend_name(backend))
                there = by.get(backend)
                total = there.values["seconds_per_epoch"] if there else None
                train = there.values["train_seconds_per_epoch"] if there else None
                if total is None or train is None:
                    axes.text(
                        longest * 0.005, y, "— not measured", va="center", color=GREY, fontsize=8
                    )
                    continue
                axes.barh(y, train, height=0.86, color=setup.colour)
                axes.barh(
                    y,
                    total - train,
                    left=train,
                    height=0.86,
                    facecolor="white",
                    edgecolor=setup.colour,
                    hatch="//////",
                    linewidth=0.8,
                )
                axes.text(
                    total + longest * 0.008,
                    y,
                    f"{number(total, decimals)} s",
                    va="center",
                    fontsize=8,
                )
        axes.set_yticks(ticks, names)
        axes.tick_params(axis="y", length=0)
        axes.set_ylim(len(groups) * slot - 0.9, -0.8)
        axes.set_xlim(0, longest * 1.1)
        axes.set_xlabel("wall-clock time per epoch (s), shorter is better")
        axes.grid(axis="y", visible=False)
        axes.legend(
            handles=[
                Patch(color=GREY, label="training"),
                Patch(facecolor="white", edgecolor=GREY, hatch="//////", label="validation"),
            ],
            loc="lower right",
            bbox_to_anchor=(1, 1),
            ncols=2,
            borderaxespad=0.2,
        )
        axes.set_title(f"{title}: time per epoch", loc="left")
        quickest = min(timed, key=lambda row: row.values["seconds_per_epoch"] or 0.0)
        return _finish(
            figure,
            "time",
            "Time per epoch",
            "Bars of wall-clock seconds per epoch, split into training and validation, per setup "
            f"and backend. Shortest: {quickest.setup.label} on {backend_name(quickest.backend)} "
            f"with {number(quickest.values['seconds_per_epoch'], decimals)} s.",
        )


def learning_curves(runs: Sequence[RunResult], title: str, shared: Sequence[str]) -> Plot | None:
    """Validation P@1 and training loss against epochs and wall-clock time, one column a backend.

    Of a setup's repeats the first is drawn.
    """
    first: dict[tuple[str, str], RunResult] = {}
    for run in sorted(runs, key=lambda run: run.repeat):
        if is_finished(run) and run.history:
            first.setdefault((run.backend, run.task.slug), run)
    if not first:
        return None
    backends = sorted({backend for backend, _ in first}, key=backend_order)
    dashed = any(_is_fused(Setup.of(run.task, None), shared) for run in first.values())
    inches = 2.5
    with matplotlib.rc_context(_STYLE):
        figure = _figure(0.5 + 3 * (inches + 0.55))
        panels = figure.subplots(3, len(backends), squeeze=False, sharey="row")
        ends: dict[tuple[int, int], list[tuple[float, float, str, str]]] = {}
        for column, backend in enumerate(backends):
            mine = [
                (Setup.of(run.task, run.dataset.inputs if run.dataset else None), run)
                for (name, _), run in first.items()
                if name == backend
            ]
            for setup, run in sorted(mine, key=lambda item: item[0].order):
                epochs = [epoch.epoch for epoch in run.history]
                seconds = list(
                    accumulate(
                        [epoch.train_seconds + epoch.evaluate_seconds for epoch in run.history]
                    )
                )
                precision = [100 * epoch.validation.at_1 for epoch in run.history]
                loss = [epoch.loss for epoch in run.history]
                label = without(setup, shared).label
                drawn: tuple[tuple[Sequence[float], Sequence[float]], ...] = (
                    (epochs, precision),
                    (seconds, precision),
                    (epochs, loss),
                )
                for line, (x, y) in enumerate(drawn):
                    axes = panels[line][column]
                    axes.plot(
                        x,
                        y,
                        "--" if _is_fused(setup, shared) else "-",
                        color=setup.colour,
                        linewidth=1.6,
                        marker=MARKERS.get(backend, "D"),
                        markersize=3 if len(x) <= 40 else 0,
                    )
                    ends.setdefault((line, column), []).append(
                        (float(x[-1]), float(y[-1]), label, setup.colour)
                    )
            what = ("validation P@1", "validation P@1", "training loss")
            against = ("epoch", "wall-clock time (s), training and validation", "epoch")
            for line in range(3):
                axes = panels[line][column]
                by = "time" if line == 1 else "epoch"
                axes.set_title(f"{backend_name(backend)}: {what[line]} by {by}")
                axes.set_xlabel(against[line])
                axes.tick_params(labelleft=True)
                if by == "epoch":
                    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, min_n_ticks=1))
                else:
                    axes.set_xlim(left=0)
        for line, label in enumerate(("validation P@1 (%)", "validation P@1 (%)", "mean loss")):
            panels[line][0].set_ylabel(label)
        losses = [epoch.loss for run in first.values() for epoch in run.history]
        if min(losses) > 0 and max(losses) / min(losses) > 10:
            for axes in panels[2]:
                axes.set_yscale("log")
        figure.suptitle(
            f"{title}: learning curves (first repeat{', fused dashed' if dashed else ''})",
            fontweight="bold",
            fontsize=10.5,
            x=0.01,
            ha="left",
        )
        for (line, column), named in ends.items():
            _label_ends(panels[line][column], named, inches)
        return _finish(
            figure,
            "curves",
            "Learning curves",
            f"Line plots for {' and '.join(map(backend_name, backends))}: validation P@1 in "
            "percent against epochs and against wall-clock seconds, and the mean training loss "
            "against epochs, one line per setup.",
        )


def backends_compared(rows: Sequence[Row], title: str) -> Plot | None:
    """P@1 of one backend against the other, and the ratios of time per epoch and of memory."""
    couples = pairs(rows)
    both = [
        (a, b, couple)
        for couple in couples
        for a, b in [couple.both("test_p1")]
        if a is not None and b is not None
    ]
    if not both:
        return None
    shared = shared_variant(rows)
    first, second = (BACKEND_NAMES[backend] for backend in BACKENDS)
    with matplotlib.rc_context(_STYLE):
        figure = _figure(max(4.6, 1.6 + 0.3 * len(couples)))
        left, right = figure.subplots(1, 2, width_ratios=(1, 1.05))
        limits = _padded([value for a, b, _ in both for value in (a, b)], 0.1)
        left.plot(limits, limits, color=GREY, linewidth=1, linestyle="--", zorder=1)
        for a, b, couple in both:
            left.plot(
                a,
                b,
                marker="o",
                markersize=7.5,
                color=couple.setup.colour,
                linestyle="",
                markeredgecolor="white",
                markeredgewidth=0.7,
                zorder=3,
            )
        left.set_xlim(*limits)
        left.set_ylim(*limits)
        left.set_aspect("equal")
        left.set_xlabel(f"{first}: {METRICS['test_p1'].head()}")
        left.set_ylabel(f"{second}: {METRICS['test_p1'].head()}")
        left.set_title("Test P@1: on the dashed line both agree")

        compared = ("seconds_per_epoch", "memory_gib")
        ratios = {key: [couple.ratio(key) for couple in couples] for key in compared}
        right.axvline(1, color=GREY, linewidth=1, linestyle="--", zorder=1)
        shapes = {"seconds_per_epoch": ("D", "full", -0.14), "memory_gib": ("o", "none", 0.14)}
        for key, (marker, fill, shift) in shapes.items():
            for y, (ratio, couple) in enumerate(zip(ratios[key], couples, strict=True)):
                if ratio is None:
                    continue
                right.plot(
                    ratio,
                    y + shift,
                    marker=marker,
                    fillstyle=fill,
                    markersize=6.5,
                    color=couple.setup.colour,
                    markeredgewidth=1.6,
                    linestyle="",
                    zorder=3,
                )
        for y in range(len(couples)):
            if all(ratios[key][y] is None for key in ratios):
                right.text(1, y, " — not in both", va="center", color=GREY, fontsize=8)
        known = [value for values in ratios.values() for value in values if value]
        reach = max([1.25, *known, *(1 / value for value in known)]) * 1.15
        _log_x(right, 1 / reach, reach)
        right.set_yticks(range(len(couples)), [without(c.setup, shared).label for c in couples])
        right.set_ylim(len(couples) - 0.5, -0.5)
        right.tick_params(axis="y", length=0)
        right.set_xlabel(
            f"{second} / {first} (log scale)\n← {second} needs less      {first} needs less →"
        )
        right.set_title("Time per epoch and memory: ratio")
        figure.legend(
            handles=[
                Line2D([], [], marker="D", color=GREY, linestyle="", label="time per epoch"),
                Line2D(
                    [],
                    [],
                    marker="o",
                    color=GREY,
                    linestyle="",
                    fillstyle="none",
                    markeredgewidth=1.6,
                    label="memory",
                ),
            ],
            loc="outside lower right",
            ncols=2,
        )
        figure.suptitle(
            f"{title}: {second} against {first}",
            fontweight="bold",
            fontsize=10.5,
            x=0.01,
            ha="left",
        )
        figure.draw_without_rendering()
        figure.set_layout_engine("none")
        _label_points(
            left,
            [(without(c.setup, shared).label, c.setup.colour, [(a, b)]) for a, b, c in both],
        )
        widest = max(both, key=lambda item: abs(item[0] - item[1]))
        return _finish(
            figure,
            "backends",
            f"{second} against {first}",
            f"Left: test P@1 of {second} against that of {first} with the diagonal of agreement; "
            f"the largest distance is {abs(widest[0] - widest[1]):.2f} points "
            f"({widest[2].setup.label}). Right: ratio of time per epoch and of memory, {second} "
            f"divided by {first}, per setup.",
        )


def lockstep_differences(locksteps: Sequence[LockstepResult], title: str) -> Plot | None:
    """Relative differences of loss and weights at every step, on a log axis, with the tolerance."""
    named = [(setup, result) for setup, result in ordered_locksteps(locksteps) if result.steps]
    if not named:
        return None
    shared = shared_departures([setup for setup, _ in named])
    inches = 3.0
    panels_of = (
        ("loss", [[step.loss.relative for step in r.steps] for _, r in named],
         [r.loss_tolerance for _, r in named]),
        ("weights, the array that differs most",
         [[max((d.relative for d in step.arrays.values()), default=0.0) for step in r.steps]
          for _, r in named],
         [r.weight_tolerance for _, r in named]),
    )  # fmt: skip
    with matplotlib.rc_context(_STYLE):
        figure = _figure(inches + 1.2)
        panels = figure.subplots(1, 2)
        drawn = []
        exact = False
        for axes, (what, series, tolerances) in zip(panels, panels_of, strict=True):
            positive = [value for values in series for value in values if value > 0]
            floor = min([*positive, *tolerances]) / 3
            ends = []
            for (setup, result), values in zip(named, series, strict=True):
                exact = exact or any(value == 0 for value in values)
                shown = [value if value > 0 else floor for value in values]
                steps = [step.step for step in result.steps]
                axes.plot(
                    steps,
                    shown,
                    color=setup.colour,
                    linewidth=1.3,
                    marker="o" if len(steps) == 1 else "",
                    markersize=3,
                )
                ends.append(
                    (float(steps[-1]), shown[-1], without(setup, shared).label, setup.colour)
                )
            for tolerance in sorted(set(tolerances)):
                axes.axhline(tolerance, color="#333333", linestyle="--", linewidth=1.1)
                axes.annotate(
                    f"tolerance {scientific(tolerance)}",
                    (0, tolerance),
                    xycoords=("axes fraction", "data"),
                    xytext=(4, 3),
                    textcoords="offset points",
                    fontsize=8,
                    color="#333333",
                )
            axes.set_yscale("log")
            axes.set_ylim(floor / 1.5, max([*positive, *tolerances]) * 4)
            axes.set_xlabel("training step")
            axes.set_ylabel("relative difference (log scale)")
            axes.set_title(f"Relative difference of {what}")
            axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, min_n_ticks=1))
            drawn.append((axes, ends))
        remark = "; a line at the lower edge means exactly equal" if exact else ""
        figure.suptitle(
            f"{title}: both backends step by step{remark}",
            fontweight="bold",
            fontsize=10.5,
            x=0.01,
            ha="left",
        )
        for axes, ends in drawn:
            _label_ends(axes, ends, inches)
        agreed = sum(result.agreed for _, result in named)
        return _finish(
            figure,
            "lockstep",
            "Step by step",
            "Line plots of the relative difference between the backends at every step, of the "
            "loss and of the weights, with dashed lines at the tolerances. "
            f"{agreed} of {len(named)} setups agreed.",
        )
