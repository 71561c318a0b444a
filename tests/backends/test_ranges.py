"""Labels cut over ranks: each position once, on borders of label groups, and back."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from setups import random_order, starting

from fanin.backends import drawing
from fanin.backends.arrays import InitialArrays, check_arrays
from fanin.backends.head_and_tail import HeadAndTail
from fanin.backends.kinds import ORDER, Dense, FixedFanIn, GroupedFanIn, Unstructured
from fanin.backends.ranges import LabelRanges
from fanin.backends.setup import LayerSetup

INPUTS, LABELS = 20, 157  # which no number of ranks here divides
KINDS = (
    Dense(),
    Unstructured(3),
    FixedFanIn(4),
    GroupedFanIn(4, 16),
    HeadAndTail(Dense(), FixedFanIn(4), 40),
    HeadAndTail(FixedFanIn(5), GroupedFanIn(4, 8), 43),
    HeadAndTail(Unstructured(5), Unstructured(2), 30),
)
each_kind = pytest.mark.parametrize("kind", KINDS, ids=repr)
each_ranks = pytest.mark.parametrize("ranks", [1, 2, 3, 4])


def whole_model(kind, seed=0):
    """A setup with arrays, moments of the trained ones included."""
    setup = LayerSetup(INPUTS, LABELS, kind, intermediate=9, scaled=True)
    arrays = starting(setup, seed)
    rng = np.random.default_rng(seed)
    trained = [name for name in arrays if name.endswith(("weights", "bias"))]
    moments = {f"{name}.{m}": rng.random(arrays[name].shape) for name in trained for m in "mv"}
    return setup, {**arrays, **moments}


def scores_by_label(setup, arrays, features):
    """float64 [batch, labels]: what the output layers give."""
    found = np.full((len(features), setup.labels), np.nan)
    order = arrays.get(ORDER, np.arange(setup.labels))
    for part in setup.parts:
        matrix = np.zeros((setup.output_inputs, part.labels))
        own = {part.inside(name): array for name, array in arrays.items() if part.owns(name)}
        weights = own["output.weights"]
        if "output.rows" in own:
            np.add.at(matrix, (own["output.columns"], own["output.rows"]), weights)
        elif "output.indices" in own:
            size = max(1, part.kind.group_size)
            indices = np.repeat(own["output.indices"], size, axis=0)[: part.labels]
            np.add.at(matrix, (indices, np.arange(part.labels)[:, None]), weights)
        else:
            matrix += weights
        found[:, order[part.positions]] = features @ matrix + own["output.bias"]
    return found


@each_kind
@each_ranks
def test_the_weights_of_a_rank_stand_side_by_side(kind, ranks):
    """In the kernels' form, in which those of a dense label stand together."""
    setup, arrays = whole_model(kind)
    ranges = LabelRanges(setup, ranks, arrays)
    for part in setup.parts:
        shape, next_weight = setup.array_shapes()[part.weights], 0
        positions = np.arange(np.prod(shape))
        is_dense = part.kind.operations == "dense"
        whole = positions.reshape(shape[::-1]).T if is_dense else positions.reshape(shape)
        for rank in range(ranks):
            own = ranges.local_array({part.weights: whole}, part.weights, rank)
            own = own.T if is_dense else own
            assert ranges.first_weights(rank)[part.name] == next_weight
            np.testing.assert_array_equal(own.ravel(), next_weight + np.arange(own.size))
            next_weight += own.size
        assert next_weight == positions.size


@each_kind
@each_ranks
def test_each_rank_has_a_model_of_its_own_labels(kind, ranks):
    """Its scores are those of the whole model, and every label is one rank's."""
    setup, arrays = whole_model(kind)
    ranges = LabelRanges(setup, ranks, arrays)
    features = np.random.default_rng(1).random((3, setup.output_inputs))
    expected = scores_by_label(setup, arrays, features)
    found = np.full_like(expected, np.nan)
    for rank in range(ranks):
        local = ranges.local_setup(rank)
        own_arrays = {name: ranges.local_array(arrays, name, rank) for name in arrays}
        own_labels = ranges.own_labels(rank, own_arrays.get(ORDER))
        if ORDER in own_arrays:
            own_arrays[ORDER] = own_labels.own_order(own_arrays[ORDER])
        check_arrays(local, {name: own_arrays[name] for name in setup.array_shapes()})
        for name in arrays:
            if name[-2:] in (".m", ".v"):
                assert own_arrays[name].shape == own_arrays[name[:-2]].shape
        ids = own_labels.ids_of(np.arange(local.labels))
        assert (np.diff(ids) > 0).all()
        assert np.isnan(found[:, ids]).all()
        found[:, ids] = scores_by_label(local, own_arrays, features)
    np.testing.assert_allclose(found, expected)


@each_kind
@each_ranks
def test_what_is_cut_can_be_joined_again(kind, ranks):
    setup, arrays = whole_model(kind)
    ranges = LabelRanges(setup, ranks, arrays)
    for name, array in arrays.items():
        local = [ranges.local_array(arrays, name, rank) for rank in range(ranks)]
        joined = ranges.joined_array(name, local)
        assert joined.dtype == array.dtype
        np.testing.assert_array_equal(joined, array)


@each_kind
@each_ranks
def test_every_positive_is_one_ranks(kind, ranks):
    setup, arrays = whole_model(kind)
    ranges = LabelRanges(setup, ranks, arrays)
    rng = np.random.default_rng(2)
    instances, label_ids = rng.integers(0, 5, 200), rng.integers(0, LABELS, 200)
    found = []
    for rank in range(ranks):
        order = arrays.get(ORDER)
        own_labels = ranges.own_labels(
            rank, None if order is None else ranges.local_array(arrays, ORDER, rank)
        )
        own_instances, own = own_labels.positives(instances, label_ids, 5)
        assert own.dtype == np.int64
        assert ((own >= 0) & (own < ranges.local_setup(rank).labels)).all()
        found += [*zip(own_instances, own_labels.ids_of(own), strict=True)]
    assert sorted(found) == sorted(zip(instances, label_ids, strict=True))


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("bad", [-1, LABELS])
def test_a_positive_that_no_rank_has_is_refused(bad, rank):
    own_labels = LabelRanges(LayerSetup(INPUTS, LABELS, Dense()), 2, {}).own_labels(rank)
    with pytest.raises(ValueError, match=rf"positive_labels\[1\] is {bad}, out of range"):
        own_labels.positives(np.array([0, 0]), np.array([3, bad]), 1)


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("bad", [-1, 5])
def test_all_ranks_refuse_an_instance_that_the_batch_does_not_have(bad, rank):
    """Whichever rank has its label: a rank that went on would wait for the one that refuses."""
    own_labels = LabelRanges(LayerSetup(INPUTS, LABELS, Dense()), 2, {}).own_labels(rank)
    with pytest.raises(ValueError, match=rf"positive_instances\[1\] is {bad}, out of range"):
        own_labels.positives(np.array([0, bad]), np.array([3, LABELS - 1]), 5)


@each_ranks
def test_ranks_differ_by_one_label_group_at_most(ranks):
    for labels in (16 * ranks, 16 * ranks - 15, 16 * ranks + 1, 1000):
        setup = LayerSetup(INPUTS, labels, GroupedFanIn(4, 16))
        ranges = LabelRanges(setup, ranks, {})
        (part,) = setup.parts
        positions = [ranges.positions(part, rank) for rank in range(ranks)]
        assert positions[0].start == 0
        assert positions[-1].stop == labels
        assert all(a.stop == b.start for a, b in pairwise(positions))
        assert all(each.start % 16 == 0 for each in positions)
        groups = [-(-(each.stop - each.start) // 16) for each in positions]
        assert min(groups) >= max(1, max(groups) - 1)


def test_more_ranks_than_label_groups_are_refused():
    setup = LayerSetup(INPUTS, 33, HeadAndTail(Dense(), GroupedFanIn(4, 16), 3))
    assert LabelRanges(setup, 2, {}).local_setup(1).labels == 16
    with pytest.raises(ValueError, match="tail has 2 label groups of 16, too few for 3 ranks"):
        LabelRanges(setup, 3, {})
    with pytest.raises(ValueError, match="output has 3 labels, too few for 4 ranks"):
        LabelRanges(LayerSetup(INPUTS, 3, Dense()), 4, {})


@each_kind
@each_ranks
def test_a_rank_starts_with_its_part_of_the_model(kind, ranks, monkeypatch):
    """And never holds the whole: arrays are drawn in blocks."""
    monkeypatch.setattr(drawing, "BLOCK_VALUES", 50)
    setup = LayerSetup(INPUTS, LABELS, kind, intermediate=9)
    drawn = InitialArrays(setup, 7)
    whole = dict(drawn)
    ranges, of_arrays = LabelRanges(setup, ranks, drawn), LabelRanges(setup, ranks, whole)
    for rank in range(ranks):
        assert ranges.local_setup(rank) == of_arrays.local_setup(rank)
        for name in whole:
            own = ranges.local_array(drawn, name, rank)
            expected = of_arrays.local_array(whole, name, rank)
            assert own.dtype == expected.dtype
            np.testing.assert_array_equal(own, expected, name)


def test_an_unknown_array_is_refused():
    ranges = LabelRanges(LayerSetup(INPUTS, LABELS, GroupedFanIn(4, 16)), 2, {})
    for name in ("output.wieghts", "output.rows.m"):
        with pytest.raises(KeyError, match="is none of output"):
            ranges.local_array({name: np.zeros(LABELS)}, name, 0)
    with pytest.raises(ValueError, match=r"output\.order of rank 1 must have its 77 labels"):
        ranges.own_labels(1, random_order(LABELS))
