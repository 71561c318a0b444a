"""Dense layers over sparse features in the kernels' form, and how their steps are held against
`sparse_reference.Layer`: shared by the tests of the CPU's kernels and of the CUDA ones."""

from __future__ import annotations

import numpy as np
import sparse_reference
from kernel_layers import near, step_of, trained

from fanin import kernels
from fanin.backends.optimizer import ADAM

RATE = 0.01


def make_features(rng, batch, inputs, stored=None):
    """Values, starts and columns. Instances may be empty or have a word twice; the first word is in
    nearly all of them, and columns stand in any order."""
    stored = 5 * batch if stored is None else stored
    instances = np.sort(rng.integers(0, batch, stored))
    columns = rng.integers(0, inputs, stored)
    columns[rng.random(stored) < 0.3] = 0
    starts = np.searchsorted(instances, np.arange(batch + 1)).astype(np.int64)
    return rng.standard_normal(stored).astype(np.float32), starts, columns.astype(np.int32)


def dense(features, inputs):
    """[batch, inputs] float64; a word that stands twice counts twice."""
    values, starts, columns = features
    result = np.zeros((starts.size - 1, inputs))
    np.add.at(result, (np.repeat(np.arange(starts.size - 1), np.diff(starts)), columns), values)
    return result


def make_layer(
    rng, inputs, units, *, rows=False, dtype=np.float32, moments=np.float32, optimizer=ADAM
):
    """Weights and bias of the size of trained ones, so that wrong signs and rows show."""
    weights = trained(rng.standard_normal((inputs, units)), dtype, moments, optimizer)
    if rows:
        weights = kernels.Trained(weights.values, None, np.zeros(inputs, np.float32))
    return weights, trained(rng.standard_normal(units), optimizer=optimizer)


def check_steps(
    rng, batch, inputs, units, *, relu=True, rows=False, steps=3, threads=0, optimizer=ADAM
):
    """A few steps, each on other words, against the reference."""
    weights, bias = make_layer(rng, inputs, units, rows=rows, optimizer=optimizer)
    layer = sparse_reference.Layer(weights.values, bias.values, relu, rows, optimizer)
    for step in range(1, steps + 1):
        features = make_features(rng, batch, inputs)
        # From the kernels' own numbers: the rounding of earlier steps is not compared again.
        layer.weights, layer.bias = (a.values.astype(np.float64) for a in (weights, bias))
        # What is not written shows: the outputs will most likely get this memory.
        np.full((batch, units), np.nan, np.float32)
        outputs = kernels.sparse_forward(
            *features, weights.values, bias.values, relu=relu, threads=threads
        )
        # Of terms of size 1: where all outputs all but cancel, their rounding stays.
        near(outputs, layer.outputs(dense(features, inputs)), 5e-6, 1.0)
        grad = rng.standard_normal((batch, units)).astype(np.float32)
        words = kernels.by_words(*features)
        before = weights.values.copy()
        kernels.sparse_update(
            grad,
            outputs if relu else None,
            words,
            weights,
            bias,
            step_of(optimizer, step, RATE),
            threads=threads,
        )
        layer.update(dense(features, inputs), outputs, grad, words.words)
        check_arrays(layer, weights, bias, step)
        others = np.setdiff1d(np.arange(inputs), features[2])
        np.testing.assert_array_equal(weights.values[others], before[others])


def check_arrays(layer, weights, bias, step):
    """All moments, and the values that follow from the moments: where a gradient all but cancels,
    Adam makes a step of full size of its rounding."""
    keeps = layer.optimizer.keeps
    if "m" in keeps and not layer.rows:
        near(weights.m, layer.m, 2e-5, 1.0)
    if "v" in keeps and not layer.rows:
        off = weights.m - layer.m, np.sqrt(weights.v.astype(np.float64)) - np.sqrt(layer.v)
        size = np.sqrt(layer.v) + 1e-7
        room = sparse_reference.adam_rate(step) * (abs(off[0]) + abs(off[1])) / size
    else:
        room = 0.0
    if "v" in keeps:
        near(weights.v, layer.v, 4e-5, 1e-3)
        near(bias.v, layer.bias_v, 4e-5, 1e-3)
    wrong = np.abs(weights.values.astype(np.float64) - layer.weights) - 2 * np.minimum(room, RATE)
    assert (wrong <= 3e-6 * np.abs(layer.weights).max(initial=1)).all(), wrong.max()
    near(bias.values, layer.bias, 3e-6 if keeps != ("m", "v") else 1e-2)
    if "m" in keeps:
        near(bias.m, layer.bias_m, 2e-5, 1.0)
