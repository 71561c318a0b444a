"""The fused execution in PyTorch: the executor that trains a model by the ops that train.

It has nothing to differentiate or to compile, so it calls their functions (`run_...`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from fanin.backends.auxiliary import AuxiliaryStep
from fanin.backends.fused import FusedExecutor, Layer
from fanin.backends.interface import TrainingBatch
from fanin.backends.optimizer import Optimizer
from fanin.backends.setup import LayerSetup
from fanin.backends.sparse import ByInstance
from fanin.backends.torch.device import TorchDevice
from fanin.backends.torch.ops import CONNECTIONS, call, described, rewire, top_k, trained
from fanin.backends.torch.training_ops import (
    run_dense_relu,
    run_dense_relu_update,
    run_sparse_relu,
    run_sparse_relu_update,
    run_step,
)
from fanin.kernels import Words, params

# Of stochastic rounding: each layer has random numbers of its own.
_OUTPUT_SEED, _INTERMEDIATE_SEED, _AUXILIARY_SEED = 0, 1, 2


class TorchFused(FusedExecutor):
    """See `fanin.backends.fused.FusedExecutor`."""

    device: TorchDevice

    def forward(self, features: Tensor, layer: Layer) -> Tensor:
        return run_dense_relu(features, layer.weights.values, layer.bias.values)

    def update(
        self,
        grad: Tensor,
        outputs: Tensor,
        features: Tensor,
        layer: Layer,
        learning_rate: float,
        step: int,
    ) -> None:
        numbers = (self.optimizer.numbers, learning_rate, step, _INTERMEDIATE_SEED)
        run_dense_relu_update(grad, outputs, features, *_state(layer), *numbers, False)

    def sparse_forward(self, features: ByInstance, layer: Layer) -> Tensor:
        return run_sparse_relu(*features, layer.weights.values, layer.bias.values)

    def sparse_update(
        self,
        grad: Tensor,
        outputs: Tensor,
        features: Words,
        layer: Layer,
        learning_rate: float,
        step: int,
    ) -> None:
        numbers = (self.optimizer.numbers, learning_rate, step, _INTERMEDIATE_SEED)
        arguments: tuple[Any, ...] = (*features, *_state(layer), *numbers)
        run_sparse_relu_update(grad, outputs, *arguments)

    def output_step(
        self, features: Tensor, batch: TrainingBatch, learning_rate: float, step: int
    ) -> tuple[Tensor, Tensor]:
        return run_step(
            features,
            *self._connections(),
            *_state(self.output),
            self.device.tensor(batch.positive_instances),
            self.device.tensor(batch.positive_labels),
            self.setup.loss,
            self.optimizer.numbers,
            learning_rate,
            step,
            _OUTPUT_SEED,
            self.intermediate is not None,
            self.setup.output.group_size,
        )

    def auxiliary_step(
        self, features: Tensor, auxiliary: AuxiliaryStep, learning_rate: float, step: int
    ) -> Tensor:
        _, grad = run_step(
            features,
            *(None, None, None),
            *_state(self.auxiliary),
            self.device.tensor(auxiliary.positive_instances),
            self.device.tensor(auxiliary.positive_clusters),
            "bce",
            self.optimizer.numbers,
            learning_rate,
            step,
            _AUXILIARY_SEED,
            True,
        )
        return grad

    def best(self, features: Tensor, k: int) -> np.ndarray:
        values = (self.output.weights.values, self.output.bias.values)
        label_ids = self.connection_arrays.get("label_ids")
        group_size = self.setup.output.group_size
        _, ids = top_k(features, *self._connections(), *values, k, label_ids, group_size)
        in_numpy: np.ndarray = ids.cpu().numpy()
        return in_numpy

    def sort(self, undo: bool) -> None:
        weights, slots = self.output.weights, self.slots
        assert slots is not None
        arguments = params.SortParams(
            indices=described(self.connection_arrays["indices"]),
            tile_labels=described(self.connection_arrays["tile_labels"]),
            slots=described(slots),
            weights=trained(weights.values, weights.m, weights.v),
            inputs=self.setup.output_inputs,
            undo=undo,
            threads=torch.get_num_threads(),
        )
        call(arguments, slots)

    def rewire(self, fraction: float, seed: int) -> int:
        weights, indices = self.output.weights, self.connection_arrays["indices"]
        state = (weights.values, weights.m, weights.v)
        return rewire(indices, *state, self.setup.output_inputs, fraction, seed)

    def _connections(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        indices, starts, tile_labels = map(self.connection_arrays.get, CONNECTIONS)
        return indices, starts, tile_labels


_Moment = Tensor | None


def _state(layer: Layer) -> tuple[Tensor, _Moment, _Moment, Tensor, _Moment, _Moment]:
    weights, bias = layer.weights, layer.bias
    return weights.values, weights.m, weights.v, bias.values, bias.m, bias.v


def make_executor(
    setup: LayerSetup, optimizer: Optimizer, *, device: str, threads: int
) -> TorchFused:
    """See `fanin.backends.registry.make_trainer`."""
    return TorchFused(setup, TorchDevice(device, threads), optimizer)
