"""Initial weights, and which connections are rewired."""

from __future__ import annotations

import numpy as np
import pytest

from fanin.backends.arrays import check_arrays, initial_arrays, plan_rewiring
from fanin.backends.kinds import ORDER, FixedFanIn, GroupedFanIn, Unstructured
from fanin.backends.label_order import LabelOrder
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


class TestSharedSources:
    """Of labels in groups of 8, with a last group that is smaller."""

    KIND = GroupedFanIn(3, 8)

    def test_a_source_counts_by_its_mean_weight(self):
        weights = np.random.default_rng(0).standard_normal((21, 3)).astype(np.float32)
        means = self.KIND.source_magnitudes(weights)
        expected = [np.abs(weights[first : first + 8]).mean(0) for first in (0, 8, 16)]
        assert means.dtype == np.float32
        np.testing.assert_allclose(means, expected, rtol=1e-6)

    def test_the_connections_of_a_source(self):
        connections = self.KIND.connections_of(np.array([1, 5, 8]), 21)
        rows, slots = np.divmod(np.sort(connections), 3)
        expected = [(row, slot) for row in range(21) for slot in [(1, 2, 2)[row // 8]]]
        assert list(zip(rows, slots, strict=True)) == expected
        assert not self.KIND.connections_of(np.array([], np.int64), 21).size

    def test_initial_arrays(self):
        setup = LayerSetup(50, 21, self.KIND)
        arrays = initial_arrays(setup, 0)
        assert [*arrays] == ["output.indices", ORDER, "output.weights", "output.bias"]
        assert arrays["output.indices"].shape == (3, 3)
        assert arrays[ORDER].dtype == np.int32 and (arrays[ORDER] == np.arange(21)).all()
        limit = (3 / 63) ** 0.5
        assert 0.9 * limit < np.abs(arrays["output.weights"]).max() <= limit

    @pytest.mark.parametrize(
        ("order", "message"),
        [
            ([0, 1, 3, 3, 4], "label 2 is missing and label 3 stands 2 times"),
            ([0, 1, 2, 3, 5], r"values 0 to 5; they must be in 0\.\.4"),
            ([-1, 1, 2, 3, 4], r"values -1 to 4; they must be in 0\.\.4"),
            ([0.0, 1, 2, 3, 4], "must be integers, got float64"),
            ([0, 1, 2, 3], r"must be \[5\], got \[4\]"),
        ],
    )
    def test_orders_that_are_none(self, order, message):
        setup = LayerSetup(50, 5, self.KIND)
        with pytest.raises(ValueError, match=f"output.order .*{message}"):
            check_arrays(setup, {**initial_arrays(setup, 0), ORDER: np.array(order)})

    @pytest.mark.parametrize(
        ("kind", "message"),
        [
            (GroupedFanIn(3, 7), r"group_size must be in 8\.\.64, got 7"),
            (GroupedFanIn(3, 65), r"group_size must be in 8\.\.64, got 65"),
            (GroupedFanIn(51, 8), "fan_in 51 is larger than the 50 inputs"),
            (GroupedFanIn(0, 8), "fan_in must be at least 1, got 0"),
        ],
    )
    def test_kinds_that_are_none(self, kind, message):
        with pytest.raises(ValueError, match=message):
            LayerSetup(50, 5, kind)


class TestLabelOrder:
    def test_labels_to_positions_and_back(self):
        order = LabelOrder.of(np.array([2, 0, 1, 3], np.int32))
        label_ids = np.array([2, 3, 0, -1, 4, 2**40])
        positions = order.positions_of(label_ids)
        assert positions.dtype == np.int64
        # What is out of range stays as it is, for the library to name.
        assert positions.tolist() == [0, 3, 1, -1, 4, 2**40]
        assert order.by_label(np.array([[20, 0, 10, 30]])).tolist() == [[0, 10, 20, 30]]


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
