"""The kernels of training through their NumPy form: the fused step, dense layers, top-k, rewiring.

Held against `reference.Model`, float64 NumPy, on every instruction set that this machine runs.
"""

from __future__ import annotations

from dataclasses import dataclass

import ml_dtypes
import numpy as np
import pytest
import reference
from hypothesis import given, settings
from hypothesis import strategies as st

from fanin import kernels
from fanin.backends.arrays import initial_arrays
from fanin.backends.interface import LayerSetup
from fanin.kernels.library import SORTED_LABELS

INSTRUCTION_SETS = kernels.build_info()["instruction_sets"]
KINDS = ("dense", "stratified", "sorted", "sparse")


@pytest.fixture(autouse=True)
def _restore():
    yield
    kernels.set_instruction_set("auto")


@dataclass
class Batch:
    features: np.ndarray
    rows: np.ndarray
    labels: np.ndarray


def make_batch(rng, batch, inputs, labels):
    count = rng.integers(0, 4 * batch)
    pairs = np.unique(np.stack([rng.integers(0, batch, count), rng.integers(0, labels, count)]), axis=1)
    return Batch(
        rng.standard_normal((batch, inputs)).astype(np.float32),
        pairs[0].astype(np.int32),
        pairs[1].astype(np.int64),
    )


def trained(values, dtype=np.float32, moments=np.float32):
    zeros = np.zeros(values.shape, moments)
    return kernels.Trained(values.astype(dtype), zeros, zeros.copy())


class Layer:
    """An output layer in the kernels' form, from the arrays of a `LayerSetup`."""

    def __init__(self, arrays, kind, dtype=np.float32, moments=np.float32):
        self.kind = kind
        weights = arrays["output.weights"]
        self.connections = {}
        self.order = None
        if kind == "dense":
            weights = np.ascontiguousarray(weights.T)
        elif kind == "sparse":
            labels = arrays["output.bias"].size
            starts = np.searchsorted(arrays["output.rows"], np.arange(labels + 1))
            self.connections["starts"] = starts.astype(np.int32)
            self.connections["indices"] = arrays["output.columns"].astype(np.uint16)
        elif kind == "stratified":
            self.connections["indices"] = arrays["output.indices"]
        else:
            indices = arrays["output.indices"]
            fan_in = indices.shape[1]
            self.order = np.concatenate(
                [
                    first * fan_in + np.argsort(tile.reshape(-1), kind="stable")
                    for first in range(0, len(indices), SORTED_LABELS)
                    for tile in [indices[first : first + SORTED_LABELS]]
                ]
            )
            rows = self.order // fan_in % SORTED_LABELS
            self.connections["rows"] = rows.astype(np.uint16).reshape(indices.shape)
            self.connections["indices"] = indices.reshape(-1)[self.order].reshape(indices.shape)
            weights = weights.reshape(-1)[self.order].reshape(weights.shape)
        self.weights = trained(weights, dtype, moments)
        self.bias = trained(arrays["output.bias"])

    def original(self, array):
        """One of this layer's weight-like arrays as the setup has it."""
        if self.kind == "dense":
            return array.T
        if self.order is None:
            return array
        result = np.empty(array.size, array.dtype)
        result[self.order] = array.reshape(-1)
        return result.reshape(array.shape)


def make_setup(kind, inputs, labels, fan_in, loss="squared_hinge"):
    architecture = {"sorted": "stratified"}.get(kind, kind)
    return LayerSetup(architecture, inputs, labels, None if kind == "dense" else fan_in, loss=loss)


def make_layer(rng, setup, kind, **types):
    arrays = initial_arrays(setup, int(rng.integers(1000)))
    # Of the size of trained ones, so that wrong signs and indices show.
    arrays["output.weights"] = rng.standard_normal(arrays["output.weights"].shape).astype(np.float32)
    arrays["output.bias"] = rng.standard_normal(setup.labels).astype(np.float32)
    return reference.Model(setup, arrays), Layer(arrays, kind, **types)


def near(a, b, room):
    """|a - b| against the largest |b|; NaN is far from everything."""
    difference = np.abs(a.astype(np.float64) - b).max(initial=0)
    assert difference <= room * max(np.abs(b).max(initial=0), 1e-30), (difference, np.abs(b).max())


def grad_of_features(model, batch):
    _, scores = model.forward(batch.features.astype(np.float64))
    _, g = reference.loss(model.setup.loss, scores, batch.rows, batch.labels)
    return g @ model.output_matrix().T


def check_steps(rng, kind, batch_size, inputs, labels, fan_in, loss, steps=3, threads=0):
    setup = make_setup(kind, inputs, labels, fan_in, loss)
    model, layer = make_layer(rng, setup, kind)
    for step in range(1, steps + 1):
        batch = make_batch(rng, batch_size, inputs, labels)
        expected_grad = grad_of_features(model, batch)
        expected = model.step(batch, 0.01)
        value, grad = kernels.step(
            batch.features,
            layer.weights,
            layer.bias,
            batch.rows,
            batch.labels,
            kernels.Adam(step, learning_rate=0.01),
            loss=loss,
            threads=threads,
            **layer.connections,
        )
        assert value == pytest.approx(expected, rel=2e-6)
        near(grad, expected_grad, 2e-5)
        # m is the gradient's average, so it tells more than the weights do.
        name = "output.weights"
        near(layer.original(layer.weights.m), model.m[name], 2e-5)
        near(layer.original(layer.weights.v), model.v[name], 4e-5)
        near(layer.bias.m, model.m["output.bias"], 2e-5)
        near(layer.original(layer.weights.values), model.arrays[name], 2e-5)
        near(layer.bias.values, model.arrays["output.bias"], 2e-5)


@pytest.mark.parametrize("loss", ["squared_hinge", "bce"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
def test_step_follows_the_reference(instruction_set, kind, loss):
    kernels.set_instruction_set(instruction_set)
    rng = np.random.default_rng(7)
    check_steps(rng, kind, 32, 50, 70, 32, loss)
    check_steps(rng, kind, 33, 50, 4100, 7, loss, steps=2)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    kind=st.sampled_from(KINDS),
    batch=st.integers(1, 100),
    inputs=st.integers(1, 200),
    labels=st.integers(1, 300),
    fan_in=st.integers(1, 70),
    loss=st.sampled_from(["squared_hinge", "bce"]),
    threads=st.integers(0, 3),
)
def test_step_of_any_shape(seed, kind, batch, inputs, labels, fan_in, loss, threads):
    rng = np.random.default_rng(seed)
    check_steps(rng, kind, batch, inputs, labels, min(fan_in, inputs), loss, 2, threads)
