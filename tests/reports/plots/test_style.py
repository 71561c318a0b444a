"""How points and lines look."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import matplotlib
from made_results import (
    run,
    task,
)
from matplotlib.figure import Figure
from matplotlib.text import Text

from fanin.reports.plots import style
from fanin.reports.plots.learning_curves import learning_curves
from fanin.reports.plots.memory_against_precision import memory_against_precision
from fanin.reports.setups import COLOURS
from fanin.reports.summary import shared_variant, summarise


def test_the_settings_of_the_process_do_not_matter() -> None:
    """Whoever writes a report within a notebook has some."""
    theirs = {"text.usetex": True, "font.size": 30.0, "axes.grid": False, "savefig.dpi": 10.0}
    with matplotlib.rc_context(theirs):
        with style.drawing():
            settings = {key: matplotlib.rcParams[key] for key in theirs}
        assert {key: matplotlib.rcParams[key] for key in theirs} == theirs
    assert settings == {
        "text.usetex": False,
        "font.size": 9.0,
        "axes.grid": True,
        "savefig.dpi": "figure",
    }


def test_fused_is_told_from_autograd_where_both_are_shown(monkeypatch) -> None:
    """Colour is the setup and shape the backend, so it is the filling, or the line's dashes."""
    figures = []

    def finish(figure: Figure, *_: Any) -> Any:
        figures.append(figure)

    monkeypatch.setattr(style, "finish", finish)
    fused = task(execution="fused")
    both = [run(), run(for_task=fused), run("tensorflow"), run("tensorflow", for_task=fused)]
    shared = shared_variant(summarise([run(for_task=fused)]))
    memory_against_precision(summarise(both), "words")
    memory_against_precision(summarise([run(for_task=fused)]), "words")
    learning_curves(both, "words", [])
    learning_curves([run(for_task=fused)], "words", shared)
    faces = []
    for figure in figures[:2]:
        (axes,) = figure.axes
        points = [line for line in axes.lines if line.get_marker() in ("o", "s")]
        faces.append(sorted(str(point.get_markerfacecolor()) for point in points))
    assert faces == [[COLOURS["FFI"]] * 2 + ["white"] * 2, [COLOURS["FFI"]]]
    legend = figures[0].axes[0].get_legend()
    assert [text.get_text() for text in legend.get_texts()][2:] == [
        "autograd: filled",
        "fused: hollow",
    ]
    dashes = [[line.get_linestyle() for line in figure.axes[0].lines] for figure in figures[2:]]
    assert dashes == [["-", "--"], ["-"]]


def test_the_names_of_many_lines_stand_below_each_other_beside_the_panel(monkeypatch) -> None:
    figures = []
    monkeypatch.setattr(style, "finish", lambda figure, *_: figures.append(figure))
    for count in (3, 70):
        runs = [run(for_task=task(connectivity=fan_in)) for fan_in in range(2, 2 + count)]
        learning_curves(runs, "words", [])
    for figure, count in zip(figures, (3, 70), strict=True):
        figure.draw_without_rendering()
        for axes in figure.axes:
            boxes = [Text.get_window_extent(text) for text in axes.texts]  # without leaders
            heights = sorted((box.y0, box.y1) for box in boxes)
            assert len(heights) == count
            assert all(above[0] > below[1] - 3 for below, above in pairwise(heights))
            panel = axes.get_window_extent()
            assert panel.y0 - 5 < heights[0][0] and heights[-1][1] < panel.y1 + 5
