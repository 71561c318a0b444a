"""The reference in torch, which goes in pieces, is the tests' own in NumPy."""

from __future__ import annotations

import types

import choose_reference
import numpy as np
import pytest
import reference as in_numpy
import torch

from fanin.backends.arrays import initial_arrays, new_sources
from fanin.backends.kinds import Dense, FixedFanIn, Unstructured
from fanin.backends.optimizer import ADAM, Optimizer
from fanin.backends.setup import LayerSetup
from fanin.benchmarks.gpu_parts import reference

pytestmark = pytest.mark.torch


@pytest.mark.parametrize("kind", [FixedFanIn(7), Unstructured(7), Dense()], ids=repr)
@pytest.mark.parametrize(
    "loss, optimizer",
    [
        ("squared_hinge", ADAM),
        ("bce", ADAM),
        ("bce", Optimizer("sgd", weight_decay=0.1, l2=0.1)),
        ("bce", Optimizer("momentum", weight_decay=0.1, l2=0.1)),
    ],
)
def test_the_reference_is_the_tests_own(kind, loss, optimizer, monkeypatch):
    monkeypatch.setattr(reference, "_PIECE", 37)  # many pieces, none of them whole rows
    rng = np.random.default_rng(0)
    setup = LayerSetup(30, 50, kind, loss=loss)
    arrays = initial_arrays(setup, 1)
    arrays["output.weights"] = rng.standard_normal(arrays["output.weights"].shape, np.float32)
    arrays["output.bias"] = rng.standard_normal(50, np.float32)
    model = in_numpy.Model(setup, arrays, optimizer=optimizer)
    weights = arrays["output.weights"]
    indices = starts = None
    match kind:
        case Dense():
            weights = np.ascontiguousarray(weights.T)
        case Unstructured():
            starts = torch.from_numpy(np.searchsorted(arrays["output.rows"], np.arange(51)))
            indices = torch.from_numpy(arrays["output.columns"])
        case FixedFanIn():
            indices = torch.from_numpy(arrays["output.indices"].astype(np.int64))
    layer = reference.Layer(
        torch.from_numpy(weights), torch.from_numpy(arrays["output.bias"]), indices, starts
    )
    for _ in range(3):
        instances, labels = np.nonzero(rng.random((9, 50)) < 0.05)
        batch = types.SimpleNamespace(
            features=rng.standard_normal((9, 30), np.float32),
            positive_instances=instances,
            positive_labels=labels,
        )
        x = torch.from_numpy(batch.features)
        np.testing.assert_allclose(layer.scores(x), model.scores(batch.features), atol=1e-12)
        _, grad_scores = in_numpy.loss(loss, model.scores(batch.features), instances, labels)
        wanted = grad_scores @ model.output_matrix().T
        expected = model.step(batch, 0.01)
        positives = torch.from_numpy(instances), torch.from_numpy(labels)
        value, grad = layer.step(x, *positives, loss, 0.01, optimizer)
        assert float(value) == pytest.approx(expected, rel=1e-12)
        np.testing.assert_allclose(grad, wanted, atol=1e-15)
    trained = layer.weights.t() if kind == Dense() else layer.weights
    np.testing.assert_allclose(trained, model.arrays["output.weights"], atol=1e-12)
    np.testing.assert_allclose(layer.bias, model.arrays["output.bias"], atol=1e-12)
    if isinstance(kind, FixedFanIn):
        g = rng.standard_normal((9, 50))
        wanted = in_numpy.gradients(g, batch.features, indices.numpy(), layer.weights.numpy())
        for a, b in zip(layer.gradients(torch.from_numpy(g), x), wanted, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-12)


@pytest.mark.parametrize("random", [0, 2, 7])
def test_chosen_sources_are_the_tests_own(random):
    rng = np.random.default_rng(random)
    sums = rng.integers(-2, 3, (80, 30)).astype(np.float32)
    counts = rng.choice([0, 1, 2, 4], 80)
    mean = rng.integers(-1, 2, 30).astype(np.float32)
    scale = (2.0 ** rng.integers(-2, 3, 30)).astype(np.float32)
    place = {"random": random, "seed": 9, "first_label": 5}
    expected = choose_reference.sources(sums, counts, mean, 7, scale=scale, **place)
    drawn = new_sources(5 * 7 + np.arange(80 * 7), 30, 9).reshape(80, 7).astype(np.int64)
    results = reference.chosen_sources(
        *map(torch.from_numpy, (sums, counts, mean, scale, drawn)), random
    )
    for result, wanted in zip(results, expected, strict=True):
        np.testing.assert_array_equal(result, wanted)


def test_replaced_sources_are_the_tests_own():
    rng = np.random.default_rng(0)
    gradients = rng.integers(-2, 3, (80, 30)).astype(np.float32)
    gradients[::4] *= rng.random((20, 30)) < 0.1  # some labels have few inputs to take
    sources = rng.permuted(np.tile(np.arange(30), (80, 1)), axis=1)[:, :7]
    weights = rng.integers(-2, 3, (80, 7)).astype(np.float32)
    moves, after = reference.replaced_sources(
        *map(torch.from_numpy, (gradients, sources, weights)), 4
    )
    wanted = choose_reference.replacements(gradients, sources, weights, 4)
    for label, (slots, taken) in enumerate(wanted):
        np.testing.assert_array_equal(np.flatnonzero(moves[label]), slots)
        sources[label, slots] = taken
    np.testing.assert_array_equal(after, sources)
    assert len(set(moves.sum(1).tolist())) > 1


def test_label_sums_are_sums():
    features, pairs = torch.tensor([[1.0, 2], [3, 4]]), torch.tensor([[0, 1, 1], [2, 2, 0]])
    before, weights = torch.ones(3, 2), torch.tensor([1.0, 2, -1])
    sums = reference.label_sums(features, *pairs, None, before)
    assert sums.tolist() == [[4, 5], [1, 1], [5, 7]]
    sums = reference.label_sums(features, *pairs, weights, before)
    assert sums.tolist() == [[-2, -3], [1, 1], [8, 11]]
