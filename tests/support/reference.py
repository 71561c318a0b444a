"""The numerics in float64 NumPy, written for reading: what every backend is held against."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import scipy.sparse as sp

from fanin.backends.kinds import Dense
from fanin.backends.optimizer import ADAM, is_decayed


def scores(features, indices, weights, bias=None):
    """[batch, labels]: bias[l] + sum_k weights[l, k] * features[b, indices[l, k]]."""
    result = np.zeros((features.shape[0], indices.shape[0]))
    for k in range(indices.shape[1]):
        column = indices[:, k].astype(np.int64)
        result += features[:, column].astype(np.float64) * weights[:, k].astype(np.float64)
    return result if bias is None else result + bias.astype(np.float64)


def gradients(grad_scores, features, indices, weights):
    """Gradients of features, weights and bias."""
    g = grad_scores.astype(np.float64)
    x = features.astype(np.float64)
    grad_features = np.zeros(x.shape)
    grad_weights = np.zeros(weights.shape)
    for k in range(indices.shape[1]):
        column = indices[:, k].astype(np.int64)
        grad_weights[:, k] = (g * x[:, column]).sum(axis=0)
        contribution = g * weights[:, k].astype(np.float64)
        np.add.at(grad_features.T, column, contribution.T)
    return grad_features, grad_weights, g.sum(axis=0)


def targets(shape, rows, labels):
    """+1 where (rows, labels) name a positive, else -1."""
    y = -np.ones(shape)
    y[rows, labels] = 1
    return y


def loss(name, s, rows, labels):
    """Mean over labels and batch, and its gradient with respect to the scores."""
    y = targets(s.shape, rows, labels)
    if name == "squared_hinge":
        margin = np.maximum(0, 1 - y * s)
        return (margin**2).mean(), -2 * y * margin / s.size
    return np.logaddexp(0, -y * s).mean(), -y / (1 + np.exp(y * s)) / s.size


def update(optimizer, rate, step, values, m, v, grad):
    """One step, in place, of an `Optimizer`: Adam with epsilon beside sqrt(v), before the bias
    correction. Moments that the optimizer does not keep stay as they are; m: None for a mean
    squared gradient of all values, v [1]. Of biases it is the optimizer `of_bias`."""
    before = values.copy()
    grad = grad + optimizer.l2 * before
    if optimizer.kind == "sgd":
        change = grad
    elif optimizer.kind == "momentum":
        m[...] = optimizer.momentum * m + grad
        change = m
    else:
        v += (1 - 0.999) * ((grad**2 if m is not None else (grad**2).mean()) - v)
        change = np.sqrt(1 - 0.999**step) / (np.sqrt(v) + 1e-7)
        if m is None:
            change = change * grad
        else:
            m += (1 - 0.9) * (grad - m)
            change = change / (1 - 0.9**step) * m
    values -= rate * (change + optimizer.weight_decay * before)


def of_bias(optimizer):
    """The same without decay."""
    return replace(optimizer, weight_decay=0.0, l2=0.0)


class Model:
    """A `LayerSetup` trained by an `Optimizer`. The rows of `lazily_trained` arrays are trained one
    by one, those of words in the batch alone; with row_moments, by a mean squared gradient for each
    row."""

    def __init__(self, setup, arrays, row_moments=False, optimizer=ADAM):
        self.setup = setup
        self.optimizer = optimizer
        self.row_moments = row_moments
        self.arrays = {
            k: a.astype(np.float64) if a.dtype == np.float32 else a.copy()
            for k, a in arrays.items()
        }
        trained = [k for k, a in arrays.items() if a.dtype == np.float32]
        self.m = {k: np.zeros(arrays[k].shape) for k in trained}
        self.v = {k: np.zeros(arrays[k].shape) for k in trained}
        if row_moments:
            for name in setup.lazily_trained:
                self.v[name] = np.zeros(len(arrays[name]))
        self.steps = 0

    def output_matrix(self):
        """The weights of all output layers as [sources, labels]."""
        return np.concatenate([self.part_matrix(part) for part in self.setup.parts], axis=1)

    def part_matrix(self, part):
        """The weights of one output layer as [sources, labels]."""
        weights = self.arrays[part.weights]
        if isinstance(part.kind, Dense):
            return weights
        matrix = np.zeros((self.setup.output_inputs, part.labels))
        rows, columns = self.positions(part)
        np.add.at(matrix, (columns, rows), weights.reshape(-1))
        return matrix

    def output_bias(self):
        """The biases of all output layers."""
        return np.concatenate(
            [self.arrays[part.outside("output.bias")] for part in self.setup.parts]
        )

    def positions(self, part):
        """(label, source) of each connection of an output layer, in the order of the flat weights;
        of labels in an order of their own, (position, source). Positions count from the layer's
        first one."""
        a = {part.inside(name): array for name, array in self.arrays.items() if part.owns(name)}
        if "output.rows" in a:
            return a["output.rows"].astype(int), a["output.columns"].astype(int)
        labels, fan_in = a["output.weights"].shape
        indices = a["output.indices"].astype(int)
        if part.kind.group_size:
            indices = indices[np.arange(labels) // part.kind.group_size]
        return np.repeat(np.arange(labels), fan_in), indices.reshape(-1)

    def order(self):
        """The label at each position."""
        return self.arrays.get("output.order", np.arange(self.setup.labels))

    def forward(self, x):
        a = self.arrays
        hidden = x
        if self.setup.intermediate:
            hidden = np.maximum(0, x @ a["intermediate.weights"] + a["intermediate.bias"])
        return hidden, hidden @ self.output_matrix() + self.output_bias()

    def read(self, x):
        """Features as the first layer reads them, float64 [batch, inputs]."""
        values = (x.toarray() if sp.issparse(x) else x).astype(np.float64)
        return values * self.arrays.get("features.scale", 1)

    def scores(self, x):
        """[batch, labels] for features [batch, inputs]."""
        return self.forward(self.read(x))[1][:, np.argsort(self.order())]

    def step(self, batch, learning_rate):
        x = self.read(batch.features)
        hidden, s = self.forward(x)
        places = np.argsort(self.order())[batch.positive_labels]
        value, g = loss(self.setup.loss, s, batch.positive_instances, places)
        grads = {}
        for part in self.setup.parts:
            own = g[:, part.positions]
            grads[part.outside("output.bias")] = own.sum(0)
            matrix_grad = hidden.T @ own
            if not isinstance(part.kind, Dense):
                rows, columns = self.positions(part)
                shape = self.arrays[part.weights].shape
                matrix_grad = matrix_grad[columns, rows].reshape(shape)
            grads[part.weights] = matrix_grad
        if self.setup.intermediate:
            grad_hidden = g @ self.output_matrix().T + self.beside(hidden, batch, learning_rate)
            before = grad_hidden * (hidden > 0)
            grads["intermediate.weights"] = x.T @ before
            grads["intermediate.bias"] = before.sum(0)
        self.steps += 1
        for name in self.setup.lazily_trained:
            self.update_rows(name, grads.pop(name), batch.features.indices, learning_rate)
        for name, grad in grads.items():
            optimizer = self.optimizer if is_decayed(name) else of_bias(self.optimizer)
            state = (self.arrays[name], self.m[name], self.v[name])
            update(optimizer, learning_rate, self.steps, *state, grad)
        return value

    def beside(self, hidden, batch, learning_rate):
        """What else is added to the gradient of the intermediate outputs [batch, units]."""
        return 0

    def update_rows(self, name, grads, words, learning_rate):
        """The optimizer on the rows of these words."""
        for word in set(words.tolist()):
            row, m, v = self.arrays[name][word], self.m[name][word], self.v[name][word]
            if self.row_moments:
                m, v = None, self.v[name][word : word + 1]
            update(self.optimizer, learning_rate, self.steps, row, m, v, grads[word])
