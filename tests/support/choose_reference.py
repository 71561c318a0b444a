"""Choosing and replacing sources in float64 NumPy, written for reading."""

from __future__ import annotations

import numpy as np

from fanin.backends.arrays import new_sources


def centroid_values(features, labels):
    """Mean over each label's positives - mean over all, float64 [labels, inputs]; 0 without
    positives. features [instances, inputs], labels dense bool [instances, labels]."""
    x = features.astype(np.float64)
    counts = labels.sum(0)
    values = labels.T.astype(np.float64) @ x / np.maximum(counts, 1)[:, None] - x.mean(0)
    values[counts == 0] = 0
    return values


def sources(sums, counts, mean, fan_in, *, scale=None, random=0, seed=0, first_label=0):
    """Indices and values [labels, fan_in]; see fanin_choose_sources_params."""
    labels, inputs = sums.shape
    scale = np.ones(inputs) if scale is None else scale.astype(np.float64)
    indices = np.empty((labels, fan_in), np.int64)
    values = np.zeros((labels, fan_in))
    for label in range(labels):
        row = np.zeros(inputs)
        taken = []
        if counts[label]:
            row = (sums[label].astype(np.float64) / counts[label] - mean) * scale
            strongest = np.argsort(-np.abs(row), kind="stable")  # of equal ones the lower first
            taken = sorted(strongest[: fan_in - random].tolist())
        positions = (first_label + label) * fan_in + np.arange(fan_in)
        for source in new_sources(positions, inputs, seed)[len(taken) :].tolist():
            while source in taken:
                source = (source + 1) % inputs
            taken.append(source)
        indices[label], values[label] = taken, row[taken]
    return indices, values


def replacements(gradients, indices, weights, replaced):
    """For each label the slots that move, ascending, and the inputs that they get; see
    fanin_replace_sources_params."""
    for gradient, sources, row in zip(gradients, indices, weights, strict=True):
        size = np.nan_to_num(np.abs(gradient.astype(np.float64)), nan=0, posinf=np.inf)
        size[sources] = 0
        largest = np.argsort(-size, kind="stable")  # of equal ones the lower first
        taken = largest[size[largest] > 0][:replaced]
        weakness = np.nan_to_num(np.abs(row.astype(np.float64)), nan=np.inf, posinf=np.inf)
        yield np.sort(np.argsort(weakness, kind="stable")[: len(taken)]), np.sort(taken)
