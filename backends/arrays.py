"""Everything random about a model, made in NumPy: initial weights and rewiring.

Both backends take their numbers from here, so that equal seeds give equal models, whatever the
framework's own generators do.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fanin.backends.interface import LayerSetup


def index_dtype(inputs: int) -> type[np.uint16] | type[np.uint32]:
    """The narrower of the two index types that can name `inputs` sources."""
    return np.uint16 if inputs <= 65536 else np.uint32


def initial_arrays(setup: LayerSetup, seed: int) -> dict[str, np.ndarray]:
    """Initial values under the names of `LayerSetup.array_shapes`.

    Dense and intermediate weights are Glorot-uniform, limit sqrt(6 / (rows + columns)). The
    weights of a sparse layer are one flat vector of n = labels * connectivity entries, for which
    Keras' Glorot-uniform takes n as fan-in and fan-out: limit sqrt(3 / n), near zero, as the
    paper's code had it. Biases are 0. Sources are drawn uniformly and independently, so a label
    may name one twice.
    """
    arrays: dict[str, np.ndarray] = {}
    for number, (name, shape) in enumerate(setup.array_shapes().items()):
        # A generator per array: adding a layer does not change the numbers of another.
        rng = np.random.default_rng([seed, number])
        if name.endswith("bias"):
            arrays[name] = np.zeros(shape, np.float32)
        elif name == "output.indices":
            arrays[name] = rng.integers(0, setup.sources, shape, index_dtype(setup.sources))
        elif name == "output.rows":
            arrays[name] = np.sort(rng.integers(0, setup.labels, shape, np.int32))
        elif name == "output.columns":
            arrays[name] = rng.integers(0, setup.sources, shape, np.int32)
        else:
            sparse = name == "output.weights" and setup.connectivity is not None
            fans = 2 * np.prod(shape) if sparse else sum(shape)
            limit = np.sqrt(6 / fans)
            weights = rng.random(shape, np.float32)
            weights *= np.float32(2 * limit)
            weights -= np.float32(limit)
            arrays[name] = weights
    return arrays


def check_arrays(setup: LayerSetup, arrays: dict[str, np.ndarray]) -> None:
    """ValueError where arrays do not make up a model of `setup`: names, shapes, index range."""
    shapes = setup.array_shapes()
    if set(arrays) != set(shapes):
        missing, extra = sorted(set(shapes) - set(arrays)), sorted(set(arrays) - set(shapes))
        raise ValueError(f"arrays of another model: missing {missing}, not known here {extra}")
    for name, shape in shapes.items():
        if arrays[name].shape != shape:
            raise ValueError(f"{name} must be {list(shape)}, got {list(arrays[name].shape)}")
    for name, bound in (
        ("output.indices", setup.sources),
        ("output.columns", setup.sources),
        ("output.rows", setup.labels),
    ):
        if name in arrays and arrays[name].size:
            low, high = int(arrays[name].min()), int(arrays[name].max())
            if low < 0 or high >= bound:
                raise ValueError(
                    f"{name} has values {low} to {high}; they must be in 0..{bound - 1}"
                )


@dataclass(frozen=True)
class Rewiring:
    """Which connections move where: flat positions, and their new sources (same length)."""

    slots: np.ndarray
    sources: np.ndarray
    threshold: float


def plan_rewiring(
    weights: np.ndarray, fraction: float, sources: int, rng: np.random.Generator
) -> Rewiring:
    """Choose the `fraction` of connections with the smallest |weight| over the whole layer.

    As in the paper's code: the threshold is the value at that rank, connections strictly below it
    are taken (fewer than the fraction where values are equal), and each gets a uniformly random
    new source, which may repeat one that its label has.
    """
    if not 0 <= fraction < 1:
        raise ValueError(f"fraction must be at least 0 and below 1, got {fraction}")
    magnitude = np.abs(weights.reshape(-1))
    count = int(fraction * magnitude.size)
    threshold = np.partition(magnitude, count)[count]
    slots = np.flatnonzero(magnitude < threshold)
    # Drawn for every slot, so that what one slot gets does not depend on which others are taken.
    drawn = rng.integers(0, sources, magnitude.size, np.uint32)
    return Rewiring(slots, drawn[slots], float(threshold))
