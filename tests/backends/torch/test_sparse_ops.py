"""The ops of sparse features in torch beside what both frameworks have: schema, devices, sizes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from setups import random_csr

from fanin.backends.optimizer import ADAM
from fanin.backends.sparse import by_instance
from fanin.backends.torch import training_ops
from fanin.kernels import by_words

pytestmark = pytest.mark.torch

WORDS, UNITS = 30, 7


def given():
    """A batch by instance and by word, and arrays of a layer: weights, m, v, bias, its m and v."""
    generator = torch.Generator().manual_seed(0)
    x = by_instance(random_csr((9, WORDS), np.random.default_rng(0)))
    batch = [tuple(map(torch.from_numpy, arrays)) for arrays in (x, by_words(*x))]
    weights = [torch.randn(WORDS, UNITS, generator=generator).abs() for _ in range(3)]
    bias = [torch.randn(UNITS, generator=generator).abs() for _ in range(3)]
    return *batch, weights, bias


def test_opcheck():
    x, words, weights, bias = given()
    torch.library.opcheck(training_ops.sparse_relu, (*x, weights[0], bias[0]))
    torch.library.opcheck(training_ops.sparse_relu, (*x, weights[0].bfloat16(), None))
    outputs = training_ops.sparse_relu(*x, weights[0], bias[0])
    grad = torch.randn(outputs.shape)
    by_rows = [weights[0], None, weights[2][:, 0].contiguous()]
    for state in (weights, by_rows):
        for biases in (bias, [None] * 3):
            arguments = (grad, outputs, *words, *state, *biases, ADAM.numbers, 1e-3, 2, 0)
            torch.library.opcheck(training_ops.sparse_relu_update, arguments)


def test_tensors_of_two_devices():
    x, words, weights, bias = given()
    message = r"is on (meta|cpu) but .* is on (cpu|meta)"
    with pytest.raises(ValueError, match=message):
        training_ops.sparse_relu(*x, weights[0].to("meta"), bias[0])
    outputs = training_ops.sparse_relu(*(each.to("meta") for each in (*x, weights[0], bias[0])))
    assert outputs.is_meta and outputs.shape == (9, UNITS)
    others = (*words, *weights, *bias, ADAM.numbers, 1e-3, 2, 0)
    with pytest.raises(ValueError, match=message):
        training_ops.sparse_relu_update(outputs, outputs, *others)


def test_arrays_that_tell_no_size():
    (values, starts, columns), _, weights, _ = given()
    for bad in ((values, starts[:0], columns, weights[0]), (values, starts, columns, values)):
        with pytest.raises(ValueError, match=r"starts must be \[batch \+ 1\] and weights \[inputs"):
            training_ops.sparse_relu(*bad, None)
