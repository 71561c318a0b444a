"""Rewiring towards gradients, without a framework: against a dense layer's gradients in float64."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import reference
import scipy.sparse as sp
from planted import FAN_IN, INPUTS, LABELS, orthogonal, planted_data

from fanin.backends import gradients, passes
from fanin.backends.features import FeatureTransform
from fanin.backends.gradients import OutputLayer, plan_towards_gradients
from fanin.backends.kinds import FixedFanIn
from fanin.backends.setup import LayerSetup
from fanin.kernels import top_k

SCALE = np.geomspace(0.3, 2, INPUTS).astype(np.float32)
ATOMS = INPUTS + 5
DICTIONARY = orthogonal(ATOMS, seed=1)[:INPUTS].astype(np.float32)
TRANSFORMS = {
    "none": FeatureTransform(),
    "scale": FeatureTransform(SCALE),
    "scale and dictionary": FeatureTransform(SCALE, DICTIONARY),
}
LOSSES = ("bce", "squared_hinge")
every_loss = pytest.mark.parametrize("loss", LOSSES)
x, y = planted_data()


@pytest.fixture(autouse=True)
def all_are_asked(monkeypatch):
    """All labels of all instances, however small their gradient."""
    monkeypatch.setattr(gradients, "ASKED_LABELS", LABELS)
    monkeypatch.setattr(gradients, "_SMALLEST", 0.0)
    monkeypatch.setattr(gradients, "_BLOCK", 128)  # several, the last one smaller


def make_layer(loss="bce", transform=None, seed=0):
    rng = np.random.default_rng(seed)
    transform = transform or FeatureTransform()
    read = INPUTS if transform.dictionary is None else ATOMS
    indices = np.argsort(rng.random((LABELS, read)))[:, :FAN_IN].astype(np.uint16)
    weights = rng.standard_normal((LABELS, FAN_IN)).astype(np.float32) / 2
    bias = rng.standard_normal(LABELS).astype(np.float32) - 1

    def best(features, k):
        seen = np.ascontiguousarray(transform.apply(features))
        return top_k(seen, weights, bias, k, indices=indices)[1]

    return OutputLayer(indices, weights, bias, loss, transform, best)


def dense_gradients(layer):
    """d loss / d w of all inputs, float64 [labels, inputs], of the features about their mean."""
    seen = layer.transform.apply(x.astype(np.float64))
    scores = reference.scores(seen, layer.indices, layer.weights, layer.bias)
    _, grad_scores = reference.loss(layer.loss, scores, *y.nonzero())
    return grad_scores.T @ (seen - seen.mean(0))


def expected_plan(layer, values, count):
    """For each label the positions of its smallest weights, and the inputs of largest |value|."""
    plan = {}
    for label, own in enumerate(layer.indices.astype(int)):
        free = np.setdiff1d(np.arange(values.shape[1]), own)
        best = free[np.argsort(-np.abs(values[label, free]), kind="stable")[:count]]
        least = np.argsort(np.abs(layer.weights[label]), kind="stable")[:count]
        plan[label] = (set(label * FAN_IN + least), set(best))
    return plan


def as_plan(rewiring):
    labels = rewiring.positions // FAN_IN
    return {
        label: (
            set(rewiring.positions[labels == label].tolist()),
            set(rewiring.sources[labels == label].tolist()),
        )
        for label in range(LABELS)
    }


class TestPlan:
    @every_loss
    @pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
    @pytest.mark.parametrize("form", [np.asarray, sp.csr_array])
    def test_it_follows_the_gradients_of_a_dense_layer(self, loss, transform, form):
        layer = make_layer(loss, transform)
        before = layer.indices.copy(), layer.weights.copy()
        rewiring = plan_towards_gradients(form(x), y, layer, 0.5)
        assert as_plan(rewiring) == expected_plan(layer, dense_gradients(layer), 3)
        assert rewiring.weight == 0 and rewiring.sources.dtype == np.uint32
        np.testing.assert_array_equal(layer.indices, before[0])  # it only plans
        np.testing.assert_array_equal(layer.weights, before[1])

    @every_loss
    def test_the_sums_are_the_gradients(self, loss, monkeypatch):
        """Up to what is the same for all: instances, labels, and 2 of a square."""
        layer, seen = make_layer(loss, TRANSFORMS["scale and dictionary"]), []
        replace_sources = gradients.replace_sources

        def watched(values, *arguments, **options):
            seen.append(values.copy())
            replace_sources(values, *arguments, **options)

        monkeypatch.setattr(gradients, "replace_sources", watched)
        plan_towards_gradients(x, y, layer, 0.5, most_bytes=2 * 7 * 4 * INPUTS)
        assert len(seen) == -(-LABELS // 7)
        factor = x.shape[0] * LABELS / (2 if loss == "squared_hinge" else 1)
        expected = dense_gradients(layer) * factor
        result = np.concatenate(seen)
        np.testing.assert_allclose(result, expected, atol=1e-4 * np.abs(expected).max())

    @pytest.mark.parametrize("options", [{"threads": 1}, {"threads": 2}, {"most_bytes": 20_000}])
    def test_neither_threads_nor_memory_change_it(self, options):
        layer = make_layer()
        usual = plan_towards_gradients(x, y, layer, 0.5)
        other = plan_towards_gradients(x, y, layer, 0.5, **options)
        assert as_plan(other) == as_plan(usual)

    @every_loss
    @pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
    def test_labels_of_a_block_do_not_change_it(self, loss, transform, monkeypatch):
        layer = make_layer(loss, transform)
        usual = plan_towards_gradients(x, y, layer, 0.5)
        for name, most in (("_BLOCK_LABELS", 7), ("_BLOCK_BYTES", 4 * INPUTS * 7)):
            monkeypatch.setattr(passes, name, most)
            assert as_plan(plan_towards_gradients(x, y, layer, 0.5)) == as_plan(usual)

    def test_what_the_bias_can_learn_is_left_out(self):
        layer = make_layer()
        shift = np.linspace(-3, 3, INPUTS, dtype=np.float32)
        read = (layer.transform.apply(shift[None])[0])[layer.indices]
        bias = layer.bias - (read * layer.weights).sum(1)
        shifted = replace(layer, bias=bias, top_k=lambda x, k: layer.top_k(x - shift, k))
        usual = plan_towards_gradients(x, y, layer, 0.5)
        assert as_plan(plan_towards_gradients(x + shift, y, shifted, 0.5)) == as_plan(usual)

    def test_fraction_is_of_each_label(self):
        for fraction, count in ((0, 0), (0.16, 0), (0.17, 1), (0.5, 3), (0.99, 5)):
            rewiring = plan_towards_gradients(x, y, make_layer(), fraction)
            assert (np.bincount(rewiring.positions // FAN_IN, minlength=LABELS) == count).all()

    def test_nothing_is_read_where_nothing_moves(self):
        layer = replace(make_layer(), top_k=None)  # it is not asked
        rewiring = plan_towards_gradients(x, y, layer, 0.16)
        usual = plan_towards_gradients(x, y, make_layer(), 0.17)
        for name in ("positions", "sources"):
            empty, some = getattr(rewiring, name), getattr(usual, name)
            assert len(some) > len(empty) == 0 and empty.dtype == some.dtype

    def test_a_memory_map(self, tmp_path):
        np.save(tmp_path / "x.npy", x)
        mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
        expected = as_plan(plan_towards_gradients(x, y, make_layer(), 0.5))
        assert as_plan(plan_towards_gradients(mapped, y, make_layer(), 0.5)) == expected


class TestWhatIsLeftOut:
    """Instances that are not asked, labels that are not among the best, and small gradients."""

    def error(self, layer, monkeypatch, seed=0, **limits):
        """Of the sums, over the length of the gradients."""
        for name, value in limits.items():
            monkeypatch.setattr(gradients, name, value)
        seen = []
        monkeypatch.setattr(
            gradients, "replace_sources", lambda values, *_, **__: seen.append(values.copy())
        )
        plan_towards_gradients(x, y, layer, 0.5, seed=seed)
        expected = dense_gradients(layer) * x.shape[0] * LABELS
        return np.linalg.norm(np.concatenate(seen) - expected) / np.linalg.norm(expected)

    def test_small_gradients(self, monkeypatch):
        layer = make_layer()
        assert self.error(layer, monkeypatch) < 1e-5
        assert 1e-5 < self.error(layer, monkeypatch, _SMALLEST=1e-2) < 0.01

    def test_labels_of_low_score(self, monkeypatch):
        layer = make_layer()
        layer = replace(layer, bias=layer.bias - 3)  # `best` has another one, which is no matter
        errors = [self.error(layer, monkeypatch, ASKED_LABELS=best) for best in (1, 10, 30, LABELS)]
        assert errors == sorted(errors, reverse=True)
        assert errors[0] > 0.1 and errors[2] < 0.1 and errors[3] < 1e-5

    def test_some_instances_stand_for_all(self, monkeypatch):
        """So on average over the draws nothing is missing."""
        layer, seen = make_layer(), []
        monkeypatch.setattr(gradients, "ASKED_INSTANCES", 100)
        monkeypatch.setattr(
            gradients, "replace_sources", lambda values, *_, **__: seen.append(values.copy())
        )
        for seed in range(60):
            plan_towards_gradients(x, y, layer, 0.5, seed=seed)
        expected = dense_gradients(layer) * x.shape[0] * LABELS
        one, many = (np.linalg.norm(each - expected) for each in (seen[0], np.mean(seen, 0)))
        assert (seen[0] != seen[1]).any()
        assert many < 0.2 * one

    def test_a_seed_makes_it_repeatable(self, monkeypatch):
        monkeypatch.setattr(gradients, "ASKED_INSTANCES", 100)
        plans = [
            as_plan(plan_towards_gradients(x, y, make_layer(), 0.5, seed=s)) for s in (1, 1, 2)
        ]
        assert plans[0] == plans[1] != plans[2]


class TestScoreGradients:
    @every_loss
    @pytest.mark.parametrize("sign", [1, -1])
    def test_they_are_those_of_the_loss(self, loss, sign):
        scores = np.linspace(-30, 30, 61)[:, None]
        positives = (np.arange(61), np.zeros(61, int)) if sign > 0 else ([], [])
        _, expected = reference.loss(loss, scores, *positives)
        factor = 61 / (2 if loss == "squared_hinge" else 1)
        result = gradients.score_gradients(loss, scores[:, 0], sign)
        np.testing.assert_allclose(result, expected[:, 0] * factor, rtol=1e-12, atol=1e-15)

    def test_large_scores_do_not_overflow(self):
        with np.errstate(all="raise"):
            result = gradients.score_gradients("bce", np.array([-1e4, 1e4], np.float32), 1)
        np.testing.assert_allclose(result, [-1, 0], atol=1e-30)


class TestErrors:
    @pytest.mark.parametrize("fraction", [1, -0.1, None, "x"])
    def test_fraction(self, fraction):
        with pytest.raises(ValueError, match="fraction must be at least 0 and below 1"):
            plan_towards_gradients(x, y, make_layer(), fraction)

    def test_labels(self):
        with pytest.raises(ValueError, match="labels must have 100 columns, got 99"):
            plan_towards_gradients(x, y[:, 1:], make_layer(), 0.5)

    def test_a_layer_of_other_sizes(self):
        setup = LayerSetup(INPUTS + 1, LABELS, FixedFanIn(FAN_IN))
        with pytest.raises(ValueError, match=r"features must be \[instances, 25\] \(the inputs\)"):
            gradients.plan_for_layer(x, y, make_layer(), setup, 0.5, seed=0, threads=0)
        setup = LayerSetup(INPUTS, LABELS, FixedFanIn(FAN_IN))
        layer = make_layer("hinge")
        with pytest.raises(ValueError, match="unknown loss 'hinge'; there are squared_hinge, bce"):
            gradients.plan_for_layer(x, y, layer, setup, 0.5, seed=0, threads=0)
