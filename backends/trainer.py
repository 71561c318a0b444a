"""The trainer: a model of one setup, its optimiser's state, and the ways to train and ask it.

There is one, for all backends and both executions. It knows the arrays by their names, loads and
gives them away, counts steps and rewires. A framework adds a device, which holds arrays, and for
each execution an `Executor`, which computes with them.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import SupportsFloat

import numpy as np

from fanin.backends import checks, stored
from fanin.backends.arrays import (
    Rewiring,
    check_arrays,
    check_names,
    checked,
    copied,
    plan_rewiring,
)
from fanin.backends.auxiliary import CLUSTER_LAYER, CLUSTERS, Auxiliary, AuxiliaryStep
from fanin.backends.features import NAMES, FeatureTransform
from fanin.backends.interface import (
    Device,
    DeviceArray,
    Features,
    OnStep,
    Storage,
    TrainingBatch,
    TransformedBatch,
)
from fanin.backends.kinds import Part
from fanin.backends.label_order import LabelOrder
from fanin.backends.optimizer import Optimizer
from fanin.backends.setup import LayerSetup
from fanin.backends.sparse import known_sparse, refuse_sparse
from fanin.backends.step_losses import Losses


@dataclass
class Trained:
    """An array with its moments, as the device holds them; those that the optimiser does not keep
    are None. With row moments m is None, and v has one number for each row
    (`Storage.row_moments`)."""

    values: DeviceArray
    m: DeviceArray
    v: DeviceArray


class Executor(ABC):
    """How a framework computes in one execution.

    It keeps the connections in whatever form it computes with; all other arrays the trainer makes
    and hands over by `start`.
    """

    setup: LayerSetup  # of what it computes
    device: Device
    optimizer: Optimizer
    # Whether the connections are sorted: outside `in_label_order`, in another order than outside.
    is_sorted = False

    def is_transposed(self, name: str) -> bool:
        """Whether it wants a trained array the other way round than `array_shapes` has it."""
        return False

    @abstractmethod
    def set_connections(self, name: str, array: np.ndarray) -> None:
        """Take over one of `LayerSetup.index_arrays`, at the start or later."""

    @abstractmethod
    def connections(self, name: str) -> np.ndarray:
        """One of `LayerSetup.index_arrays` as it is now; may be a view."""

    @abstractmethod
    def connection_bytes(self) -> int:
        """Bytes of all that says where the connections are."""

    @abstractmethod
    def start(self, trained: Mapping[str, Trained]) -> None:
        """Train these from now on, by the names of `array_shapes`; called once, when all arrays of
        the model are there."""

    def in_label_order(self) -> AbstractContextManager[None]:
        """Within it, connections stand in the order of their labels."""
        return nullcontext()

    @abstractmethod
    def step(
        self,
        batch: TrainingBatch,
        learning_rate: float,
        step: int,
        auxiliary: AuxiliaryStep | None = None,
    ) -> SupportsFloat:
        """One step of training, counted from 1; the loss of the labels before it."""

    @abstractmethod
    def top_k(self, features: Features, k: int) -> np.ndarray:
        """See `Trainer.top_k`."""

    def rewire(self, part: Part, fraction: float, seed: int) -> int | None:
        """Rewire an output layer within the device's memory, see `Trainer.rewire`; None where it
        cannot."""
        return None


class Trainer:
    """A model, its optimiser's state and the ways to train and ask it."""

    communication_seconds: float | None = None  # that steps have waited for other processes

    def __init__(
        self,
        setup: LayerSetup,
        arrays: Mapping[str, np.ndarray],
        executor: Executor,
        storage: Storage,
        threads: int = 0,
        auxiliary: Auxiliary | None = None,
    ) -> None:
        """arrays: of `LayerSetup.array_shapes`; each is asked for once, and copied. threads: CPU
        threads that it may take, 0 for all. auxiliary: a loss that helps the training."""
        self.setup = setup
        self.threads = threads
        self.device = executor.device
        self._executor = executor
        self._storage = storage
        self._steps = 0
        self._order: LabelOrder | None = None
        self._auxiliary = auxiliary
        beside = auxiliary.array_shapes(setup) if auxiliary else {}
        features: dict[str, np.ndarray] = {}
        values: dict[str, DeviceArray] = {}
        for name, array in self._checked(arrays):
            if name in setup.index_arrays():
                self._set_connections(name, array)
            elif name in NAMES:
                features[name] = array
            else:
                values[name] = self._hold(name, array)
        for name, shape in beside.items():
            assert auxiliary
            values[name] = self._hold(name, auxiliary.initial_array(name, shape))
        self.transform = FeatureTransform.from_arrays(features)
        # Moments are made last: the temporary memory of the steps above is free again by then.
        self._trained = {name: self._with_moments(name, array) for name, array in values.items()}
        executor.start(self._trained)

    # Arrays -------------------------------------------------------------------------------------

    def _checked(self, arrays: Mapping[str, np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
        """`_taken` of all arrays of a model, one after the other; ValueError where they make up no
        model."""
        return checked(self.setup, arrays)

    def _taken(self, arrays: Mapping[str, np.ndarray], name: str) -> np.ndarray:
        """What this trainer has of an array, or a moment."""
        return arrays[name]

    def _set_connections(self, name: str, array: np.ndarray) -> None:
        self._executor.set_connections(name, array)
        if self.setup.index_arrays()[name].is_order:
            self._order = LabelOrder.of(array)

    def _dtype(self, name: str, moments: bool = False) -> str:
        if name.endswith("bias"):
            return "float32"
        return self._storage.moments if moments else self._storage.weights

    def _with_moments(self, name: str, values: DeviceArray) -> Trained:
        shape = stored.shape_of(values, self._dtype(name))
        if self._storage.row_moments and name in self.setup.lazily_trained:
            return Trained(values, None, self.device.zeros(shape[:1], "float32"))
        dtype = self._dtype(name, moments=True)
        keeps = self._executor.optimizer.keeps
        kept = {moment: self.device.zeros(shape, dtype) for moment in keeps}
        return Trained(values, kept.get("m"), kept.get("v"))

    def _turned(self, name: str, array: np.ndarray) -> np.ndarray:
        return array.T if self._executor.is_transposed(name) else array

    def _read(self, name: str, array: DeviceArray, dtype: str = "") -> np.ndarray:
        return self._turned(name, stored.read(self.device, array, dtype))

    def _hold(self, name: str, array: np.ndarray) -> DeviceArray:
        return stored.hold(self.device, self._turned(name, array), self._dtype(name))

    def _write(self, name: str, array: np.ndarray) -> None:
        target = self._trained[name].values
        stored.write(self.device, target, self._turned(name, array), self._dtype(name))

    def _array(self, name: str) -> np.ndarray:
        if name in self._trained:
            return self._read(name, self._trained[name].values, self._dtype(name))
        if name in self.transform.arrays:
            return self.transform.arrays[name].copy()
        return self._executor.connections(name)

    def array(self, name: str) -> np.ndarray:
        """One array of `LayerSetup.array_shapes` as it is now; it may be a view that the next step
        changes. KeyError for another name."""
        self.setup.check_name(name)
        of_output = any(part.owns(name) for part in self.setup.parts)
        in_tiles = of_output and not name.endswith(".bias")
        if not (self._executor.is_sorted and in_tiles):
            return self._array(name)
        with self._executor.in_label_order():
            return self._array(name).copy()  # it will be sorted again

    def arrays(self) -> Iterator[tuple[str, np.ndarray]]:
        """All arrays with their names in `LayerSetup.array_shapes`, one after the other, so that
        they need not be in memory beside the model. Each may be a view and holds until the next
        one is asked for; the model must not be used before the last one."""
        with self._executor.in_label_order():
            for name in self.setup.array_shapes():
                yield name, self._array(name)

    def weights(self) -> dict[str, np.ndarray]:
        """A copy of all arrays under the names of `LayerSetup.array_shapes`."""
        return copied(self.arrays())

    def load_weights(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Take over all arrays; ValueError names what is missing or does not fit, and nothing has
        changed then."""
        check_arrays(self.setup, arrays)
        with self._executor.in_label_order():
            for name in self.setup.array_shapes():
                if name in self._trained:
                    self._write(name, self._taken(arrays, name))
                elif name in self.setup.index_arrays():
                    self._set_connections(name, self._taken(arrays, name))
        self.transform = FeatureTransform.from_arrays(arrays)

    def _moments(self) -> Iterator[tuple[str, str, DeviceArray]]:
        """Name of the array, name of its moment, the moment."""
        for name, trained in self._trained.items():
            for moment, array in (("m", trained.m), ("v", trained.v)):
                if array is not None:
                    yield name, f"{name}.{moment}", array

    def optimizer_arrays(self) -> Iterator[tuple[str, np.ndarray]]:
        """All that training keeps beside the model: the moments `<name>.m` and `<name>.v` of each
        trained array, as far as there are any (with row moments `<name>.v` alone), the arrays of an
        auxiliary loss, and `steps`, an int64 scalar; as `arrays`, one after the other."""
        with self._executor.in_label_order():
            for name, key, moment in self._moments():
                yield key, self._read(name, moment)
        if self._auxiliary:
            for name in CLUSTER_LAYER:
                yield name, self._array(name)
            yield CLUSTERS, self._auxiliary.clusters
        yield "steps", np.array(self._steps, np.int64)

    def load_optimizer_arrays(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Take over what `optimizer_arrays` gave, in this or the other backend. Each array is
        asked for once, when it is its turn. ValueError where their names are others."""
        known = [*(key for _, key, _ in self._moments()), "steps"]
        if self._auxiliary:
            known += [*CLUSTER_LAYER, CLUSTERS]
        check_names(known, arrays)
        if self._auxiliary:
            self._auxiliary.take(arrays[CLUSTERS])
            for name in CLUSTER_LAYER:
                self._write(name, arrays[name])
        with self._executor.in_label_order():
            for name, key, moment in self._moments():
                self.device.write(moment, self._turned(name, self._taken(arrays, key)))
        self._steps = int(arrays["steps"])

    def state_bytes(self) -> tuple[int, int]:
        """Bytes of the parameters (indices included) and of the optimiser state, counted. What an
        auxiliary loss keeps is of the latter."""
        size = self.device.bytes
        sizes = {name: size(trained.values) for name, trained in self._trained.items()}
        moments = sum(size(moment) for _, _, moment in self._moments())
        if self._auxiliary:
            moments += sum(map(sizes.pop, CLUSTER_LAYER)) + self._auxiliary.clusters.nbytes
        transform = sum(array.nbytes for array in self.transform.arrays.values())
        return transform + sum(sizes.values()) + self._executor.connection_bytes(), moments

    # Training and prediction --------------------------------------------------------------------

    def _as_read(self, features: Features) -> Features:
        """Features as the model's first layer reads them; ValueError for dense ones where it reads
        sparse ones, and the other way round."""
        if self.setup.sparse_features:
            return self.transform.apply(known_sparse(features, self.setup.inputs))
        refuse_sparse(features)
        return self.transform.apply(features, self.threads)

    def _transformed(self, batch: TrainingBatch) -> TrainingBatch:
        features, label_ids = self._as_read(batch.features), batch.positive_labels
        checks.positives(batch.positive_instances, label_ids, features.shape[0], self.setup.labels)
        if self._order:
            label_ids = self._order.positions_of(label_ids)
        elif features is batch.features:
            return batch
        return TransformedBatch(features, batch.positive_instances, label_ids)

    def train(
        self,
        batches: Iterable[TrainingBatch],
        learning_rate: float | Callable[[int], float],
        on_step: OnStep | None = None,
    ) -> np.ndarray:
        """One step per batch, in order; the losses, float64 [steps]. learning_rate: of all steps,
        or a function that gives that of each step of this trainer, counted from 1. Raises
        FloatingPointError naming the step whose loss is not finite."""
        losses = Losses(self.device, self._steps + 1)
        for batch in batches:
            transformed, step = self._transformed(batch), self._steps + 1
            rate = learning_rate(step) if callable(learning_rate) else learning_rate
            auxiliary = None
            if self._auxiliary:
                auxiliary = self._auxiliary.step(batch, step, self._executor.optimizer)
            loss = self._executor.step(transformed, rate, step, auxiliary)
            self._steps += 1  # a step that was refused does not count
            losses.add(loss)
            if on_step:
                on_step(loss)
        return losses.all()

    def top_k(self, features: Features, k: int) -> np.ndarray:
        """Ids of the k highest scored labels, int64 [instances, k], best first; no dropout.
        features: float32 [instances, inputs], CSR where the model reads sparse features. Ties go to
        the lower id. ValueError where k is not in 1..labels, and for other features."""
        self.setup.check_k(k)
        return self._executor.top_k(self._as_read(features), k)

    # Rewiring -----------------------------------------------------------------------------------

    def rewire(self, fraction: float, seed: int) -> int:
        """Choose connections as `fanin.backends.arrays.plan_rewiring` does and give them new
        sources; how many they are. Weights keep their value; their moments become 0. Where labels
        share sources, it chooses by the mean |weight| of each source, and counts sources. Of
        several output layers each moves that fraction of its own connections.
        ValueError for a layer whose connections cannot be rewired, here and in `apply_rewiring`."""
        return sum(self._rewire(part, fraction, own) for part, own in self._rewired(seed))

    def _rewired(self, seed: int) -> list[tuple[Part, int]]:
        """The output layers that are rewired, and for each a seed of its own."""
        parts = self.setup.check_rewired()
        return [(part, (seed + number) % 2**64) for number, part in enumerate(parts)]

    def _rewire(self, part: Part, fraction: float, seed: int) -> int:
        if not part.kind.group_size and self._storage.weights != "float8":
            with self._executor.in_label_order():
                moved = self._executor.rewire(part, fraction, seed)
            if moved is not None:
                return moved
        return self.apply_rewiring(self._plan(part, fraction, seed, math.inf))

    def plan_rewiring(
        self, fraction: float, seed: int, below: float = math.inf
    ) -> tuple[Rewiring, ...]:
        """What `rewire` would move, of one output layer after the other; of that, what has a
        |weight| below a number."""
        return tuple(self._plan(part, fraction, own, below) for part, own in self._rewired(seed))

    def _plan(self, part: Part, fraction: float, seed: int, below: float) -> Rewiring:
        compared, inputs = self.magnitudes(part), self.setup.output_inputs
        return replace(plan_rewiring(compared, fraction, inputs, seed, below), layer=part.name)

    def magnitudes(self, part: Part) -> np.ndarray:
        """What rewiring compares: a |weight|, with or without a sign, for each source."""
        return part.kind.source_magnitudes(self.array(part.weights))

    def apply_rewiring(self, rewiring: Rewiring) -> int:
        """Move the connections that were chosen, here or elsewhere; how many they are."""
        (part,) = (p for p in self._executor.setup.check_rewired() if p.name == rewiring.layer)
        source_array, weights = part.source_array, self._trained[part.weights]
        moved = part.kind.connections_of(rewiring.positions, part.labels)
        assert source_array
        with self._executor.in_label_order():
            before = self._executor.connections(source_array)
            sources = stored.changed(before, rewiring.positions, rewiring.sources)
            self._executor.set_connections(source_array, sources)
            for moment in (weights.m, weights.v):
                if moment is not None:
                    self.device.write(moment, stored.changed(self.device.read(moment), moved, 0))
            if rewiring.weight is not None:
                own, dtype = weights.values, self._dtype(part.weights)
                values = stored.changed(
                    stored.read(self.device, own, dtype), moved, rewiring.weight
                )
                stored.write(self.device, own, values, dtype)
        return len(rewiring.positions)
