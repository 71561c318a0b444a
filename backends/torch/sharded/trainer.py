"""The trainer of a model whose labels are cut over ranks.

Each rank has the arrays of its own labels, and all of those below the output layer, which every
rank trains alike: all read the same batches. From outside it is one model: whole arrays go in, and
whole arrays come out.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np

from fanin.backends.arrays import InitialArrays, Rewiring, check_names
from fanin.backends.auxiliary import Auxiliary
from fanin.backends.interface import (
    DeviceArray,
    Execution,
    Storage,
    TrainingBatch,
    TransformedBatch,
)
from fanin.backends.kinds import ORDER, Part
from fanin.backends.optimizer import Optimizer
from fanin.backends.ranges import LabelRanges
from fanin.backends.setup import LayerSetup
from fanin.backends.torch.device import TorchDevice
from fanin.backends.torch.sharded.executors import AutogradOfRank, FusedOfRank, executor_of_rank
from fanin.backends.torch.sharded.ranks import Ranks, whole_array
from fanin.backends.torch.sharded.rewiring import plan_rewiring
from fanin.backends.trainer import Trainer


class ShardedTrainer(Trainer):
    """A `Trainer` of the whole model, for one of its ranks.

    All ranks call the same methods in the same order. `arrays` and `optimizer_arrays` give whole
    arrays on rank 0, where they are gathered one at a time; on others, those of a rank's labels are
    its own part of them. `plan_rewiring` gives what moves of a rank's own connections, by their
    positions in the whole model.
    """

    device: TorchDevice
    _executor: FusedOfRank | AutogradOfRank

    def __init__(
        self,
        setup: LayerSetup,
        arrays: Mapping[str, np.ndarray],
        executor: FusedOfRank | AutogradOfRank,
        ranges: LabelRanges,
        storage: Storage,
        threads: int = 0,
        auxiliary: Auxiliary | None = None,
    ) -> None:
        """executor: of the rank's own labels, as `ranges` cuts them."""
        self.ranks = executor.ranks
        self._ranges = ranges
        if ORDER not in setup.array_shapes():
            executor.own = ranges.own_labels(self.ranks.rank)
        super().__init__(setup, arrays, executor, storage, threads, auxiliary)

    @property
    def communication_seconds(self) -> float | None:  # type: ignore[override]
        """How long training steps have waited for other ranks so far, and for what these sent; None
        on a GPU, where nothing is waited for."""
        return self._executor.communication_seconds if self.device.is_cpu else None

    # Arrays: cut on their way in, gathered on their way out --------------------------------------

    def _checked(self, arrays: Mapping[str, np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
        check_names(self.setup.array_shapes(), arrays)
        drawn = arrays.drawn if isinstance(arrays, InitialArrays) else frozenset()
        for name in self.setup.array_shapes():
            if name not in drawn:
                self.setup.check_array(name, arrays[name])
            yield name, self._taken(arrays, name)

    def _taken(self, arrays: Mapping[str, np.ndarray], name: str) -> np.ndarray:
        return self._ranges.local_array(arrays, name, self.ranks.rank)

    def _set_connections(self, name: str, array: np.ndarray) -> None:
        if name == ORDER:
            self._executor.own = self._ranges.own_labels(self.ranks.rank, array)
            array = self._executor.own.own_order(array)
        super()._set_connections(name, array)

    def _read(self, name: str, array: DeviceArray, dtype: str = "") -> np.ndarray:
        return self._gathered(name, super()._read(name, array, dtype))

    def _array(self, name: str) -> np.ndarray:
        array = super()._array(name)
        if name not in self.setup.index_arrays():
            return array
        if name == ORDER:
            array = self._executor.own.ids_of(array).astype(array.dtype)
        return self._gathered(name, array)

    def _gathered(self, name: str, array: np.ndarray) -> np.ndarray:
        """The whole array on rank 0, on others their own."""
        if not self._ranges.is_cut(name):
            return array
        whole = whole_array(self.ranks, self._ranges, name, array, self.device.torch)
        return array if whole is None else whole

    def array(self, name: str) -> np.ndarray:
        """The whole array on all ranks."""
        whole: np.ndarray = self.ranks.from_first(super().array(name))
        return whole

    def load_weights(self, arrays: Mapping[str, np.ndarray]) -> None:
        check_names(self.setup.array_shapes(), arrays)
        given = LabelRanges(self.setup, self.ranks.size, arrays)
        for rank in range(self.ranks.size):
            if given.local_setup(rank) != self._ranges.local_setup(rank):
                raise ValueError(
                    f"the labels of rank {rank} have other numbers of connections in these arrays "
                    "than in this model: make a new trainer of the arrays"
                )
        super().load_weights(arrays)

    # Training and prediction ---------------------------------------------------------------------

    def _transformed(self, batch: TrainingBatch) -> TrainingBatch:
        own = self._executor.own.positives(
            batch.positive_instances, batch.positive_labels, batch.features.shape[0]
        )
        return super()._transformed(TransformedBatch(batch.features, *own))

    # Rewiring ------------------------------------------------------------------------------------

    def _rewire(self, part: Part, fraction: float, seed: int) -> int:
        return self.apply_rewiring(self._plan(part, fraction, seed, math.inf))

    def _plan(self, part: Part, fraction: float, seed: int, below: float) -> Rewiring:
        with self._executor.in_label_order():
            values, dtype = self._trained[part.weights].values, self._dtype(part.weights)
            weights = Trainer._read(self, part.weights, values, dtype)
            magnitudes = np.array(part.kind.source_magnitudes(weights), np.float32)
        own = plan_rewiring(
            self.ranks, self._ranges, part, magnitudes, fraction, seed, self.device.torch, below
        )
        first = self._ranges.first_source(part, self.ranks.rank)
        return replace(own, positions=own.positions + first)

    def apply_rewiring(self, rewiring: Rewiring) -> int:
        """Move what the rank has of the connections that were chosen; how many all ranks move."""
        (part,) = (each for each in self.setup.check_rewired() if each.name == rewiring.layer)
        assert part.source_array
        positions = rewiring.positions - self._ranges.first_source(part, self.ranks.rank)
        own = (positions >= 0) & (positions < self._executor.setup.count(part.source_array))
        moved = super().apply_rewiring(
            replace(rewiring, positions=positions[own], sources=rewiring.sources[own])
        )
        return sum(number for (number,) in self.ranks.numbers([moved], self.device.torch))


def make_trainer(
    setup: LayerSetup,
    arrays: Mapping[str, np.ndarray],
    execution: Execution,
    storage: Storage,
    optimizer: Optimizer,
    device: str,
    threads: int,
    auxiliary: Auxiliary | None,
) -> ShardedTrainer:
    """See `fanin.backends.registry.make_trainer`. ValueError on all ranks where there are more of
    them than labels, or label groups."""
    ranks = Ranks()
    ranges = LabelRanges(setup, ranks.size, arrays)
    executor = executor_of_rank(
        ranks,
        ranges.local_setup(ranks.rank),
        setup.labels,
        ranges.first_weights(ranks.rank),
        execution,
        optimizer,
        TorchDevice(device, threads),
    )
    if storage.weights == "float8":
        executor.take_float8()
    return ShardedTrainer(setup, arrays, executor, ranges, storage, threads, auxiliary)
