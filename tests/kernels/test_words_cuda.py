"""The CUDA kernels of labels that are connected to words, executed by the emulator: see
`test_cuda`."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from sparse_layers import make_features
from word_layers import (
    RATES,
    arrays_of,
    best,
    check_steps,
    make_pairs,
    make_positives,
    reference_of,
)

from fanin import kernels

# slow: the kernels are compiled first
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("on_the_gpu")]


@pytest.mark.parametrize("loss", ["bce", "squared_hinge"])
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (6, 20, 70, 33), (3, 9, 700, 500)])
@pytest.mark.parametrize("level", [-4, -40])
def test_steps(shape, loss, level):
    rng = np.random.default_rng(sum(shape))
    assert check_steps(rng, *shape, loss=loss, level=level, wide=loss == "bce") == 2


@pytest.mark.parametrize("batch, block_labels", [(1, 300), (1, 33), (9, 64), (300, 100)])
def test_top_k(batch, block_labels):
    """Few instances by blocks of labels, or one after the other; in whole numbers, with ties."""
    rng = np.random.default_rng(batch)
    pairs = make_pairs(rng, 20, 210, block_labels)
    pairs.weights[:] = rng.integers(-3, 4, pairs.weights.size)
    pairs.bias[:] = rng.integers(-3, 4, 210)
    pairs.bias[[3, 100]] = np.nan, -np.inf
    values, starts, columns = make_features(rng, batch, 20)
    values[:] = rng.integers(-2, 3, values.size)
    k = 210 if batch == 1 else 40
    scores, ids = kernels.words_top_k(values, starts, columns, pairs, k)
    expected = best(reference_of(pairs), (values, starts, columns), k)
    np.testing.assert_array_equal(scores, expected[0])
    np.testing.assert_array_equal(ids, expected[1])


def bad_of(arguments):
    """Names and arrays with one number that is out of range."""
    changes = [
        ("columns", 1, (-1, 20, 2**31 - 1)),
        ("starts", 1, (-1, 2**40)),
        ("positive_labels", 0, (-1, 90, 2**40)),
        ("positive_starts", 1, (-1, 2**40)),
        ("pair_starts", 5, (-1, 2**40)),
        ("pair_labels", 2, (40, 65535)),
    ]
    for name, at, numbers in changes:
        for number in numbers:
            array = arguments[name].copy()
            array.flat[at] = number
            yield name, array


def test_what_cannot_be_followed():
    """The loss is NaN, or all scores of an instance; all weights stay finite."""
    rng = np.random.default_rng(0)
    pairs = make_pairs(rng, 20, 90, 40)
    columns = np.tile(np.arange(20, dtype=np.int32), 4)
    csr = {
        "values": rng.standard_normal(80).astype(np.float32),
        "starts": np.arange(5) * 20,
        "columns": columns,
    }
    starts, positives = make_positives(rng, 4, 90)
    step = {"positive_starts": starts, "positive_labels": positives}
    fields = ("pair_starts", "pair_labels")
    right = {**csr, **step, **{name: getattr(pairs, name) for name in fields}}
    for name, array in bad_of(right):
        copy = dataclasses.replace(
            pairs,
            weights=pairs.weights.copy(),
            squares=pairs.squares.copy(),
            bias=pairs.bias.copy(),
            bias_squares=pairs.bias_squares.copy(),
        )
        changed = {**right, name: array}
        copy = dataclasses.replace(copy, **{field: changed.pop(field) for field in fields})
        assert np.isnan(kernels.words_step(**changed, pairs=copy, **RATES)), name
        assert all(np.isfinite(a).all() for a in arrays_of(copy))
        if name in step:
            continue
        few = {part: changed[part] for part in csr}
        scores, ids = kernels.words_top_k(**few, pairs=copy, k=90)
        assert np.isnan(scores).any(), name
        assert (np.sort(ids, 1) == np.arange(90)).all()
