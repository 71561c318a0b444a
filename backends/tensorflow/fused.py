"""The fused execution in TensorFlow: the executor that trains a model by the ops that train."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from fanin.backends.auxiliary import AuxiliaryStep
from fanin.backends.fused import AUXILIARY_SEED, INTERMEDIATE_SEED, FusedExecutor, Layer
from fanin.backends.interface import TrainingBatch
from fanin.backends.kinds import Part
from fanin.backends.optimizer import Optimizer
from fanin.backends.parts import FusedParts
from fanin.backends.setup import LayerSetup
from fanin.backends.sparse import ByInstance
from fanin.backends.tensorflow.device import TensorFlowDevice
from fanin.backends.tensorflow.ops import Variables, handles, ops, rewire, top_k
from fanin.backends.tensorflow.training_ops import fused_step, layer_inputs, optimizer_inputs
from fanin.backends.trainer import Trained
from fanin.kernels import Words


class TensorFlowFused(FusedExecutor):
    """See `fanin.backends.fused.FusedExecutor`."""

    device: TensorFlowDevice

    def forward(self, features: tf.Tensor, layer: Layer) -> tf.Tensor:
        with self.device.scope():
            outputs: tf.Tensor = ops().fanin_dense_relu(
                features=features,
                weights=layer.weights.values,
                bias=[layer.bias.values],
                threads=self.device.threads,
            )
        return outputs

    def update(
        self,
        grad: tf.Tensor,
        outputs: tf.Tensor,
        features: tf.Tensor,
        layer: Layer,
        learning_rate: float,
        step: int,
    ) -> None:
        with self.device.scope():
            ops().fanin_dense_relu_update(
                grad_outputs=grad,
                outputs=outputs,
                features=features,
                **layer_inputs(_state(layer.weights), _state(layer.bias)),
                **optimizer_inputs(self.optimizer, learning_rate, step),
                seed=INTERMEDIATE_SEED,
                want_grad=False,
                threads=self.device.threads,
            )

    def sparse_forward(self, features: ByInstance, layer: Layer) -> tf.Tensor:
        with self.device.scope():
            outputs: tf.Tensor = ops().fanin_sparse_relu(
                **features._asdict(),
                weights=layer.weights.values,
                bias=[layer.bias.values],
                threads=self.device.threads,
            )
        return outputs

    def sparse_update(
        self,
        grad: tf.Tensor,
        outputs: tf.Tensor,
        features: Words,
        layer: Layer,
        learning_rate: float,
        step: int,
    ) -> None:
        with self.device.scope():
            ops().fanin_sparse_relu_update(
                grad_outputs=grad,
                outputs=outputs,
                **features._asdict(),
                **layer_inputs(_state(layer.weights), _state(layer.bias)),
                **optimizer_inputs(self.optimizer, learning_rate, step),
                seed=INTERMEDIATE_SEED,
                threads=self.device.threads,
            )

    def output_step(
        self, features: tf.Tensor, batch: TrainingBatch, learning_rate: float, step: int
    ) -> tuple[tf.Tensor, tf.Tensor]:
        with self.device.scope():
            return fused_step(
                features,
                self.connection_arrays,
                _state(self.output.weights),
                _state(self.output.bias),
                batch.positive_instances,
                batch.positive_labels,
                self.setup.loss,
                self.optimizer,
                learning_rate,
                step,
                seed=self.output_seed,
                want_grad=self.wants_grad,
                group_size=self.setup.output.group_size,
                mean_labels=self.mean_labels,
                threads=self.device.threads,
            )

    def auxiliary_step(
        self, features: tf.Tensor, auxiliary: AuxiliaryStep, learning_rate: float, step: int
    ) -> tf.Tensor:
        with self.device.scope():
            _, grad = fused_step(
                features,
                {},
                _state(self.auxiliary.weights),
                _state(self.auxiliary.bias),
                auxiliary.positive_instances,
                auxiliary.positive_clusters,
                "bce",
                self.optimizer,
                learning_rate,
                step,
                seed=AUXILIARY_SEED,
                want_grad=True,
                threads=self.device.threads,
            )
        return grad

    def best(self, features: tf.Tensor, k: int) -> tuple[np.ndarray, np.ndarray]:
        with self.device.scope():
            scores, ids = top_k(
                features,
                self.connection_arrays,
                self.output.weights.values,
                self.output.bias.values,
                k,
                group_size=self.setup.output.group_size,
                threads=self.device.threads,
            )
        return ids.numpy(), scores.numpy()

    def sort(self, undo: bool) -> None:
        assert self.slots is not None
        ops().fanin_sort_connections(
            indices=self.connection_arrays["indices"].handle,
            tile_labels=self.connection_arrays["tile_labels"].handle,
            slots=self.slots.handle,
            **handles("weights", _state(self.output.weights)),
            inputs=tf.constant(self.setup.output_inputs, tf.int64),
            undo=undo,
            threads=self.device.threads,
        )

    def rewire(self, part: Part, fraction: float, seed: int) -> int:
        indices, weights = self.connection_arrays["indices"], _state(self.output.weights)
        inputs = self.setup.output_inputs
        return rewire(indices, weights, inputs, fraction, seed, threads=self.device.threads)


class TensorFlowFusedParts(FusedParts, TensorFlowFused):
    """See `fanin.backends.parts.FusedParts`."""

    of_one = TensorFlowFused


def _state(trained: Trained) -> Variables:
    return trained.values, trained.m, trained.v


def make_executor(
    setup: LayerSetup, optimizer: Optimizer, *, device: str, threads: int
) -> TensorFlowFused:
    """See `fanin.backends.registry.make_trainer`."""
    executor = TensorFlowFused if len(setup.parts) == 1 else TensorFlowFusedParts
    return executor(setup, TensorFlowDevice(device, threads), optimizer)
