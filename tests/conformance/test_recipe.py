"""Layers of a user's own model that follow the recipe "best", in both frameworks."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import reference
import scipy.sparse as sp
from near import assert_near, difference
from planted import FAN_IN, INPUTS, LABELS, planted_data

from fanin.backends import gradients
from fanin.backends.features import FeatureTransform, inputs_as_atoms
from fanin.backends.kinds import FixedFanIn
from fanin.backends.recipes import recipe_of
from fanin.backends.setup import LayerSetup
from fanin.backends.starting import starting_arrays
from fanin.datasets import Batch, load
from fanin.kernels import top_k

SETUP = LayerSetup(INPUTS, LABELS, FixedFanIn(FAN_IN), loss="bce")
BEST = recipe_of("best", SETUP)
KINDS = ("fixed_layer", "fused_layer")
every_kind = pytest.mark.parametrize("kind", KINDS)
BEST_FEATURES = ("features.scale", "features.dictionary")
x, y = planted_data()


def make(adapter, kind, recipe="best", seed=0, sizes=(INPUTS, LABELS, FAN_IN), **options):
    return getattr(adapter, kind)(*sizes, seed=seed, recipe=recipe, **options)


def arrays_of(layer):
    """All arrays of the layer, moments included where it has its own."""
    if hasattr(layer, "arrays"):
        own = layer.arrays()
    else:
        own = {name: np.array(getattr(layer, name)) for name in ("indices", "weights", "bias")}
    scale, dictionary = layer.feature_arrays() or (None, None)
    return {**own, "features.scale": scale, "features.dictionary": dictionary}


def read(arrays, features):
    """The features as the layer's connections read them, in float64."""
    transforms = (arrays[name].astype(np.float64) for name in BEST_FEATURES)
    return FeatureTransform(*transforms).apply(features)


def expected_scores(arrays, features):
    seen = read(arrays, features) if arrays["features.scale"] is not None else features
    return reference.scores(seen, *(arrays[name] for name in ("indices", "weights", "bias")))


def batch(step, size=20):
    instances, label_ids = y[step * size : (step + 1) * size].nonzero()
    features = x[step * size : (step + 1) * size]
    return Batch(features, instances.astype(np.int32), label_ids.astype(np.int64))


def train(layer, steps=3):
    for step in range(steps):
        each = batch(step)
        layer.loss("training_step", each.features, each.positive_instances, each.positive_labels)


def assert_equal(arrays, expected):
    for name, array in expected.items():
        np.testing.assert_array_equal(arrays[name], array, name)


@every_kind
def test_features_are_left_as_they_are_until_there_are_data(on_device, kind):
    layer = make(on_device, kind)
    arrays = arrays_of(layer)
    np.testing.assert_array_equal(arrays["features.scale"], np.ones(INPUTS, np.float32))
    atoms = arrays["features.dictionary"].shape[1]
    assert atoms > INPUTS
    unchanged = inputs_as_atoms(INPUTS, atoms)
    np.testing.assert_array_equal(arrays["features.dictionary"], unchanged)
    assert arrays["features.scale"].dtype == arrays["features.dictionary"].dtype == np.float32
    paper = make(on_device, kind, "paper")
    assert paper.feature_arrays() == []
    assert arrays["indices"].max() == atoms - 1
    assert_near(layer(x), expected_scores(arrays, x), 1e-6)
    arrays["features.scale"] = None
    as_inputs = arrays | {"indices": arrays["indices"] % INPUTS}
    assert_near(layer(x), expected_scores(as_inputs, x), 1e-6)


@every_kind
@pytest.mark.parametrize("form", [np.asarray, sp.csr_array, sp.csr_matrix])
def test_starts_as_the_recipe_says(on_device, kind, form):
    layer = make(on_device, kind)
    if kind == "fused_layer":
        train(layer)
    layer.start_from(form(x), y, seed=3)
    arrays = arrays_of(layer)
    expected = starting_arrays(x, y, BEST, FixedFanIn(FAN_IN), seed=3)
    assert expected["features.dictionary"].shape[1] > INPUTS
    if form is np.asarray:
        assert_equal(
            {name.replace("output.", ""): array for name, array in expected.items()},
            {name: arrays[name] for name in ("indices", "weights", "bias")},
        )
        assert_equal(arrays, {name: expected[name] for name in BEST_FEATURES})
    assert_near(arrays["bias"], expected["output.bias"], 0)
    assert_near(arrays["features.scale"], expected["features.scale"], 1e-5)
    assert_near(layer(x), expected_scores(arrays, x), 2e-5)
    if kind == "fused_layer":
        for name in ("weights_m", "weights_v", "bias_m", "bias_v", "steps"):
            assert not arrays[name].any(), name


def test_trains_as_the_reference_does_on_features_that_were_transformed(on_device):
    """From the same start, so that both frameworks go the same way."""
    for traced in on_device.ways:
        layer = make(on_device, "fused_layer")
        layer.start_from(x, y)
        before = arrays_of(layer)
        setup = replace(SETUP, inputs=before["features.dictionary"].shape[1])
        trained = {f"output.{name}": before[name] for name in ("indices", "weights", "bias")}
        model = reference.Model(setup, trained)
        for step in range(10):
            given = batch(step)
            positives = (given.positive_instances, given.positive_labels)
            seen = Batch(read(before, given.features), *positives)
            scores = model.scores(seen.features)
            _, grad_scores = reference.loss("bce", scores, *positives)
            grad_atoms = 3 * grad_scores @ model.output_matrix().T
            expected = grad_atoms @ before["features.dictionary"].T * before["features.scale"]
            quiet, _ = layer.loss_and_gradient("evaluate_loss", given.features, *positives)
            value, gradient = layer.loss_and_gradient(
                "training_step", given.features, *positives, traced=traced
            )
            assert value == pytest.approx(3 * model.step(seen, BEST.learning_rate), rel=1e-5)
            assert quiet == pytest.approx(value, rel=1e-5)
            assert_near(gradient, expected, 1e-4)
        after = arrays_of(layer)
        assert_equal(after, {name: before[name] for name in ("indices", *BEST_FEATURES)})
        for name in ("weights", "bias"):
            assert difference(after[name], model.arrays[f"output.{name}"]) < 1e-4
        assert_near(layer(x), expected_scores(after, x), 2e-5)


def test_the_best_labels_are_those_of_the_scores(on_device):
    layer = make(on_device, "fused_layer")
    layer.start_from(x, y)
    train(layer)
    values, ids = layer.top_k(x, 5)
    scores = layer(x)
    assert_near(values, np.take_along_axis(scores, ids, 1), 1e-5)
    assert_near(values, -np.sort(-scores, axis=1)[:, :5], 1e-5)


def test_features_of_higher_rank_and_float64(on_device):
    layer = make(on_device, "fixed_layer", dtype="float64")
    layer.start_from(x, y)
    arrays = arrays_of(layer)
    assert arrays["features.scale"].dtype == arrays["features.dictionary"].dtype == np.float64
    wide = x.astype(np.float64)
    assert_near(layer(wide), expected_scores(arrays, wide), 1e-12)
    assert_near(layer(wide.reshape(30, 10, INPUTS)).reshape(-1, LABELS), layer(wide), 1e-12)
    assert layer.rewire_towards_gradients(x, y, rng=0) > 0


@every_kind
def test_the_state_is_saved_with_scale_and_dictionary(on_device, tmp_path, kind):
    one, other = make(on_device, kind), make(on_device, kind, seed=1)
    one.start_from(x, y)
    one.save(tmp_path)
    other.load(tmp_path)
    assert_equal(arrays_of(other), arrays_of(one))
    np.testing.assert_array_equal(one(x), other(x))


@every_kind
@pytest.mark.parametrize("recipe", ["paper", "best"])
def test_connections_move_towards_gradients(on_device, kind, recipe, monkeypatch):
    monkeypatch.setattr(gradients, "ASKED_LABELS", 3)  # so that it matters which they are
    layer = make(on_device, kind, recipe)
    optimizer = layer.adam() if kind == "fixed_layer" else None
    if recipe == "best":
        layer.start_from(x, y)
    if kind == "fused_layer":
        train(layer)
    before = arrays_of(layer)
    loss = "squared_hinge" if kind == "fused_layer" and recipe == "paper" else "bce"
    transform = FeatureTransform(*(before[name] for name in BEST_FEATURES))

    def best(features, k):
        seen = np.ascontiguousarray(transform.apply(features))
        return top_k(seen, before["weights"], before["bias"], k, indices=before["indices"])[1]

    output = gradients.OutputLayer(
        *(before[name] for name in ("indices", "weights", "bias")), loss, transform, best
    )
    seed = int(np.random.default_rng(5).integers(2**64, dtype=np.uint64))
    plan = gradients.plan_towards_gradients(x, y, output, 0.34, seed=seed)
    assert len(plan.positions) > LABELS
    options = {} if kind == "fused_layer" else {"optimizer": optimizer}
    moments = layer.moments(optimizer) if optimizer else []
    assert layer.rewire_towards_gradients(x, y, 0.34, rng=5, **options) == len(plan.positions)
    before["indices"].reshape(-1)[plan.positions] = plan.sources
    for name in {"weights", "weights_m", "weights_v"} & before.keys():
        before[name].reshape(-1)[plan.positions] = 0
    assert_equal(arrays_of(layer), {name: a for name, a in before.items() if a is not None})
    assert_near(layer(x), expected_scores(before, x), 2e-5)
    for moment, old in zip(layer.moments(optimizer) if optimizer else [], moments, strict=True):
        old.reshape(-1)[plan.positions] = 0
        np.testing.assert_array_equal(moment, old)
        assert moment.any()


def test_the_losses_of_a_layer_that_does_not_know_its_own(on_device):
    moved = []
    for loss in ("bce", "squared_hinge"):
        layer = make(on_device, "fixed_layer")
        layer.start_from(x, y)
        layer.rewire_towards_gradients(x, y, 0.5, loss=loss, rng=0)
        moved.append(layer.indices)
    assert (moved[0] != moved[1]).any()


def test_rewires_towards_gradients_by_generator_or_seed(on_device):
    for kind in KINDS:
        layers = [make(on_device, kind) for _ in "ab"]
        for layer, rng in zip(layers, (3, np.random.default_rng(3)), strict=True):
            layer.start_from(x, y)
            assert layer.rewire_towards_gradients(x, y, 0.5, rng=rng) > 0
        np.testing.assert_array_equal(*(arrays_of(layer)["indices"] for layer in layers))


def test_a_layer_without_bias(on_device):
    layer = make(on_device, "fixed_layer", bias=False)
    layer.start_from(x, y)
    expected = starting_arrays(x, y, BEST, FixedFanIn(FAN_IN))
    np.testing.assert_array_equal(layer.weights, expected["output.weights"])
    assert layer.rewire_towards_gradients(x, y, 0.5, rng=0) > 0


def test_wide_features_are_scaled_only(on_device):
    rng = np.random.default_rng(0)
    wide = sp.random_array((50, 5000), density=0.01, format="csr", dtype=np.float32, rng=rng)
    labels = sp.random_array((50, LABELS), density=0.05, format="csr", rng=rng)
    layer = make(on_device, "fused_layer", sizes=(5000, LABELS, FAN_IN))
    layer.start_from(wide, labels)
    (scale,) = layer.feature_arrays()
    assert scale.shape == (5000,) and difference(scale, np.ones(5000)) > 0.1
    arrays = arrays_of_scaled(layer, scale)
    assert_near(layer(wide.toarray()), reference.scores(wide.toarray() * scale, *arrays), 2e-5)


def arrays_of_scaled(layer, scale):
    return [layer.arrays()[name] for name in ("indices", "weights", "bias")]


def test_loss_and_learning_rate_are_those_of_the_recipe(on_device):
    for recipe, loss, rate in (("paper", "squared_hinge", 1e-3), ("best", "bce", 3e-3)):
        layer = make(on_device, "fused_layer", recipe)
        assert layer.layer.loss == loss
        assert layer.learning_rate == pytest.approx(rate)
        layer = make(on_device, "fused_layer", recipe, loss="bce", learning_rate=0.5)
        assert (layer.layer.loss, layer.learning_rate) == ("bce", 0.5)


@every_kind
def test_what_cannot_be_done(on_cpu, kind):
    with pytest.raises(ValueError, match="unknown recipe 'good'; there are paper, best"):
        make(on_cpu, kind, "good")
    paper = make(on_cpu, kind, "paper")
    with pytest.raises(ValueError, match="'paper' does not look at data; make it with recipe="):
        paper.start_from(x, y)
    layer = make(on_cpu, kind)
    before = arrays_of(layer)
    narrow, fewer = x[:, 1:].copy(), y[:, 1:]
    for features, labels, message in (
        (narrow, y, r"features must be \[instances, 24\] \(the inputs\), got \[300, 23\]"),
        (x, fewer, r"labels must be \[instances, 100\], got \[300, 99\]"),
        (x[1:], y, r"labels must be \[instances, labels\] with 299 instances"),
        (x.astype(np.float64), y, "features must be float32, got float64"),
        (x, y.toarray(), "labels must be a SciPy sparse array"),
        (x.tolist(), y, "features must be a NumPy array or a SciPy CSR array, got list"),
        (np.where(x == x[5, 7], np.nan, x), y, "features must be finite, but input 7"),
    ):
        for ask in (layer.start_from, layer.rewire_towards_gradients):
            with pytest.raises(ValueError, match=message):
                ask(features, labels)
    for seed in (-1, 1.5, 2**64):
        with pytest.raises(ValueError, match="seed must be"):
            layer.start_from(x, y, seed=seed)
    for fraction in (1, -0.1, None):
        with pytest.raises(ValueError, match="fraction must be at least 0 and below 1"):
            layer.rewire_towards_gradients(x, y, fraction)
    with pytest.raises(ValueError, match="rng must be a NumPy generator or a seed, got 'x'"):
        layer.rewire_towards_gradients(x, y, rng="x")
    if kind == "fixed_layer":
        with pytest.raises(ValueError, match="unknown loss 'hinge'"):
            layer.rewire_towards_gradients(x, y, loss="hinge")
        with pytest.raises(ValueError, match=on_cpu.not_trained):
            layer.rewire_towards_gradients(x, y, optimizer=layer.other_adam())
    assert_equal(arrays_of(layer), before)


@pytest.mark.slow
def test_an_epoch_on_real_data_gives_more_than_the_papers(on_device):
    data = load("wordnet-small")
    precisions = {}
    for recipe in ("paper", "best"):
        sizes = (data.train_x.shape[1], data.train_y.shape[1], 32)
        layer = make(on_device, "fused_layer", recipe, sizes=sizes)
        if recipe == "best":
            layer.start_from(data.train_x, data.train_y)
        order = np.random.default_rng(0).permutation(len(data.train_x))
        for first in range(0, len(order), 128):
            near = order[first : first + 128]
            instances, label_ids = data.train_y[near].nonzero()
            layer.loss("training_step", data.train_x[near], instances, label_ids)
        _, ids = layer.top_k(data.test_x, 1)
        test_y = data.test_y.tocsr()
        precisions[recipe] = np.mean([test_y[i, label] > 0 for i, (label,) in enumerate(ids)])
    assert precisions["best"] > precisions["paper"] + 0.3, precisions
