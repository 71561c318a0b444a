"""Names in a plot, placed so that none covers another: at the ends of lines, and beside points."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.transforms import Bbox

from fanin.reports.plots.style import DPI, ink

Point = tuple[float, float]

NAME_INCHES = 0.155  # from one name to the next below it
_FONT_SIZE = 8
_PIXELS_PER_POINT = DPI / 72
# Leaders run plainly to their point: cutting them off at outlines takes most of the drawing time.
_UNCLIPPED: dict[str, Any] = {"patchA": None, "shrinkA": 0, "shrinkB": 0}
_LEADER: dict[str, Any] = {"arrowstyle": "-", "color": "#999999", "linewidth": 0.7, **_UNCLIPPED}


@dataclass(frozen=True)
class Name:
    """A name in its colour, and the points that it may stand at, best first."""

    text: str
    colour: str
    points: Sequence[Point]


# ---- names of lines ------------------------------------------------------------------------------


def label_ends(axes: Axes, names: Sequence[Name], inches: float) -> None:
    """Names of lines right of the panel, each joined to the end of its line.

    inches: height of the panel, about; decides how close two names may stand.
    """
    if not names:
        return
    axes.get_xlim(), axes.get_ylim()  # settles the limits, which the transform below depends on
    to_axes = axes.transData + axes.transAxes.inverted()
    heights = [float(to_axes.transform(name.points[0])[1]) for name in names]
    places = spread_apart(heights, NAME_INCHES / inches, 0.02, 0.98)
    for name, place in zip(names, places, strict=True):
        axes.annotate(
            f" {name.text}",
            xy=name.points[0],
            xycoords="data",
            xytext=(1.03, place),
            textcoords="axes fraction",
            fontsize=_FONT_SIZE,
            color=ink(name.colour),
            va="center",
            ha="left",
            annotation_clip=False,
            # Dotted and grey, so that nobody takes it for the rest of a line that stopped early.
            arrowprops={"linestyle": ":", "relpos": (0.0, 0.5), **_LEADER},
        )


def spread_apart(values: Sequence[float], gap: float, low: float, high: float) -> list[float]:
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


# ---- names of points -----------------------------------------------------------------------------

# Distances from a point in points of print. Farther away a line joins the name with its point.
_DISTANCES = (8, 12, 18, 26, 36, 48, 62, 78)
_WITHOUT_LEADER = 12
# Right of the point reads best, then left, above, below, and the slanted directions.
_ANGLES = np.deg2rad([0, 180, 90, 270, 35, 325, 145, 215, 60, 300, 120, 240])


@dataclass(frozen=True)
class _Place:
    """Where a name may stand: its box in pixels, so far from a point."""

    point: Point
    distance: int
    box: Bbox


def label_points(axes: Axes, names: Sequence[Name]) -> None:
    """Names beside points, moved until none covers another, a point or the line that joins its
    points. Call when limits and layout are final (`settle`): places are sought in pixels."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    renderer = FigureCanvasAgg(figure).get_renderer()
    panel = axes.get_window_extent(renderer)
    taken = [*_boxes_of_points(axes, names), *_boxes_of_lines(axes, names)]
    for name in names:
        drawn = axes.text(0, 0, name.text, fontsize=_FONT_SIZE)
        size = drawn.get_window_extent(renderer)
        drawn.remove()
        places = _places(axes, name, size)
        # Where no place is free the name stands right of its point after all.
        first = next(places)
        free = (place for place in (first, *places) if _is_free(place.box, panel, taken))
        place = next(free, first)
        taken.append(place.box)
        _annotate(axes, name, place)


def _boxes_of_points(axes: Axes, names: Sequence[Name]) -> list[Bbox]:
    half = 5 * _PIXELS_PER_POINT
    return [
        Bbox.from_bounds(x - half, y - half, 2 * half, 2 * half)
        for name in names
        for x, y in axes.transData.transform(name.points)
    ]


def _boxes_of_lines(axes: Axes, names: Sequence[Name]) -> Iterator[Bbox]:
    """Small boxes along the lines that join the points of a name."""
    unit = _PIXELS_PER_POINT
    for name in names:
        for start, end in pairwise(axes.transData.transform(name.points)):
            pieces = 2 + int(np.hypot(*(end - start)) / (4 * unit))
            for x, y in np.linspace(start, end, pieces):
                yield Bbox.from_bounds(x - unit, y - unit, 2 * unit, 2 * unit)


def _places(axes: Axes, name: Name, size: Bbox) -> Iterator[_Place]:
    """All places to try, the best first."""
    for distance in _DISTANCES:
        for point in name.points:
            for angle in _ANGLES:
                box = _beside(axes, point, size, distance * _PIXELS_PER_POINT, angle)
                yield _Place(point, distance, box)


def _beside(axes: Axes, point: Point, size: Bbox, distance: float, angle: float) -> Bbox:
    """The pixels of a text of this size that stands off a point in a direction."""
    px, py = axes.transData.transform(point)
    dx, dy = np.cos(angle) * distance, np.sin(angle) * distance
    aside = 0.0 if dx > 0.1 * distance else 1.0 if dx < -0.1 * distance else 0.5
    left = px + dx - size.width * aside
    return Bbox.from_bounds(left, py + dy - size.height / 2, size.width, size.height)


def _is_free(box: Bbox, panel: Bbox, taken: Sequence[Bbox]) -> bool:
    """Whether a name fits there: within the panel, and on nothing else."""
    inside = panel.x0 <= box.x0 and box.x1 <= panel.x1 and panel.y0 <= box.y0 and box.y1 <= panel.y1
    return inside and not any(box.overlaps(other) for other in taken)


def _annotate(axes: Axes, name: Name, place: _Place) -> None:
    px, py = axes.transData.transform(place.point)
    axes.annotate(
        name.text,
        xy=place.point,
        xytext=(
            ((place.box.x0 + place.box.x1) / 2 - px) / _PIXELS_PER_POINT,
            ((place.box.y0 + place.box.y1) / 2 - py) / _PIXELS_PER_POINT,
        ),
        textcoords="offset points",
        ha="center",
        va="center",
        fontsize=_FONT_SIZE,
        color=ink(name.colour),
        annotation_clip=False,
        arrowprops=_LEADER if place.distance > _WITHOUT_LEADER else None,
    )
