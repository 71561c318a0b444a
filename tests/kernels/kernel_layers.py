"""Output layers in the kernels' form, and how their steps are held against `reference.Model`: what
the tests of the kernels share."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
import pytest
import reference
from hypothesis import strategies as st

from fanin import kernels
from fanin.backends.arrays import initial_arrays
from fanin.backends.kinds import Dense, FixedFanIn, Unstructured
from fanin.backends.optimizer import ADAM
from fanin.backends.setup import LayerSetup

INSTRUCTION_SETS = kernels.build_info()["instruction_sets"]
KINDS = ("dense", "fixed fan-in", "grouped", "sorted", "unstructured")
GROUP_SIZE = 12  # no whole number of any block of labels that a kernel works on
# What the steps of any shape are drawn from; layers have inputs for their fan-in at least.
ANY_SHAPE = {
    "seed": st.integers(0, 2**32 - 1),
    "batch": st.integers(1, 100),
    "inputs": st.integers(1, 200),
    "labels": st.integers(1, 300),
    "fan_in": st.integers(1, 70),
    "loss": st.sampled_from(["squared_hinge", "bce"]),
    "threads": st.integers(0, 3),
}


@dataclass
class Batch:
    features: np.ndarray
    positive_instances: np.ndarray
    positive_labels: np.ndarray


def make_batch(rng, batch, inputs, labels):
    count = rng.integers(0, 4 * batch)
    pairs = np.unique(
        np.stack([rng.integers(0, batch, count), rng.integers(0, labels, count)]), axis=1
    )
    return Batch(
        rng.standard_normal((batch, inputs)).astype(np.float32),
        pairs[0].astype(np.int32),
        pairs[1].astype(np.int64),
    )


def trained(values, dtype=np.float32, moments=np.float32, optimizer=ADAM):
    kept = {moment: np.zeros(values.shape, moments) for moment in optimizer.keeps}
    return kernels.Trained(values.astype(dtype), **kept)


def arrays_of(trained):
    """Values and the moments that there are."""
    return [a for a in (trained.values, trained.m, trained.v) if a is not None]


class Layer:
    """An output layer in the kernels' form, from the arrays of a `LayerSetup`. In those of a
    grouped layer all labels of a group have the same sources."""

    def __init__(self, arrays, kind, inputs, optimizer=ADAM, group_size=GROUP_SIZE, **types):
        self.kind = kind
        weights = arrays["output.weights"]
        self.connections = {}
        self.order = None
        if kind == "dense":
            weights = np.ascontiguousarray(weights.T)
        elif kind == "unstructured":
            labels = arrays["output.bias"].size
            starts = np.searchsorted(arrays["output.rows"], np.arange(labels + 1))
            self.connections["starts"] = starts.astype(np.int32)
            self.connections["indices"] = arrays["output.columns"].astype(np.uint16)
        elif kind == "fixed fan-in":
            self.connections["indices"] = arrays["output.indices"]
        elif kind == "grouped":
            self.connections["indices"] = np.ascontiguousarray(
                arrays["output.indices"][::group_size]
            )
            self.connections["group_size"] = group_size
        else:
            indices = arrays["output.indices"]
            fan_in = indices.shape[1]
            labels = kernels.sorted_labels(inputs, len(indices))
            self.order = np.concatenate(
                [
                    first * fan_in + np.argsort(tile.reshape(-1), kind="stable")
                    for first in range(0, len(indices), labels)
                    for tile in [indices[first : first + labels]]
                ]
            )
            tile_labels = self.order // fan_in % labels
            self.connections["tile_labels"] = tile_labels.astype(np.uint16).reshape(indices.shape)
            self.connections["indices"] = indices.reshape(-1)[self.order].reshape(indices.shape)
            weights = weights.reshape(-1)[self.order].reshape(weights.shape)
        self.weights = trained(weights, optimizer=optimizer, **types)
        self.bias = trained(arrays["output.bias"], optimizer=optimizer)

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
    output = {"dense": Dense(), "unstructured": Unstructured(fan_in)}.get(kind, FixedFanIn(fan_in))
    return LayerSetup(inputs, labels, output, loss=loss)


def step_of(optimizer, step, learning_rate):
    """One step of an `Optimizer` as the kernels take it."""
    return kernels.OptimizerStep(step, learning_rate, **asdict(optimizer))


def make_layer(rng, setup, kind, group_size=GROUP_SIZE, optimizer=ADAM, **types):
    arrays = initial_arrays(setup, int(rng.integers(1000)))
    if kind == "grouped":
        first = np.arange(setup.labels) // group_size * group_size
        arrays["output.indices"] = arrays["output.indices"][first]
    # Of the size of trained ones, so that wrong signs and indices show.
    arrays["output.weights"] = rng.standard_normal(arrays["output.weights"].shape).astype(
        np.float32
    )
    arrays["output.bias"] = rng.standard_normal(setup.labels).astype(np.float32)
    layer = Layer(arrays, kind, setup.inputs, optimizer, group_size, **types)
    return reference.Model(setup, arrays, optimizer=optimizer), layer


def make_layer_with_ties(rng, kind, batch, inputs, labels, fan_in):
    """`make_layer` and features, all of few whole numbers: sums are exact, and most scores occur
    often."""
    model, layer = make_layer(rng, make_setup(kind, inputs, labels, fan_in), kind)
    for array in (layer.weights.values, layer.bias.values):
        array[:] = rng.integers(-1, 2, array.shape)
    model.arrays["output.weights"] = layer.original(layer.weights.values).astype(np.float64)
    model.arrays["output.bias"] = layer.bias.values.astype(np.float64)
    return model, layer, rng.integers(-1, 2, (batch, inputs)).astype(np.float32)


def near(a, b, room, usual=1e-30):
    """|a - b| against the largest |b|, or what is usual where all are smaller; NaN is far from
    everything."""
    difference = np.abs(a.astype(np.float64) - b).max(initial=0)
    largest = max(np.abs(b).max(initial=0), usual)
    assert difference <= room * largest, (difference, largest)


def adam_rounding(model, name, step, rate):
    """What the rounding of gradients may do to each value in this step. Adam divides a gradient by
    its own size: the step of one that is nearly nothing beside the others, and so mostly their
    rounding, is no more exact than that. No other optimizer does so."""
    if model.optimizer.kind != "adam":
        return 0.0
    size = np.sqrt(model.v[name] / (1 - 0.999**step))
    share = np.divide(2e-7 * size.max(initial=0), size, out=np.zeros(size.shape), where=size > 0)
    return rate * np.minimum(share, 1)


def grad_of_features(model, batch):
    _, scores = model.forward(batch.features.astype(np.float64))
    _, g = reference.loss(model.setup.loss, scores, batch.positive_instances, batch.positive_labels)
    return g @ model.output_matrix().T


def rate_of(optimizer, batch, labels):
    """A learning rate whose steps show in weights of about 1."""
    return 0.01 if optimizer.kind == "adam" else 0.01 * batch * labels  # the loss is a mean


def step_both(model, layer, batch, rate, step=1, threads=0):
    """One step of the reference and of the kernels. Losses, gradients of the features and float32
    moments are compared; weights and biases are not."""
    expected_grad = grad_of_features(model, batch)
    expected = model.step(batch, rate)
    value, grad = kernels.step(
        batch.features,
        layer.weights,
        layer.bias,
        batch.positive_instances,
        batch.positive_labels,
        step_of(model.optimizer, step, rate),
        loss=model.setup.loss,
        threads=threads,
        **layer.connections,
    )
    # The gradient by a score that misses its margin by 1. Scores are of that order and more, so
    # where few pairs all but meet their margin, what is left of them is mostly rounding.
    usual = 2 / (len(batch.features) * model.setup.labels)
    assert value == pytest.approx(expected, rel=2e-6, abs=1e-6 * usual)
    near(grad, expected_grad, 2e-5, usual)
    # m is the gradient's average, so it tells more than the weights do.
    keeps, m, v = model.optimizer.keeps, layer.weights.m, layer.weights.v
    if "m" in keeps:
        near(layer.bias.m, model.m["output.bias"], 2e-5, 0.1 * usual)
        if m.dtype == np.float32:
            near(layer.original(m), model.m["output.weights"], 2e-5, 0.1 * usual)
    if "v" in keeps and v.dtype == np.float32:
        near(layer.original(v), model.v["output.weights"], 4e-5, 0.001 * usual**2)


def check_steps(
    rng,
    kind,
    batch_size,
    inputs,
    labels,
    fan_in,
    loss,
    steps=3,
    threads=0,
    group_size=GROUP_SIZE,
    optimizer=ADAM,
):
    setup = make_setup(kind, inputs, labels, fan_in, loss)
    model, layer = make_layer(rng, setup, kind, group_size, optimizer)
    rate = rate_of(optimizer, batch_size, labels)
    rounded = {"output.weights": 0.0, "output.bias": 0.0}
    for step in range(1, steps + 1):
        step_both(model, layer, make_batch(rng, batch_size, inputs, labels), rate, step, threads)
        for name, values in (
            ("output.weights", layer.original(layer.weights.values)),
            ("output.bias", layer.bias.values),
        ):
            rounded[name] = rounded[name] + adam_rounding(model, name, step, rate)
            right = model.arrays[name]
            off = np.abs(values.astype(np.float64) - right)
            assert (off <= 2e-5 * np.abs(right).max() + rounded[name]).all(), (name, off.max())
