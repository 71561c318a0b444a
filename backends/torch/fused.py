"""The fused execution in PyTorch: the executor that trains a model by the ops that train.

It has nothing to differentiate or to compile, so it calls their functions (`run_...`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from fanin.backends.auxiliary import AuxiliaryStep
from fanin.backends.fused import AUXILIARY_SEED, INTERMEDIATE_SEED, FusedExecutor, Layer
from fanin.backends.interface import TrainingBatch
from fanin.backends.kinds import Part
from fanin.backends.optimizer import Optimizer
from fanin.backends.parts import FusedParts
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
        numbers = (self.optimizer.numbers, learning_rate, step, INTERMEDIATE_SEED)
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
        numbers = (self.optimizer.numbers, learning_rate, step, INTERMEDIATE_SEED)
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
            self.output_seed,
            self.wants_grad,
            self.setup.output.group_size,
            self.mean_labels,
            self.first_weight,
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
            AUXILIARY_SEED,
            True,
        )
        return grad

    def best(self, features: Tensor, k: int) -> tuple[np.ndarray, np.ndarray]:
        values = (self.output.weights.values, self.output.bias.values)
        label_ids = self.connection_arrays.get("label_ids")
        group_size = self.setup.output.group_size
        scores, ids = top_k(features, *self._connections(), *values, k, label_ids, group_size)
        return ids.cpu().numpy(), scores.cpu().numpy()

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

    def rewire(self, part: Part, fraction: float, seed: int) -> int:
        weights, indices = self.output.weights, self.connection_arrays["indices"]
        state = (weights.values, weights.m, weights.v)
        return rewire(indices, *state, self.setup.output_inputs, fraction, seed)

    def _connections(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        indices, starts, tile_labels = map(self.connection_arrays.get, CONNECTIONS)
        return indices, starts, tile_labels


class TorchFusedParts(FusedParts, TorchFused):
    """See `fanin.backends.parts.FusedParts`."""

    of_one = TorchFused


_Moment = Tensor | None


def _state(layer: Layer) -> tuple[Tensor, _Moment, _Moment, Tensor, _Moment, _Moment]:
    weights, bias = layer.weights, layer.bias
    return weights.values, weights.m, weights.v, bias.values, bias.m, bias.v


def make_executor(
    setup: LayerSetup, optimizer: Optimizer, *, device: str, threads: int
) -> TorchFused:
    """See `fanin.backends.registry.make_trainer`."""
    executor = TorchFused if len(setup.parts) == 1 else TorchFusedParts
    return executor(setup, TorchDevice(device, threads), optimizer)
