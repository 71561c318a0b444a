"""Dense layers: forward pass, and backward pass with Adam."""

from __future__ import annotations

import numpy as np
import pytest
from kernel_layers import INSTRUCTION_SETS, near, trained

from fanin import kernels


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
        of_features = kernels.dense_update(grad, outputs, x, weights, bias, kernels.Adam(1))
        near(of_features, active @ w, 2e-5)
        near(weights.m, 0.1 * (active.T.astype(np.float64) @ x), 2e-5)
        near(bias.m, 0.1 * active.sum(0), 2e-5)
        assert np.isfinite(weights.values).all()
        near(weights.values, w - 1e-3 * np.sign(weights.m), 1e-3)  # Adam's first step is the sign's
