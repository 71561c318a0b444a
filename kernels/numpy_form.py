"""The ops on NumPy arrays: for tests, tools and frameworks that have no adapter of their own."""

from __future__ import annotations

from typing import Any

import numpy as np

from fanin.kernels import library


def _describe(array: np.ndarray | None) -> library.Tensor:
    if array is None:
        return library.absent()
    array = np.asarray(array)
    size = array.dtype.itemsize or 1
    return library.describe(
        array.ctypes.data, array.dtype.name, array.shape, [s // size for s in array.strides]
    )


def _allocate(size: int) -> tuple[int, Any]:
    memory = np.empty(size, np.uint8)
    return memory.ctypes.data, memory


def fan_in_linear(
    features: np.ndarray,
    indices: np.ndarray,
    weights: np.ndarray,
    bias: np.ndarray | None = None,
    *,
    out: np.ndarray | None = None,
    threads: int = 0,
) -> np.ndarray:
    """scores[b, l] = bias[l] + sum_k weights[l, k] * features[b, indices[l, k]].

    features [batch, inputs] float32 or float64, finite; indices [labels, fan_in] uint16 or
    uint32, each below inputs; weights [labels, fan_in] and bias [labels] like features; out
    [batch, labels], overwritten; all C-contiguous. threads: CPU threads, 0 for all. Returns the
    scores [batch, labels]. Raises ValueError naming the argument that is wrong.
    """
    params = library.ForwardParams(
        features=_describe(features),
        indices=_describe(indices),
        weights=_describe(weights),
        bias=_describe(bias),
        scores=_describe(out),
        threads=threads,
    )
    library.check(params)
    if out is None:
        out = np.empty((features.shape[0], indices.shape[0]), features.dtype)
        params.scores = _describe(out)
    library.forward(params, _allocate)
    return out


def fan_in_linear_backward(
    grad_scores: np.ndarray,
    features: np.ndarray,
    indices: np.ndarray,
    weights: np.ndarray,
    *,
    threads: int = 0,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Gradients of `fan_in_linear`, given grad_scores [batch, labels].

    Returns those of features [batch, inputs], weights [labels, fan_in] and bias [labels]. Where a
    row names a source twice, each of the two weights gets its own (equal) gradient.
    """
    labels = np.shape(indices)[0] if np.ndim(indices) else 0
    grads = (
        np.empty(np.shape(features), np.asarray(features).dtype),
        np.empty(np.shape(weights), np.asarray(weights).dtype),
        np.empty(labels, np.asarray(weights).dtype),
    )
    params = library.BackwardParams(
        grad_scores=_describe(grad_scores),
        features=_describe(features),
        indices=_describe(indices),
        weights=_describe(weights),
        grad_features=_describe(grads[0]),
        grad_weights=_describe(grads[1]),
        grad_bias=_describe(grads[2]),
        threads=threads,
    )
    library.backward(params, _allocate)
    return grads
