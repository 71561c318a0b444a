"""Initial weights, and which connections are rewired."""

from __future__ import annotations

import numpy as np
import pytest

from fanin.backends.arrays import initial_arrays, plan_rewiring
from fanin.backends.kinds import FixedFanIn, Unstructured
from fanin.backends.setup import LayerSetup


class TestRewiring:
    def test_takes_strictly_below_the_threshold(self):
        weights = np.array([[0.5, -0.1, 0.2], [0.1, -0.3, 0.4]], np.float32)
        moves = plan_rewiring(weights, 0.34, 100, 0)
        # Two of six; sorted magnitudes .1 .1 .2: the threshold is .2.
        assert moves.positions.tolist() == [1, 3]
        assert moves.threshold == pytest.approx(0.2)
        # With equal values at the threshold fewer are taken.
        assert not len(plan_rewiring(np.ones(10), 0.5, 9, 0).positions)

    def test_a_slots_new_source_does_not_depend_on_the_others(self):
        weights = np.random.default_rng(1).standard_normal(1000)
        few = plan_rewiring(weights, 0.1, 50, 7)
        many = plan_rewiring(weights, 0.2, 50, 7)
        sources = dict(zip(many.positions, many.sources, strict=True))
        assert len(few.positions) == 100
        assert [sources[s] for s in few.positions] == few.sources.tolist()
        assert many.sources.max() < 50

    def test_fraction_out_of_range(self):
        with pytest.raises(ValueError, match="fraction must be"):
            plan_rewiring(np.ones(5), 1.0, 5, 0)


class TestInitialArrays:
    def test_limits(self):
        arrays = initial_arrays(LayerSetup(50, 400, FixedFanIn(8), intermediate=100), 0)
        sparse, hidden = arrays["output.weights"], arrays["intermediate.weights"]
        for weights, limit in ((sparse, (3 / 3200) ** 0.5), (hidden, (6 / 150) ** 0.5)):
            assert 0.98 * limit < np.abs(weights).max() <= limit
            assert abs(weights.mean()) < 0.05 * limit
        assert arrays["output.indices"].dtype == np.uint16
        assert not arrays["output.bias"].any()

    @pytest.mark.parametrize("words", [30, 3000])
    def test_rows_of_words_have_a_norm_of_one(self, words):
        """However many words there are, so that instances of norm 1 have such outputs too."""
        setup = LayerSetup(words, 40, FixedFanIn(8), intermediate=1000, sparse_features=True)
        weights = initial_arrays(setup, 0)["intermediate.weights"]
        assert weights.shape == (words, 1000)
        limit = (3 / 1000) ** 0.5
        assert 0.98 * limit < np.abs(weights).max() <= limit
        assert np.abs(np.linalg.norm(weights, axis=1) - 1).max() < 0.1

    def test_equal_seeds_are_equal(self):
        setup = LayerSetup(20, 30, Unstructured(4))
        one, two, three = (initial_arrays(setup, seed) for seed in (1, 1, 2))
        assert all(np.array_equal(one[k], two[k]) for k in one)
        assert not np.array_equal(one["output.weights"], three["output.weights"])
        assert (np.diff(one["output.rows"]) >= 0).all()
