"""Everything random about a model, made in NumPy: initial weights and rewiring.

Both backends take their numbers from here, so that equal seeds give equal models, whatever the
framework's own generators do.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from fanin.backends import checks
from fanin.backends.interface import LayerSetup


def index_dtype(inputs: int) -> type[np.uint16] | type[np.uint32]:
    """The narrower of the two index types that can name `inputs` sources."""
    return np.uint16 if inputs <= 65536 else np.uint32


class InitialArrays(Mapping[str, np.ndarray]):
    """Initial values under the names of `LayerSetup.array_shapes`, each made when it is asked for:
    a large model and a copy of it need not be in memory together.

    Dense and intermediate weights are Glorot-uniform, limit sqrt(6 / (rows + columns)). The
    weights of a sparse layer are one flat vector of n = labels * connectivity entries, for which
    Keras' Glorot-uniform takes n as fan-in and fan-out: limit sqrt(3 / n), near zero, as the
    paper's code had it. Biases are 0. Sources are drawn uniformly and independently, so a label
    may name one twice.
    """

    def __init__(self, setup: LayerSetup, seed: int) -> None:
        self._setup = setup
        self._seed = seed
        self._shapes = setup.array_shapes()

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)

    def __getitem__(self, name: str) -> np.ndarray:
        setup, shape = self._setup, self._shapes[name]
        # A generator per array: adding a layer does not change the numbers of another.
        rng = np.random.default_rng([self._seed, list(self._shapes).index(name)])
        if name.endswith("bias"):
            return np.zeros(shape, np.float32)
        if name == "output.indices":
            return rng.integers(0, setup.sources, shape, index_dtype(setup.sources))
        if name == "output.rows":
            return np.sort(rng.integers(0, setup.labels, shape, np.int32))
        if name == "output.columns":
            return rng.integers(0, setup.sources, shape, np.int32)
        sparse = name == "output.weights" and setup.connectivity is not None
        fans = 2 * np.prod(shape) if sparse else sum(shape)
        limit = np.sqrt(6 / fans)
        weights = rng.random(shape, np.float32)
        weights *= np.float32(2 * limit)
        weights -= np.float32(limit)
        return weights


def initial_arrays(setup: LayerSetup, seed: int) -> dict[str, np.ndarray]:
    """All of `InitialArrays` at once."""
    return dict(InitialArrays(setup, seed))


def copied(arrays: Iterable[tuple[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Copies of what a trainer's `arrays` or `optimizer_arrays` gives, all at once."""
    return {name: np.array(array, order="C") for name, array in arrays}


def checked(
    setup: LayerSetup, arrays: Mapping[str, np.ndarray]
) -> Iterator[tuple[str, np.ndarray]]:
    """The arrays of a model of `setup`, one after the other; ValueError where they do not make one
    up: names, shapes, indices and their order."""
    shapes = setup.array_shapes()
    if set(arrays) != set(shapes):
        missing, extra = sorted(set(shapes) - set(arrays)), sorted(set(arrays) - set(shapes))
        raise ValueError(f"arrays of another model: missing {missing}, not known here {extra}")
    bounds = {
        "output.indices": setup.sources,
        "output.columns": setup.sources,
        "output.rows": setup.labels,
    }
    for name, shape in shapes.items():
        array = arrays[name]
        if array.shape != shape:
            raise ValueError(f"{name} must be {list(shape)}, got {list(array.shape)}")
        if name in bounds and not np.issubdtype(array.dtype, np.integer):
            raise ValueError(f"{name} must be integers, got {array.dtype}")
        if name in bounds and array.size:
            low, high = int(array.min()), int(array.max())
            if low < 0 or high >= bounds[name]:
                raise ValueError(
                    f"{name} has values {low} to {high}; they must be in 0..{bounds[name] - 1}"
                )
        if name == "output.rows" and (array[1:] < array[:-1]).any():
            raise ValueError(f"{name} must ascend: the connections of a label stand together")
        yield name, array


def check_arrays(setup: LayerSetup, arrays: Mapping[str, np.ndarray]) -> None:
    """ValueError where arrays do not make up a model of `setup`."""
    for _ in checked(setup, arrays):
        pass


@dataclass(frozen=True)
class Rewiring:
    """Which connections move where: flat positions, and their new sources (same length)."""

    slots: np.ndarray
    sources: np.ndarray
    threshold: float


def new_sources(slots: np.ndarray, sources: int, seed: int) -> np.ndarray:
    """The source that the connection at each flat position of `slots` gets, uint32.

    A number from position and seed alone, so that what one connection gets does not depend on
    which others move: output p + 1 of SplitMix64 from the state `seed` (Steele, Lea & Flood, 2014),
    whose upper half is scaled to 0..sources - 1. The kernels do the same (fanin.h).
    """
    with np.errstate(over="ignore"):
        z = np.uint64(seed) + (slots.astype(np.uint64) + np.uint64(1)) * np.uint64(
            0x9E3779B97F4A7C15
        )
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
    upper = z >> np.uint64(32)
    return ((upper * np.uint64(sources)) >> np.uint64(32)).astype(np.uint32)


def drawn_seed(rng: np.random.Generator | int | None) -> int:
    """A seed for the functions here, drawn from a generator; or from one of that seed, or a fresh
    one. ValueError for anything else."""
    try:
        generator = np.random.default_rng(rng)
    except (TypeError, ValueError):
        raise ValueError(f"rng must be a NumPy generator or a seed, got {rng!r}") from None
    return int(generator.integers(2**64, dtype=np.uint64))


def plan_rewiring(weights: np.ndarray, fraction: float, sources: int, seed: int) -> Rewiring:
    """Choose the `fraction` of connections with the smallest |weight| over the whole layer.

    As in the paper's code: the threshold is the value at that rank, connections strictly below it
    are taken (fewer than the fraction where values are equal), and each gets a uniformly random
    new source, which may repeat one that its label has. seed: 0..2^64 - 1.
    """
    fraction = checks.fraction(fraction)
    magnitude = np.abs(weights.reshape(-1))
    count = int(fraction * magnitude.size)
    threshold = np.partition(magnitude, count)[count]
    slots = np.flatnonzero(magnitude < threshold)
    return Rewiring(slots, new_sources(slots, sources, seed), float(threshold))
