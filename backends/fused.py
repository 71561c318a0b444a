"""The fused execution: every layer trained by kernels that hold neither scores nor gradients of
weights (`fanin.h`), the same for both frameworks.

What differs between frameworks is an `Engine`: how it holds arrays and calls the kernels' ops.
Inside, dense weights are [units, inputs], so that a unit's row is contiguous, and the connections
of a fixed fan-in layer may be sorted (`fanin.h` tells why); outside, all arrays are as `LayerSetup`
says.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, SupportsFloat

import numpy as np

from fanin.backends.arrays import Rewiring, check_arrays, checked, copied
from fanin.backends.interface import Device, OnStep, Storage, TrainingBatch
from fanin.backends.setup import Dense, LayerSetup
from fanin.backends.trainer import Losses
from fanin.kernels import sorting_pays

# An array as the engine's framework holds it.
Held = Any


@dataclass
class Trained:
    """An array with Adam's moments."""

    values: Held
    m: Held
    v: Held


@dataclass
class Layer:
    """weights and bias; connections: `indices`, and with them `starts` or `tile_labels`, or nothing
    for a dense layer; slots: with tile_labels. Shapes as in `fanin.kernels.step` and
    `sort_connections`."""

    weights: Trained
    bias: Trained
    connections: dict[str, Held] = field(default_factory=dict)
    slots: Held = None


class Engine(Protocol):
    """A framework's part of the fused execution."""

    sorts_connections: bool  # on a CPU, for its caches

    @property
    def device(self) -> Device: ...

    def features(self, array: np.ndarray) -> Held:
        """Features of a batch as the methods below take them, on the device."""

    def hold(self, array: np.ndarray, dtype: str) -> Held:
        """A copy of an array, as `dtype`, in the framework's memory."""

    def zeros(self, shape: tuple[int, ...], dtype: str) -> Held: ...

    def read(self, held: Held) -> np.ndarray:
        """The array in NumPy, bfloat16 as float32; may be a view."""

    def write(self, held: Held, array: np.ndarray) -> None:
        """Overwrite a held array."""

    def bytes(self, held: Held) -> int:
        """Its size in memory."""

    def forward(self, features: Held, layer: Layer) -> Held:
        """Outputs [batch, units] of a dense layer with ReLU."""

    def update(
        self, grad: Held, outputs: Held, features: Held, layer: Layer, rate: float, step: int
    ) -> None:
        """Backward pass of `forward`, and Adam."""

    def step(
        self,
        features: Held,
        layer: Layer,
        batch: TrainingBatch,
        loss: str,
        rate: float,
        step: int,
        want_grad: bool,
    ) -> tuple[SupportsFloat, Held | None]:
        """The fused step of the output layer; loss, and gradient of the features where wanted."""

    def top_k(self, features: Held, layer: Layer, k: int) -> np.ndarray:
        """Ids of the best labels, int64 [batch, k]."""

    def sort(self, layer: Layer, sources: int, undo: bool) -> None:
        """Sort the layer's connections, or undo it."""

    def rewire(self, layer: Layer, sources: int, fraction: float, seed: int) -> int:
        """Rewire the connections of smallest |weight|; how many moved."""


class FusedTrainer:
    """A model of one `LayerSetup`; see `fanin.backends.interface.Trainer`."""

    def __init__(
        self,
        setup: LayerSetup,
        arrays: Mapping[str, np.ndarray],
        engine: Engine,
        storage: Storage,
    ) -> None:
        self.setup = setup
        self.device = engine.device
        self._engine = engine
        self._storage = storage
        self._steps = 0
        self._forms = setup.output.kernel_forms(setup.output_inputs)
        self._is_sorted = (
            engine.sorts_connections
            and setup.output.is_sortable
            and sorting_pays(setup.output_inputs)
        )
        values: dict[str, Held] = {}
        connections: dict[str, Held] = {}
        for name, array in checked(setup, arrays):
            if name.startswith("output.") and not name.endswith(("weights", "bias")):
                self._connect(connections, name, array)
            else:
                values[name] = engine.hold(self._inside(name, array), self._dtype(name))
        # Moments last: what was needed on the way has been given back by then.
        layers = {}
        for layer in ("intermediate", "output"):
            if f"{layer}.weights" in values:
                weights, bias = (
                    self._with_moments(values[f"{layer}.{part}"], f"{layer}.{part}")
                    for part in ("weights", "bias")
                )
                layers[layer] = Layer(weights, bias)
        self._hidden = layers.get("intermediate")
        self._output = layers["output"]
        self._output.connections = connections
        if self._is_sorted:
            shape = setup.array_shapes()["output.weights"]
            self._output.slots = engine.zeros(shape, "uint8" if shape[1] <= 256 else "uint32")
            connections["tile_labels"] = engine.zeros(shape, "uint16")
            engine.sort(self._output, setup.output_inputs, undo=False)

    # Arrays inside and outside -----------------------------------------------------------------

    def _dtype(self, name: str, moments: bool = False) -> str:
        if name.endswith("bias"):
            return "float32"
        return self._storage.moments if moments else self._storage.weights

    def _with_moments(self, values: Held, name: str) -> Trained:
        shape = self._inside_shape(name)
        dtype = self._dtype(name, moments=True)
        return Trained(values, self._engine.zeros(shape, dtype), self._engine.zeros(shape, dtype))

    def _is_transposed(self, name: str) -> bool:
        dense = name == "output.weights" and isinstance(self.setup.output, Dense)
        return dense or name == "intermediate.weights"

    def _inside_shape(self, name: str) -> tuple[int, ...]:
        shape = self.setup.array_shapes()[name]
        return shape[::-1] if self._is_transposed(name) else shape

    def _inside(self, name: str, array: np.ndarray) -> np.ndarray:
        return array.T if self._is_transposed(name) else array

    def _connect(self, connections: dict[str, Held], name: str, array: np.ndarray) -> None:
        form = self._forms[name]
        array = self.setup.output.to_kernel(name, array, self.setup.labels)
        connections[form.argument] = self._engine.hold(array, form.dtype)

    @contextmanager
    def _in_label_order(self) -> Iterator[None]:
        """Within it, connections stand in the order of their labels."""
        if self._is_sorted:
            self._engine.sort(self._output, self.setup.output_inputs, undo=True)
        try:
            yield
        finally:
            if self._is_sorted:
                self._engine.sort(self._output, self.setup.output_inputs, undo=False)

    def _read(self, name: str, held: Held) -> np.ndarray:
        array = self._engine.read(held)
        return array.T if self._is_transposed(name) else array

    def _trained(self) -> dict[str, Trained]:
        layers = {"intermediate": self._hidden, "output": self._output}
        return {
            f"{layer_name}.{part}": getattr(layer, part)
            for layer_name, layer in layers.items()
            if layer
            for part in ("weights", "bias")
        }

    def array(self, name: str) -> np.ndarray:
        self.setup.check_name(name)
        if not self._is_sorted or name not in ("output.weights", "output.indices"):
            return self._array(name)
        with self._in_label_order():
            return self._array(name).copy()  # it will be sorted again

    def _array(self, name: str) -> np.ndarray:
        trained, connections = self._trained(), self._output.connections
        if name in trained:
            return self._read(name, trained[name].values)
        array = self._engine.read(connections[self._forms[name].argument])
        return self.setup.output.from_kernel(name, array, self.setup.labels)

    def arrays(self) -> Iterator[tuple[str, np.ndarray]]:
        with self._in_label_order():
            for name in self.setup.array_shapes():
                yield name, self._array(name)

    def weights(self) -> dict[str, np.ndarray]:
        return copied(self.arrays())

    def load_weights(self, arrays: Mapping[str, np.ndarray]) -> None:
        check_arrays(self.setup, arrays)
        trained, connections = self._trained(), self._output.connections
        with self._in_label_order():
            for name, array in arrays.items():
                if name in trained:
                    self._engine.write(trained[name].values, self._inside(name, array))
                else:
                    array = self.setup.output.to_kernel(name, array, self.setup.labels)
                    self._engine.write(connections[self._forms[name].argument], array)

    def _moments(self) -> Iterator[tuple[str, str, Held]]:
        for name, trained in self._trained().items():
            yield name, f"{name}.m", trained.m
            yield name, f"{name}.v", trained.v

    def optimizer_arrays(self) -> Iterator[tuple[str, np.ndarray]]:
        with self._in_label_order():
            for name, key, held in self._moments():
                yield key, self._read(name, held)
        yield "steps", np.array(self._steps, np.int64)

    def load_optimizer_arrays(self, arrays: Mapping[str, np.ndarray]) -> None:
        with self._in_label_order():
            for name, key, held in self._moments():
                self._engine.write(held, self._inside(name, arrays[key]))
        self._steps = int(arrays["steps"])

    def state_bytes(self) -> tuple[int, int]:
        held = [t.values for t in self._trained().values()]
        held += self._output.connections.values()
        if self._output.slots is not None:
            held.append(self._output.slots)
        size = self._engine.bytes
        return sum(map(size, held)), sum(size(held) for _, _, held in self._moments())

    # Training and prediction -------------------------------------------------------------------

    def train(
        self, batches: Iterable[TrainingBatch], learning_rate: float, on_step: OnStep | None = None
    ) -> np.ndarray:
        engine, losses = self._engine, Losses(self.device, self._steps + 1)
        for batch in batches:
            adam = (learning_rate, self._steps + 1)
            features = hidden = engine.features(batch.features)
            if self._hidden:
                hidden = engine.forward(features, self._hidden)
            want_grad = self._hidden is not None
            loss, grad = engine.step(hidden, self._output, batch, self.setup.loss, *adam, want_grad)
            if self._hidden:
                engine.update(grad, hidden, features, self._hidden, *adam)
            self._steps += 1  # a step that was refused does not count
            losses.add(loss)
            if on_step:
                on_step(loss)
        return losses.all()

    def top_k(self, features: np.ndarray, k: int) -> np.ndarray:
        self.setup.check_k(k)
        hidden = self._engine.features(features)
        if self._hidden:
            hidden = self._engine.forward(hidden, self._hidden)
        return self._engine.top_k(hidden, self._output, k)

    def apply_rewiring(self, rewiring: Rewiring) -> None:
        self.setup.check_rewired()
        weights, sources = self._output.weights, rewiring.sources
        changes = ((self._output.connections["indices"], sources), (weights.m, 0), (weights.v, 0))
        with self._in_label_order():
            for held, new in changes:
                array = self._engine.read(held)
                if not array.flags.writeable:
                    array = array.copy()
                array.reshape(-1)[rewiring.positions] = new
                self._engine.write(held, array)

    def rewire(self, fraction: float, seed: int) -> int:
        self.setup.check_rewired()
        with self._in_label_order():
            return self._engine.rewire(self._output, self.setup.output_inputs, fraction, seed)
