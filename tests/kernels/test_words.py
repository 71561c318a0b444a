"""Labels that are connected to words: training on one instance after the other, and top-k."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_layers import INSTRUCTION_SETS, near
from sparse_layers import make_features
from word_layers import (
    RATES,
    arrays_of,
    best,
    blocked,
    check_steps,
    coordinates,
    make_pairs,
    make_positives,
    reference_of,
    reference_steps,
)

from fanin import kernels

THREADS = (1, 2, 3, 7)


@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_step_of_any_shape(instruction_set, data):
    kernels.set_instruction_set(instruction_set)
    labels = data.draw(st.integers(1, 150), "labels")
    check_steps(
        np.random.default_rng(data.draw(st.integers(0, 2**32), "seed")),
        data.draw(st.integers(1, 20), "batch"),
        data.draw(st.integers(1, 60), "inputs"),
        labels,
        data.draw(st.integers(1, 2 * labels), "block_labels"),
        loss=data.draw(st.sampled_from(["bce", "squared_hinge"]), "loss"),
        threads=data.draw(st.integers(0, 3), "threads"),
        wide=data.draw(st.booleans(), "int64 positives"),
    )


@pytest.mark.parametrize("loss", ["bce", "squared_hinge"])
@pytest.mark.parametrize("level", [-4, -40])
def test_lists_are_walked_along_or_searched(loss, level):
    """Around the threshold hundreds of labels are looked at; far below it the positives alone, so
    that lists of hundreds are searched."""
    rng = np.random.default_rng(7)
    assert check_steps(rng, 3, 30, 2000, 700, loss=loss, level=level, steps=1) == 1


@pytest.mark.parametrize("loss, threshold", [("bce", -30.0), ("squared_hinge", -1.0)])
def test_a_thousand_steps(loss, threshold):
    """At the threshold the gradient is almost 0, so it matters little on which side rounding puts a
    score."""
    rng = np.random.default_rng(1)
    pairs = make_pairs(rng, 40, 60, 25)
    layer, losses = reference_of(pairs), []
    options = {**RATES, "threshold": threshold}
    features, positives = make_features(rng, 50, 40), make_positives(rng, 50, 60)
    for _ in range(20):
        value = kernels.words_step(*features, *positives, pairs, **options, loss=loss)
        expected, _ = reference_steps(layer, features, positives, options, loss)
        losses.append(expected)
        near(np.float64(value), expected, 1e-4)
    assert losses[-1] < 0.5 * losses[0]
    for got, wanted in zip(arrays_of(pairs), arrays_of(layer), strict=True):
        near(got, wanted, 1e-4)


def after_steps(pairs, threads):
    """Losses and arrays after two calls on instances that are the same each time."""
    rng = np.random.default_rng(3)
    inputs, losses = pairs.pair_starts.shape[1] - 1, []
    for _ in range(2):
        features = make_features(rng, 30, inputs)
        positives = make_positives(rng, 30, pairs.bias.size)
        losses.append(kernels.words_step(*features, *positives, pairs, **RATES, threads=threads))
    return [np.array(losses), *arrays_of(pairs)]


def test_results_do_not_depend_on_threads():
    def run(threads):
        pairs = make_pairs(np.random.default_rng(0), 50, 900, 64)
        few, many = (make_features(np.random.default_rng(1), batch, 50) for batch in (1, 40))
        results = after_steps(pairs, threads)
        for features in (few, many):
            results += kernels.words_top_k(*features, pairs, 70, threads=threads)
        return results

    first = run(1)
    for threads in THREADS[1:]:
        for mine, other in zip(first, run(threads), strict=True):
            np.testing.assert_array_equal(mine, other)


def in_other_blocks(pairs, block_labels):
    labels, words = coordinates(pairs)
    return blocked(
        labels,
        words,
        (pairs.weights, pairs.squares),
        (pairs.bias, pairs.bias_squares),
        pairs.pair_starts.shape[1] - 1,
        block_labels,
    )


def test_weights_do_not_depend_on_blocks():
    """Nor does what is the best; only the loss is summed in another order."""
    pairs = make_pairs(np.random.default_rng(0), 50, 300, 300)
    others = [in_other_blocks(pairs, size) for size in (7, 64, 299, 65536)]
    losses, *arrays = after_steps(pairs, 1)
    for other in others:
        other_losses, *_ = after_steps(other, 1)
        near(other_losses, losses, 1e-6)
        same = in_other_blocks(other, 300)
        for mine, its in zip(arrays, arrays_of(same), strict=True):
            np.testing.assert_array_equal(mine, its)
        features = make_features(np.random.default_rng(1), 20, 50)
        for mine, its in zip(
            kernels.words_top_k(*features, pairs, 80),
            kernels.words_top_k(*features, other, 80),
            strict=True,
        ):
            np.testing.assert_array_equal(mine, its)


def one_label(**changes):
    """A label with one word, which has value 2 in one instance; the label is its positive."""
    some = {"weights": 0.5, "bias": -1.0, "squares": 1.0, "bias_squares": 1.0, **changes}
    arrays = {name: np.full(1, value, np.float32) for name, value in some.items()}
    pairs = kernels.WordPairs(1, np.array([[0, 1]]), np.zeros(1, np.uint16), **arrays)
    features = np.full(1, 2, np.float32), np.array([0, 1]), np.zeros(1, np.int32)
    return features, (np.array([0, 1]), np.zeros(1, np.int64)), pairs


def test_by_hand():
    features, positives, pairs = one_label()
    loss = kernels.words_step(*features, *positives, pairs, learning_rate=0.1, bias_rate=0.2)
    assert loss == pytest.approx(np.log(2))
    assert pairs.squares[0] == 2 and pairs.bias_squares[0] == 1.25  # G is -1/2 * 2, and -1/2
    assert pairs.weights[0] == pytest.approx(0.5 + 0.1 / np.sqrt(2))
    assert pairs.bias[0] == pytest.approx(-1 + 0.2 * 0.5 / np.sqrt(1.25))


def test_squares_of_nothing_make_no_step():
    features, positives, pairs = one_label(squares=0, bias_squares=0, weights=1e-30, bias=200)
    kernels.words_step(*features, *positives, pairs, **RATES)
    assert pairs.weights[0] == np.float32(1e-30) and pairs.bias[0] == 200


def test_a_weight_that_is_not_a_number_shows():
    features, positives, pairs = one_label(weights=np.nan)
    assert np.isnan(kernels.words_step(*features, *positives, pairs, **RATES))
    assert np.isnan(pairs.weights[0])


def test_nothing_stored_and_no_pairs():
    empty = np.empty(0, np.float32), np.zeros(3, np.int64), np.empty(0, np.int32)
    pairs = kernels.WordPairs(
        2,
        np.zeros((2, 6), np.int64),
        np.empty(0, np.uint16),
        np.empty(0, np.float32),
        np.array([-9, 1, 0], np.float32),
        np.empty(0, np.float32),
        np.ones(3, np.float32),
    )
    scores, ids = kernels.words_top_k(*empty, pairs, 3)
    assert ids.tolist() == [[1, 2, 0]] * 2 and scores.tolist() == [[1, 0, -9]] * 2
    none = np.zeros(3, np.int64), np.empty(0, np.int32)
    expected, _ = reference_steps(
        reference_of(pairs), empty, none, {**RATES, "threshold": -4.0}, "bce"
    )
    near(np.float64(kernels.words_step(*empty, *none, pairs, **RATES)), expected, 1e-5)
    assert pairs.bias[0] == -9 and (pairs.bias[1:] < [1, 0]).all()


def test_the_largest_block():
    """A label of number 65,535 in its block, and labels of a second one."""
    labels, words = np.array([0, 65535, 65536, 69999]), np.array([1, 0, 1, 1])
    ones, bias = np.ones(4, np.float32), np.full(70000, -9, np.float32)
    bias_arrays = (bias, np.ones(70000, np.float32))
    pairs = blocked(labels, words, (ones, ones.copy()), bias_arrays, 2, 65536)
    features = np.ones(2, np.float32), np.array([0, 1, 2]), np.array([0, 1], np.int32)
    assert kernels.words_top_k(*features, pairs, 1)[1].tolist() == [[65535], [0]]
    positives = np.array([0, 1, 2]), np.array([65535, 69999])
    kernels.words_step(*features, *positives, pairs, **RATES)
    changed = coordinates(pairs)[0][pairs.weights > 1]
    assert changed.tolist() == [65535, 69999]


class TestTopK:
    @pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
    @settings(max_examples=60, deadline=None)
    @given(data=st.data())
    def test_any_shape(self, instruction_set, data):
        """In whole numbers, so that many scores are equal and all are exact."""
        kernels.set_instruction_set(instruction_set)
        rng = np.random.default_rng(data.draw(st.integers(0, 2**32), "seed"))
        batch, inputs = data.draw(st.integers(0, 9), "batch"), data.draw(st.integers(1, 40))
        labels = data.draw(st.integers(1, 200), "labels")
        pairs = make_pairs(rng, inputs, labels, data.draw(st.integers(1, 2 * labels), "block"))
        pairs.weights[:] = rng.integers(-3, 4, pairs.weights.size)
        pairs.bias[:] = rng.integers(-3, 4, labels)
        pairs.bias[rng.random(labels) < 0.1] = -np.inf
        values, starts, columns = make_features(rng, max(batch, 1), inputs)
        values[:] = rng.integers(-2, 3, values.size)
        starts = starts[: batch + 1]
        k = data.draw(st.integers(1, labels), "k")
        threads = data.draw(st.integers(0, 12), "threads")
        scores, ids = kernels.words_top_k(values, starts, columns, pairs, k, threads=threads)
        assert scores.shape == ids.shape == (batch, k)
        if batch:
            expected = best(reference_of(pairs), (values, starts, columns), k)
            np.testing.assert_array_equal(scores, expected[0])
            np.testing.assert_array_equal(ids, expected[1])

    @pytest.mark.parametrize("threads", [1, 9])
    def test_nan_is_last(self, threads):
        empty = np.empty(0, np.float32), np.zeros(2, np.int64), np.empty(0, np.int32)
        pairs = make_pairs(np.random.default_rng(0), 3, 100, 30)
        pairs.bias[:] = np.arange(100)
        pairs.bias[[0, 50, 99]] = np.nan
        pairs.bias[[3, 98]] = -np.inf
        scores, ids = kernels.words_top_k(*empty, pairs, 100, threads=threads)
        assert ids[0, :2].tolist() == [97, 96] and ids[0, 95:].tolist() == [3, 98, 0, 50, 99]
        assert np.isnan(scores[0, 97:]).all() and np.isneginf(scores[0, 95:97]).all()

    def test_without_squares(self):
        pairs = make_pairs(np.random.default_rng(0), 30, 50, 20)
        features = make_features(np.random.default_rng(1), 5, 30)
        bare = dataclasses.replace(pairs, squares=None, bias_squares=None)
        for mine, other in zip(
            kernels.words_top_k(*features, pairs, 5),
            kernels.words_top_k(*features, bare, 5),
            strict=True,
        ):
            np.testing.assert_array_equal(mine, other)
        with pytest.raises(ValueError, match=r"^squares is missing; expected \[pairs\]"):
            positives = make_positives(np.random.default_rng(2), 5, 50)
            kernels.words_step(*features, *positives, bare, **RATES)


# Changes that make a right call wrong, and the message about each: of both calls, and of a step.
STARTS = [[0, 2, 3, 3], [3, 4, 4, 5]]
WRONG = [
    ({"columns": np.array([0, 3, 1], np.int32)}, r"columns\[1\] is 3, out of range for 3 inputs"),
    ({"columns": np.array([0, -1, 1], np.int32)}, r"columns\[1\] is -1, out of range for 3 inp"),
    ({"values": np.array([1, np.nan, 1], np.float32)}, r"values\[1\] is NaN; all values must"),
    ({"starts": np.array([0, 2, 1])}, r"starts\[2\] is 1; they must ascend from 0 to at most 3"),
    ({"starts": np.empty(0, np.int64)}, "starts must have at least 1 element|batch . 1 is"),
    ({"pair_starts": np.zeros((2, 4), np.int32)}, "pair_starts must be int64, got int32"),
    ({"pair_starts": np.zeros((1, 4), np.int64)}, "has 1 blocks but 5 labels are 2 blocks of 3"),
    ({"pair_starts": np.zeros((2, 1), np.int64)}, "inputs must be at least 1, but inputs is 0 in"),
    ({"pair_starts": np.zeros((2, 0), np.int64)}, "pair_starts must have at least 2 columns"),
    ({"pair_starts": np.array([[0, 2, 1, 3], STARTS[1]])}, r"pair_starts\[0, 2\] is 1; they must"),
    ({"pair_starts": np.array([[0, 4, 4, 3], STARTS[1]])}, r"pair_starts\[0, 1\] is 4; they must"),
    ({"pair_starts": np.array([STARTS[0], [2, 4, 4, 5]])}, r"pair_starts\[1, 0\] is 2; they must"),
    ({"pair_starts": np.array([STARTS[0], [3, 4, 4, 6]])}, r"\[1, 3\] is 6; .* to at most 5$"),
    ({"pair_starts": np.array([[-1, 2, 3, 3], STARTS[1]])}, r"pair_starts\[0, 0\] is -1; they"),
    ({"pair_labels": np.array([1, 0, 2, 1, 0], np.uint16)}, r"pair_labels\[1\] is 0; .* ascend"),
    ({"pair_labels": np.array([1, 1, 2, 1, 0], np.uint16)}, r"pair_labels\[1\] is 1; .* each once"),
    ({"pair_labels": np.array([0, 3, 2, 1, 0], np.uint16)}, r"pair_labels\[1\] is 3; .* labels of"),
    ({"pair_labels": np.array([0, 1, 2, 2, 0], np.uint16)}, r"pair_labels\[3\] is 2; .* their blo"),
    ({"pair_labels": np.zeros(5, np.int32)}, "pair_labels must be uint16, got int32"),
    ({"pair_labels": np.zeros(4, np.uint16)}, "pairs is 5 here but 4 in pair_labels"),
    ({"weights": np.ones(5)}, "weights must be float32, got float64"),
    ({"block_labels": 0}, r"block_labels must be in 1..65536, got 0"),
    ({"block_labels": 65537}, r"block_labels must be in 1..65536, got 65537"),
    ({"block_labels": 2**64 + 3}, r"block_labels must be in 1..65536, got 18446744073709551619"),
    ({"block_labels": 5}, "pair_starts has 2 blocks but 5 labels are 1 blocks of 5"),
    ({"threads": -1}, r"threads must be 0 \(all\) or 1 to 1024, got -1"),
]
WRONG_STEP = [
    ({"positive_labels": np.array([0, 5])}, r"positive_labels\[1\] is 5, out of range for 5 lab"),
    ({"positive_labels": np.array([0, -1], np.int32)}, r"positive_labels\[1\] is -1, out of ran"),
    ({"positive_labels": np.zeros(2)}, "positive_labels must be int32 or int64, got float64"),
    ({"positive_starts": np.array([0, 2, 1])}, r"positive_starts\[2\] is 1; they must ascend"),
    ({"positive_starts": np.array([0, 1, 3])}, r"positive_starts\[2\] is 3; .* to at most 2"),
    ({"positive_starts": np.array([0, 1])}, r"batch \+ 1 is 2 here but 3 in starts"),
    ({"squares": np.ones(4, np.float32)}, "squares .4. must be .pairs.: pairs is 4 here but 5"),
    ({"bias_squares": np.ones(5)}, "bias_squares must be float32, got float64"),
    ({"learning_rate": -1}, "learning_rate must be finite and at least 0, got -1"),
    ({"bias_rate": np.inf}, "bias_rate must be finite and at least 0, got inf"),
    ({"threshold": np.nan}, "threshold must not be NaN"),
    ({"loss": "hinge"}, "unknown loss 'hinge'"),
    (
        {"starts": np.zeros(1, np.int64), "positive_starts": np.zeros(1, np.int64)},
        "a step needs at least one instance; the batch is empty",
    ),
]


class TestBadInput:
    """Each error names what is wrong, and nothing was changed."""

    def arguments(self, changes):
        pairs = kernels.WordPairs(
            block_labels=3,
            pair_starts=np.array(STARTS),
            pair_labels=np.array([0, 1, 2, 1, 0], np.uint16),
            weights=np.ones(5, np.float32),
            bias=np.zeros(5, np.float32),
            squares=np.ones(5, np.float32),
            bias_squares=np.ones(5, np.float32),
        )
        call = {
            "values": np.ones(3, np.float32),
            "starts": np.array([0, 2, 3]),
            "columns": np.array([0, 2, 1], np.int32),
            "pairs": pairs,
        }
        step = {
            **RATES,
            "positive_starts": np.array([0, 1, 2]),
            "positive_labels": np.array([0, 4]),
        }
        inner = {name: value for name, value in changes.items() if hasattr(pairs, name)}
        outer = {name: value for name, value in changes.items() if name not in inner}
        return {**call, "pairs": dataclasses.replace(pairs, **inner), **outer}, step

    @pytest.mark.parametrize("changes, message", WRONG + WRONG_STEP)
    def test_step(self, changes, message):
        right, step = self.arguments({})
        call, _ = self.arguments(changes)
        kernels.words_step(**{**step, **right})
        before = [array.copy() for array in arrays_of(call["pairs"])]
        with pytest.raises(ValueError, match=message):
            kernels.words_step(**{**step, **call})
        for old, new in zip(before, arrays_of(call["pairs"]), strict=True):
            np.testing.assert_array_equal(old, new)

    @pytest.mark.parametrize("changes, message", WRONG)
    def test_top_k(self, changes, message):
        right, _ = self.arguments({})
        call, _ = self.arguments(changes)
        assert kernels.words_top_k(**right, k=2)[1].shape == (2, 2)
        with pytest.raises(ValueError, match=message):
            kernels.words_top_k(**call, k=2)

    @pytest.mark.parametrize("k", [0, 6, -1])
    def test_k(self, k):
        right, _ = self.arguments({})
        with pytest.raises(ValueError, match=rf"k must be in 1..5 \(the labels\), got {k}"):
            kernels.words_top_k(**right, k=k)
