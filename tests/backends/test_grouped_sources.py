"""Labels that share their sources: those that the data choose, and rewiring towards gradients."""

from __future__ import annotations

from dataclasses import replace

import choose_reference
import numpy as np
import pytest
import reference
import scipy.sparse as sp
from planted import FAN_IN, INPUTS, LABELS, orthogonal, planted_data

from fanin.backends import choosing, gradients, passes
from fanin.backends.arrays import new_sources
from fanin.backends.choosing import choose_sources
from fanin.backends.features import FeatureTransform
from fanin.backends.gradients import OutputLayer, plan_towards_gradients
from fanin.kernels import top_k

SCALE = np.geomspace(0.3, 2, INPUTS).astype(np.float32)
ATOMS = INPUTS + 5
DICTIONARY = orthogonal(ATOMS, seed=1)[:INPUTS].astype(np.float32)
TRANSFORMS = {
    "none": FeatureTransform(),
    "scale": FeatureTransform(SCALE),
    "scale and dictionary": FeatureTransform(SCALE, DICTIONARY),
}
every_transform = pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
every_size = pytest.mark.parametrize("group_size", [2, 7, 16, 64])  # 64 and 7 leave a smaller group
x, y = planted_data()
ORDER = np.random.default_rng(7).permutation(LABELS).astype(np.int32)


def as_map(features, folder):
    np.save(folder / "x.npy", features)
    return np.load(folder / "x.npy", mmap_mode="r")


FORMS = {
    "dense": lambda features, folder: features,
    "csr": lambda features, folder: sp.csr_array(features),
    "map": as_map,
}


def group_norms(values, weights, group_size):
    """The root of the sum of weights * values^2 over each group, in float64."""
    starts = range(0, len(values), group_size)
    parts = [slice(at, at + group_size) for at in starts]
    return np.array([np.sqrt((weights[p, None] * values[p] ** 2).sum(0)) for p in parts])


def largest(values, count):
    """The inputs of the largest values of each row, ascending."""
    return np.sort(np.argsort(-values, axis=1, kind="stable")[:, :count], axis=1)


def differences(transform):
    """By position, of features as the model reads them."""
    seen = transform.apply(x.astype(np.float64))
    return choose_reference.centroid_values(seen, y.toarray())[ORDER]


class TestChoice:
    @every_transform
    @every_size
    @pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
    def test_it_is_that_of_the_reference(self, transform, group_size, form, tmp_path):
        given = {"scale": transform.scale, "dictionary": transform.dictionary}
        chosen = choose_sources(
            form(x, tmp_path), y, 5, group_size=group_size, order=ORDER, want_values=True, **given
        )
        values = differences(transform)
        counts = y.toarray().sum(0)[ORDER]
        expected = largest(group_norms(values, counts, group_size), 5)
        assert chosen.indices.dtype == np.uint16
        np.testing.assert_array_equal(chosen.indices, expected)
        own = np.repeat(expected, group_size, axis=0)[:LABELS]
        assert chosen.values.dtype == np.float32
        np.testing.assert_allclose(
            chosen.values, np.take_along_axis(values, own, 1), atol=1e-4 * np.abs(values).max()
        )

    def test_labels_ascend_without_an_order(self):
        usual = choose_sources(x, y, 5, group_size=16)
        ascending = choose_sources(x, y, 5, group_size=16, order=np.arange(LABELS))
        other = choose_sources(x, y, 5, group_size=16, order=ORDER)
        assert usual.values is None
        np.testing.assert_array_equal(usual.indices, ascending.indices)
        assert (usual.indices != other.indices).any()

    @every_size
    @pytest.mark.parametrize("options", [{"threads": 2}, {"most_bytes": 2 * 9 * 4 * INPUTS}])
    @pytest.mark.parametrize("dictionary", [None, DICTIONARY])
    def test_neither_threads_nor_memory_change_it(
        self, options, group_size, dictionary, monkeypatch
    ):
        given = {"group_size": group_size, "order": ORDER, "want_values": True}
        given |= {"dictionary": dictionary, "random_share": 0.4, "seed": 3}
        usual = choose_sources(x, y, 5, threads=1, **given)
        monkeypatch.setattr(passes, "_BLOCK_LABELS", 5)
        other = choose_sources(x, y, 5, **given, **options)
        np.testing.assert_array_equal(other.indices, usual.indices)
        np.testing.assert_allclose(other.values, usual.values, rtol=1e-4, atol=1e-5)

    def test_a_label_of_chance_does_not_outvote_a_frequent_one(self):
        x = np.zeros((40, 6), np.float32)
        x[:20, 1] = 2  # all positives of label 0
        x[39, 4] = 9  # the only positive of label 1
        labels = np.zeros((40, 2), bool)
        labels[:20, 0] = labels[39, 1] = True
        chosen = choose_sources(x, sp.csr_array(labels), 1, group_size=2, mean=np.zeros(6))
        assert chosen.indices.tolist() == [[4]]  # 1 * 9^2 > 20 * 2^2
        x[39, 4] = 8.9
        chosen = choose_sources(x, sp.csr_array(labels), 1, group_size=2, mean=np.zeros(6))
        assert chosen.indices.tolist() == [[1]]  # 1 * 8.9^2 < 20 * 2^2

    def test_a_group_without_positives_is_random(self):
        known = y.toarray()
        known[:, ORDER[16:32]] = False
        known[:, ORDER[40]] = False
        chosen = choose_sources(
            x, sp.csr_array(known), 5, group_size=16, order=ORDER, seed=4, want_values=True
        )
        drawn = new_sources(np.arange(LABELS * 5), INPUTS, 4).reshape(-1, 5)[1]
        assert chosen.indices[1, 0] == drawn[0] and len(set(chosen.indices[1].tolist())) == 5
        assert not chosen.values[16:32].any() and not chosen.values[40].any()
        assert chosen.values[[*range(16), *range(32, 40)]].all()

    def test_a_share_is_random(self):
        one, other, again = (
            choose_sources(x, y, 8, group_size=16, order=ORDER, random_share=0.3, seed=seed).indices
            for seed in (1, 2, 1)
        )
        np.testing.assert_array_equal(one, again)
        np.testing.assert_array_equal(one[:, :6], other[:, :6])
        assert (one[:, 6:] != other[:, 6:]).mean() > 0.7

    def test_what_is_done_is_told(self):
        seen = []
        most_bytes = 2 * 40 * 4 * INPUTS  # 40 labels: two groups
        choose_sources(x, y, 5, group_size=16, most_bytes=most_bytes, on_labels=seen.append)
        assert seen == [32, 64, 96, 100]

    def test_planned_bytes_are_those_of_the_arrays(self):
        sums, by_label = 4 * 100 * 1000, 5 * 3000 + 12 * 1000
        result = 2 * 4 * 63 + 4 * 4 * 1000
        by_position, block = 5 * 3000 + 4 * 1000, 4 * 1000 * 200
        planned = choosing.choosing_bytes(
            50, 100, 1000, 3000, 4, is_mapped=False, wants_values=True, group_size=16
        )
        assert planned == sums + by_label + result + by_position + 2 * block

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"group_size": 1}, "group_size must be in 2..64, got 1"),
            ({"group_size": 65}, "group_size must be in 2..64, got 65"),
            ({"group_size": 16.0}, "group_size must be a whole number, got 16.0"),
            ({"group_size": 0}, "order is of labels that share their sources: give group_size"),
            ({"order": ORDER[1:]}, r"order must be integers \[100\] \(the labels\), got int32 \[9"),
            ({"order": ORDER * 1.0}, r"order must be integers \[100\] .* got float64"),
            ({"order": ORDER + 1}, r"order must be in 0..99, got 1..100"),
            ({"order": ORDER - 1}, r"order must be in 0..99, got -1..98"),
            ({"order": np.r_[ORDER[1:], ORDER[-1]]}, "order must have each label once, but label"),
        ],
    )
    def test_wrong_arguments(self, change, message):
        arguments = {"fan_in": 3, "group_size": 16, "order": ORDER}
        choose_sources(x, y, **arguments)
        with pytest.raises(ValueError, match=message):
            choose_sources(x, y, **{**arguments, **change})


@pytest.fixture
def all_are_asked(monkeypatch):
    """All labels of all instances, however small their gradient."""
    monkeypatch.setattr(gradients, "ASKED_LABELS", LABELS)
    monkeypatch.setattr(gradients, "_SMALLEST", 0.0)
    monkeypatch.setattr(gradients, "_BLOCK", 128)


def make_layer(group_size, loss="bce", transform=None, seed=0, order=ORDER):
    rng = np.random.default_rng(seed)
    transform = transform or FeatureTransform()
    read = INPUTS if transform.dictionary is None else ATOMS
    groups = -(-LABELS // group_size)
    indices = np.argsort(rng.random((groups, read)))[:, :FAN_IN].astype(np.uint16)
    weights = rng.standard_normal((LABELS, FAN_IN)).astype(np.float32) / 2
    bias = rng.standard_normal(LABELS).astype(np.float32) - 1
    label_ids = np.arange(LABELS) if order is None else order

    def best(features, k):
        seen = np.ascontiguousarray(transform.apply(features))
        known = {"indices": indices, "group_size": group_size}
        return label_ids[top_k(seen, weights, bias, k, **known)[1]]

    return OutputLayer(indices, weights, bias, loss, transform, best, group_size, order)


def dense_gradients(layer):
    """d loss / d w of all inputs, float64 [labels, inputs], by position, of the features about
    their mean."""
    seen = layer.transform.apply(x.astype(np.float64))
    indices = np.repeat(layer.indices, layer.group_size, axis=0)[:LABELS]
    scores = reference.scores(seen, indices, layer.weights, layer.bias)
    order = np.arange(LABELS) if layer.order is None else layer.order
    _, grad_scores = reference.loss(layer.loss, scores, *y.toarray()[:, order].nonzero())
    return grad_scores.T @ (seen - seen.mean(0))


def expected_plan(layer, count):
    """For each group the positions of its smallest slots, and the inputs of largest norm."""
    ones = np.ones(LABELS)
    norms = group_norms(dense_gradients(layer), ones, layer.group_size)
    sizes = group_norms(np.sqrt(np.abs(layer.weights.astype(np.float64))), ones, layer.group_size)
    plan = {}
    for group, own in enumerate(layer.indices.astype(int)):
        free = np.setdiff1d(np.arange(norms.shape[1]), own)
        best = free[np.argsort(-norms[group, free], kind="stable")[:count]]
        least = np.argsort(sizes[group], kind="stable")[:count]
        plan[group] = (set(group * FAN_IN + least), set(best))
    return plan


def as_plan(rewiring):
    groups = rewiring.positions // FAN_IN
    return {
        group: (
            set(rewiring.positions[groups == group].tolist()),
            set(rewiring.sources[groups == group].tolist()),
        )
        for group in np.unique(groups).tolist()
    }


@pytest.mark.usefixtures("all_are_asked")
class TestTowardsGradients:
    @pytest.mark.parametrize("loss", ["bce", "squared_hinge"])
    @every_transform
    @every_size
    @pytest.mark.parametrize("form", [np.asarray, sp.csr_array])
    def test_it_follows_the_gradients_of_a_dense_layer(self, loss, transform, group_size, form):
        layer = make_layer(group_size, loss, transform)
        before = layer.indices.copy(), layer.weights.copy()
        rewiring = plan_towards_gradients(form(x), y, layer, 0.5)
        assert as_plan(rewiring) == expected_plan(layer, 3)
        assert rewiring.weight == 0 and rewiring.sources.dtype == np.uint32
        np.testing.assert_array_equal(layer.indices, before[0])  # it only plans
        np.testing.assert_array_equal(layer.weights, before[1])

    def test_labels_ascend_without_an_order(self):
        layer = make_layer(16, order=None)
        assert as_plan(plan_towards_gradients(x, y, layer, 0.5)) == expected_plan(layer, 3)

    def test_the_best_labels_have_the_ids_of_the_user(self, monkeypatch):
        """The same layer, once with an order, and once with labels that are named by it."""
        monkeypatch.setattr(gradients, "ASKED_LABELS", 10)
        ordered, ascending = make_layer(16), make_layer(16, order=None)
        expected = as_plan(plan_towards_gradients(x, y[:, ORDER], ascending, 0.5))
        assert as_plan(plan_towards_gradients(x, y, ordered, 0.5)) == expected

    @every_size
    @pytest.mark.parametrize("options", [{"threads": 2}, {"most_bytes": 20_000}])
    def test_neither_threads_nor_memory_change_it(self, group_size, options, monkeypatch):
        layer = make_layer(group_size)
        usual = as_plan(plan_towards_gradients(x, y, layer, 0.5, threads=1))
        monkeypatch.setattr(passes, "_BLOCK_LABELS", 5)
        assert as_plan(plan_towards_gradients(x, y, layer, 0.5, **options)) == usual

    def test_as_without_groups_where_each_label_is_its_own(self):
        """A layer whose groups have one label that is not 0, beside labels without any gradient."""
        layer = make_layer(2, order=None)
        single = replace(layer, group_size=0, indices=np.repeat(layer.indices, 2, axis=0))
        weights = layer.weights.copy()
        weights[1::2] = 0
        half = sp.csr_array(y.toarray() & (np.arange(LABELS) % 2 == 0))
        bias = np.where(np.arange(LABELS) % 2, -80, layer.bias).astype(np.float32)
        changed = {"weights": weights, "bias": bias}
        grouped = as_plan(plan_towards_gradients(x, half, replace(layer, **changed), 0.5))
        own = as_plan(plan_towards_gradients(x, half, replace(single, **changed), 0.5))
        for group, (_, sources) in grouped.items():
            assert sources == own[2 * group][1]


def test_planned_bytes_of_rewiring():
    usual = gradients.rewiring_bytes(500, 100, 1000, 3000, 4)
    grouped = gradients.rewiring_bytes(500, 100, 1000, 3000, 4, group_size=16)
    assert grouped == usual + 4 * 1000 * 200 + 4 * 3000
