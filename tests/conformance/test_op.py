"""The op `fan_in_linear` and the losses in both frameworks, against float64 NumPy."""

from __future__ import annotations

from dataclasses import astuple, dataclass, replace

import ml_dtypes
import numpy as np
import pytest
import reference
from hypothesis import given, settings
from hypothesis import strategies as st
from near import assert_near

TOLERANCE = {np.float32: 2e-5, np.float64: 1e-12}


@dataclass
class Layer:
    features: np.ndarray
    indices: np.ndarray
    weights: np.ndarray
    bias: np.ndarray | None
    group_size: int = 0

    def arrays(self):
        return astuple(self)[:4]

    def own_indices(self):
        """Of each label, where labels share them, too."""
        rows = np.arange(len(self.weights)) // max(1, self.group_size)
        return self.indices[rows]


def random_layer(
    batch, inputs, labels, fan_in, values=np.float32, index=np.uint16, seed=0, group_size=0
):
    rng = np.random.default_rng(seed)
    rows = -(-labels // max(1, group_size))
    return Layer(
        rng.standard_normal((batch, inputs)).astype(values),
        rng.integers(0, inputs, (rows, fan_in), index),
        rng.standard_normal((labels, fan_in)).astype(values),
        rng.standard_normal(labels).astype(values),
        group_size,
    )


@st.composite
def layers(draw):
    # The kernels work on 32 instances and 32 labels at a time: sizes around these are drawn often.
    batch = draw(st.sampled_from([0, 1, 2, 31, 32, 33, 64, 100]))
    labels = draw(st.sampled_from([1, 2, 31, 32, 33, 65, 300]))
    inputs = draw(st.sampled_from([1, 2, 17, 130, 700]))
    fan_in = draw(st.integers(1, min(inputs, 130)))
    values = draw(st.sampled_from([np.float32, np.float64]))
    index = draw(st.sampled_from([np.uint16, np.uint32]))
    group_size = draw(st.sampled_from([0, 0, 2, 8, 16, 33, 64]))
    seed = draw(st.integers(0, 99))
    return random_layer(batch, inputs, labels, fan_in, values, index, seed, group_size)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(layers(), st.booleans(), st.booleans())
def test_op_and_gradients_agree_with_the_reference(on_device, layer, traced, with_bias):
    layer = layer if with_bias else replace(layer, bias=None)
    rng = np.random.default_rng(1)
    grad = rng.standard_normal((len(layer.features), len(layer.weights)))
    grad = grad.astype(layer.features.dtype)
    size = layer.group_size
    scores, grads = on_device.op_gradients(layer.arrays(), grad, traced=traced, group_size=size)
    tolerance = TOLERANCE[layer.features.dtype.type]
    read = (layer.features, layer.own_indices(), layer.weights)
    assert_near(scores, reference.scores(*read, layer.bias), tolerance)
    expected = reference.gradients(grad, *read)
    for gradient, right in zip(grads, expected[: len(grads)], strict=True):
        assert_near(gradient, right, tolerance)


@settings(max_examples=40, deadline=None)
@given(
    batch=st.integers(0, 70), inputs=st.integers(1, 90), labels=st.integers(1, 90), data=st.data()
)
def test_op_and_gradients_of_any_size(on_device, batch, inputs, labels, data):
    fan_in = data.draw(st.integers(1, inputs))
    index = data.draw(st.sampled_from([np.uint16, np.uint32]))
    layer = random_layer(batch, inputs, labels, fan_in, index=index)
    grad = np.random.default_rng(1).standard_normal((batch, labels)).astype(np.float32)
    scores, grads = on_device.op_gradients(layer.arrays(), grad)
    assert np.abs(scores - reference.scores(*layer.arrays())).max(initial=0) < 1e-4
    expected = reference.gradients(grad, layer.features, layer.indices, layer.weights)
    for gradient, right in zip(grads, expected, strict=True):
        assert np.abs(gradient - right).max(initial=0) < 3e-4


@pytest.mark.parametrize("inputs, index", [(65_536, np.uint16), (70_000, np.uint32)])
def test_the_last_input_of_either_index_type(on_device, inputs, index):
    layer = random_layer(3, inputs, 40, 5, index=index)
    layer.indices[:] = inputs - 1 - layer.indices % 2
    assert_near(on_device.op(*layer.arrays()), reference.scores(*layer.arrays()), 2e-5)


@pytest.mark.parametrize(
    "change, message",
    [
        (
            lambda a: {"indices": a.indices.astype(np.int64)},
            "indices must be uint16 or uint32, got int64",
        ),
        (
            lambda a: {"features": a.features.astype(np.float16)},
            "features must be float32 or float64, got float16",
        ),
        (lambda a: {"features": a.features.astype(ml_dtypes.bfloat16)}, "got bfloat16"),
        (
            lambda a: {"weights": a.weights.astype(float)},
            "weights is float64 but features is float32",
        ),
        (lambda a: {"features": a.features[:, :2]}, "fan_in 3 is larger than the 2 inputs"),
        (
            lambda a: {"features": a.features[0]},
            r"features must be \[batch, inputs\], got 1 dimensions",
        ),
        (lambda a: {"weights": a.weights[:, :2]}, r"weights \[7, 2\] must be \[labels, fan_in\]"),
        (lambda a: {"weights": a.weights[:, :2]}, "fan_in is 2 here but 3 in indices"),
        (lambda a: {"weights": a.weights[:5]}, "labels is 5 here but 7 in indices"),
        (lambda a: {"bias": a.bias[:6]}, r"bias \[6\] must be \[labels\]"),
        (lambda a: {"indices": a.indices[:, :0], "weights": a.weights[:, :0]}, "fan_in must be at"),
    ],
)
def test_shapes_and_types_that_do_not_fit_are_value_errors(on_device, change, message):
    layer = random_layer(5, 20, 7, 3)
    bad = replace(layer, **change(layer))
    for traced in on_device.ways:
        with pytest.raises(ValueError, match=message):
            on_device.op(*bad.arrays(), traced=traced)
    assert np.isfinite(on_device.op(*layer.arrays())).all()  # alive


@pytest.mark.parametrize("backward", [False, True])
def test_bad_numbers_are_named(on_cpu, backward):
    wrong_index, wrong_feature = random_layer(5, 20, 7, 3), random_layer(5, 20, 7, 3)
    wrong_index.indices[4, 1] = 20
    wrong_feature.features[3, 2] = np.nan
    wrong_features = replace(wrong_feature, features=np.full((5, 20), np.nan, np.float32))

    def scores(layer, traced):
        if not backward:
            return on_cpu.op(*layer.arrays(), traced=traced)
        return on_cpu.op_gradients(layer.arrays(), np.ones((5, 7), np.float32), traced=traced)[0]

    for layer, message in (
        (wrong_index, r"indices\[4, 1\] is 20, out of range for 20 inputs"),
        (wrong_feature, r"features\[3, 2\] is NaN; all features must be"),
        (wrong_features, r"features\[0, 0\] is NaN; all features must be"),  # the first
    ):
        for traced in on_cpu.ways:
            with pytest.raises(on_cpu.data_error, match=message):
                scores(layer, traced)
            assert np.isfinite(scores(random_layer(5, 20, 7, 3), traced)).all()  # alive


@pytest.mark.parametrize("name", ["squared_hinge", "bce"])
@pytest.mark.parametrize(
    "dtype, size, tolerance",
    [(np.float32, 2, 1e-6), (np.float32, 20, 1e-6), (np.float64, 2, 1e-12)],
)
def test_losses_agree_with_the_reference(on_device, name, dtype, size, tolerance):
    rng = np.random.default_rng(0)
    positives = np.nonzero(rng.random((33, 40)) < 0.1)
    scores = (size * rng.standard_normal((33, 40))).astype(dtype)
    value, gradient = on_device.loss(name, scores, *positives)
    with np.errstate(over="ignore"):
        expected = reference.loss(name, scores.astype(np.float64), *positives)
    assert_near(value, expected[0], tolerance)
    assert_near(gradient, expected[1], tolerance)


@pytest.mark.parametrize("name", ["squared_hinge", "bce"])
def test_losses_in_float64(on_device, name):
    """Within 1e-12, however large the loss is."""
    rng = np.random.default_rng(0)
    scores = 2 * rng.standard_normal((6, 50))
    positives = np.nonzero(rng.random((6, 50)) < 0.1)
    value, gradient = on_device.loss(name, scores, *positives)
    expected, expected_gradient = reference.loss(name, scores, *positives)
    assert abs(value - expected) < 1e-12
    assert np.abs(3 * gradient - 3 * expected_gradient).max() < 1e-12
