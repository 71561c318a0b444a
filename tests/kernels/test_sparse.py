"""Dense layers over sparse features: forward pass, and the update of the rows of the words."""

from __future__ import annotations

import dataclasses

import ml_dtypes
import numpy as np
import pytest
import scipy.sparse as sp
import sparse_reference
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_layers import INSTRUCTION_SETS, arrays_of, near
from sparse_layers import RATE, check_steps, dense, make_features, make_layer

from fanin import kernels
from fanin.backends.optimizer import Optimizer

UNITS = [1, 3, 16, 31, 33, 64, 100, 128, 129, 200, 300]  # ragged chunks, whole blocks, and both


@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_step_of_any_shape(instruction_set, data):
    kernels.set_instruction_set(instruction_set)
    check_steps(
        np.random.default_rng(data.draw(st.integers(0, 2**32), "seed")),
        data.draw(st.integers(1, 70), "batch"),
        data.draw(st.integers(1, 300), "inputs"),
        data.draw(st.sampled_from(UNITS), "units"),
        relu=data.draw(st.booleans(), "relu"),
        rows=data.draw(st.booleans(), "rows"),
        threads=data.draw(st.integers(0, 3), "threads"),
    )


@pytest.mark.parametrize("rows", [False, True])
def test_a_large_batch(rows):
    check_steps(np.random.default_rng(3), 1500, 400, 70, rows=rows, steps=1, threads=2)


@pytest.mark.parametrize(
    "rows, optimizer",
    [
        *[(rows, Optimizer(weight_decay=3.0)) for rows in (False, True)],
        *[(rows, Optimizer(l2=0.02)) for rows in (False, True)],
        (False, Optimizer("sgd", weight_decay=0.5)),
        (False, Optimizer("momentum", l2=0.02, momentum=0.7)),
    ],
    ids=str,
)
@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
def test_each_optimizer(instruction_set, rows, optimizer):
    """Rows of the batch decay, and no others: `check_steps` compares these bit by bit."""
    kernels.set_instruction_set(instruction_set)
    for units in (7, 140):
        rng = np.random.default_rng(units)
        check_steps(rng, 40, 90, units, rows=rows, optimizer=optimizer)


def step_in(weights, bias, features, grad, step=1, seed=0, **options):
    """A forward pass with relu, and the update; the outputs."""
    outputs = kernels.sparse_forward(*features, weights.values, bias.values, relu=True, **options)
    adam = kernels.OptimizerStep(step, RATE, seed=seed)
    words = kernels.by_words(*features)
    kernels.sparse_update(grad, outputs, words, weights, bias, adam, **options)
    return outputs


@pytest.mark.parametrize("rows", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_results_do_not_depend_on_threads(dtype, rows):
    results = []
    for threads in (1, 2, 3, 7):
        rng = np.random.default_rng(0)
        weights, bias = make_layer(rng, 500, 257, rows=rows, dtype=dtype)
        for step in (1, 2):
            features = make_features(rng, 90, 500)
            grad = rng.standard_normal((90, 257)).astype(np.float32)
            outputs = step_in(weights, bias, features, grad, step, threads=threads)
        results.append([outputs, *arrays_of(weights), *arrays_of(bias)])
    for others in results[1:]:
        for first, other in zip(results[0], others, strict=True):
            np.testing.assert_array_equal(first, other)


@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
@pytest.mark.parametrize("types", ["weights", "moments", "weights and moments", "rows"])
def test_bfloat16_is_right_on_average(types, instruction_set):
    """Each value is one of the two neighbours of the exact one, and their mean error is small
    against the rounding of one."""
    kernels.set_instruction_set(instruction_set)
    rng = np.random.default_rng(5)
    rows = types == "rows"
    weights, bias = make_layer(
        rng,
        200,
        301,
        rows=rows,
        dtype=np.float32 if types == "moments" else ml_dtypes.bfloat16,
        moments=ml_dtypes.bfloat16 if "moments" in types else np.float32,
    )
    layer = sparse_reference.Layer(weights.values, bias.values, True, rows)
    features = make_features(rng, 60, 200, 900)
    grad = rng.standard_normal((60, 301)).astype(np.float32)
    outputs = step_in(weights, bias, features, grad, seed=9)
    near(outputs, layer.outputs(dense(features, 200)), 5e-6)
    layer.update(dense(features, 200), outputs, grad, np.unique(features[2]))
    changed = np.unique(features[2])
    exact = [a for a in (layer.weights, None if rows else layer.m, layer.v) if a is not None]
    for got, expected in zip(arrays_of(weights), exact, strict=True):
        rounded = got.dtype == ml_dtypes.bfloat16
        got, expected = got[changed].astype(np.float64), expected[changed]
        large = np.abs(expected) > np.median(np.abs(expected))  # not what cancelled to nearly 0
        error = (got - expected)[large] / np.abs(expected[large])
        assert np.abs(error).max() <= (2.0**-7 if rounded else 1e-4)
        if rounded:
            assert np.abs(error).mean() > 2.0**-11  # it was rounded at all
            assert abs(error.mean()) < 2.0**-13  # and up as often as down


@pytest.mark.parametrize("rows", [False, True])
def test_rounding_depends_on_place_step_and_seed(rows):
    def run(step, seed, word=3):
        """The weights of two words with the same numbers: which of them were rounded up."""
        shape = (8, 400)
        weights = make_layer(np.random.default_rng(1), *shape, rows=rows, dtype="bfloat16")[0]
        weights.values[:] = 0.5
        features = (np.ones(1, np.float32), np.array([0, 1]), np.array([word], np.int32))
        words, adam = kernels.by_words(*features), kernels.OptimizerStep(step, 1e-4, seed=seed)
        grad = np.ones((1, 400), np.float32)
        kernels.sparse_update(grad, None, words, weights, None, adam)
        return weights.values[word].astype(np.float32) == 0.5

    assert 0.1 < run(3, 1).mean() < 0.99
    np.testing.assert_array_equal(run(3, 1), run(3, 1))
    for other in (run(3, 2), run(4, 1), run(3, 1, word=4)):
        assert abs(np.corrcoef(run(3, 1), other)[0, 1]) < 0.2


@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_whole_numbers_are_added_exactly(dtype, instruction_set):
    kernels.set_instruction_set(instruction_set)
    rng = np.random.default_rng(4)
    values, starts, columns = make_features(rng, 40, 30)
    values = rng.integers(-3, 4, values.size).astype(np.float32)
    weights = rng.integers(-9, 10, (30, 333)).astype(dtype)
    bias = rng.integers(-9, 10, 333).astype(np.float32)
    expected = dense((values, starts, columns), 30) @ weights.astype(np.float64)
    for some in (None, bias):
        wide = expected + (0 if some is None else some)
        for relu in (False, True):
            got = kernels.sparse_forward(values, starts, columns, weights, some, relu=relu)
            np.testing.assert_array_equal(got, np.maximum(wide, 0) if relu else wide)


@pytest.mark.parametrize("rows", [False, True])
def test_instances_without_words_update_the_bias_alone(rows):
    rng = np.random.default_rng(6)
    weights, bias = make_layer(rng, 20, 40, rows=rows)
    before = [a.copy() for a in arrays_of(weights)]
    features = (np.empty(0, np.float32), np.zeros(4, np.int64), np.empty(0, np.int32))
    grad, start = rng.standard_normal((3, 40)).astype(np.float32), bias.values.copy()
    outputs = step_in(weights, bias, features, grad)
    np.testing.assert_array_equal(outputs, np.maximum(np.tile(start, (3, 1)), 0))
    near(bias.m, 0.1 * (grad * (outputs > 0)).sum(0), 2e-6)
    for old, new in zip(before, arrays_of(weights), strict=True):
        np.testing.assert_array_equal(old, new)
    empty = kernels.sparse_forward(
        *features[:1], features[1][:1], features[2], weights.values, None
    )
    assert empty.shape == (0, 40)


def test_a_layer_without_bias_or_relu():
    rng = np.random.default_rng(7)
    weights, _ = make_layer(rng, 20, 40)
    features, grad = make_features(rng, 9, 20), rng.standard_normal((9, 40)).astype(np.float32)
    kernels.sparse_update(
        grad, None, kernels.by_words(*features), weights, None, kernels.OptimizerStep(1, RATE)
    )
    near(weights.m, 0.1 * dense(features, 20).T @ grad, 2e-6)


def test_a_part_of_a_matrix_is_read_where_it_lies():
    rng = np.random.default_rng(8)
    values, starts, columns = make_features(rng, 50, 60)
    columns[: starts[10]] = columns[starts[30] :] = -1  # these must not be read
    values[: starts[10]] = np.nan
    weights, _ = make_layer(rng, 60, 40)
    part = slice(starts[10], starts[30])
    copy = values[part], starts[10:31] - starts[10], columns[part]
    got = kernels.sparse_forward(values, starts[10:31], columns, weights.values, None)
    np.testing.assert_array_equal(got, kernels.sparse_forward(*copy, weights.values, None))
    words = kernels.by_words(values, starts[10:31], columns)
    for mine, other in zip(words, kernels.by_words(*copy), strict=True):
        np.testing.assert_array_equal(mine, other)


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_the_order_of_words_is_that_of_a_csc_matrix(data):
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32), "seed"))
    batch, inputs = data.draw(st.integers(1, 40)), data.draw(st.sampled_from([1, 5, 90, 2**31 - 1]))
    values, starts, columns = make_features(rng, batch, inputs)
    if inputs > 90:
        columns[columns == 0] = inputs - 1
    words = kernels.by_words(values, starts, columns)
    known, places = np.unique(columns, return_inverse=True)
    matrix = sp.csr_array((values, places, starts), shape=(batch, known.size)).tocsc()
    np.testing.assert_array_equal(words.words, known)
    np.testing.assert_array_equal(words.word_starts, matrix.indptr)
    np.testing.assert_array_equal(words.instances, matrix.indices)
    np.testing.assert_array_equal(words.values, matrix.data)
    assert [a.dtype.name for a in words] == ["int32", "int64", "int32", "float32"]


def test_arrays_that_do_not_fit_each_other_have_no_order():
    values, starts, columns = np.ones(3, np.float32), np.array([0, 2, 3]), np.zeros(3, np.int32)
    for wrong in (columns.astype(np.int64), columns[:2], columns.astype(np.float32)):
        with pytest.raises(ValueError, match="columns must be int32 and one for each of the 3 val"):
            kernels.by_words(values, starts, wrong)
    for wrong in ([0, 2, 4], [-1, 2, 3], [0, 2, 1]):
        with pytest.raises(ValueError, match="starts must ascend from 0 to at most 3"):
            kernels.by_words(values, np.array(wrong), columns)
    with pytest.raises(ValueError, match="starts must have at least 1 element"):
        kernels.by_words(values, np.empty(0, np.int64), columns)


def test_a_column_below_0_is_not_lost_by_the_order():
    values, starts = np.ones(3, np.float32), np.array([0, 2, 3])
    words = kernels.by_words(values, starts, np.array([2, -1, -7], np.int32))
    assert words.words.tolist() == [-7, -1, 2] and words.word_starts.tolist() == [0, 1, 2, 3]


# Changes that make a right call wrong, and the message about each.
WRONG_FORWARD = [
    ({"columns": np.array([0, 4, -1], np.int32)}, r"columns\[2\] is -1, out of range for 5"),
    ({"columns": np.array([0, 5, 1], np.int32)}, r"columns\[1\] is 5, out of range for 5 inp"),
    ({"columns": np.array([0, 1, 2])}, "columns must be int32, got int64"),
    (
        {"columns": np.zeros(2, np.int32)},
        "columns .2. must be .stored.: stored is 2 here but 3",
    ),
    ({"values": np.array([1, 2, np.nan], np.float32)}, r"values\[2\] is NaN; all values must"),
    (
        {"values": np.array([1, -np.inf, 3], np.float32)},
        r"values\[1\] is -inf; all values must",
    ),
    ({"values": np.ones(3)}, "values must be float32, got float64"),
    (
        {"starts": np.array([0, 2, 1])},
        r"starts\[2\] is 1; they must ascend from 0 to at most 3",
    ),
    (
        {"starts": np.array([0, 2, 4])},
        r"starts\[2\] is 4; they must ascend from 0 to at most 3",
    ),
    ({"starts": np.array([-1, 2, 3])}, r"starts\[0\] is -1; they must ascend from 0"),
    ({"starts": np.array([0, 2, 3], np.int32)}, "starts must be int64, got int32"),
    ({"starts": np.empty(0, np.int64)}, r"starts has 0 elements but must have 1 \(batch \+ 1\)"),
    ({"weights": np.ones(5, np.float32)}, r"weights must be \[inputs, units\], got 1 dim"),
    ({"weights": np.ones((5, 4))}, "weights must be float32 or bfloat16, got float64"),
    (
        {"weights": np.ones((0, 4), np.float32)},
        "inputs must be at least 1, but inputs is 0 in w",
    ),
    (
        {"bias": np.ones(3, np.float32)},
        "bias .3. must be .units.: units is 3 here but 4 in wei",
    ),
    ({"threads": -1}, r"threads must be 0 \(all\) or 1 to 1024, got -1"),
]
WRONG_UPDATE = [
    ({"words": np.array([0, 5], np.int32)}, r"words\[1\] is 5, out of range for 5 inputs"),
    ({"words": np.array([-1, 2], np.int32)}, r"words\[0\] is -1, out of range for 5 inputs"),
    ({"words": np.array([2, 2], np.int32)}, r"ascend, each once, but words\[1\] is 2 after 2"),
    ({"words": np.array([2, 1], np.int32)}, r"ascend, each once, but words\[1\] is 1 after 2"),
    ({"words": np.array([1, 2])}, "words must be int32, got int64"),
    (
        {"words": np.array([1], np.int32)},
        r"word_starts has 3 elements but must have 2 \(words \+ 1\)",
    ),
    ({"word_starts": np.array([0, 3, 2])}, r"word_starts\[2\] is 2; they must ascend"),
    (
        {"word_starts": np.array([0, 1, 4])},
        r"word_starts\[2\] is 4; they must ascend .* most 3",
    ),
    ({"word_starts": np.array([0, 1, 3], np.int32)}, "word_starts must be int64, got int32"),
    (
        {"instances": np.array([0, 2, 1], np.int32)},
        r"instances\[1\] is 2, out of range for 2 i",
    ),
    (
        {"instances": np.array([0, 1, -7], np.int32)},
        r"instances\[2\] is -7, out of range for 2",
    ),
    ({"values": np.array([1, np.inf, 3], np.float32)}, r"values\[1\] is inf; all values must"),
    ({"grad_outputs": np.ones((0, 4), np.float32), "outputs": None}, "the batch is empty"),
    ({"grad_outputs": np.ones((2, 4))}, "grad_outputs must be float32, got float64"),
    (
        {"outputs": np.ones((2, 3), np.float32)},
        "outputs .2, 3. must be .batch, units.: units is",
    ),
    ({"optimizer": kernels.OptimizerStep(0)}, "step counts from 1, got 0"),
    ({"bias": np.ones(4, np.float32)}, "bias must be a Trained, got ndarray"),
    ({"weights": {"v": np.ones((5, 4))}}, "weights.v must be float32, got float64"),
    ({"weights": {"m": None}}, r"weights.v must be \[inputs\], got 2 dimensions"),
    ({"weights": {"m": None, "v": np.ones(5)}}, "weights.v must be float32, got float64"),
    (
        {"weights": {"m": None, "v": np.ones(4, np.float32)}},
        "inputs is 4 here but 5 in weights",
    ),
]


class TestBadInput:
    """Each error names what is wrong, and nothing was changed."""

    @pytest.mark.parametrize("changes, message", WRONG_FORWARD)
    def test_forward(self, changes, message):
        arguments = {
            "values": np.ones(3, np.float32),
            "starts": np.array([0, 2, 3]),
            "columns": np.array([0, 4, 1], np.int32),
            "weights": np.ones((5, 4), np.float32),
            "bias": np.ones(4, np.float32),
        }
        kernels.sparse_forward(**arguments)
        with pytest.raises(ValueError, match=message):
            kernels.sparse_forward(**{**arguments, **changes})

    @pytest.mark.parametrize("changes, message", WRONG_UPDATE)
    def test_update(self, changes, message):
        weights, bias = make_layer(np.random.default_rng(0), 5, 4)
        before = [a.copy() for a in (*arrays_of(weights), *arrays_of(bias))]
        features = kernels.Words(
            np.array([1, 4], np.int32),
            np.array([0, 1, 3]),
            np.array([0, 0, 1], np.int32),
            np.ones(3, np.float32),
        )
        arguments = {
            "grad_outputs": np.ones((2, 4), np.float32),
            "outputs": np.ones((2, 4), np.float32),
            "features": features,
            "weights": weights,
            "bias": bias,
            "optimizer": kernels.OptimizerStep(1),
        }
        changes = dict(changes)
        parts = {name: changes.pop(name) for name in features._fields if name in changes}
        if parts:
            changes["features"] = features._replace(**parts)
        if "weights" in changes:
            changes["weights"] = dataclasses.replace(weights, **changes["weights"])
        with pytest.raises(ValueError, match=message):
            kernels.sparse_update(**{**arguments, **changes})
        for old, new in zip(before, (*arrays_of(weights), *arrays_of(bias)), strict=True):
            np.testing.assert_array_equal(old, new)
        kernels.sparse_update(**arguments)
        assert (weights.m != before[1]).any()
