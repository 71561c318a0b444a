"""Choosing sources: the kernels in their NumPy form, on every instruction set of this machine."""

from __future__ import annotations

import choose_reference
import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from fanin import kernels

INSTRUCTION_SETS = kernels.build_info()["instruction_sets"]


@pytest.fixture(autouse=True)
def _restore():
    yield
    kernels.set_instruction_set("auto")


def by_label(positives):
    """Where each label's positives begin, and the instances, from a dense [instances, labels]."""
    columns = sp.csc_array(positives)
    return columns.indptr.astype(np.int64), columns.indices.astype(np.int32)


def stored(features):
    """CSR features as the op reads them: values, and the rest by name."""
    rows = sp.csr_array(features)
    places = {"starts": rows.indptr.astype(np.int64), "columns": rows.indices.astype(np.int32)}
    return rows.data, places


def added(features, positives, *, weights=None, start=None, threads=0, csr=False):
    """Sums that the op makes of `start`, or of 0. weights: of all pairs, [instances, labels]."""
    inputs, labels = features.shape[1], positives.shape[1]
    sums = np.zeros((labels, inputs), np.float32) if start is None else start.copy()
    values, places = stored(features) if csr else (features, {})
    if weights is not None:
        places["positive_weights"] = weights.T[positives.T]
    kernels.add_label_sums(values, *by_label(positives), sums, **places, threads=threads)
    return sums


def chosen(sums, counts, mean, fan_in, *, index=np.uint16, **options):
    """Indices and values; poisoned before."""
    shape = (len(sums), fan_in)
    indices, values = np.full(shape, 60_000, index), np.full(shape, np.nan, np.float32)
    kernels.choose_sources(sums, counts, mean, indices, values=values, **options)
    return indices, values


@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_random_shapes(instruction_set, data):
    kernels.set_instruction_set(instruction_set)
    instances = data.draw(st.integers(1, 60), "instances")
    inputs = data.draw(st.integers(1, 150), "inputs")
    labels = data.draw(st.integers(1, 200), "labels")
    fan_in = data.draw(st.sampled_from([1, inputs, (inputs + 1) // 2]), "fan_in")
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32), "seed"))
    random = data.draw(st.integers(0, fan_in), "random")
    threads = data.draw(st.integers(0, 2), "threads")
    # Few whole numbers: sums are exact, many strengths are equal, many entries 0.
    x = rng.integers(-2, 3, (instances, inputs)).astype(np.float32)
    y = rng.random((instances, labels)) < data.draw(st.sampled_from([0.0, 0.05, 0.8]), "density")
    start = rng.integers(-3, 4, (labels, inputs)).astype(np.float32)
    expected = start + y.T.astype(np.float64) @ x
    for csr in (False, True):
        weights = rng.integers(-2, 3, y.shape).astype(np.float32)
        sums = added(x, y, weights=weights, start=start, threads=threads, csr=csr)
        np.testing.assert_array_equal(sums, start + (y * weights).T.astype(np.float64) @ x)
        sums = added(x, y, start=start, threads=threads, csr=csr)
        np.testing.assert_array_equal(sums, expected)
    # Counts that divide exactly.
    counts = np.where(y.any(0), 2 ** rng.integers(0, 4, labels), 0)
    mean = rng.integers(-1, 2, inputs).astype(np.float32)
    scale = None if rng.random() < 0.5 else (2.0 ** rng.integers(-2, 3, inputs)).astype(np.float32)
    options = {"random": random, "seed": 2**64 - 5, "first_label": 7, "scale": scale}
    index = data.draw(st.sampled_from([np.uint16, np.uint32]), "index")
    indices, values = chosen(sums, counts, mean, fan_in, index=index, threads=threads, **options)
    known = choose_reference.sources(sums, counts, mean, fan_in, **options)
    np.testing.assert_array_equal(indices, known[0])
    np.testing.assert_array_equal(values, known[1])


@pytest.mark.parametrize("threads", [1, 2])
def test_sums_are_the_same_for_every_number_of_threads(threads):
    rng = np.random.default_rng(1)
    x = rng.standard_normal((500, 70)).astype(np.float32)
    y = rng.random((500, 300)) < 0.1
    first = added(x, y, threads=0)
    np.testing.assert_array_equal(added(x, y, threads=threads), first)
    np.testing.assert_allclose(first, y.T.astype(np.float64) @ x, atol=2e-5)


@pytest.mark.parametrize("csr", [False, True])
def test_positives_without_weights_have_a_weight_of_1(csr):
    rng = np.random.default_rng(3)
    x = rng.standard_normal((50, 70)).astype(np.float32)
    x[0, :4] = np.nan, np.inf, -np.inf, 1e-45
    y = rng.random((50, 300)) < 0.1
    plain, weighted = (added(x, y, weights=w, csr=csr) for w in (None, np.ones_like(y, np.float32)))
    assert np.isnan(plain).any()
    np.testing.assert_array_equal(weighted.view(np.uint32), plain.view(np.uint32))


@pytest.mark.parametrize("csr", [False, True])
def test_weights_that_are_not_finite_propagate(csr):
    x, y = np.array([[1, -2, 3]], np.float32), np.ones((1, 3), bool)
    weights = np.array([[np.nan, np.inf, 2]], np.float32)
    expected = [[np.nan] * 3, [np.inf, -np.inf, np.inf], [2, -4, 6]]
    np.testing.assert_array_equal(added(x, y, weights=weights, csr=csr), expected)


def test_blocks_of_instances_are_added():
    rng = np.random.default_rng(2)
    x = rng.integers(-9, 10, (90, 40)).astype(np.float32)
    y = rng.random((90, 33)) < 0.2
    sums = None
    for block in (slice(0, 31), slice(31, 32), slice(32, 90)):
        sums = added(np.ascontiguousarray(x[block]), y[block], start=sums)
    np.testing.assert_array_equal(sums, y.T.astype(np.float64) @ x)


def test_wide_indices_name_inputs_beyond_65536():
    sums = np.zeros((2, 70_000), np.float32)
    sums[0, [69_999, 3, 65_536]] = 1, -3, 2
    sums[1, 65_537] = -1e-38
    counts, mean = np.array([2, 1]), np.zeros(70_000, np.float32)
    indices, values = chosen(sums, counts, mean, 3, index=np.uint32)
    assert indices.tolist() == [[3, 65_536, 69_999], [0, 1, 65_537]]
    assert values[0].tolist() == [-1.5, 1.0, 0.5]


def test_nan_counts_as_nothing_and_infinity_as_most():
    sums = np.array([[np.nan, 1, np.inf, np.nan, -np.inf, 2]], np.float32)
    indices, values = chosen(sums, np.array([1]), np.zeros(6, np.float32), 4)
    assert indices.tolist() == [[1, 2, 4, 5]]
    assert values.tolist() == [[1, np.inf, -np.inf, 2]]
    # Of what is nothing the lower input comes first.
    assert chosen(sums, np.array([1]), np.zeros(6, np.float32), 5)[0].tolist() == [[0, 1, 2, 4, 5]]


def test_random_sources_are_those_of_rewiring():
    """Where nothing collides."""
    from fanin.backends.arrays import new_sources

    sums = np.zeros((300, 60_000), np.float32)
    indices, values = chosen(sums, np.zeros(300, np.int64), sums[0], 4, seed=9, first_label=5)
    expected = new_sources(np.arange(20, 20 + 1200), 60_000, 9).reshape(300, 4)
    np.testing.assert_array_equal(indices, expected)
    assert not values.any()


class TestWrongArguments:
    """Each raises ValueError that names the argument; nothing is read that is not there."""

    @pytest.fixture
    def sums(self):
        x, y = np.ones((4, 6), np.float32), np.eye(4, 5, dtype=bool)
        starts, instances = by_label(y)
        values, places = stored(x)
        return {
            "features": x,
            "positive_starts": starts,
            "positive_instances": instances,
            "sums": np.zeros((5, 6), np.float32),
        }, {"features": values, **places}

    @pytest.mark.parametrize(
        ("name", "value", "message"),
        [
            ("features", np.ones((4, 6)), "features must be float32, got float64"),
            ("features", np.ones((4, 7), np.float32), "inputs is 7 here but 6 in sums"),
            ("features", np.ones((6, 4), np.float32).T, "not contiguous"),
            ("sums", np.zeros((4, 6), np.float32), "must have 5 elements for 4 labels, got 6"),
            ("sums", np.zeros((5, 6)), "sums must be float32, got float64"),
            ("positive_starts", np.array([0, 1, 2, 1, 4, 4]), r"positive_starts\[3\] is 1; they"),
            ("positive_starts", np.array([-1, 1, 2, 3, 4, 4]), r"positive_starts\[0\] is -1; they"),
            ("positive_starts", np.array([0, 1, 2, 3, 4, 5]), "ascend from 0 to at most 4"),
            ("positive_instances", np.array([0, 1, 4, 2], np.int32), r"instances\[2\] is 4, out"),
            ("positive_instances", np.array([0, -1, 3, 2], np.int32), r"instances\[1\] is -1, out"),
            ("positive_instances", np.arange(4), "positive_instances must be int32, got int64"),
            ("positive_weights", np.ones(4), "positive_weights must be float32, got float64"),
            ("positive_weights", np.ones(3, np.float32), "positives is 3 here but 4 in positive_i"),
            ("positive_weights", [1.0] * 4, "positive_weights must be a NumPy array, got list"),
        ],
    )
    def test_of_sums(self, sums, name, value, message):
        with pytest.raises(ValueError, match=message):
            kernels.add_label_sums(**{**sums[0], name: value})

    @pytest.mark.parametrize(
        ("name", "value", "message"),
        [
            ("columns", np.full(24, 6, np.int32), r"columns\[0\] is 6, out of range for 6 inputs"),
            ("columns", np.full(24, -1, np.int32), r"columns\[0\] is -1, out of range"),
            ("columns", np.zeros(23, np.int32), "stored is 23 here but 24 in features"),
            ("columns", None, "columns is missing"),
            ("starts", np.array([0, 6, 5, 18, 24]), r"starts\[2\] is 5; they must ascend"),
            ("starts", np.array([0, 6, 12, 18, 25]), r"starts\[4\] is 25; they must ascend"),
            ("starts", np.array([0, 6, 12]), r"positive_instances\[2\] is 2, out of range for 2"),
            ("starts", None, "starts is missing"),
        ],
    )
    def test_of_sums_of_stored_features(self, sums, name, value, message):
        arguments = {**sums[0], **sums[1]}
        kernels.add_label_sums(**arguments)
        with pytest.raises(ValueError, match=message):
            kernels.add_label_sums(**{**arguments, name: value})

    @pytest.mark.parametrize(
        ("name", "value", "message"),
        [
            ("indices", np.zeros((3, 7), np.uint16), "fan_in 7 is larger than the 6 inputs"),
            ("indices", np.zeros((4, 2), np.uint16), "labels is 4 here but 3 in sums"),
            ("indices", np.zeros((3, 2), np.int64), "indices must be uint16 or uint32, got int64"),
            ("values", np.zeros((3, 1), np.float32), "fan_in is 1 here but 2 in indices"),
            ("counts", np.zeros(3, np.int32), "counts must be int64, got int32"),
            ("mean", np.zeros(5, np.float32), "inputs is 5 here but 6 in sums"),
            ("scale", np.zeros(6), "scale must be float32, got float64"),
            ("random", 3, r"random must be in 0..2 \(fan_in\), got 3"),
            ("random", -1, r"random must be in 0..2 \(fan_in\), got -1"),
            ("random", 2**63, "random must be at least 0 and below"),
            ("first_label", -1, "first_label must be at least 0, got -1"),
            ("threads", 1025, "threads must be 0"),
        ],
    )
    def test_of_sources(self, name, value, message):
        arguments = {
            "sums": np.zeros((3, 6), np.float32),
            "counts": np.ones(3, np.int64),
            "mean": np.zeros(6, np.float32),
            "indices": np.zeros((3, 2), np.uint16),
        }
        kernels.choose_sources(**arguments)
        with pytest.raises(ValueError, match=message):
            kernels.choose_sources(**{**arguments, name: value})

    def test_narrow_indices_of_many_inputs(self):
        sums = np.zeros((1, 65_537), np.float32)
        with pytest.raises(ValueError, match="do not fit indices of type uint16"):
            chosen(sums, np.ones(1, np.int64), sums[0], 2)

    def test_shared_memory(self):
        sums = np.zeros((6, 6), np.float32)
        with pytest.raises(ValueError, match="share memory"):
            kernels.add_label_sums(sums, np.zeros(7, np.int64), np.zeros(0, np.int32), sums)
