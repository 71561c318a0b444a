"""The op library of both executions in TensorFlow, and two of its ops: `top_k` and `rewire`."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from fanin.backends.tensorflow.native.build import compiled_ops
from fanin.kernels import library

# An array and its moments m and v, None for those that there are not.
Variables = Sequence[tf.Variable | None]


@functools.cache
def ops() -> Any:
    """The op module, whose symbols come from libfanin: that one is loaded first. ImportError where
    it cannot be compiled or loaded."""
    library.load()
    path = compiled_ops()
    try:
        return tf.load_op_library(str(path))
    except tf.errors.OpError as error:  # compiled on another machine, say, that shares the cache
        raise ImportError(
            f"{path}: cannot be loaded ({error.message}); remove it, and it is compiled anew"
        ) from error


def on_host() -> Any:
    """Where an op's scalars are made: the host reads them, and to fetch them from a GPU it would
    have to wait for it."""
    return tf.device("/CPU:0")


def connection_lists(connections: dict[str, Any]) -> dict[str, Any]:
    names = ("indices", "starts", "tile_labels")
    return {name: [connections[name]] if name in connections else [] for name in names}


def handles(name: str, variables: Variables) -> dict[str, Any]:
    """The inputs of an op that changes an array of this name with its moments."""
    values, *moments = variables
    lists = {
        f"{name}_{moment}": [] if array is None else [array.handle]
        for moment, array in zip("mv", moments, strict=True)
    }
    assert values is not None
    return {name: values.handle, **lists}


def top_k(
    features: Any,
    connections: dict[str, Any],
    weights: Any,
    bias: Any,
    k: Any,
    *,
    group_size: int = 0,
    threads: int = 0,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Scores and ids [batch, k] of the best labels, best first, equal scores in order of their
    label; all scores are never held. See `fanin.kernels.top_k`, whose `label_ids` may be among the
    connections (but uint32)."""
    with on_host():
        k = tf.cast(k, tf.int64)
    scores, ids = ops().fanin_top_k(
        features=features,
        **connection_lists(connections),
        weights=weights,
        bias=[] if bias is None else [bias],
        label_ids=[connections["label_ids"]] if "label_ids" in connections else [],
        k=k,
        group_size=group_size,
        threads=threads,
    )
    return scores, ids


def rewire(
    indices: tf.Variable,
    weights: Variables,
    inputs: int,
    fraction: float,
    seed: int,
    *,
    threads: int = 0,
) -> int:
    """Rewire in place, see `fanin.kernels.rewire`; how many connections moved."""
    signed = int(np.uint64(seed).astype(np.int64))
    with on_host():
        scalars = {
            "inputs": tf.constant(inputs, tf.int64),
            "fraction": tf.constant(fraction, tf.float64),
            "seed": tf.constant(signed, tf.int64),
        }
    moved = ops().fanin_rewire(
        indices=indices.handle,
        **handles("weights", weights),
        **scalars,
        threads=threads,
    )
    return int(moved)
