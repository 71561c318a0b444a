"""Labels that read words: the choice of pairs against plain NumPy, training against the float64
reference, growth, files' arrays, threads, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
import words_reference

from fanin.backends.choosing import log_odds
from fanin.backends.words import model as model_module
from fanin.backends.words import pairs as pairs_module
from fanin.backends.words.estimate import words_kept_bytes
from fanin.backends.words.fitting import CALL_INSTANCES, SQUARES, START, start, steps_of, train
from fanin.backends.words.model import OneVersusRest, blocks_of
from fanin.backends.words.pairs import best_pairs, inverse_lengths, pairs_of_positives
from fanin.backends.words.setup import OneVersusRestRecipe, OneVersusRestSetup
from fanin.datasets import Batches

INSTANCES, INPUTS, LABELS = 400, 60, 30


def planted(seed=0, instances=INSTANCES, lengths=True):
    """Each label has three words of its own; instances of any length, some without a word."""
    rng = np.random.default_rng(seed)
    y = rng.random((instances, LABELS)) < np.geomspace(0.3, 0.01, LABELS)
    words = np.random.default_rng(99).integers(0, INPUTS, (LABELS, 3))
    x = rng.random((instances, INPUTS)) * (rng.random((instances, INPUTS)) < 0.1)
    for label in range(LABELS):
        x[np.ix_(y[:, label], words[label])] += 1
    if lengths:
        x *= rng.uniform(0.5, 20, (instances, 1))
    x[:3] = 0
    return sp.csr_array(x.astype(np.float32)), sp.csr_array(y)


X, Y = planted()
TEST_X, TEST_Y = planted(seed=1)


def unit(x):
    dense = x.toarray().astype(np.float64)
    lengths = np.linalg.norm(dense, axis=1, keepdims=True)
    return dense / np.where(lengths == 0, 1, lengths)


def scores_of_pairs(x, y):
    """[inputs, labels], as the docstring has them."""
    occurs = np.maximum((x.toarray() != 0).sum(0), 1)
    return np.abs(unit(x).T @ y.toarray()) * np.sqrt(x.shape[0] / occurs)[:, None]


def in_model(model):
    """The model's weights, as a matrix [inputs, labels], and which of them there are."""
    arrays = model.weights()
    parts = arrays["output.weights"], arrays["output.label_ids"], arrays["output.starts"]
    shape = (model.inputs, model.labels)
    counts = sp.csr_array((np.ones(len(parts[0])), *parts[1:]), shape=shape).toarray()
    return sp.csr_array(parts, shape=shape).toarray(), counts > 0


def precision(model, x=TEST_X, y=TEST_Y):
    ids, _ = model.top_k(x, 1)
    return y.toarray()[np.arange(x.shape[0]), ids[:, 0]].mean()


def trained(setup=None, recipe=None, threads=1, x=X, y=Y, **more):
    setup = setup or OneVersusRestSetup(INPUTS, LABELS, 12)
    *_, (model, _) = train(setup, recipe or OneVersusRestRecipe(), x, y, 0, threads, **more)
    return model


# Pairs --------------------------------------------------------------------------------------------


def test_lengths():
    expected = np.linalg.norm(X.toarray(), axis=1)
    np.testing.assert_allclose(inverse_lengths(X)[3:], 1 / expected[3:], rtol=1e-6)
    assert inverse_lengths(X)[:3].tolist() == [1, 1, 1]


@pytest.mark.parametrize("count", [1, 50, 300, 10**6])
@pytest.mark.parametrize("values", [40, 1 << 20])
def test_the_best_pairs_of_positives(monkeypatch, count, values):
    """However small the blocks are."""
    monkeypatch.setattr(pairs_module, "BLOCK_VALUES", values)
    scores = scores_of_pairs(X, Y)
    pairs, means = pairs_of_positives(X, Y, count)
    words, ids = np.divmod(pairs, LABELS)
    expected = (unit(X).T @ Y.toarray())[words, ids] / Y.toarray().sum(0)[ids]
    np.testing.assert_allclose(means, expected, rtol=1e-5)
    assert (np.diff(pairs) > 0).all()
    assert len(pairs) == min(count, np.count_nonzero(scores))
    chosen = np.zeros(INPUTS * LABELS, bool)
    chosen[pairs] = True
    scores = scores.ravel()
    assert scores[chosen].min() > scores[~chosen].max() * (1 - 1e-5)


def test_pairs_beside_others():
    first, _ = pairs_of_positives(X, Y, 100)
    both = np.sort(np.concatenate([first, pairs_of_positives(X, Y, 100, excluded=first)[0]]))
    np.testing.assert_array_equal(both, pairs_of_positives(X, Y, 200)[0])
    assert len(pairs_of_positives(X, Y, 0)[0]) == 0


def test_values_may_be_negative():
    """What counts is the size of a sum; its mean keeps the sign."""
    pairs, means = pairs_of_positives(sp.csr_array(-X), Y, 100)
    expected, positive = pairs_of_positives(X, Y, 100)
    np.testing.assert_array_equal(pairs, expected)
    np.testing.assert_array_equal(means, -positive)


def test_of_equal_scores_the_first_are_taken():
    x = sp.csr_array(np.eye(6, dtype=np.float32))
    pairs, _ = best_pairs(x, x, 4)  # the product is the identity
    np.testing.assert_array_equal(pairs, [0, 7, 14, 21])


def test_no_pair_at_all():
    empty = sp.csr_array((5, INPUTS), dtype=np.float32)
    model = start(OneVersusRestSetup(INPUTS, LABELS, 4), empty, Y[:5], 100)
    assert model.pair_count == 0
    ids, scores = model.top_k(empty, 2)
    order = np.argsort(-log_odds(Y[:5]), kind="stable")[:2]
    np.testing.assert_array_equal(ids, np.tile(order, (5, 1)))
    assert model.grow(empty, Y[:5], 10) == 0


# Training -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("block", [7, 8192])
def test_a_pass_is_that_of_the_reference(monkeypatch, threads, block):
    monkeypatch.setattr(model_module, "_BLOCK_LABELS", block)
    setup = OneVersusRestSetup(INPUTS, LABELS, 8)
    model = start(setup, X, Y, setup.most_pairs, threads)
    pairs, means = pairs_of_positives(X, Y, setup.most_pairs)
    words, labels = np.divmod(pairs, LABELS)
    squares = np.full(len(words), SQUARES * np.square(unit(X))[X.toarray() != 0].mean())
    reference = words_reference.Layer(
        labels, words, START * means, squares, log_odds(Y), np.ones(LABELS)
    )
    for batch in Batches(X, Y, 64, seed=3).epoch(0):
        loss = model.step(batch, 0.5)
        expected = 0.0
        x = unit(batch.features)
        for i in range(x.shape[0]):
            own = batch.positive_labels[batch.positive_instances == i]
            (columns,) = np.nonzero(x[i])
            expected += reference.step(columns, x[i, columns], own, 0.5, 0.5)
        assert loss == pytest.approx(expected / x.shape[0], rel=1e-4)
    weights, _ = in_model(model)
    assert np.abs(weights[words, labels] - reference.weights).max() < 1e-3
    assert np.abs(model.weights()["output.bias"] - reference.bias).max() < 1e-4
    scores = model.scores(TEST_X)
    expected = unit(TEST_X) @ weights + reference.bias
    assert np.abs(scores - expected).max() < 1e-3


def test_learns_and_follows_from_the_seed_alone(monkeypatch):
    losses, phases = [], []
    model = trained(on_step=losses.append, on_phase=phases.append)
    assert precision(model) > 0.8
    assert len(losses) == steps_of(OneVersusRestRecipe(), INSTANCES)
    assert phases == ["choosing pairs", "growing"]
    monkeypatch.setattr(model_module, "_BLOCK_LABELS", 9)
    for threads in (1, 2, 3):
        again = trained(threads=threads)
        for name, array in model.weights().items():
            np.testing.assert_array_equal(again.weights()[name], array)


def test_lengths_of_instances_do_not_matter():
    x, y = planted(lengths=False)
    long = sp.csr_array(x * np.float32(8))
    one, other = trained(x=x, y=y), trained(x=long, y=y)
    for name, array in one.weights().items():
        np.testing.assert_allclose(other.weights()[name], array, rtol=1e-3, atol=1e-4)


def test_the_rate_falls_to_nothing():
    setup = OneVersusRestSetup(INPUTS, LABELS, 12)
    rates = []

    class Spy(OneVersusRest):
        def step(self, batch, learning_rate):
            rates.append(learning_rate)
            return 0.0

    x, y = planted(instances=2 * CALL_INSTANCES)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fanin.backends.words.fitting.OneVersusRest", Spy)
        list(train(setup, OneVersusRestRecipe(learning_rate=4, epochs=2), x, y, 0))
    assert rates == [4, 4, 3.5, 2.5, 1.5, 0.5]


# Growth -------------------------------------------------------------------------------------------


def test_growing_adds_the_pairs_of_largest_gradient():
    setup = OneVersusRestSetup(INPUTS, LABELS, 2)
    model = start(setup, X, Y, setup.most_pairs)
    model.train(Batches(X, Y, 64).epoch(0), 1.0)
    weights_before, pairs_before = in_model(model)
    errors = 1 / (1 + np.exp(-model.scores(X).astype(np.float64))) - Y.toarray()
    best = np.argsort(-model.scores(X), axis=1, kind="stable")[:, :20]
    looked = Y.toarray().astype(bool)
    np.put_along_axis(looked, best, True, 1)
    errors[~looked | (np.abs(errors) < 0.05)] = 0
    gradient = np.abs(unit(X).T @ errors)
    gradient[pairs_before] = 0
    assert model.grow(X, Y, 40) == 40
    weights_after, pairs_after = in_model(model)
    np.testing.assert_array_equal(weights_after, weights_before)  # new weights are 0
    added = pairs_after & ~pairs_before
    assert added.sum() == 40 and (pairs_after | pairs_before == pairs_after).all()
    assert gradient[added].min() > gradient[~added].max() * (1 - 1e-4)


def test_growing_pays():
    """On words that were left out at first."""
    few = trained(OneVersusRestSetup(INPUTS, LABELS, 1), OneVersusRestRecipe(growths=0, epochs=3))
    grown = trained(OneVersusRestSetup(INPUTS, LABELS, 6), OneVersusRestRecipe(first_share=1 / 6))
    assert precision(grown) > precision(few) + 0.05


def test_more_instances_bring_more_words():
    setup = OneVersusRestSetup(INPUTS, LABELS, 12)
    model = start(setup, X[3:9], Y[3:9], setup.most_pairs)
    _, pairs_before = in_model(model)
    first = model.pair_count
    added = model.extend(X, Y, setup.most_pairs)
    assert first + added == model.pair_count == setup.most_pairs
    _, pairs_after = in_model(model)
    assert (pairs_after | pairs_before == pairs_after).all()
    assert model.extend(X, Y, setup.most_pairs) == 0
    model.train(Batches(X, Y, 64).epoch(0), 1.0)
    assert precision(model) > 0.7


# Arrays -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", [7, 8192])
def test_goes_on_from_its_arrays(monkeypatch, block):
    monkeypatch.setattr(model_module, "_BLOCK_LABELS", block)
    model = trained()
    arrays = {name: array.copy() for name, array in model.weights().items()}
    again = OneVersusRest.from_arrays(INPUTS, LABELS, arrays)
    for one in (model, again):
        one.train(Batches(X, Y, 64, seed=1).epoch(0), 1.0)
    for name, array in model.weights().items():
        np.testing.assert_array_equal(again.weights()[name], array)
        assert (
            name == "output.starts" or name == "output.label_ids" or (array != arrays[name]).any()
        )


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("output.bias", lambda a: a[:-1], r"output.bias must be float32 \[30\]"),
        ("output.weights", lambda a: a.astype(np.float64), "output.weights must be float32"),
        ("output.weights", lambda a: a * np.nan, "output.weights must be finite"),
        ("output.squares", lambda a: -a, "output.squares must be above 0"),
        ("output.bias_squares", lambda a: a * 0, "output.bias_squares must be above 0"),
        ("output.starts", lambda a: a[::-1].copy(), "output.starts must ascend"),
        ("output.label_ids", lambda a: a + 30, r"output.label_ids must be in 0\.\.29"),
        ("output.label_ids", lambda a: a * 0, "output.label_ids must ascend within each word"),
        ("output.more", lambda a: a, "arrays must be output.starts, "),
    ],
)
def test_arrays_that_are_no_model(name, change, message):
    arrays = trained().weights()
    arrays[name] = change(arrays.get(name, arrays["output.bias"]))
    with pytest.raises(ValueError, match=message):
        OneVersusRest.from_arrays(INPUTS, LABELS, arrays)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((0, 3, 1), "inputs must be at least 1"),
        ((3, 0, 1), "labels must be at least 1"),
        ((3, 3, 0), "fan_in must be at least 1"),
    ],
)
def test_setups_that_are_none(sizes, message):
    with pytest.raises(ValueError, match=message):
        OneVersusRestSetup(*sizes)


@pytest.mark.parametrize("labels", [1, 255, 257, 8192, 8193, 10**6])
@pytest.mark.parametrize("threads", [1, 2, 64])
def test_blocks(labels, threads):
    blocks, size = blocks_of(labels, threads)
    assert (blocks - 1) * size < labels <= blocks * size
    assert size <= 8192


@pytest.mark.parametrize("growths", [0, 1, 2, 3])
def test_kept_bytes_are_those_of_the_models_that_early_stopping_keeps(growths):
    recipe = OneVersusRestRecipe(growths=growths, epochs=1, first_share=0.25)
    setup = OneVersusRestSetup(INPUTS, LABELS, 8)
    passes = [model.pair_count for model, _ in train(setup, recipe, X, Y, 0)]
    kept = words_kept_bytes(setup, recipe, early_stopping=True)
    # While pairs are added for the last time, the model of the pass before may be the best.
    earlier = passes[growths - 2] if growths > 1 else 0
    assert passes[-1] == setup.most_pairs
    last = words_kept_bytes(setup, recipe, early_stopping=False)
    assert kept - last == pytest.approx(last * earlier / passes[-1], rel=0.05)
