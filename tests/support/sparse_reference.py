"""A dense layer over sparse features that is trained on the rows of the batch's words alone, in
float64 NumPy, written for reading. The kernels' tests compare with it."""

from __future__ import annotations

import numpy as np
from reference import of_bias, update

from fanin.backends.optimizer import ADAM


def adam_rate(step, learning_rate=0.01):
    """Of Adam with m and v: the correction of both moments."""
    return learning_rate * np.sqrt(1 - 0.999**step) / (1 - 0.9**step)


class Layer:
    """relu(bias + features @ weights), with or without the relu.

    weights [inputs, units]; rows: v has one number for each row, and there is no m.
    """

    def __init__(self, weights, bias, relu, rows, optimizer=ADAM):
        self.optimizer = optimizer
        self.weights, self.bias = weights.astype(np.float64), bias.astype(np.float64)
        self.relu, self.rows = relu, rows
        self.m = np.zeros(weights.shape)
        self.v = np.zeros(weights.shape[:1] if rows else weights.shape)
        self.bias_m, self.bias_v = np.zeros(bias.shape), np.zeros(bias.shape)
        self.steps = 0

    def outputs(self, features):
        wide = features @ self.weights + self.bias
        return np.maximum(wide, 0) if self.relu else wide

    def update(self, features, outputs, grad_outputs, words, learning_rate=0.01):
        """features: dense float64; outputs: the kernel's own, which say which units are active."""
        grad = grad_outputs * (outputs > 0) if self.relu else grad_outputs.astype(np.float64)
        self.steps += 1
        bias = (self.bias, self.bias_m, self.bias_v, grad.sum(0))
        update(of_bias(self.optimizer), learning_rate, self.steps, *bias)
        of_weights = features.T @ grad
        for word in words:
            m = None if self.rows else self.m[word]
            v = self.v[word : word + 1] if self.rows else self.v[word]
            state = (self.weights[word], m, v, of_weights[word])
            update(self.optimizer, learning_rate, self.steps, *state)
