"""Arrays of a model in NumPy: initial ones, checks of those that come from elsewhere, and rewiring.

Both backends take their random numbers from NumPy, so that equal seeds give equal models, whatever
the framework's own generators do.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from fanin.backends import checks
from fanin.backends.kinds import OUTPUT
from fanin.backends.setup import LayerSetup


class InitialArrays(Mapping[str, np.ndarray]):
    """Initial values under the names of `LayerSetup.array_shapes`, each made when it is asked for:
    a large model and a copy of it need not be in memory together. given: those that start with
    other values, such as sources chosen by the data; KeyError for names that are none. drawn: the
    names of all others."""

    def __init__(
        self, setup: LayerSetup, seed: int, given: Mapping[str, np.ndarray] | None = None
    ) -> None:
        self._setup = setup
        self._seed = seed
        self._given = given or {}
        self._names = tuple(setup.array_shapes())
        self.drawn = frozenset(self._names) - frozenset(self._given)
        for name in self._given:
            setup.check_name(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, name: str) -> np.ndarray:
        if name in self._given:
            return self._given[name]
        return self._setup.initial_array(name, self._seed)

    def blocks(self, name: str) -> Iterable[np.ndarray]:
        """An array in blocks along its first axis. One that is `drawn` is never in memory whole."""
        if name in self._given:
            return (self._given[name],)
        return self._setup.initial_blocks(name, self._seed)


def initial_arrays(setup: LayerSetup, seed: int) -> dict[str, np.ndarray]:
    """All of `InitialArrays` at once."""
    return dict(InitialArrays(setup, seed))


def copied(arrays: Iterable[tuple[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Copies of named arrays, such as a trainer's `arrays` or `optimizer_arrays`, all at once."""
    return {name: np.array(array, order="C") for name, array in arrays}


def checked(
    setup: LayerSetup, arrays: Mapping[str, np.ndarray]
) -> Iterator[tuple[str, np.ndarray]]:
    """The arrays of a model of `setup`, one after the other; ValueError where they do not make one
    up: names, shapes, indices and their order."""
    shapes = setup.array_shapes()
    check_names(shapes, arrays)
    for name in shapes:
        array = arrays[name]
        setup.check_array(name, array)
        yield name, array


def check_names(known: Iterable[str], given: Iterable[str]) -> None:
    """ValueError where arrays do not have all these names, and no others."""
    missing, extra = sorted({*known} - {*given}), sorted({*given} - {*known})
    if missing or extra:
        raise ValueError(
            f"arrays of another model or storage: missing {missing}, not known here {extra}"
        )


def check_arrays(setup: LayerSetup, arrays: Mapping[str, np.ndarray]) -> None:
    """ValueError where arrays do not make up a model of `setup`."""
    for _ in checked(setup, arrays):
        pass


@dataclass(frozen=True)
class Rewiring:
    """Which connections move where: flat positions in the weights, or, where labels share sources,
    in the indices; and their new sources (same length). threshold: the |weight| below which they
    lie, where there is one. weight: what their weights become; None where they keep their
    values. layer: the output layer that they belong to (`kinds.Part`)."""

    positions: np.ndarray
    sources: np.ndarray
    threshold: float | None = None
    weight: float | None = None
    layer: str = OUTPUT


def new_sources(positions: np.ndarray, inputs: int, seed: int) -> np.ndarray:
    """The source that the connection at each flat position gets, uint32.

    A number from position and seed alone, so that what one connection gets does not depend on
    which others move: output p + 1 of SplitMix64 from the state `seed` (Steele, Lea & Flood, 2014),
    whose upper half is scaled to 0..inputs - 1. The kernels do the same (fanin.h).
    """
    with np.errstate(over="ignore"):
        z = np.uint64(seed) + (positions.astype(np.uint64) + np.uint64(1)) * np.uint64(
            0x9E3779B97F4A7C15
        )
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
    upper = z >> np.uint64(32)
    return ((upper * np.uint64(inputs)) >> np.uint64(32)).astype(np.uint32)


def drawn_seed(rng: np.random.Generator | int | None) -> int:
    """A seed for the functions here, drawn from a generator; or from one of that seed, or a fresh
    one. ValueError for anything else."""
    try:
        generator = np.random.default_rng(rng)
    except (TypeError, ValueError):
        raise ValueError(f"rng must be a NumPy generator or a seed, got {rng!r}") from None
    return int(generator.integers(2**64, dtype=np.uint64))


def plan_rewiring(
    weights: np.ndarray, fraction: float, inputs: int, seed: int, below: float = np.inf
) -> Rewiring:
    """Choose the `fraction` of connections with the smallest |weight| over the whole layer; where
    labels share sources, of sources by their `ConnectionKind.source_magnitudes`.

    As in the paper's code: the threshold is the value at that rank, connections strictly below it
    are taken (fewer than the fraction where values are equal), and each gets a uniformly random
    new source, which may repeat one that its label has. seed: 0..2^64 - 1. below: those alone whose
    |weight| is below this number, too.
    """
    fraction = checks.fraction(fraction)
    magnitude = np.abs(weights.reshape(-1))
    count = int(fraction * magnitude.size)
    threshold = min(np.partition(magnitude, count)[count], below)
    positions = np.flatnonzero(magnitude < threshold)
    return Rewiring(positions, new_sources(positions, inputs, seed), float(threshold))
