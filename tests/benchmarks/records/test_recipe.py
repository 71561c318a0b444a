"""Recipes in tasks: what they decide, what wins over them, and which values exclude each other."""

from __future__ import annotations

import json

import pytest
from fakes import make_task
from pydantic import ValidationError

from fanin.backends.recipes import PAPER
from fanin.benchmarks.cli.selection import select_tasks
from fanin.benchmarks.records.task_files import read_tasks, task_files

FAN_IN = {"architecture": "stratified", "connectivity": 8}


@pytest.fixture
def file(tmp_path):
    def write(defaults, *tasks):
        path = tmp_path / "tasks.json"
        named = {"dataset": "d", "features": "f", **FAN_IN}
        path.write_text(json.dumps({"defaults": {**named, **defaults}, "tasks": list(tasks)}))
        return path

    return write


def test_silence_is_the_paper():
    assert make_task(**FAN_IN).recipe_values == PAPER
    assert make_task(**FAN_IN) == make_task(**FAN_IN, recipe="paper")
    assert make_task(**FAN_IN).slug == "ffi-8"


def test_the_best_recipe_of_each_architecture():
    best = make_task(**FAN_IN, recipe="best")
    assert (best.connections, best.feature_dictionary) == ("centroid", "learned")
    assert (best.rewire_towards, best.loss_fn, best.initial_bias) == ("gradient", "bce", "prior")
    assert best.slug == "ffi-8_recipe=best" and best.departures == ("recipe=best",)
    for architecture, sizes in (
        ("dense", {}),
        ("bottleneck", {}),
        ("sparse", {"connectivity": 8}),
        ("dense-sparse", {"connectivity": 8, "intermediate": 16}),
        ("dense-stratified", {"connectivity": 8, "intermediate": 16}),
    ):
        other = make_task(architecture=architecture, **sizes, recipe="best")
        assert (other.connections, other.rewire_towards) == ("random", "random")
        assert (other.loss_fn, other.schedule) == ("bce", "linear")
        assert other.learning_rate <= best.learning_rate


def test_what_a_task_names_wins_over_its_recipe(file):
    (task,) = read_tasks(file({"recipe": "best", "epochs": 9}, {"rewire_interval": 7}))
    assert (task.epochs, task.rewire_interval, task.loss_fn) == (9, 7, "bce")
    assert task.slug == "ffi-8_recipe=best_epochs=9_rewire_interval=7"
    assert task.least_steps == 0


def test_a_recipe_that_is_asked_for_wins_over_the_file(file):
    path = file({"learning_rate": 5e-4, "dropout": 0.2}, {"epochs": 9})
    (task,) = read_tasks(path, {"recipe": "best"})
    assert task == make_task(**FAN_IN, recipe="best", dropout=0.2)
    (task,) = read_tasks(path, {"recipe": "best", "epochs": 3})
    assert task.epochs == 3
    best = file({"recipe": "best"}, {})
    (task,) = read_tasks(best, {"recipe": "paper"})
    assert task == make_task(**FAN_IN)


def test_the_published_rows_have_twins():
    for name, path in task_files().items():
        paper, best = read_tasks(path), read_tasks(path, {"recipe": "best"})
        if not name.startswith("recipes/") and not name.endswith(("-grouped", "-heads")):
            assert all(task.recipe == "paper" for task in paper), name
        assert all(task.recipe == "best" for task in best), name
        assert {task.setup_name for task in best} == {task.setup_name for task in paper}, name


def test_your_own_data_have_the_best_recipe(place):
    options = (["tiny"], "dense40", place / "data", None, None)
    tasks = select_tasks(*options, {})
    assert {task.recipe for task in tasks} == {"best"}
    assert {task.recipe for task in select_tasks(*options, {"recipe": "paper"})} == {"paper"}
    embedded = select_tasks([None], None, None, None, None, {})
    assert {task.recipe for task in embedded} == {"paper"}


@pytest.mark.parametrize(
    "values, message",
    [
        ({"recipe": "fast"}, "recipe"),
        ({"connections": "best"}, "connections"),
        ({"rewire_until": 0}, "rewire_until"),
        ({"rewire_until": 1.5}, "rewire_until"),
        ({"rewire_threshold": -1.0}, "rewire_threshold"),
        (
            {"rewire_threshold": 0.1, "rewire_towards": "gradient"},
            "rewire_threshold is for rewire_towards 'random', got 'gradient'",
        ),
        ({"warm_up": 1.0}, "warm_up"),
        ({"auxiliary_weight": 0.5}, "auxiliary_weight is for an intermediate layer"),
        ({"auxiliary_weight": -0.5}, "auxiliary_weight"),
        ({"auxiliary_clusters": 0}, "auxiliary_clusters"),
        ({"auxiliary_until": 0.0}, "auxiliary_until"),
        ({"initial_weights": "centroid"}, "need connections 'centroid'"),
        (
            {"architecture": "dense-stratified", "intermediate": 16, "rewire_towards": "gradient"},
            "reads an intermediate layer; use 'random'",
        ),
        (
            {"architecture": "dense", "feature_dictionary": "learned"},
            "feature_dictionary 'learned' needs architecture 'stratified'",
        ),
        ({"initial_bias": "prior"}, "is for loss_fn 'bce'"),
    ],
)
def test_what_cannot_be(values, message):
    with pytest.raises(ValidationError, match=message):
        make_task(**{**FAN_IN, **values})
