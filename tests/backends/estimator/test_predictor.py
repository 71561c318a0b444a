"""Prediction without a framework, against the formulas in float64."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
from setups import starting

from fanin.backends.estimator.predictor import Predictor
from fanin.backends.head_and_tail import HeadAndTail
from fanin.backends.kinds import ORDER, Dense, FixedFanIn, GroupedFanIn, Unstructured
from fanin.backends.setup import LayerSetup

INPUTS, LABELS = 12, 40
SETUPS = {
    "ffi": LayerSetup(INPUTS, LABELS, FixedFanIn(4)),
    "atoms": LayerSetup(INPUTS, LABELS, FixedFanIn(4), scaled=True, atoms=20),
    "dense": LayerSetup(INPUTS, LABELS, Dense(), scaled=True),
    "ffi-above": LayerSetup(INPUTS, LABELS, FixedFanIn(4), intermediate=9),
    "grouped": LayerSetup(INPUTS, LABELS, GroupedFanIn(4, 8), scaled=True),
    "grouped-above": LayerSetup(INPUTS, LABELS, GroupedFanIn(4, 16), intermediate=9),
    "dense-above": LayerSetup(INPUTS, LABELS, Dense(), intermediate=9),
    "head": LayerSetup(INPUTS, LABELS, HeadAndTail(Dense(), FixedFanIn(4), 7), scaled=True),
    "head-above": LayerSetup(
        INPUTS, LABELS, HeadAndTail(FixedFanIn(6), GroupedFanIn(4, 8), 9), intermediate=9
    ),
    "grouped-head": LayerSetup(INPUTS, LABELS, HeadAndTail(GroupedFanIn(4, 8), Dense(), 11)),
    "words": LayerSetup(INPUTS, LABELS, FixedFanIn(4), intermediate=9, sparse_features=True),
    "scaled-words": LayerSetup(
        INPUTS, LABELS, Dense(), intermediate=9, scaled=True, sparse_features=True
    ),
}


def arrays_of(setup):
    """Arrays without zeros, of the size of a trained model's."""
    rng = np.random.default_rng(1)
    arrays = starting(setup, 0)
    for name, array in arrays.items():
        if array.dtype == np.float32:
            arrays[name] = rng.uniform(0.2, 1, array.shape).astype(np.float32)
            if name != "features.scale":
                arrays[name] *= rng.choice([-1, 1], array.shape)
    return arrays


def scores_of(part, arrays, x):
    """Of one output layer, by position."""
    weights, bias = arrays[part.weights], arrays[part.outside("output.bias")]
    if not part.kind.fan_in:
        return x @ weights + bias
    indices = arrays[part.source_array].astype(int)
    if size := part.kind.group_size:
        indices = np.repeat(indices, size, axis=0)[: part.labels]
    return (x[:, indices] * weights).sum(2) + bias


def reference_scores(setup, arrays, x):
    arrays = {name: array.astype(np.float64) for name, array in arrays.items()}
    x = x * arrays.get("features.scale", 1.0)
    if setup.atoms:
        x = x @ arrays["features.dictionary"]
    if setup.intermediate:
        x = np.maximum(x @ arrays["intermediate.weights"] + arrays["intermediate.bias"], 0)
    scores = np.concatenate([scores_of(part, arrays, x) for part in setup.parts], axis=1)
    if ORDER in arrays:
        by_position, scores = scores, np.empty_like(scores)
        scores[:, arrays[ORDER].astype(int)] = by_position
    return scores


def features(instances=7):
    rng = np.random.default_rng(2)
    x = rng.standard_normal((instances, INPUTS)).astype(np.float32)
    return np.where(rng.random(x.shape) < 0.5, x, 0).astype(np.float32)


@pytest.mark.parametrize("name", SETUPS)
@pytest.mark.parametrize("form", [np.asarray, sp.csr_array, np.asfortranarray, np.float64])
@pytest.mark.parametrize("instances", [0, 1, 700])
def test_scores_and_best_labels(name, form, instances):
    setup = SETUPS[name]
    arrays = arrays_of(setup)
    x = features(instances)
    predictor = Predictor(setup, arrays, threads=1)
    expected = reference_scores(setup, arrays, x.astype(np.float64))
    scores = np.full((instances, LABELS), np.nan)
    for block, values in predictor.scores(form(x)):
        scores[block] = values
    assert np.abs(scores - expected).max(initial=0) < 1e-4
    best = predictor.top_k(form(x), 3)
    assert best.ids.shape == best.scores.shape == (instances, 3)
    assert np.abs(best.scores - -np.sort(-expected, 1)[:, :3]).max(initial=0) < 1e-4
    own = np.take_along_axis(expected, best.ids, 1)
    assert np.abs(best.scores - own).max(initial=0) < 1e-4


@pytest.mark.parametrize("name", SETUPS)
def test_arrays_come_back(name):
    arrays = arrays_of(SETUPS[name])
    back = Predictor(SETUPS[name], arrays).arrays()
    assert list(back) == list(SETUPS[name].array_shapes())
    for each, array in arrays.items():
        np.testing.assert_array_equal(back[each], array)


@pytest.mark.parametrize("name", ["ffi", "words"])
@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.zeros(INPUTS), r"x must be \[instances, 12\] \(the inputs\), got \[12\]"),
        (np.zeros((2, 3)), r"got \[2, 3\]"),
        (np.zeros((2, INPUTS), complex), "x must be numbers, got complex128"),
        ([["a"] * INPUTS], "x must be numbers, got <U1"),
        (np.vstack([np.ones((600, INPUTS)), np.full((1, INPUTS), np.nan)]), r"x\[600\] .* nan"),
        (np.full((1, INPUTS), 1e300), r"x\[0\] has the value inf \(as float32\)"),
        (sp.csr_array(np.diag([1.0] * 11 + [np.inf])), r"x\[11\] has the value inf"),
    ],
)
def test_refused_features(name, x, message):
    predictor = Predictor(SETUPS[name], arrays_of(SETUPS[name]))
    with pytest.raises(ValueError, match=message):
        predictor.top_k(x, 1)
    with pytest.raises(ValueError, match=message):
        list(predictor.scores(x))


def test_damaged_sparse_features_are_refused():
    x = sp.csr_array(features())
    x.indices[3] = 10**6
    predictor = Predictor(SETUPS["words"], arrays_of(SETUPS["words"]))
    with pytest.raises(ValueError, match="x must be a valid CSR matrix"):
        predictor.top_k(x, 1)


@pytest.mark.parametrize("k", [0, LABELS + 1, 1.5, None])
def test_refused_k(k):
    predictor = Predictor(SETUPS["ffi"], arrays_of(SETUPS["ffi"]))
    with pytest.raises(ValueError, match=r"k must be in 1..40"):
        predictor.top_k(features(), k)


def test_refused_arrays():
    arrays = arrays_of(SETUPS["ffi"])
    with pytest.raises(ValueError, match="missing"):
        Predictor(SETUPS["atoms"], arrays)
    arrays["output.indices"][0, 0] = INPUTS
    with pytest.raises(ValueError, match=r"output\.indices has values"):
        Predictor(SETUPS["ffi"], arrays)
    with pytest.raises(ValueError, match="Unstructured have no predictor"):
        Predictor(LayerSetup(INPUTS, LABELS, Unstructured(4)), {})
