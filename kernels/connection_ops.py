"""The ops that give connections other sources or another order, whatever the data, on NumPy
arrays."""

from __future__ import annotations

import numpy as np

from fanin.kernels import library, params
from fanin.kernels.numpy_ops import Trained, _allocate, _describe, _trained


def rewire(
    indices: np.ndarray,
    weights: Trained,
    inputs: int,
    fraction: float,
    seed: int,
    *,
    threads: int = 0,
) -> tuple[int, float]:
    """Give the `fraction` of connections with the smallest |weight| new random sources.

    indices uint16 or uint32, of the shape of weights: [labels, fan_in] or [connections]. Both are
    updated: weights keep their value, but their moments become 0. The new source of a connection
    depends on its position and the seed alone (see fanin.h). Returns how many connections moved,
    and the threshold: |weight| had to be strictly below it.
    """
    arguments = params.RewireParams(
        indices=_describe(indices, "indices", written=True),
        weights=_trained(weights, "weights"),
        inputs=inputs,
        fraction=fraction,
        seed=seed % 2**64,
        threads=threads,
    )
    library.call(arguments, _allocate)
    return arguments.moved, arguments.threshold


def sort_connections(
    indices: np.ndarray,
    tile_labels: np.ndarray,
    slots: np.ndarray,
    weights: Trained,
    inputs: int,
    *,
    undo: bool = False,
    threads: int = 0,
) -> None:
    """Sort the connections of a fixed fan-in layer by source within tiles of labels, in place; or,
    with undo, bring them back into the order of their labels.

    indices [labels, fan_in] uint16 or uint32; weights have the same shape. tile_labels uint16 and
    slots uint8 (uint32 where fan_in > 256), of that shape too, are written when sorting and read
    when undoing. `step` and `top_k` then take `tile_labels`, with features of exactly `inputs`
    columns, since the tiles depend on it. For layers whose features exceed a core's cache.
    """
    arguments = params.SortParams(
        indices=_describe(indices, "indices", written=True),
        tile_labels=_describe(tile_labels, "tile_labels", written=not undo),
        slots=_describe(slots, "slots", written=not undo),
        weights=_trained(weights, "weights"),
        inputs=inputs,
        undo=undo,
        threads=threads,
    )
    library.call(arguments, _allocate)
