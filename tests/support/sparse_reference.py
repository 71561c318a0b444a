"""A dense layer over sparse features that is trained on the rows of the batch's words alone, in
float64 NumPy, written for reading. The kernels' tests compare with it."""

from __future__ import annotations

import numpy as np


def adam_rate(step, learning_rate=0.01):
    """Of Adam with m and v: the correction of both moments."""
    return learning_rate * np.sqrt(1 - 0.999**step) / (1 - 0.9**step)


class Layer:
    """relu(bias + features @ weights), with or without the relu.

    weights [inputs, units]; rows: v has one number for each row, and there is no m.
    """

    def __init__(self, weights, bias, relu, rows):
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
        self._update_bias(grad.sum(0), learning_rate)
        of_weights = features.T @ grad
        rate_of_v = learning_rate * np.sqrt(1 - 0.999**self.steps)
        for word in words:
            g = of_weights[word]
            if self.rows:
                self.v[word] += 0.001 * ((g**2).mean() - self.v[word])
                self.weights[word] -= rate_of_v * g / (np.sqrt(self.v[word]) + 1e-7)
            else:
                self.m[word] += 0.1 * (g - self.m[word])
                self.v[word] += 0.001 * (g**2 - self.v[word])
                size = adam_rate(self.steps, learning_rate)
                self.weights[word] -= size * self.m[word] / (np.sqrt(self.v[word]) + 1e-7)

    def _update_bias(self, grad, learning_rate):
        self.bias_m += 0.1 * (grad - self.bias_m)
        self.bias_v += 0.001 * (grad**2 - self.bias_v)
        size = adam_rate(self.steps, learning_rate)
        self.bias -= size * self.bias_m / (np.sqrt(self.bias_v) + 1e-7)
