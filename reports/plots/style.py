"""The look that all plots share: size, fonts, axes, markers and the legend of the backends.

Plots are drawn on Figure objects rather than through pyplot: no display, no global state.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from fanin.reports.plots.plot import Plot
from fanin.reports.setups import backend_marker, backend_name, backend_order
from fanin.reports.summary import Row

WIDTH = 10.5  # inches; the page shows it at about 1000 pixels, so 9 points read like body text
DPI = 150
GREY = "#666666"
DARK = "#333333"
HATCH = "//////"
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
    "xtick.color": DARK,
    "ytick.color": DARK,
    "legend.frameon": False,
    "hatch.linewidth": 0.6,
}


def drawing() -> AbstractContextManager[None]:
    """The style, from the making of a figure until it is finished: whatever the settings of this
    process are, a picture looks the same."""
    settings: dict[Any, Any] = {**matplotlib.rcParamsDefault, **_STYLE}
    del settings["backend"]  # of windows
    return matplotlib.rc_context(settings)


def new_figure(height: float) -> Figure:
    """height: in inches."""
    figure = Figure(figsize=(WIDTH, height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def set_heading(figure: Figure, text: str) -> None:
    """The line over the whole picture."""
    figure.suptitle(text, fontweight="bold", fontsize=10.5, x=0.01, ha="left")


def settle(figure: Figure) -> None:
    """Fix limits and layout, so that places can be sought in pixels."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")


def finish(figure: Figure, name: str, title: str, alt: str) -> Plot:
    """The figure as a picture; see `Plot` for its words."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", facecolor="white")
    return Plot(name, title, alt, stream.getvalue())


def ink(colour: str) -> str:
    """The colour darkened enough to be read as small text on white."""
    red, green, blue = to_rgb(colour)
    light = 0.299 * red + 0.587 * green + 0.114 * blue
    factor = min(1.0, 0.42 / light) if light else 1.0
    return to_hex((red * factor, green * factor, blue * factor))


def log_x(axes: Axes, low: float, high: float) -> None:
    """A log x axis from `low` to `high` with enough labelled ticks to read values off."""
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    width = high / low
    # The wider, the fewer of each decade, so that large numbers do not touch in half a page.
    subs = [1.0, 3] if width > 100 else [1.0, 2, 5] if width > 10 else [1, 1.5, 2, 3, 4, 5, 6, 8]
    axes.xaxis.set_major_locator(LogLocator(subs=subs, numticks=30))
    axes.xaxis.set_major_formatter(FuncFormatter(_plain))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _plain(value: float, _: int | None = None) -> str:
    """Tick labels of a log axis as people write them: 0.5, 20, 1,000."""
    return f"{value:,.10g}"


def count_x(axes: Axes) -> None:
    """An x axis of steps or epochs: whole numbers, not too many of them."""
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, min_n_ticks=1))


def padded(values: Sequence[float], share: float = 0.08, least: float = 1.0) -> tuple[float, float]:
    """Limits of an axis with room around the values: a share of their range, or `least`."""
    low, high = min(values), max(values)
    room = max((high - low) * share, least)
    return low - room, high + room


def point_look(backend: str, colour: str, hollow: bool) -> dict[str, Any]:
    """How a point looks: shape by backend, hollow for the fused of two executions."""
    face, edge, width = ("white", colour, 1.8) if hollow else (colour, "white", 0.7)
    return {
        "linestyle": "",
        "marker": backend_marker(backend),
        "markerfacecolor": face,
        "markeredgecolor": edge,
        "markeredgewidth": width,
    }


def add_legend(axes: Axes, rows: Iterable[Row], shared: Sequence[str]) -> None:
    """The backends of these rows, and the executions where there are two."""
    rows = list(rows)
    backends = sorted({row.backend for row in rows}, key=backend_order)
    looks = [(backend_name(backend), backend, False) for backend in backends]
    if any(row.setup.is_fused_variant(shared) for row in rows):
        looks += [("autograd: filled", backends[0], False), ("fused: hollow", backends[0], True)]
    handles = [
        Line2D([], [], markersize=7, label=name, **point_look(backend, GREY, hollow))
        for name, backend, hollow in looks
    ]
    axes.legend(handles=handles, loc="lower right")
