"""The fused execution: every layer trained by kernels that hold neither scores nor gradients of
weights (`fanin.h`), but for what a framework adds.

Inside, dense weights are [units, inputs], so that a unit's row is contiguous, and the connections
of a fixed fan-in layer may be sorted (`fanin.h` tells why); outside, all arrays are as `LayerSetup`
says. Weights that read sparse features are [words, units] inside too: there, a word's row is what
has to be contiguous.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, SupportsFloat

import numpy as np
import scipy.sparse as sp

from fanin.backends.auxiliary import CLUSTER_LAYER, WEIGHTS, AuxiliaryStep
from fanin.backends.interface import Device, DeviceArray, Features, TrainingBatch
from fanin.backends.kinds import Part, slot_dtype
from fanin.backends.optimizer import Optimizer
from fanin.backends.setup import LayerSetup
from fanin.backends.sparse import ByInstance, by_instance, tensors
from fanin.backends.trainer import Executor, Trained
from fanin.kernels import Words, by_words, sorting_pays

OUTPUT_SEED, INTERMEDIATE_SEED, AUXILIARY_SEED, TAIL_SEED = range(4)


@dataclass(frozen=True)
class Layer:
    """Weights and bias of one layer, in the kernels' form (`fanin.kernels.step`)."""

    weights: Trained
    bias: Trained


class FusedExecutor(Executor):
    """All that needs no framework.

    connection_arrays: as the kernels take them: `indices`, and with them `starts` or `tile_labels`,
    or nothing for a dense layer. slots: of sorted connections.
    """

    output: Layer
    intermediate: Layer | None = None
    auxiliary: Layer

    def __init__(
        self,
        setup: LayerSetup,
        device: Device,
        optimizer: Optimizer,
        mean_labels: int = 0,
        first_weights: Mapping[str, int] | None = None,
    ) -> None:
        """Where the setup is a part of a larger model (`LabelRanges`): mean_labels: labels of that
        model, which the loss is a mean over; first_weights: of each output layer, by its name,
        where the weights begin among those of that model, for stochastic rounding."""
        self.setup = setup
        self.optimizer = optimizer
        self.device = device
        self.mean_labels = mean_labels
        # Of stochastic rounding: each layer has random numbers of its own.
        self.output_seed = OUTPUT_SEED
        self.first_weight = (first_weights or {}).get("output", 0)
        self.wants_grad = setup.intermediate is not None
        self.connection_arrays: dict[str, DeviceArray] = {}
        self.slots: DeviceArray | None = None
        # On a CPU, for its caches.
        self.is_sorted = (
            device.is_cpu and setup.output.is_sortable and sorting_pays(setup.output_inputs)
        )

    def take_float8(self) -> None:
        """The output layer's weights will be rows in float8, which no sorted tile can hold."""
        self.is_sorted = False

    def is_transposed(self, name: str) -> bool:
        if name == "intermediate.weights":
            return not self.setup.sparse_features
        if name == WEIGHTS:
            return True
        return name == "output.weights" and self.setup.output.operations == "dense"

    def set_connections(self, name: str, array: np.ndarray) -> None:
        form = self.setup.index_arrays()[name]
        array = self.setup.output.to_kernel(name, array, self.setup.labels)
        if form.argument in self.connection_arrays:
            self.device.write(self.connection_arrays[form.argument], array)
        else:
            self.connection_arrays[form.argument] = self.device.hold(array, form.kernel_dtype)

    def set_label_ids(self, label_ids: np.ndarray) -> None:
        """Let `best` call the label at each position so, int32 [labels]; see fanin.h."""
        if "label_ids" in self.connection_arrays:
            self.device.write(self.connection_arrays["label_ids"], label_ids)
        else:
            self.connection_arrays["label_ids"] = self.device.hold(label_ids, "int32")

    def connections(self, name: str) -> np.ndarray:
        argument = self.setup.index_arrays()[name].argument
        array = self.device.read(self.connection_arrays[argument])
        return self.setup.output.from_kernel(name, array, self.setup.labels)

    def connection_bytes(self) -> int:
        arrays = [*self.connection_arrays.values()]
        if self.slots is not None:
            arrays.append(self.slots)
        return sum(map(self.device.bytes, arrays))

    def start(self, trained: Mapping[str, Trained]) -> None:
        self.start_below(trained)
        self.output = Layer(trained["output.weights"], trained["output.bias"])
        if self.is_sorted:
            shape = self.setup.array_shapes()["output.weights"]
            self.slots = self.device.zeros(shape, slot_dtype(shape[1]))
            self.connection_arrays["tile_labels"] = self.device.zeros(shape, "uint16")
            self.sort(undo=False)

    def start_below(self, trained: Mapping[str, Trained]) -> None:
        """`start` for all but the output layer."""
        if self.setup.intermediate:
            weights, bias = trained["intermediate.weights"], trained["intermediate.bias"]
            self.intermediate = Layer(weights, bias)
        if WEIGHTS in trained:
            self.auxiliary = Layer(*(trained[name] for name in CLUSTER_LAYER))

    @contextmanager
    def in_label_order(self) -> Iterator[None]:
        if not self.is_sorted:
            yield
            return
        self.sort(undo=True)
        try:
            yield
        finally:
            self.sort(undo=False)

    def step(
        self,
        batch: TrainingBatch,
        learning_rate: float,
        step: int,
        auxiliary: AuxiliaryStep | None = None,
    ) -> SupportsFloat:
        features = tensors(batch.features, self.device)
        outputs = self._output_features(features)
        loss, grad = self.output_step(outputs, batch, learning_rate, step)
        if auxiliary:
            rate = learning_rate * auxiliary.rate
            grad = grad + auxiliary.weight * self.auxiliary_step(outputs, auxiliary, rate, step)
        if isinstance(batch.features, sp.csr_array):
            assert self.intermediate is not None, "LayerSetup sees to it"
            words = Words(*map(self.device.tensor, by_words(*by_instance(batch.features))))
            self.sparse_update(grad, outputs, words, self.intermediate, learning_rate, step)
        elif self.intermediate:
            self.update(grad, outputs, features, self.intermediate, learning_rate, step)
        return self.device.number(loss)

    def top_k(self, features: Features, k: int) -> np.ndarray:
        return self.best(self._output_features(tensors(features, self.device)), k)[0]

    def _output_features(self, features: Any) -> Any:
        """What the output layer reads: the features, or the intermediate layer's outputs."""
        if not self.intermediate:
            return features
        forward = self.sparse_forward if self.setup.sparse_features else self.forward
        return forward(features, self.intermediate)

    # What a framework adds. Features, outputs and gradients are its own tensors on the device.

    @abstractmethod
    def forward(self, features: Any, layer: Layer) -> Any:
        """Outputs [batch, units] of a dense layer with ReLU."""

    @abstractmethod
    def update(
        self, grad: Any, outputs: Any, features: Any, layer: Layer, learning_rate: float, step: int
    ) -> None:
        """Backward pass of `forward`, and the optimiser."""

    @abstractmethod
    def sparse_forward(self, features: ByInstance, layer: Layer) -> Any:
        """Outputs [batch, units] of a layer with ReLU that reads sparse features."""

    @abstractmethod
    def sparse_update(
        self,
        grad: Any,
        outputs: Any,
        features: Words,
        layer: Layer,
        learning_rate: float,
        step: int,
    ) -> None:
        """Backward pass of `sparse_forward`, and the optimiser on the rows of words that occur."""

    @abstractmethod
    def output_step(
        self, features: Any, batch: TrainingBatch, learning_rate: float, step: int
    ) -> tuple[Any, Any]:
        """The fused step of the output layer: the loss, and the gradient of its features where
        `wants_grad`."""

    @abstractmethod
    def auxiliary_step(
        self, features: Any, auxiliary: AuxiliaryStep, learning_rate: float, step: int
    ) -> Any:
        """The same of the dense layer over clusters, whose loss is always cross entropy: the
        gradient of its features."""

    @abstractmethod
    def best(self, features: Any, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Ids of the output layer's best labels, int64 [batch, k], and their scores."""

    @abstractmethod
    def rewire(self, part: Part, fraction: float, seed: int) -> int: ...

    @abstractmethod
    def sort(self, undo: bool) -> None:
        """Sort the output layer's connections, or undo it."""
