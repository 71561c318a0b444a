"""Layers of a user's own model that take chosen sources: in both frameworks, the same cases."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
from frameworks import EACH_BACKEND

from fanin.backends.choosing import choose_sources

INPUTS, LABELS, FAN_IN = 30, 40, 6
every_layer = [
    pytest.mark.parametrize("backend", EACH_BACKEND),
    pytest.mark.parametrize("fused", [False, True], ids=["trained outside", "fused"]),
]


def in_each(function):
    for mark in every_layer:
        function = mark(function)
    return function


class TorchLayer:
    """How a test asks a layer of torch."""

    def __init__(self, fused, inputs=INPUTS):
        import torch

        from fanin.backends.torch import FixedFanInLinear, FusedFanIn

        self.torch = torch
        self.layer = (FusedFanIn if fused else FixedFanInLinear)(inputs, LABELS, FAN_IN)

    def array(self, name):
        return getattr(self.layer, name).detach().numpy().copy()

    def scores(self, x):
        return self.layer(self.torch.from_numpy(x)).detach().numpy()

    def train(self, x, instances, labels):
        self.layer.training_step(self.torch.from_numpy(x), instances, labels)

    def tensor(self, array):
        return self.torch.from_numpy(array)


class KerasLayer:
    """How a test asks a layer of Keras."""

    def __init__(self, fused, inputs=INPUTS):
        import tensorflow as tf

        from fanin.backends.tensorflow import FixedFanIn, FusedFanIn

        self.tf = tf
        self.layer = (FusedFanIn if fused else FixedFanIn)(LABELS, FAN_IN)
        self.layer.build((None, inputs))

    def array(self, name):
        name = name.replace("weights", "kernel")
        return np.array(getattr(self.layer, name).numpy())

    def scores(self, x):
        return self.layer(x).numpy()

    def train(self, x, instances, labels):
        self.layer.training_step(x, instances, labels)

    def tensor(self, array):
        return self.tf.constant(array)


LAYERS = {"torch": TorchLayer, "tensorflow": KerasLayer}


def chosen(seed=0):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((70, INPUTS)).astype(np.float32)
    y = sp.csr_array(rng.random((70, LABELS)) < 0.1)
    return x, choose_sources(x, y, FAN_IN).indices


@in_each
def test_the_layer_reads_its_new_sources(backend, fused):
    layer = LAYERS[backend](fused)
    x, indices = chosen()
    weights = layer.array("weights")
    layer.layer.set_connections(indices)
    np.testing.assert_array_equal(layer.array("indices"), indices)
    np.testing.assert_array_equal(layer.array("weights"), weights)
    expected = (x[:, indices.astype(int)] * weights).sum(-1)
    np.testing.assert_allclose(layer.scores(x), expected, atol=1e-5)
    for other in (indices[:, ::-1].astype(np.int64), layer.tensor(indices.astype(np.int32))):
        layer.layer.set_connections(other)
        np.testing.assert_array_equal(layer.array("indices"), np.asarray(other))


@in_each
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a[:, 1:], r"indices must be \[40, 6\], got \[40, 5\]"),
        (lambda a: a.reshape(-1), r"indices must be \[40, 6\], got \[240\]"),
        (lambda a: a.astype(np.float32), "indices must be integers, got float32"),
        (lambda a: np.where(a == a[3, 2], 30, a), r"is 30, out of range for 30 inputs"),
        (lambda a: a.astype(int) - 31, r"indices\[0, 0\] is -\d+, out of range for 30 inputs"),
    ],
)
def test_what_are_no_sources_of_the_layer(backend, fused, change, message):
    layer = LAYERS[backend](fused)
    before = layer.array("indices")
    with pytest.raises(ValueError, match=message):
        layer.layer.set_connections(change(chosen()[1]))
    np.testing.assert_array_equal(layer.array("indices"), before)


@pytest.mark.parametrize("backend", EACH_BACKEND)
def test_moments_of_another_source_are_forgotten(backend):
    layer = LAYERS[backend](fused=True)
    x, indices = chosen()
    layer.layer.set_connections(indices)
    layer.train(x[:4], [0, 1, 2, 3], [5, 6, 7, 8])
    before = {name: layer.array(name) for name in ("weights_m", "weights_v", "weights", "bias_m")}
    assert before["weights_m"].any()
    _, others = chosen(1)
    layer.layer.set_connections(others)
    moved = others != indices
    assert 0.1 < moved.mean() < 1
    for name, array in before.items():
        if name in ("weights_m", "weights_v"):
            array[moved] = 0
        np.testing.assert_array_equal(layer.array(name), array, name)


@pytest.mark.parametrize("backend", EACH_BACKEND)
def test_wide_indices(backend):
    layer = LAYERS[backend](fused=True, inputs=70_000)
    indices = np.arange(LABELS * FAN_IN, dtype=np.uint32).reshape(LABELS, FAN_IN) + 69_000
    layer.layer.set_connections(indices)
    np.testing.assert_array_equal(layer.array("indices"), indices)


@pytest.mark.tensorflow
def test_a_layer_that_is_not_built():
    from fanin.backends.tensorflow import FixedFanIn, FusedFanIn

    for kind in (FixedFanIn, FusedFanIn):
        with pytest.raises(ValueError, match="is not built yet, so it has no connections to set"):
            kind(LABELS, FAN_IN).set_connections(chosen()[1])
