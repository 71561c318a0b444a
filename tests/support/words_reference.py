"""Labels that are connected to words, trained on one instance after the other, in float64 NumPy and
written for reading. The kernels' tests compare with it."""

from __future__ import annotations

import numpy as np


class Layer:
    """The pairs (label, word) as two arrays, in any order. It has copies of all numbers.

    labels, words, weights, squares: [pairs]; bias, bias_squares: [labels].
    """

    def __init__(self, labels, words, weights, squares, bias, bias_squares):
        self.labels, self.words = labels, words
        self.weights, self.squares = weights.astype(np.float64), squares.astype(np.float64)
        self.bias, self.bias_squares = bias.astype(np.float64), bias_squares.astype(np.float64)

    def scores(self, words, values):
        """Of one instance, [labels]. A word that stands twice counts twice."""
        scores = self.bias.copy()
        for word, value in zip(words, values, strict=True):
            own = self.words == word
            np.add.at(scores, self.labels[own], value * self.weights[own])
        return scores

    def step(self, words, values, positives, rate, bias_rate, threshold=-4.0, loss="bce"):
        """Trains on one instance; returns the loss."""
        scores = self.scores(words, values)
        target = np.zeros(scores.size, bool)
        target[positives] = True
        looked = target | (scores > threshold)
        losses, gradient = LOSSES[loss](scores, target)
        gradient = np.where(looked, gradient, 0)
        self._update(self.bias, self.bias_squares, looked, gradient, bias_rate)
        for word, value in zip(words, values, strict=True):
            own = (self.words == word) & looked[self.labels]
            self._update(self.weights, self.squares, own, gradient[self.labels] * value, rate)
        return losses[looked].sum()

    @staticmethod
    def _update(weights, squares, where, gradient, rate):
        squares[where] += gradient[where] ** 2
        moves = where & (squares != 0)
        weights[moves] -= rate * gradient[moves] / np.sqrt(squares[moves])


def cross_entropy(scores, target):
    """log(1 + exp(s)) - t s, and its derivative."""
    losses = np.logaddexp(0, scores) - target * scores
    return losses, np.exp(-np.logaddexp(0, -scores)) - target


def squared_hinge(scores, target):
    """max(0, 1 - y s)^2, and its derivative."""
    y = np.where(target, 1.0, -1.0)
    margin = np.maximum(0, 1 - y * scores)
    return margin**2, -2 * y * margin


LOSSES = {"bce": cross_entropy, "squared_hinge": squared_hinge}
