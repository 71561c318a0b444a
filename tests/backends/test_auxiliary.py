"""The auxiliary loss: its clusters, and what a step has to learn of them."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import scipy.sparse as sp

from fanin.backends.auxiliary import Auxiliary, auxiliary_loss
from fanin.backends.optimizer import ADAM, Optimizer
from fanin.backends.recipes import Recipe

TOPICS, LABELS = 4, 400  # a hundred labels a topic: more than may share their sources
RECIPE = Recipe(auxiliary_weight=0.5, auxiliary_clusters=TOPICS, auxiliary_until=0.25)


def topical(seed=0, form=np.asarray):
    """Instances about a topic each, with labels of it; the topic of each label."""
    rng = np.random.default_rng(seed)
    topics = rng.permutation(np.arange(LABELS) % TOPICS)
    about = rng.integers(0, TOPICS, 900)
    y = (topics == about[:, None]) & (rng.random((900, LABELS)) < 0.1)
    centers = rng.standard_normal((TOPICS, 30))
    x = (centers[about] + 0.3 * rng.standard_normal((900, 30))).astype(np.float32)
    return form(x), sp.csr_array(y), topics


@pytest.mark.parametrize("form", [np.asarray, sp.csr_array])
def test_a_cluster_has_labels_that_mean_similar_things(form):
    x, y, topics = topical(form=form)
    given = auxiliary_loss(RECIPE, 100, x, y, seed=1)
    assert given.count == TOPICS
    for cluster in range(TOPICS):
        members = topics[given.clusters == cluster]
        assert len(members) == LABELS // TOPICS
        assert np.bincount(members).max() > 95
    again = auxiliary_loss(RECIPE, 100, x, y, seed=1)
    np.testing.assert_array_equal(again.clusters, given.clusters)


@pytest.mark.parametrize(("most", "sizes"), [(3, [4, 4, 2]), (4, [3, 3, 3, 1]), (99, [1] * 10)])
def test_clusters_are_of_equal_size_but_the_last(most, sizes):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((50, 8)).astype(np.float32)
    y = sp.csr_array(rng.random((50, 10)) < 0.3)
    recipe = Recipe(auxiliary_weight=0.5, auxiliary_clusters=most)
    for are_known in (True, False):
        given = auxiliary_loss(recipe, 100, x, y, seed=0, are_known=are_known)
        assert np.bincount(given.clusters).tolist() == sizes
        assert given.count == len(sizes)


def test_without_a_weight_there_is_none():
    x, y, _ = topical()
    assert auxiliary_loss(Recipe(), 100, x, y, seed=0) is None


def test_a_step_names_each_pair_once_until_the_weight_is_0():
    given = Auxiliary(np.array([2, 0, 2, 1]), 0.5, 4)
    batch = SimpleNamespace(
        positive_instances=np.array([0, 0, 1, 1, 2], np.int32),
        positive_labels=np.array([0, 2, 2, 1, 3]),
    )
    weights = []
    for step in range(1, 8):
        each = given.step(batch, step, ADAM)
        if each is None:
            break
        assert each.positive_instances.tolist() == [0, 1, 1, 2]
        assert each.positive_clusters.tolist() == [2, 0, 2, 1]
        assert (each.positive_instances.dtype, each.positive_clusters.dtype) == (np.int32, np.int64)
        weights.append(each.weight)
        # Three clusters and four labels.
        assert (each.rate, given.step(batch, step, Optimizer("sgd")).rate) == (1, 0.75)
    expected = 0.75 * 0.25 * (1 + np.cos(np.pi * np.arange(4) / 4))
    np.testing.assert_allclose(weights, expected)


def test_the_weight_falls_over_a_share_of_the_steps():
    x, y, _ = topical()
    given = auxiliary_loss(RECIPE, 100, x, y, seed=0)
    weights = [given.weight_at(step) for step in (1, 13.5, 26, 90)]
    np.testing.assert_allclose(weights, [0.5, 0.25, 0, 0], atol=1e-12)
    assert given.weight_at(25) > 0 == given.weight_at(26)
