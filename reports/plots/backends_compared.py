"""One backend against the other: P@1, and the ratios of time per epoch and of memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from fanin.backends.registry import BACKENDS
from fanin.reports.metrics import METRICS
from fanin.reports.pairs import Pair, pairs
from fanin.reports.plots import style
from fanin.reports.plots.labels import Name, Point, label_points
from fanin.reports.plots.plot import Plot
from fanin.reports.setups import backend_name
from fanin.reports.summary import Row, shared_variant

# Metric -> how its points look, and how far they stand from the middle of their line.
_RATIO_LOOKS: dict[str, tuple[dict[str, Any], float]] = {
    "seconds_per_epoch": ({"marker": "D", "fillstyle": "full"}, -0.14),
    "memory_gib": ({"marker": "o", "fillstyle": "none"}, 0.14),
}


def backends_compared(rows: Sequence[Row], title: str) -> Plot | None:
    """Two panels over the setups that both backends have run."""
    couples = pairs(rows)
    both = [(pair, point) for pair in couples if (point := _precisions(pair)) is not None]
    if not both:
        return None
    shared = shared_variant(rows)
    first, second = map(backend_name, BACKENDS)
    with style.drawing():
        figure = style.new_figure(max(4.6, 1.6 + 0.3 * len(couples)))
        left, right = figure.subplots(1, 2, width_ratios=(1, 1.05))
        _draw_precision(left, both)
        left.set_xlabel(f"{first}: {METRICS['test_p1'].head()}")
        left.set_ylabel(f"{second}: {METRICS['test_p1'].head()}")
        left.set_title("Test P@1: on the dashed line both agree")
        _draw_ratios(right, couples)
        right.set_yticks(range(len(couples)), [p.setup.without(shared).label for p in couples])
        right.set_xlabel(
            f"{second} / {first} (log scale)\n← {second} needs less      {first} needs less →"
        )
        right.set_title("Time per epoch and memory: ratio")
        _add_legend(figure)
        style.set_heading(figure, f"{title}: {second} against {first}")
        style.settle(figure)
        label_points(
            left,
            [Name(p.setup.without(shared).label, p.setup.colour, [point]) for p, point in both],
        )
        farthest, (a, b) = max(both, key=lambda item: abs(item[1][0] - item[1][1]))
        return style.finish(
            figure,
            "backends",
            f"{second} against {first}",
            f"Left: test P@1 of {second} against that of {first} with the diagonal of agreement; "
            f"the largest distance is {abs(a - b):.2f} points "
            f"({farthest.setup.label}). Right: ratio of time per epoch and of memory, {second} "
            f"divided by {first}, per setup.",
        )


def _precisions(pair: Pair) -> Point | None:
    """Test P@1 of either backend; None where one has none."""
    first, second = pair.both("test_p1")
    return None if first is None or second is None else (first, second)


def _draw_precision(axes: Axes, both: Sequence[tuple[Pair, Point]]) -> None:
    limits = style.padded([value for _, point in both for value in point], 0.1)
    axes.plot(limits, limits, color=style.GREY, linewidth=1, linestyle="--", zorder=1)
    for pair, (x, y) in both:
        axes.plot(
            x,
            y,
            marker="o",
            markersize=7.5,
            color=pair.setup.colour,
            linestyle="",
            markeredgecolor="white",
            markeredgewidth=0.7,
            zorder=3,
        )
    axes.set_xlim(*limits)
    axes.set_ylim(*limits)
    axes.set_aspect("equal")


def _draw_ratios(axes: Axes, couples: Sequence[Pair]) -> None:
    """A line per setup with the ratio of each metric on it; 1 is where both are equal."""
    ratios = {key: [pair.ratio(key) for pair in couples] for key in _RATIO_LOOKS}
    axes.axvline(1, color=style.GREY, linewidth=1, linestyle="--", zorder=1)
    for key, (look, shift) in _RATIO_LOOKS.items():
        for y, (ratio, pair) in enumerate(zip(ratios[key], couples, strict=True)):
            if ratio is not None:
                axes.plot(
                    ratio,
                    y + shift,
                    markersize=6.5,
                    color=pair.setup.colour,
                    markeredgewidth=1.6,
                    linestyle="",
                    zorder=3,
                    **look,
                )
    for y, values in enumerate(zip(*ratios.values(), strict=True)):
        if all(value is None for value in values):
            axes.text(1, y, " — not in both", va="center", color=style.GREY, fontsize=8)
    known = [value for values in ratios.values() for value in values if value]
    reach = max([1.25, *known, *(1 / value for value in known)]) * 1.15
    style.log_x(axes, 1 / reach, reach)
    axes.set_ylim(len(couples) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)


def _add_legend(figure: Figure) -> None:
    time = {"marker": "D", "label": "time per epoch"}
    memory = {"marker": "o", "fillstyle": "none", "markeredgewidth": 1.6, "label": "memory"}
    figure.legend(
        handles=[Line2D([], [], color=style.GREY, linestyle="", **look) for look in (time, memory)],
        loc="outside lower right",
        ncols=2,
    )
