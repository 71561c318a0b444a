"""A dense layer over sparse features on NumPy arrays: its forward pass, and its backward pass with
the optimiser, which only goes over the rows of the words in the batch."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from fanin.kernels import library, params
from fanin.kernels.numpy_ops import OptimizerStep, Trained, _allocate, _describe, _length, _trained


class Words(NamedTuple):
    """Sparse features in the order of their words, as `sparse_update` takes them.

    words [words] int32, ascending, each once; those of words[i] are the instances [stored] int32
    and values [stored] float32 from word_starts[i] to word_starts[i + 1] - 1 (int64 [words + 1]).
    They are arrays in NumPy or of a framework.
    """

    words: Any
    word_starts: Any
    instances: Any
    values: Any


def by_words(values: np.ndarray, starts: np.ndarray, columns: np.ndarray) -> Words:
    """CSR features in the order of their words, and of the instances within a word.

    values [stored] float32; starts [batch + 1] int64; columns [stored] int32: that of each value.
    Values outside starts[0] to starts[batch] are left out. Raises ValueError where the three do not
    fit each other. Only the ops check that columns are in range.
    """
    if columns.dtype != np.int32 or columns.shape != values.shape:
        raise ValueError(
            f"columns must be int32 and one for each of the {values.size} values, got "
            f"{columns.dtype.name} {list(columns.shape)}"
        )
    if not starts.size:
        raise ValueError("starts must have at least 1 element")
    begin, end = int(starts[0]), int(starts[-1])
    if begin < 0 or end > values.size or (np.diff(starts) < 0).any():
        raise ValueError(f"starts must ascend from 0 to at most {values.size}")
    # One sort of plain numbers is several times as fast as a stable sort that returns an order.
    keys = np.sort(columns[begin:end].astype(np.int64) << 32 | np.arange(end - begin))
    order = keys & (2**32 - 1)
    ascending = keys >> 32
    first = np.flatnonzero(np.diff(ascending, prepend=-(2**32)))  # which is no int32
    instances = np.repeat(np.arange(starts.size - 1, dtype=np.int32), np.diff(starts))
    return Words(
        words=ascending[first].astype(np.int32),
        word_starts=np.append(first, order.size).astype(np.int64),
        instances=instances[order],
        values=values[begin:end][order],
    )


def sparse_forward(
    values: np.ndarray,
    starts: np.ndarray,
    columns: np.ndarray,
    weights: np.ndarray,
    bias: np.ndarray | None,
    *,
    relu: bool = False,
    threads: int = 0,
) -> np.ndarray:
    """outputs[b, u] = bias[u] + sum_j values[j] * weights[columns[j], u], where j goes from
    starts[b] to starts[b + 1] - 1 (CSR features); with relu 0 where negative.

    values [stored] float32, finite; starts [batch + 1] int64; columns [stored] int32, each below
    inputs; weights [inputs, units] float32 or bfloat16; bias [units] float32. Returns
    [batch, units] float32. Raises ValueError, which names what is wrong.
    """
    units = np.shape(weights)[1] if np.ndim(weights) == 2 else 0
    outputs = np.empty((max(0, _length(starts) - 1), units), np.float32)
    arguments = params.SparseForwardParams(
        values=_describe(values, "values"),
        starts=_describe(starts, "starts"),
        columns=_describe(columns, "columns"),
        weights=_describe(weights, "weights"),
        bias=_describe(bias, "bias"),
        outputs=_describe(outputs, "outputs"),
        relu=relu,
        threads=threads,
    )
    library.call(arguments, _allocate)
    return outputs


def sparse_update(
    grad_outputs: np.ndarray,
    outputs: np.ndarray | None,
    features: Words,
    weights: Trained,
    bias: Trained | None,
    optimizer: OptimizerStep,
    *,
    threads: int = 0,
) -> None:
    """Backward pass of `sparse_forward` with the optimiser, in place: on the rows of
    `features.words` in weights, and on the whole bias. All other rows, and their moments, stay as
    they are.

    grad_outputs [batch, units] float32; outputs: what the forward pass with relu returned, or None
    without relu; features: the batch `by_words`. weights [inputs, units]; with Adam and without
    `weights.m`, `weights.v` is [inputs] float32 and has one moment for each row: v += (1 - beta2)
    (mean(gradient^2) - v), w -= learning_rate sqrt(1 - beta2^step) gradient / (sqrt(v) + epsilon).
    Raises ValueError, which names what is wrong; nothing has been updated then.
    """
    arguments = params.SparseUpdateParams(
        grad_outputs=_describe(grad_outputs, "grad_outputs"),
        outputs=_describe(outputs, "outputs"),
        words=_describe(features.words, "words"),
        word_starts=_describe(features.word_starts, "word_starts"),
        instances=_describe(features.instances, "instances"),
        values=_describe(features.values, "values"),
        weights=_trained(weights, "weights"),
        bias=_trained(bias, "bias"),
        optimizer=optimizer.params(),
        threads=threads,
    )
    library.call(arguments, _allocate)
