"""Dense layers: forward pass, and backward pass with Adam."""

from __future__ import annotations

import numpy as np
import pytest
import reference
from kernel_layers import INSTRUCTION_SETS, near, step_of, trained

from fanin import kernels
from fanin.backends.optimizer import Optimizer


@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
def test_dense_layer_forward_and_update(instruction_set):
    kernels.set_instruction_set(instruction_set)
    rng = np.random.default_rng(2)
    for batch, inputs, units in ((1, 1, 1), (32, 40, 70), (45, 37, 33), (70, 129, 8)):
        x = rng.standard_normal((batch, inputs)).astype(np.float32)
        w, b = rng.standard_normal((units, inputs)), rng.standard_normal(units)
        weights, bias = trained(w), trained(b)
        w, b = weights.values.astype(np.float64), bias.values.astype(np.float64)
        outputs = kernels.dense_forward(x, weights.values, bias.values, relu=True)
        expected = np.maximum(0, x.astype(np.float64) @ w.T + b)
        near(outputs, expected, 1e-5)
        grad = rng.standard_normal((batch, units)).astype(np.float32)
        active = grad * (outputs > 0)
        of_features = kernels.dense_update(
            grad, outputs, x, weights, bias, kernels.OptimizerStep(1)
        )
        near(of_features, active @ w, 2e-5)
        near(weights.m, 0.1 * (active.T.astype(np.float64) @ x), 2e-5)
        near(bias.m, 0.1 * active.sum(0), 2e-5)
        assert np.isfinite(weights.values).all()
        near(weights.values, w - 1e-3 * np.sign(weights.m), 1e-3)  # Adam's first step is the sign's


def exact_state(array):
    """Values, m and v in float64; 0 for moments that are not kept."""
    zeros = np.zeros(array.values.shape)
    return [
        zeros.copy() if a is None else a.astype(np.float64)
        for a in (array.values, array.m, array.v)
    ]


OPTIMIZERS = [
    Optimizer(weight_decay=3.0),
    Optimizer(l2=0.1),
    Optimizer("sgd", weight_decay=0.5),
    Optimizer("momentum", l2=0.1),
]


def check_updates(optimizer):
    """Two updates of a layer by this optimizer, against float64."""
    rng = np.random.default_rng(3)
    x = rng.standard_normal((45, 37)).astype(np.float32)
    weights, bias = (
        trained(rng.standard_normal(shape), optimizer=optimizer) for shape in ((33, 37), 33)
    )
    exact, exact_bias = (exact_state(t) for t in (weights, bias))
    for step in (1, 2):
        grad = rng.standard_normal((45, 33)).astype(np.float32)
        kernels.dense_update(grad, None, x, weights, bias, step_of(optimizer, step, 0.01))
        reference.update(optimizer, 0.01, step, *exact, grad.astype(np.float64).T @ x)
        reference.update(
            reference.of_bias(optimizer), 0.01, step, *exact_bias, grad.astype(np.float64).sum(0)
        )
    for got, expected in ((weights, exact), (bias, exact_bias)):
        for array, right in zip((got.values, got.m, got.v), expected, strict=True):
            if array is not None:
                near(array, right, 2e-5)


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=str)
@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
def test_each_optimizer(instruction_set, optimizer):
    kernels.set_instruction_set(instruction_set)
    check_updates(optimizer)
