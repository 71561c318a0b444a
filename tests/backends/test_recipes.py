"""What a recipe decides for a setup."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse as sp

from fanin.backends.kinds import Dense, FixedFanIn, GroupedFanIn, Unstructured
from fanin.backends.recipes import PAPER, Recipe, check_recipe, recipe_of
from fanin.backends.setup import LayerSetup
from fanin.backends.starting import looks_at_data, starting_arrays

FIXED = LayerSetup(30, 50, FixedFanIn(8))
WITH_INTERMEDIATE = LayerSetup(30, 50, FixedFanIn(8), intermediate=20)
SETUPS = [
    FIXED,
    WITH_INTERMEDIATE,
    LayerSetup(30, 50, Dense()),
    LayerSetup(30, 50, Unstructured(5)),
]
every_setup = pytest.mark.parametrize(
    "setup", SETUPS, ids=lambda setup: f"{setup.output}-{setup.intermediate}"
)


@every_setup
def test_the_papers_is_the_same_for_all(setup):
    assert recipe_of("paper", setup) is PAPER == Recipe()
    assert not looks_at_data(PAPER)


def test_the_best_of_a_fixed_fan_in_follows_the_data():
    best = recipe_of("best", FIXED)
    assert (best.connections, best.initial_weights) == ("centroid", "centroid")
    assert (best.feature_dictionary, best.rewire_towards) == ("learned", "gradient")
    assert looks_at_data(best)


def test_label_groups_are_trained_alike_and_grouped_by_their_sources():
    setup = replace(FIXED, output=GroupedFanIn(8, 16))
    setup.check_chosen()
    best = recipe_of("best", setup)
    assert best == replace(recipe_of("best", FIXED), grouping="sources")


@every_setup
def test_connections_follow_the_data_only_where_they_can(setup):
    """Those that nobody can choose are as in the paper; loss, schedule and scale are the same."""
    best = recipe_of("best", setup)
    own = recipe_of("best", FIXED)
    for name in ("loss_fn", "schedule", "epochs", "feature_scaling", "initial_bias"):
        assert getattr(best, name) == getattr(own, name) != getattr(PAPER, name)
    if setup is FIXED:
        setup.check_chosen()
        return
    with pytest.raises(ValueError, match="connections are chosen by the data in"):
        setup.check_chosen()
    for name in ("feature_dictionary", "connections", "initial_weights", "rewire_towards"):
        assert getattr(best, name) == getattr(PAPER, name)
    assert looks_at_data(best)  # by its scale


def test_more_weights_for_a_score_take_smaller_steps():
    rates = [recipe_of("best", setup).learning_rate for setup in SETUPS]
    assert rates == [3e-3, 3e-3, 2e-3, 3e-3]


def test_sparse_features_are_left_as_they_are():
    setup = replace(WITH_INTERMEDIATE, sparse_features=True)
    best = recipe_of("best", setup)
    plain = recipe_of("best", WITH_INTERMEDIATE)
    assert best == replace(plain, feature_scaling="none", least_steps=6000)
    x = sp.random_array((20, 30), density=0.2, format="csr", dtype=np.float32, rng=0)
    y = sp.random_array((20, 50), density=0.1, format="csr", rng=0).astype(bool)
    given = starting_arrays(x, y, best, setup.output)
    assert list(given) == ["output.bias"]
    assert len(np.unique(given["output.bias"])) > 2


@pytest.mark.parametrize(
    ("least", "steps_per_epoch", "epochs"),
    [(0, 1, 5), (1000, 200, 5), (1000, 199, 6), (1000, 1, 40), (6000, 150, 40), (6000, 151, 40)],
)
def test_small_data_have_more_epochs(least, steps_per_epoch, epochs):
    recipe = replace(PAPER, epochs=5, least_steps=least).for_steps(steps_per_epoch)
    assert recipe == replace(PAPER, epochs=epochs)
    assert replace(PAPER, epochs=50, least_steps=least).for_steps(1).epochs == 50


@pytest.mark.parametrize("name", ["good", "", None, 3])
def test_unknown(name):
    for ask in (check_recipe, lambda name: recipe_of(name, FIXED)):
        with pytest.raises(ValueError, match=r"unknown recipe .*; there are paper, best"):
            ask(name)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"connections": "centroid"}, True),
        ({"feature_scaling": "unit_variance"}, True),
        ({"feature_dictionary": "learned"}, True),
        ({"initial_bias": "prior"}, True),
        ({"initial_bias": -2.0}, False),
        ({"rewire_towards": "gradient"}, False),
    ],
)
def test_what_looks_at_data(change, expected):
    assert looks_at_data(replace(PAPER, **change)) is expected
