"""The CUDA kernels of layers over sparse features, executed by the emulator: see `test_cuda`."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
import sparse_layers
from kernel_layers import near, trained

from fanin import kernels
from fanin.backends.optimizer import Optimizer

# slow: the kernels are compiled first
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("on_the_gpu")]


@pytest.mark.parametrize("rows", [False, True])
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("shape", [(1, 1, 1), (40, 70, 33), (70, 33, 128), (9, 200, 300)])
def test_layers_over_sparse_features(shape, relu, rows):
    sparse_layers.check_steps(
        np.random.default_rng(sum(shape)), *shape, relu=relu, rows=rows, steps=2
    )


@pytest.mark.parametrize(
    "rows, optimizer",
    [
        (False, Optimizer(weight_decay=3.0, l2=0.01)),
        (True, Optimizer(weight_decay=3.0, l2=0.01)),
        (False, Optimizer("sgd", weight_decay=0.5)),
        (False, Optimizer("momentum", l2=0.02)),
    ],
    ids=str,
)
def test_each_optimizer(rows, optimizer):
    rng = np.random.default_rng(8)
    sparse_layers.check_steps(rng, 40, 70, 140, rows=rows, steps=2, optimizer=optimizer)


@pytest.mark.parametrize("rows", [False, True])
@pytest.mark.parametrize("moments", [np.float32, ml_dtypes.bfloat16])
def test_rows_in_bfloat16_are_rounded_as_on_a_cpu(rows, moments, monkeypatch):
    results = []
    for where in ("cuda", "cpu"):
        if where == "cpu":
            monkeypatch.undo()
        rng = np.random.default_rng(3)
        options = {"dtype": ml_dtypes.bfloat16, "moments": moments}
        weights, bias = sparse_layers.make_layer(rng, 30, 140, rows=rows, **options)
        features = sparse_layers.make_features(rng, 20, 30)
        grad = rng.standard_normal((20, 140)).astype(np.float32)
        outputs = kernels.sparse_forward(*features, weights.values, bias.values, relu=True)
        words, adam = kernels.by_words(*features), kernels.OptimizerStep(1, seed=7)
        kernels.sparse_update(grad, outputs, words, weights, bias, adam)
        results.append([weights.values, weights.v, *(() if rows else (weights.m,))])
    for gpu, cpu in zip(*results, strict=True):
        # Sums differ in their last bits, so a few values are rounded to the other neighbour.
        rounded = gpu.dtype == ml_dtypes.bfloat16
        assert not rounded or (gpu != cpu).mean() < 0.01
        near(gpu, cpu.astype(np.float64), 2.0**-7 if rounded else 2e-6)


def test_sparse_values_that_cannot_be_followed():
    """An instance of which a column is out of range has NaN, a word likewise; a word that has no
    row of its own is left out."""
    values, columns = np.ones(3, np.float32), np.arange(3, dtype=np.int32)
    layer = trained(np.ones((3, 40)))

    def bad_instances(starts, columns):
        outputs = kernels.sparse_forward(values, np.array(starts), columns, layer.values, None)
        assert (np.isnan(outputs) | (outputs == 1)).all()
        return np.isnan(outputs).all(1).tolist()

    good = [0, 1, 2, 3]
    assert bad_instances(good, columns) == [False] * 3
    for bad in (-1, 3, 2**31 - 1):
        wrong = np.array([0, bad, 2], np.int32)
        assert bad_instances(good, wrong) == [False, True, False]
    for bad in (-1, 4, 2**40):
        assert bad_instances([0, 1, bad, 3], columns) == [False, True, True]

    def bad_words(words, word_starts, instances, rows):
        weights = sparse_layers.make_layer(np.random.default_rng(0), 3, 40, rows=rows)[0]
        before, grad = weights.values.copy(), np.ones((3, 40), np.float32)
        given = (words, word_starts, instances)
        some = kernels.Words(*(np.array(a) for a in given), values)
        some = some._replace(words=some.words.astype(np.int32))
        some = some._replace(instances=some.instances.astype(np.int32))
        kernels.sparse_update(grad, None, some, weights, None, kernels.OptimizerStep(1))
        nan, same = np.isnan(weights.values).all(1), (weights.values == before).all(1)
        assert np.isnan(weights.v).any() == nan.any()
        return ["NaN" if a else "kept" if b else "updated" for a, b in zip(nan, same, strict=True)]

    for rows in (False, True):
        each = ["updated"] * 3
        assert bad_words([0, 1, 2], good, [0, 1, 2], rows) == each
        for bad in (-1, 3, 2**31 - 1):
            assert bad_words([0, 1, 2], good, [0, bad, 2], rows) == ["updated", "NaN", "updated"]
        for bad in (-1, 4):
            updated = bad_words([0, 1, 2], [0, 1, bad, 3], [0, 1, 2], rows)
            assert updated == ["updated", "NaN", "NaN"]
        for words in ([-1, 1, 2], [0, 0, 2], [0, 2, 1], [0, 1, 3], [0, 1, 2**31 - 1]):
            kept = set(range(3)) - {
                w for i, w in enumerate(words) if w >= 0 and w > max(words[:i], default=-1)
            }
            updated = bad_words(words, good, [0, 1, 2], rows)
            assert updated == ["kept" if w in kept else "updated" for w in range(3)], words
