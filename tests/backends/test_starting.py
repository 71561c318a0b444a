"""What a recipe makes of the training data before the training."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse as sp
from planted import FAN_IN, INPUTS, LABELS, planted_data

from fanin.backends.arrays import check_arrays, initial_arrays
from fanin.backends.choosing import choose_sources, log_odds
from fanin.backends.grouping import label_order
from fanin.backends.head_and_tail import HeadAndTail
from fanin.backends.kinds import ORDER, Dense, FixedFanIn, GroupedFanIn
from fanin.backends.recipes import PAPER, recipe_of
from fanin.backends.setup import LayerSetup
from fanin.backends.starting import (
    CENTROID_SHARE,
    MORE_POSITIVES,
    arrays_for_layer,
    atoms_of,
    dictionary_fan_in,
    looks_at_data,
    starting_arrays,
)

BEST = recipe_of("best", LayerSetup(INPUTS, LABELS, FixedFanIn(FAN_IN)))
ATOMS = atoms_of(BEST, INPUTS, LABELS, FAN_IN)
SETUP = LayerSetup(INPUTS, LABELS, FixedFanIn(FAN_IN), scaled=True, atoms=ATOMS)
ALL = ["features.scale", "features.dictionary", "output.indices", "output.weights", "output.bias"]
x, y = planted_data()


def centred(arrays):
    """Mean over each label's positives - mean over all, of the features as the model reads them,
    float64 [labels, inputs]."""
    seen = x.astype(np.float64)
    seen *= arrays.get("features.scale", 1)
    seen = seen @ arrays["features.dictionary"] if "features.dictionary" in arrays else seen
    dense = y.toarray().astype(np.float64)
    return dense.T @ seen / np.maximum(dense.sum(0), 1)[:, None] - seen.mean(0)


@pytest.mark.parametrize("dictionary", ["learned", "none"])
@pytest.mark.parametrize("scaling", ["unit_variance", "none"])
@pytest.mark.parametrize("form", [np.asarray, sp.csr_array])
def test_weights_are_a_share_of_what_the_inputs_were_chosen_by(dictionary, scaling, form):
    recipe = replace(BEST, feature_dictionary=dictionary, feature_scaling=scaling)
    arrays = starting_arrays(form(x), y, recipe, FixedFanIn(FAN_IN))
    assert ("features.dictionary" in arrays) == (dictionary == "learned")
    assert ("features.scale" in arrays) == (scaling != "none")
    values, known = centred(arrays), y.toarray().any(0)
    indices = arrays["output.indices"].astype(int)
    strongest = np.sort(np.argsort(-np.abs(values), axis=1)[:, :FAN_IN], axis=1)
    np.testing.assert_array_equal(indices[known], strongest[known])
    positives = y.sum(0)[:, None]
    shares = CENTROID_SHARE * positives / (positives + MORE_POSITIVES)
    expected = shares * np.take_along_axis(values, indices, 1)
    expected[~known] = 0  # random sources, of which nothing is known
    assert not known.all()
    np.testing.assert_allclose(arrays["output.weights"], expected, atol=1e-5)


@pytest.mark.parametrize("grouping", ["frequency", "meaning", "random"])
def test_labels_that_share_their_sources(grouping):
    """All that belongs to a label stands at its position, and sources are those of its group."""
    recipe = replace(BEST, grouping=grouping)
    arrays = starting_arrays(x, y, recipe, GroupedFanIn(FAN_IN, 16))
    setup = replace(SETUP, output=GroupedFanIn(FAN_IN, 16))
    assert {*arrays} == {*setup.array_shapes()}
    check_arrays(setup, arrays)
    order = arrays[ORDER]
    given = {"features": x, "seed": 0}
    np.testing.assert_array_equal(order, label_order(y, 16, grouping, **given))
    assert order.tolist() != [*range(LABELS)]
    values, known = centred(arrays)[order], y.toarray().any(0)[order]
    indices = np.repeat(arrays["output.indices"].astype(int), 16, axis=0)[:LABELS]
    positives = y.sum(0)[order, None]
    shares = CENTROID_SHARE * positives / (positives + MORE_POSITIVES)
    expected = shares * np.take_along_axis(values, indices, 1)
    expected[~known] = 0
    np.testing.assert_allclose(arrays["output.weights"], expected, atol=1e-5)
    odds = (positives[:, 0] + 0.5) / (len(x) - positives[:, 0] + 0.5)
    np.testing.assert_allclose(arrays["output.bias"], np.log(odds), rtol=1e-5)
    # A label's positives score higher than others, whatever its position.
    seen = (x * arrays["features.scale"]) @ arrays["features.dictionary"]
    scores = np.einsum("nlk,lk->nl", seen[:, indices], arrays["output.weights"])
    is_positive = y.toarray()[:, order].astype(bool)
    assert scores[is_positive].mean() > scores[~is_positive].mean() + 0.1
    assert looks_at_data(replace(PAPER, grouping=grouping), GroupedFanIn(4, 16)) == (
        grouping != "random"
    )


def test_they_make_a_model_of_the_setup():
    arrays = starting_arrays(x, y, BEST, FixedFanIn(FAN_IN))
    assert list(arrays) == ALL
    check_arrays(SETUP, arrays)
    for name, usual in initial_arrays(SETUP, 0).items():
        assert arrays[name].dtype == usual.dtype, name
    scaled = x.astype(np.float64) * arrays["features.scale"]
    np.testing.assert_allclose(scaled.std(0), 1, rtol=1e-5)
    positives = y.toarray().sum(0)
    odds = (positives + 0.5) / (len(x) - positives + 0.5)
    np.testing.assert_allclose(arrays["output.bias"], np.log(odds), rtol=1e-5)


def test_scores_at_the_start_tell_labels_apart():
    """Where the paper's weights tell nothing yet."""
    arrays = starting_arrays(x, y, BEST, FixedFanIn(FAN_IN))
    seen = x * arrays["features.scale"] @ arrays["features.dictionary"]
    read = seen[:, arrays["output.indices"].astype(int)]
    scores = (read * arrays["output.weights"]).sum(-1) + arrays["output.bias"]
    some = y.toarray().any(1)
    hits = y.toarray()[np.arange(len(x)), scores.argmax(1)][some].mean()
    assert hits > 3 * y.toarray()[some].mean(0).max()


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({}, []),
        ({"feature_scaling": "unit_variance"}, ALL[:1]),
        ({"feature_dictionary": "learned"}, ALL[1:2]),
        ({"connections": "centroid"}, ALL[2:3]),
        ({"connections": "centroid", "initial_weights": "centroid"}, ALL[2:4]),
        ({"initial_bias": "prior"}, ALL[4:]),
        ({"initial_bias": -2.5}, ALL[4:]),
        ({"initial_weights": "centroid"}, []),  # of sources that are drawn
    ],
)
def test_what_a_recipe_does_not_say_starts_as_usual(change, names):
    arrays = starting_arrays(x, y, replace(PAPER, **change), FixedFanIn(FAN_IN))
    assert list(arrays) == names
    if change.get("initial_bias") == -2.5:
        np.testing.assert_array_equal(arrays["output.bias"], np.full(LABELS, -2.5, np.float32))


@pytest.mark.parametrize(
    "kind",
    [
        HeadAndTail(FixedFanIn(8), FixedFanIn(FAN_IN), 30),
        HeadAndTail(Dense(), GroupedFanIn(FAN_IN, 16), 30),
        HeadAndTail(GroupedFanIn(8, 8), Dense(), 30),
    ],
)
def test_a_head_and_a_tail_start_as_they_would_alone(kind):
    """On the positives of their own labels; the head's are the most frequent ones."""
    recipe, seen = replace(BEST, feature_dictionary="none"), []
    arrays = starting_arrays(x, y, recipe, kind, on_labels=seen.append)
    counts = np.bincount(y.indices, minlength=LABELS)
    frequent = np.argsort(-counts, kind="stable")[:30]
    order = arrays.pop(ORDER)
    assert set(order[:30]) == set(frequent)
    check_arrays(
        replace(SETUP, output=kind, atoms=None),
        {**initial_arrays(replace(SETUP, output=kind, atoms=None), 0), **arrays, ORDER: order},
    )
    assert seen == sorted(seen)
    kept = [arrays.pop("features.scale")]
    by_frequency = np.argsort(-counts, kind="stable")
    for part in kind.parts(LABELS):
        own = by_frequency[part.positions]
        alone = starting_arrays(x, y[:, own], recipe, part.kind)
        places = alone.pop(ORDER, np.arange(part.labels))
        np.testing.assert_array_equal(order[part.positions], own[places])
        np.testing.assert_array_equal(alone.pop("features.scale"), kept[0])
        for name, array in alone.items():
            np.testing.assert_array_equal(arrays.pop(part.outside(name)), array, name)
    assert not arrays


def test_a_head_without_a_recipe_that_looks_at_data_has_the_frequent_labels():
    arrays = starting_arrays(x, y, PAPER, HeadAndTail(Dense(), FixedFanIn(FAN_IN), 30))
    counts = np.bincount(y.indices, minlength=LABELS)
    np.testing.assert_array_equal(arrays[ORDER], np.argsort(-counts, kind="stable"))
    assert list(arrays) == [ORDER]


def test_the_dictionary_of_a_head_and_a_tail_is_for_the_tail():
    arrays = starting_arrays(x, y, BEST, HeadAndTail(FixedFanIn(12), FixedFanIn(FAN_IN), 30))
    alone = starting_arrays(x, y, BEST, FixedFanIn(FAN_IN))
    np.testing.assert_array_equal(arrays["features.dictionary"], alone["features.dictionary"])
    assert dictionary_fan_in(HeadAndTail(FixedFanIn(12), Dense(), 30)) == 12


def test_a_layer_without_a_fan_in_has_no_sources():
    assert list(starting_arrays(x, y, BEST, Dense())) == [ALL[0], "output.bias"]


def test_the_seed_is_of_the_dictionary_and_of_labels_without_positives():
    one, same, other = (
        starting_arrays(x, y, BEST, FixedFanIn(FAN_IN), seed=seed) for seed in (1, 1, 2)
    )
    known = y.toarray().any(0)
    for name, array in one.items():
        np.testing.assert_array_equal(array, same[name], name)
    assert (one["output.indices"][~known] != other["output.indices"][~known]).any()
    assert (one["features.dictionary"] != other["features.dictionary"]).any()
    plain = replace(BEST, feature_dictionary="none")
    one, other = (starting_arrays(x, y, plain, FixedFanIn(FAN_IN), seed=seed) for seed in (1, 2))
    np.testing.assert_array_equal(one["output.indices"][known], other["output.indices"][known])


def test_progress_is_told():
    seen = []
    starting_arrays(x, y, BEST, FixedFanIn(FAN_IN), on_labels=seen.append)
    assert seen == [LABELS]


def test_who_has_a_dictionary():
    assert atoms_of(BEST, 40, 5, 2) == 40  # at least as many atoms as inputs
    assert atoms_of(BEST, 40, 10**6, 32) == 160  # at most four times as many
    assert atoms_of(BEST, 768, 10**6, 32) == (4 << 20) // (4 * 768)  # 4 MiB
    assert atoms_of(BEST, 512, 10_000, 32) == 14 * 10_000 * 32 // 3 // 2048  # a third of the bytes
    assert atoms_of(BEST, 4096, 10**6, 32) == 4096
    for recipe, inputs, fan_in in ((BEST, 4097, 32), (BEST, 40, None), (PAPER, 40, 32)):
        assert atoms_of(recipe, inputs, 10**6, fan_in) is None


class TestLayer:
    def test_it_has_the_arrays_of_its_recipe(self):
        arrays = arrays_for_layer(x, y, "best", SETUP, seed=1, threads=1)
        for name, array in starting_arrays(x, y, BEST, FixedFanIn(FAN_IN), seed=1).items():
            np.testing.assert_array_equal(arrays[name], array, name)

    @pytest.mark.parametrize(
        ("features", "labels", "name", "message"),
        [
            (x, y, "paper", "'paper' does not look at data; make it with recipe='best'"),
            (x, y, "good", "unknown recipe 'good'; there are paper, best"),
            (x[:, 1:].copy(), y, "best", r"features must be \[instances, 24\] \(the inputs\), got"),
            (x, y[:, 1:], "best", r"labels must be \[instances, 100\], got \[300, 99\]"),
            (x[:9], y, "best", r"labels must be \[instances, labels\] with 9 instances"),
        ],
    )
    def test_what_does_not_fit(self, features, labels, name, message):
        with pytest.raises(ValueError, match=message):
            arrays_for_layer(features, labels, name, SETUP, seed=0, threads=0)


@pytest.mark.parametrize("grouping", ["random", "frequency", "meaning", "sources"])
def test_label_groups(grouping):
    """Order and sources of groups; weights and biases by position."""
    recipe = replace(BEST, grouping=grouping)
    setup = replace(SETUP, output=GroupedFanIn(FAN_IN, 16))
    given = starting_arrays(x, y, recipe, GroupedFanIn(FAN_IN, 16), seed=3)
    check_arrays(setup, initial_arrays(setup, 0) | given)
    order = given["output.order"]
    own = choose_sources(
        x,
        y,
        FAN_IN,
        scale=given["features.scale"],
        dictionary=given["features.dictionary"],
        seed=3,
        want_values=True,
    )
    expected = label_order(y, 16, grouping, features=x, chosen=own, seed=3)
    np.testing.assert_array_equal(order, expected)
    np.testing.assert_array_equal(given["output.bias"], log_odds(y)[order])

    values = centred(given)[order]
    positives = y.sum(0)[order][:, None]
    starts = np.arange(0, LABELS, 16)
    strengths = np.add.reduceat(positives * values**2, starts, axis=0)
    strongest = np.sort(np.argsort(-strengths, axis=1)[:, :FAN_IN], axis=1)
    np.testing.assert_array_equal(given["output.indices"], strongest)
    sources = np.repeat(strongest, 16, axis=0)[:LABELS]
    shares = CENTROID_SHARE * positives / (positives + MORE_POSITIVES)
    expected = shares * np.take_along_axis(values, sources, 1)
    np.testing.assert_allclose(given["output.weights"], expected, atol=1e-5)
