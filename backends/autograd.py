"""The autograd execution: scores, loss, gradients and optimiser, one after the other, by the
framework's own operations; but for what a framework adds.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from fanin.backends.interface import Device, DeviceArray, Features
from fanin.backends.kinds import ORDER, ConnectionKind, Part
from fanin.backends.label_order import LabelOrder
from fanin.backends.optimizer import Optimizer
from fanin.backends.setup import LayerSetup
from fanin.backends.trainer import Executor, Trained


class Output(ABC):
    """An output layer of one kind: its connections, and how a framework computes its scores.

    arrays: its index arrays by their names, or in another form where the framework wants one.
    """

    def __init__(self, setup: LayerSetup, device: Any) -> None:
        self.setup = setup
        self.device = device
        self.arrays: dict[str, DeviceArray] = {}

    def set_connections(self, name: str, array: np.ndarray) -> None:
        """See `Executor.set_connections`."""
        if name in self.arrays:
            self.device.write(self.arrays[name], array)
        else:
            self.arrays[name] = self.device.hold(array, self.setup.index_arrays()[name].dtype)

    def connections(self, name: str) -> np.ndarray:
        """See `Executor.connections`."""
        array: np.ndarray = self.device.read(self.arrays[name])
        return array.astype(self.setup.index_arrays()[name].dtype, copy=False)

    @abstractmethod
    def scores(self, features: Any, weights: Any, bias: Any) -> Any:
        """[batch, labels], from features [batch, inputs]; in the order of the positions, where
        labels have one."""

    @abstractmethod
    def best(self, features: Any, weights: Any, bias: Any, k: Any) -> Any:
        """Ids of the best labels, [batch, k]."""

    def sources(self) -> DeviceArray | None:
        """The sources of all connections as `fanin.kernels.rewire` reads them; None where they are
        held in another form."""
        return None


class AutogradExecutor(Executor):
    """All that needs no framework."""

    outputs: ClassVar[dict[type[ConnectionKind], type[Any]]]
    """The framework's `Output` for each kind of connection."""
    most_scores: ClassVar[int]
    """Scores that a block of an evaluation makes at most: they are [instances, labels]."""

    trained: Mapping[str, Trained]

    def __init__(self, setup: LayerSetup, device: Device, optimizer: Optimizer) -> None:
        self.setup = setup
        self.optimizer = optimizer
        self.device = device
        self.parts: list[tuple[Part, Output]] = [
            (part, self.outputs[type(part.kind)](setup.layer_setup(part), device))
            for part in setup.parts
        ]
        # Of several output layers: the position of each label.
        self.positions: DeviceArray = None

    @property
    def output(self) -> Output:
        """The only output layer."""
        ((_, output),) = self.parts
        return output

    def output_of(self, part: Part) -> Output:
        """One of the output layers."""
        return next(output for own, output in self.parts if own.name == part.name)

    def set_connections(self, name: str, array: np.ndarray) -> None:
        if name == ORDER and len(self.parts) > 1:
            positions = LabelOrder.of(array).positions
            if self.positions is None:
                self.positions = self.device.hold(positions, "int32")
            else:
                self.device.write(self.positions, positions)
            return
        part, output = self._owner(name)
        output.set_connections(part.inside(name), array)

    def connections(self, name: str) -> np.ndarray:
        if name == ORDER and len(self.parts) > 1:
            return LabelOrder.of(self.device.read(self.positions)).positions.astype(np.int32)
        part, output = self._owner(name)
        return output.connections(part.inside(name))

    def _owner(self, name: str) -> tuple[Part, Output]:
        return next(each for each in self.parts if each[0].owns(name))

    def connection_bytes(self) -> int:
        arrays = [array for _, output in self.parts for array in output.arrays.values()]
        if self.positions is not None:
            arrays.append(self.positions)
        return sum(map(self.device.bytes, arrays))

    def start(self, trained: Mapping[str, Trained]) -> None:
        self.trained = trained

    def values(self, layer: str) -> tuple[DeviceArray, DeviceArray]:
        """Weights and bias of the "intermediate" or "auxiliary" layer, or of an output layer."""
        return self.trained[f"{layer}.weights"].values, self.trained[f"{layer}.bias"].values

    def output_features(self, features: Any) -> Any:
        """What the output layer reads: the features, or the intermediate layer's outputs."""
        if not self.setup.intermediate:
            return features
        forward = self.sparse_forward if self.setup.sparse_features else self.forward
        return forward(features, *self.values("intermediate"))

    def scores(self, outputs: Any) -> Any:
        """[batch, labels], from what the output layer reads; in the order of the positions, where
        labels have one."""
        scores = [output.scores(outputs, *self.values(part.name)) for part, output in self.parts]
        return scores[0] if len(scores) == 1 else self.joined(scores)

    def top_k(self, features: Features, k: int) -> np.ndarray:
        size, instances = max(1, self.most_scores // self.setup.labels), features.shape[0]
        ids = np.empty((instances, k), np.int64)
        for start in range(0, instances, size):
            block = slice(start, start + size)
            ids[block] = self.best(features[block], k)
        return ids

    @abstractmethod
    def forward(self, features: Any, weights: Any, bias: Any) -> Any:
        """Outputs [batch, units] of a dense layer with ReLU."""

    @abstractmethod
    def sparse_forward(self, features: Any, weights: Any, bias: Any) -> Any:
        """Outputs [batch, units] of `intermediate.weights` [words, units] with ReLU; features: the
        framework's form of a `ByInstance`."""

    @abstractmethod
    def joined(self, scores: list[Any]) -> Any:
        """The scores of several output layers, side by side."""

    @abstractmethod
    def best(self, features: Features, k: int) -> np.ndarray:
        """Ids of the best labels of a block of instances, [instances, k]."""
