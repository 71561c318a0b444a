"""Wall-clock time per epoch: bars of training and validation, per setup and backend."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.patches import Patch

from fanin.reports.format import Scale, time_scale
from fanin.reports.pairs import by_setup
from fanin.reports.plots import style
from fanin.reports.plots.plot import Plot
from fanin.reports.setups import Setup, backend_name, backend_order
from fanin.reports.summary import Row, shared_variant

_HEIGHT = 0.86


@dataclass(frozen=True)
class _Bar:
    """One bar, `y` below the top; total and train are None where nothing was measured."""

    y: float
    name: str
    setup: Setup
    total: float | None
    train: float | None


def time_per_epoch(rows: Sequence[Row], title: str) -> Plot | None:
    """Horizontal bars: training and validation of one epoch, per setup, both backends."""
    timed = [row for row in rows if row.values["seconds_per_epoch"] is not None]
    if not timed:
        return None
    backends = sorted({row.backend for row in timed}, key=backend_order)
    scale = time_scale(row.values["seconds_per_epoch"] for row in timed)
    longest = max(row.values["seconds_per_epoch"] or 0.0 for row in timed)
    groups = len(by_setup(rows))
    # Bars of a setup stand together, with some room below them.
    slot = len(backends) + 0.7
    with style.drawing():
        figure = style.new_figure(1.3 + 0.19 * slot * groups)
        axes = figure.subplots()
        bars = list(_bars(rows, backends, slot))
        for bar in bars:
            _draw_bar(axes, bar, longest, scale)
        axes.set_yticks([bar.y for bar in bars], [bar.name for bar in bars])
        axes.tick_params(axis="y", length=0)
        axes.set_ylim(groups * slot - 0.9, -0.8)
        axes.set_xlim(0, longest * 1.1)
        axes.set_xlabel("wall-clock time per epoch (s), shorter is better")
        axes.grid(axis="y", visible=False)
        _add_legend(axes)
        axes.set_title(f"{title}: time per epoch", loc="left")
        quickest = min(timed, key=lambda row: row.values["seconds_per_epoch"] or 0.0)
        return style.finish(
            figure,
            "time",
            "Time per epoch",
            "Bars of wall-clock seconds per epoch, split into training and validation, per setup "
            f"and backend. Shortest: {quickest.setup.label} on {backend_name(quickest.backend)} "
            f"with {scale.text(quickest.values['seconds_per_epoch'])} s.",
        )


def _bars(rows: Sequence[Row], backends: Sequence[str], slot: float) -> Iterator[_Bar]:
    """A bar for each setup and backend, those that were not measured included."""
    shared = shared_variant(rows)
    groups = by_setup(rows)
    several_machines = len({machine for _, machine in groups} - {None}) > 1
    for group, ((setup, machine), by_backend) in enumerate(groups.items()):
        label = setup.without(shared).label
        label += f" (machine {machine})" if several_machines else ""
        for number, backend in enumerate(backends):
            row = by_backend.get(backend)
            # The setup's name stands at its first bar alone.
            name = f"{label}   " * (number == 0) + backend_name(backend)
            yield _Bar(
                group * slot + number,
                name,
                setup,
                row.values["seconds_per_epoch"] if row else None,
                row.values["train_seconds_per_epoch"] if row else None,
            )


def _draw_bar(axes: Axes, bar: _Bar, longest: float, scale: Scale) -> None:
    """longest: the longest bar, for distances from the bars' ends."""
    if bar.total is None or bar.train is None:
        axes.text(
            longest * 0.005, bar.y, "— not measured", va="center", color=style.GREY, fontsize=8
        )
        return
    axes.barh(bar.y, bar.train, height=_HEIGHT, color=bar.setup.colour)
    axes.barh(
        bar.y,
        bar.total - bar.train,
        left=bar.train,
        height=_HEIGHT,
        facecolor="white",
        edgecolor=bar.setup.colour,
        hatch=style.HATCH,
        linewidth=0.8,
    )
    text = f"{scale.text(bar.total)} s"
    axes.text(bar.total + longest * 0.008, bar.y, text, va="center", fontsize=8)


def _add_legend(axes: Axes) -> None:
    axes.legend(
        handles=[
            Patch(color=style.GREY, label="training"),
            Patch(facecolor="white", edgecolor=style.GREY, hatch=style.HATCH, label="validation"),
        ],
        loc="lower right",
        bbox_to_anchor=(1, 1),
        ncols=2,
        borderaxespad=0.2,
    )
