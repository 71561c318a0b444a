"""Heads and tails without a framework: what the kind is, and what brings two layers together."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from fanin.backends.head_and_tail import HeadAndTail, best_of_parts, ranks_of, with_head
from fanin.backends.kinds import ORDER, Dense, FixedFanIn, GroupedFanIn, Unstructured
from fanin.backends.parts import positives_of
from fanin.backends.recipes import PAPER
from fanin.backends.setup import LayerSetup
from fanin.backends.starting import looks_at_data

KIND = HeadAndTail(Dense(), GroupedFanIn(4, 8), 3)


class TestKind:
    def test_arrays_of_both_layers(self):
        assert LayerSetup(6, 20, KIND).array_shapes() == {
            ORDER: (20,),
            "head.weights": (6, 3),
            "head.bias": (3,),
            "tail.indices": (3, 4),
            "tail.weights": (17, 4),
            "tail.bias": (17,),
        }
        assert set(LayerSetup(6, 20, KIND).index_arrays()) == {ORDER, "tail.indices"}

    def test_layers_cover_all_labels(self):
        head, tail = KIND.parts(20)
        assert (head.positions, tail.positions) == (slice(0, 3), slice(3, 20))
        assert (head.kind, tail.kind) == KIND.kinds
        assert (tail.weights, tail.source_array) == ("tail.weights", "tail.indices")
        assert (head.weights, head.source_array) == ("head.weights", None)

    def test_each_array_starts_with_random_numbers_of_its_own(self):
        kind = HeadAndTail(FixedFanIn(4), FixedFanIn(4), 10)
        setup = LayerSetup(50, 20, kind)
        head, tail = (setup.initial_array(f"{part}.indices", 0) for part in ("head", "tail"))
        assert (head != tail).mean() > 0.8
        np.testing.assert_array_equal(setup.initial_array(ORDER, 0), np.arange(20))

    @pytest.mark.parametrize(
        ("kind", "message"),
        [
            (HeadAndTail(Dense(), FixedFanIn(4), 0), "head_labels must be at least 1, got 0"),
            (HeadAndTail(Dense(), FixedFanIn(4), 2.0), "head_labels must be a whole number"),
            (HeadAndTail(Dense(), FixedFanIn(4), 20), "head_labels must be below 20, the number"),
            (HeadAndTail(Dense(), FixedFanIn(7), 3), "fan_in 7 is larger than the 6 inputs"),
            (HeadAndTail(FixedFanIn(7), Dense(), 3), "fan_in 7 is larger than the 6 inputs"),
            (HeadAndTail(KIND, Dense(), 3), "the head must be one output layer, got HeadAndTail"),
            (HeadAndTail(Dense(), KIND, 3), "the tail must be one output layer, got HeadAndTail"),
            # As a damaged file may have it.
            (HeadAndTail("dense", Dense(), 3), "the head must be one output layer, got dense"),
        ],
    )
    def test_refused(self, kind, message):
        with pytest.raises(ValueError, match=message):
            LayerSetup(6, 20, kind)

    def test_arrays_are_checked(self):
        setup = LayerSetup(6, 20, KIND)
        with pytest.raises(ValueError, match="label 1 is missing and label 0 stands 2 times"):
            setup.check_array(ORDER, np.array([0, 0, *range(2, 20)]))
        with pytest.raises(ValueError, match=r"tail.indices has values 0 to 6; they must be in 0"):
            setup.check_array("tail.indices", np.array([[0, 1, 2, 6]] * 3))

    def test_what_can_be_rewired(self):
        assert [p.name for p in LayerSetup(6, 20, KIND).rewired_parts] == ["tail"]
        dense = LayerSetup(6, 20, HeadAndTail(Dense(), Dense(), 3))
        assert not dense.is_rewired
        with pytest.raises(ValueError, match="HeadAndTail has no connections to rewire"):
            dense.check_rewired()
        with pytest.raises(ValueError, match="not in HeadAndTail above 5 intermediate units"):
            LayerSetup(6, 20, KIND, intermediate=5).check_chosen()

    def test_the_data_say_which_labels_are_frequent(self):
        assert looks_at_data(PAPER, KIND)
        assert not looks_at_data(PAPER, FixedFanIn(4))


def test_a_fraction_of_the_labels():
    tail = Unstructured(4)
    assert with_head(tail, 0.0, None, 1) is tail
    assert with_head(tail, 0.1, None, 99) == HeadAndTail(Dense(), tail, 10)
    assert with_head(tail, 0.1, 64, 100) == HeadAndTail(FixedFanIn(64), tail, 10)
    # Either has a label at least.
    assert with_head(tail, 0.001, None, 100).head_labels == 1
    assert with_head(tail, 0.999, None, 100).head_labels == 99
    with pytest.raises(ValueError, match=r"head_fraction 0\.1 needs two labels or more"):
        with_head(tail, 0.1, None, 1)


def test_ranks():
    """Of [7, 2, 9 | 0, 5]: what stands where, by its rank among the layer's own labels."""
    head, tail = HeadAndTail(Dense(), Dense(), 3).parts(5)
    order = np.array([4, 1, 3, 0, 2], np.int32)
    ranks, label_ids = ranks_of(head, order)
    assert (ranks.tolist(), label_ids.tolist()) == ([2, 0, 1], [1, 3, 4])
    assert (ranks.dtype, label_ids.dtype) == (np.int32, np.int64)
    ranks, label_ids = ranks_of(tail, order)
    assert (ranks.tolist(), label_ids.tolist()) == ([0, 1], [0, 2])


class TestBest:
    def test_the_best_of_both(self):
        """Ties go to the lower id, whichever layer it is of; NaN comes last."""
        head = np.array([[8, 1], [3, 6]]), np.array([[2.0, 1.0], [np.nan, np.nan]])
        tail = np.array([[5, 0], [9, 2]]), np.array([[2.0, 1.0], [-np.inf, np.nan]])
        ids, scores = best_of_parts([head, tail], 3)
        assert ids.tolist() == [[5, 8, 0], [9, 2, 3]]
        np.testing.assert_array_equal(scores, [[2, 2, 1], [-np.inf, np.nan, np.nan]])

    def test_lists_of_other_lengths(self):
        head = np.array([[4]]), np.array([[1.0]])
        tail = np.array([[0, 1, 2]]), np.array([[3.0, 2.0, 0.0]])
        assert best_of_parts([head, tail], 3)[0].tolist() == [[0, 1, 4]]
        assert best_of_parts([head, tail], 4)[0].tolist() == [[0, 1, 4, 2]]

    def test_the_same_as_sorting_all(self):
        rng = np.random.default_rng(0)
        scores = rng.integers(0, 4, (50, 30)).astype(np.float32)  # with many ties
        order = rng.permutation(30)
        lists = []
        for own in (np.sort(order[:11]), np.sort(order[11:])):
            best = np.argsort(-scores[:, own], axis=1, kind="stable")[:, :7]
            lists.append((own[best], np.take_along_axis(scores[:, own], best, 1)))
        ids, values = best_of_parts(lists, 7)
        expected = np.argsort(-scores, axis=1, kind="stable")[:, :7]
        np.testing.assert_array_equal(ids, expected)
        np.testing.assert_array_equal(values, np.take_along_axis(scores, expected, 1))


def test_each_layer_gets_its_own_positives():
    """In its own positions."""
    head, tail = HeadAndTail(Dense(), Dense(), 3).parts(10)
    batch = SimpleNamespace(
        features=np.zeros((4, 2), np.float32),
        positive_instances=np.array([0, 1, 3, 1], np.int32),
        positive_labels=np.array([2, 3, 9, 0]),
    )
    own = positives_of(batch, head)
    assert (own.positive_instances.tolist(), own.positive_labels.tolist()) == ([0, 1], [2, 0])
    own = positives_of(batch, tail)
    assert (own.positive_instances.tolist(), own.positive_labels.tolist()) == ([1, 3], [0, 6])
    assert own.features is batch.features
