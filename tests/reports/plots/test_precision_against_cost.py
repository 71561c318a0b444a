"""Precision against what it costs: which points there are, and how they are told apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from made_results import dataset, failed, memory, run, save, task
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from fanin.benchmarks.records.published import published_rows
from fanin.benchmarks.records.run import RunResult, Timing
from fanin.datasets import PUBLISHED
from fanin.datasets.catalogue import FEATURES
from fanin.reports.pages.report import write_report
from fanin.reports.plots import precision_against_cost as drawn
from fanin.reports.plots import style
from fanin.reports.summary import summarise

CHOSEN = Timing(
    train_seconds=20.0, evaluate_seconds=1.0, final_evaluate_seconds=1.0,
    median_step_seconds=0.1, choose_seconds=5.0,
)  # fmt: skip


@pytest.fixture(autouse=True)
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures as they were finished."""
    finish, made = style.finish, []

    def keep(figure: Figure, *words: Any) -> Any:
        made.append(figure)
        return finish(figure, *words)

    monkeypatch.setattr(style, "finish", keep)
    return made


def _best(**values: Any) -> RunResult:
    return run(for_task=task(recipe="best"), timing=CHOSEN, **values)


def _draw(runs: Sequence[RunResult], published: Any = ()) -> Any:
    return drawn.precision_against_cost(summarise(runs), published, "words")


def _points(figure: Figure, panel: int) -> list[tuple[str, str, float, float]]:
    """Marker, filling and place of each point."""
    return [
        (str(line.get_marker()), str(line.get_markerfacecolor()), *map(float, line.get_xydata()[0]))
        for line in figure.axes[panel].lines
        if isinstance(line, Line2D) and line.get_marker() in ("o", "*")
    ]


def test_recipes_have_a_marker_each_and_one_name(figures: list[Figure]) -> None:
    assert _draw([run(p1=0.2), _best(p1=0.6)]) is not None
    (figure,) = figures
    blue = "#56B4E9"
    assert _points(figure, 0) == [("o", blue, 0.75, 20.0), ("*", blue, 0.75, 60.0)]
    assert _points(figure, 1) == [("o", blue, 40.0, 20.0), ("*", blue, 25.0, 60.0)]
    for axes in figure.axes:
        assert axes.get_xscale() == "log"
        assert [text.get_text() for text in axes.texts] == ["FFI 32"]
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["recipe paper", "recipe best"]


def test_repeats_are_one_point_with_their_spread(figures: list[Figure]) -> None:
    _draw([run(), _best(p1=0.5), _best(p1=0.6, repeat=1)])
    assert [point[3] for point in _points(figures[0], 0)] == pytest.approx([50.0, 55.0])
    (bars,) = figures[0].axes[0].containers
    assert bars.has_yerr


@pytest.mark.parametrize(
    "runs",
    [[], [run()], [run(), run("tensorflow")], [run(), failed(task(recipe="best"))]],
    ids=["nothing", "one", "one in both backends", "one and a failure"],
)
def test_one_setup_alone_is_no_picture(runs: list[RunResult]) -> None:
    assert _draw(runs) is None


def test_each_backend_has_its_panels_and_what_is_missing_is_named(figures: list[Figure]) -> None:
    _draw([run(), _best(), run("tensorflow"), _best(backend="tensorflow", memory=None)])
    titles = [axes.get_title(loc="left") for axes in figures[0].axes]
    assert titles == ["PyTorch"] * 2 + ["TensorFlow"] * 2
    missing = ["not measured" in axes.get_xlabel() for axes in figures[0].axes]
    assert missing == [False, False, True, False]
    assert "not measured: FFI 32, recipe best" in figures[0].axes[2].get_xlabel()
    assert len(_points(figures[0], 2)) == 1


@pytest.mark.parametrize("changed", [{}, {"synthetic": True}, {"labels": 1000}], ids=str)
def test_published_rows_are_hollow_and_only_beside_the_same_data(
    figures: list[Figure], tmp_path: Any, changed: dict[str, Any]
) -> None:
    name, features = "amazon-670k", "slice"
    real = PUBLISHED[name]
    sizes = {
        "name": name, "features": features, "inputs": FEATURES[features], "labels": real.labels,
        "train_instances": real.train_instances, "test_instances": real.test_instances,
    }  # fmt: skip
    data = dataset(**{**sizes, **changed})
    named, few_bytes = {"dataset": name, "features": features}, memory(parameter_bytes=5)
    runs = [
        run(for_task=task(**named), dataset=data),
        run(epochs=17, for_task=task(**named, recipe="best"), dataset=data, memory=few_bytes),
    ]
    write_report(save(tmp_path, *runs))
    figure = next(figure for figure in figures if "cost" in figure.get_suptitle())
    dense = published_rows(name, features)[0].values
    hollow = [point[2:] for point in _points(figure, 0) if point[1] == "white"]
    spent = [point[2:] for point in _points(figure, 1) if point[1] == "white"]
    if changed:
        assert not hollow
        assert not spent
    else:
        assert len(hollow) == len(spent) == len(published_rows(name, features))
        assert hollow[0] == (dense["memory_gib"], dense["test_p1"])
        seconds = dense["epochs"] * dense["seconds_per_epoch"]
        assert spent[0] == (pytest.approx(seconds), dense["test_p1"])
    assert all(("V100" in axes.get_xlabel()) is not bool(changed) for axes in figure.axes)
