"""Memory (x) against test P@1 (y): the picture of the paper."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from matplotlib.axes import Axes

from fanin.reports.format import Scale, memory_scale, number
from fanin.reports.metrics import METRICS
from fanin.reports.plots import style
from fanin.reports.plots.labels import Name, Point, label_points
from fanin.reports.plots.plot import Plot
from fanin.reports.setups import Setup, backend_name
from fanin.reports.summary import Row, shared_variant


def memory_against_precision(rows: Sequence[Row], title: str) -> Plot | None:
    """A panel per kind of memory; the two backends of a setup are joined by a line."""
    measured = [row for row in rows if _point(row) is not None]
    kinds = sorted({row.memory_kind for row in measured if row.memory_kind})
    if not kinds:
        return None
    shared = shared_variant(rows)
    groups = [[row for row in rows if row.memory_kind == kind] for kind in kinds]
    with style.drawing():
        figure = style.new_figure(5.0)
        panels = figure.subplots(1, len(kinds), squeeze=False)[0]
        for axes, kind, group in zip(panels, kinds, groups, strict=True):
            _draw_panel(axes, group, kind, shared)
        style.set_heading(
            figure, f"{title}: test P@1 against memory (up and to the left is better)"
        )
        style.settle(figure)
        for axes, group in zip(panels, groups, strict=True):
            _name_setups(axes, group, shared)
        best = max(rows, key=lambda row: row.values["test_p1"] or 0.0)
        return style.finish(
            figure,
            "memory",
            "Memory against precision",
            f"Scatter plot of test P@1 in percent against {' and '.join(kinds)} in GiB or MiB, one "
            f"point per setup and backend. Highest P@1: {best.setup.label} on "
            f"{backend_name(best.backend)} with {number(best.values['test_p1'], 2)} %.",
        )


def _point(row: Row) -> Point | None:
    """Memory in GiB and precision of a row; None where one of them was not measured."""
    memory, precision = row.values["memory_gib"], row.values["test_p1"]
    return None if memory is None or precision is None else (memory, precision)


def _points(rows: Iterable[Row], scale: Scale) -> list[tuple[Row, Point]]:
    """The rows that have a point, with memory in the unit of the scale."""
    points = [(row, _point(row)) for row in rows]
    return [(row, (point[0] * scale.factor, point[1])) for row, point in points if point]


def _by_setup(points: Iterable[tuple[Row, Point]]) -> dict[tuple[Setup, int | None], list[Point]]:
    """(setup, machine) -> its points: one of each backend."""
    groups: dict[tuple[Setup, int | None], list[Point]] = {}
    for row, point in points:
        groups.setdefault((row.setup, row.machine), []).append(point)
    return groups


def _draw_panel(axes: Axes, rows: Sequence[Row], kind: str, shared: Sequence[str]) -> None:
    scale = memory_scale(row.values["memory_gib"] for row in rows)
    points = _points(rows, scale)
    for row, (x, y) in points:
        hollow = row.setup.is_fused_variant(shared)
        look = style.point_look(row.backend, row.setup.colour, hollow)
        axes.plot(x, y, markersize=7.5, zorder=3, **look)
    for (setup, _), ends in _by_setup(points).items():
        dashes = "--" if setup.is_fused_variant(shared) else "-"
        axes.plot(*zip(*ends, strict=True), dashes, color=setup.colour, lw=1, alpha=0.5, zorder=2)
    _set_limits(axes, [point for _, point in points])
    axes.set_xlabel(f"memory: {kind} ({scale.unit})")
    axes.set_ylabel(METRICS["test_p1"].head())
    style.add_legend(axes, (row for row, _ in points), shared)


def _set_limits(axes: Axes, points: Sequence[Point]) -> None:
    memories = [x for x, _ in points]
    if min(memories) > 0 and max(memories) / min(memories) > 4:
        style.log_x(axes, min(memories) / 1.35, max(memories) * 1.6)
    else:
        axes.set_xlim(*style.padded(memories, 0.15, 1e-3))
    axes.set_ylim(*style.padded([y for _, y in points]))


def _name_setups(axes: Axes, rows: Sequence[Row], shared: Sequence[str]) -> None:
    """One name per setup, at either of its points; the other one hangs on the joining line."""
    scale = memory_scale(row.values["memory_gib"] for row in rows)
    label_points(
        axes,
        [
            # Rightmost first: there is more room on that side of a joined pair.
            Name(setup.without(shared).label, setup.colour, sorted(points, reverse=True))
            for (setup, _), points in _by_setup(_points(rows, scale)).items()
        ],
    )
