"""Tasks whose connections, scale and biases follow from the data: from task file to result."""

from __future__ import annotations

import json

import numpy as np
import pytest
from choose_reference import centroid_values
from fakes import command, make_task
from frameworks import EACH_BACKEND

from fanin.backends.choosing import choosing_bytes
from fanin.backends.estimate import Sizes
from fanin.backends.features import SCALE as SCALE_NAME
from fanin.backends.grouping import meaning_bytes
from fanin.backends.starting import looks_at_data
from fanin.backends.training import rewire
from fanin.benchmarks.harness import plan
from fanin.benchmarks.harness.prepare import build, chosen_arrays, make_batches, split
from fanin.benchmarks.harness.request import Options, Request
from fanin.benchmarks.harness.speed import Speed
from fanin.benchmarks.records.store import read_results
from fanin.datasets import load

CHOSEN = {
    "dataset": "tiny",
    "features": "dense40",
    "architecture": "stratified",
    "connectivity": 8,
    "connections": "centroid",
    "feature_scaling": "unit_variance",
    "initial_bias": -1,
}


def request_for(place, backend="torch", **values):
    options = Options(data_dir=place / "data", results=place / "none", device="cpu")
    return Request(task=make_task(**values), backend=backend, repeat=0, options=options)


class TestArrays:
    @pytest.fixture
    def data(self, place):
        return load("tiny", "dense40", place / "data")

    def chosen(self, place, data, **values):
        request = request_for(place, **values)
        return chosen_arrays(request, split(data, request.task)[0])

    def test_the_paper_has_none(self, place, data):
        assert self.chosen(place, data) == {}
        assert not looks_at_data(make_task().recipe_values)

    def test_sources_and_scale(self, place, data):
        given = self.chosen(place, data, **CHOSEN)
        assert set(given) == {"output.indices", SCALE_NAME, "output.bias"}
        x, y = data.train_x, data.train_y.toarray()
        np.testing.assert_allclose(given[SCALE_NAME], 1 / x.std(0), rtol=1e-5)
        values = np.abs(centroid_values(x, y)) / x.std(0)
        best = np.sort(np.argsort(-values, axis=1, kind="stable")[:, :8], axis=1)
        known = y.any(0)
        np.testing.assert_array_equal(given["output.indices"][known], best[known])
        assert (given["output.bias"] == -1).all()

    def test_sources_of_features_that_are_not_scaled(self, place, data):
        given = self.chosen(place, data, **{**CHOSEN, "feature_scaling": "none", "initial_bias": 0})
        assert set(given) == {"output.indices"}
        values = np.abs(centroid_values(data.train_x, data.train_y.toarray()))
        best = np.sort(np.argsort(-values, axis=1, kind="stable")[:, :8], axis=1)
        known = data.train_y.toarray().any(0)
        np.testing.assert_array_equal(given["output.indices"][known], best[known])

    def test_only_what_is_trained_on_counts(self, place, data):
        whole = self.chosen(place, data, **CHOSEN)
        part = self.chosen(place, data, **CHOSEN, protocol="holdout")
        assert (whole[SCALE_NAME] != part[SCALE_NAME]).all()

    def test_the_prior(self, place, data):
        given = self.chosen(place, data, loss_fn="bce", initial_bias="prior")
        n, positives = data.train_instances, data.train_y.toarray().sum(0)
        odds = (positives + 0.5) / (n - positives + 0.5)
        np.testing.assert_allclose(given["output.bias"], np.log(odds), rtol=1e-5)

    @pytest.mark.parametrize("backend", EACH_BACKEND)
    def test_the_model_starts_with_them(self, place, data, backend):
        request = request_for(place, backend, **CHOSEN, execution="fused")
        given = chosen_arrays(request, split(data, request.task)[0])
        trainer = build(request, request.task.setup(data.inputs, data.labels), given=given)
        for name, array in given.items():
            np.testing.assert_array_equal(trainer.array(name), array, name)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backend", "execution"), [("torch", "fused"), ("torch", "autograd"), ("tensorflow", "fused")]
)
def test_a_run_holds_what_was_chosen(place, tmp_path, backend, execution):
    from safetensors.numpy import load_file

    file = tmp_path / "tasks.json"
    task = {**CHOSEN, "rewire_interval": 0, "epochs": 2, "execution": execution}
    file.write_text(json.dumps({"tasks": [task]}))
    options = ("--data-dir", place / "data", "--tasks", file, "--results", tmp_path / "results")
    done = command("reproduce", *options, "--save-weights", "--backend", backend)
    assert done.returncode == 0, done.stdout + done.stderr
    (result,) = read_results(tmp_path / "results")
    assert result.status == "finished" and result.timing.choose_seconds > 0
    slug = "ffi-8_connections=centroid_epochs=2"
    assert result.task.slug.startswith(slug)
    (weights,) = (tmp_path / "results").rglob("*.safetensors")
    request = request_for(place, backend, **task)
    data = load("tiny", "dense40", place / "data")
    given = chosen_arrays(request, split(data, request.task)[0])
    saved = load_file(weights)
    for name in ("output.indices", SCALE_NAME):
        np.testing.assert_array_equal(saved[name], given[name], name)


def test_the_plan_counts_the_scale_the_dictionary_and_the_choosing():
    sizes = Sizes(768, 670_091, 490_449, 153_025, 2_670_000, is_mapped=True)
    usual = {"architecture": "stratified", "connectivity": 32, "execution": "fused"}
    plans = [
        plan.Plan.of(
            make_task(**usual, **more), "torch", sizes, Speed(1e10, 1e11), 1 << 40, threads=2
        ).expected
        for more in (
            {},
            {"feature_scaling": "unit_variance"},
            {"connections": "centroid"},
            {"feature_dictionary": "learned"},
        )
    ]
    paper, scaled, chosen, in_atoms = plans
    assert in_atoms.parameter_bytes - paper.parameter_bytes == 4 * 768 * 1365
    assert in_atoms.flops - paper.flops == 2 * 32 * 768 * 1365
    assert scaled.parameter_bytes - paper.parameter_bytes == 4 * 768
    assert chosen.parameter_bytes == paper.parameter_bytes
    before = choosing_bytes(490_449, 768, 670_091, 2_670_000, 32, is_mapped=True)
    assert 1 << 30 < before < 1.2 * (1 << 30)
    assert chosen.peak_bytes - chosen.overhead_bytes == max(
        before, paper.peak_bytes - paper.overhead_bytes
    )


@pytest.mark.parametrize(
    ("more", "counted"),
    [
        (
            {"connections": "centroid", "rewire_interval": 0},
            choosing_bytes(490_449, 768, 670_091, 2_670_000, 32, is_mapped=True, group_size=16),
        ),
        ({"grouping": "meaning"}, meaning_bytes(490_449, 768, 670_091, 2_670_000, threads=2)),
        (
            {"grouping": "sources", "connections": "centroid", "rewire_interval": 0},
            choosing_bytes(490_449, 768, 670_091, 2_670_000, 32, is_mapped=True, wants_values=True),
        ),
    ],
)
def test_the_plan_counts_what_label_groups_need(more, counted):
    sizes = Sizes(768, 670_091, 490_449, 153_025, 2_670_000, is_mapped=True)
    task = make_task(
        architecture="stratified",
        connectivity=32,
        group_size=16,
        execution="fused",
        optimizer="sgd",
        weights_dtype="bfloat16",
        **more,
    )
    planned = plan.Plan.of(task, "torch", sizes, Speed(1e10, 1e11), 1 << 40, threads=2)
    assert planned.expected.peak_bytes - planned.expected.overhead_bytes == counted


def test_the_plan_counts_what_a_head_and_a_tail_need():
    """The larger one's connections, and its own positives beside all; the same for rewiring."""
    sizes = Sizes(768, 670_091, 490_449, 153_025, 2_670_000, is_mapped=True)
    task = make_task(
        architecture="stratified",
        connectivity=32,
        head_fraction=0.1,
        head_connectivity=64,
        execution="fused",
        optimizer="sgd",
        weights_dtype="bfloat16",
        connections="centroid",
        rewire_interval=0,
    )
    planned = plan.Plan.of(task, "torch", sizes, Speed(1e10, 1e11), 1 << 40, threads=2).expected
    counted = choosing_bytes(490_449, 768, 603_082, 2_670_000, 32, is_mapped=True) + 10 * 2_670_000
    assert planned.peak_bytes - planned.overhead_bytes == counted
    # Weights in two bytes, sources in two, biases in four, and which label stands where.
    weights = 67_009 * 64 + 603_082 * 32
    assert planned.parameter_bytes == weights * (2 + 2) + 670_091 * (4 + 4)


@pytest.mark.torch
@pytest.mark.slow
def test_chosen_connections_are_better_than_random_ones():
    """On real texts, two epochs."""
    from fanin.backends.training import Schedule, train_epoch
    from fanin.benchmarks.harness.fit import evaluate

    data = load("wordnet-small", "tfidf-svd512")
    precisions = {}
    for connections in ("random", "centroid"):
        task = make_task(
            architecture="stratified",
            connectivity=32,
            connections=connections,
            rewire_interval=0,
            learning_rate=3e-3,
            execution="fused",
        )
        request = Request(task=task, backend="torch", repeat=0, options=Options(device="cpu"))
        train, test = split(data, task)
        given = chosen_arrays(request, train)
        trainer = build(request, task.setup(data.inputs, data.labels), given=given)
        for epoch in (1, 2):
            batches = make_batches(task, train, 0)
            schedule = Schedule(task.recipe_values, 2 * len(batches))
            train_epoch(trainer, batches, epoch, task.recipe_values, 0, schedule)
        precisions[connections] = evaluate(trainer, *test).at_1
    assert precisions["centroid"] > precisions["random"] + 0.05, precisions


@pytest.mark.parametrize("backend", EACH_BACKEND)
@pytest.mark.parametrize("weights", ["kept", "zero"])
def test_only_weights_below_the_threshold_move(place, backend, weights):
    values = {**CHOSEN, "execution": "fused", "rewired_weights": weights, "rewire_fraction": 0.3}
    moved = []
    for threshold in (0.0, 0.02, 1e3):
        request = request_for(place, **values, rewire_threshold=threshold, backend=backend)
        data = load("tiny", "dense40", place / "data")
        trainer = build(request, request.task.setup(data.inputs, data.labels))
        batches = make_batches(request.task, split(data, request.task)[0], 0)
        trainer.train(batches.epoch(0), 1e-2)
        before = trainer.weights()
        count = rewire(trainer, batches, request.task.recipe_values, seed=0, step=5)
        has_moved = trainer.array("output.indices") != before["output.indices"]
        moved.append((count, has_moved))
        if threshold == 0.02:
            weak = np.abs(before["output.weights"]) < 0.02
            assert count == weak.sum() and not (has_moved & ~weak).any()
    assert moved[0][0] == moved[2][0] > moved[1][0] > 0
    np.testing.assert_array_equal(moved[0][1], moved[2][1])


@pytest.mark.torch
@pytest.mark.parametrize("towards", ["random", "gradient"])
@pytest.mark.parametrize("weights", ["kept", "zero"])
def test_weights_of_what_moved(place, towards, weights):
    values = {**CHOSEN, "execution": "fused", "rewire_towards": towards}
    request = request_for(place, **values, rewired_weights=weights, rewire_fraction=0.3)
    data = load("tiny", "dense40", place / "data")
    trainer = build(request, request.task.setup(data.inputs, data.labels))
    batches = make_batches(request.task, split(data, request.task)[0], 0)
    trainer.train(batches.epoch(0), 1e-2)
    before = trainer.weights()
    moved = rewire(trainer, batches, request.task.recipe_values, seed=0, step=5)
    after, moments = trainer.weights(), dict(trainer.optimizer_arrays())
    has_moved = after["output.indices"] != before["output.indices"]
    # A blindly drawn source may be the one that was there.
    assert 0 < has_moved.sum() <= moved
    assert (moments["output.weights.m"][has_moved] == 0).all()
    expected = before["output.weights"][has_moved] if weights == "kept" else 0
    np.testing.assert_array_equal(after["output.weights"][has_moved], expected)
