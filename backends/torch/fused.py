"""The fused execution in PyTorch: its ops, and the executor that trains a model by them.

The ops change their arguments (weights and Adam's moments) in place; torch is told so by
`mutates_args`. Each is a function too, named `run_...`: torch takes a quarter of a millisecond to
find what an op does, which is longer than the step of a small layer. The executor, for which there
is nothing to differentiate or to compile, calls the functions.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from fanin.backends.fused import FusedExecutor, Layer
from fanin.backends.interface import ADAM_BETAS, ADAM_EPSILON, TrainingBatch
from fanin.backends.setup import LayerSetup
from fanin.backends.sparse import ByInstance
from fanin.backends.torch.device import TorchDevice
from fanin.backends.torch.ops import (
    CONNECTIONS,
    call,
    described,
    refuse_other_devices,
    rewire,
    top_k,
    trained,
)
from fanin.kernels import Words, params

WEIGHTS = ("weights", "weights_m", "weights_v")
BIAS = ("bias", "bias_m", "bias_v")
_WORDS = ("words", "word_starts", "instances", "values")
_POSITIVES = ("positive_instances", "positive_labels")


# Of stochastic rounding: each layer has random numbers of its own.
_OUTPUT_SEED, _INTERMEDIATE_SEED = 0, 1


def _adam(learning_rate: float, step: int, seed: int) -> params.Adam:
    beta1, beta2 = ADAM_BETAS
    return params.Adam(learning_rate, beta1, beta2, ADAM_EPSILON, step, seed)


def run_step(
    features: Tensor,
    indices: Tensor | None,
    starts: Tensor | None,
    tile_labels: Tensor | None,
    weights: Tensor,
    weights_m: Tensor,
    weights_v: Tensor,
    bias: Tensor | None,
    bias_m: Tensor | None,
    bias_v: Tensor | None,
    positive_instances: Tensor,
    positive_labels: Tensor,
    loss: str,
    learning_rate: float,
    step: int,
    seed: int,
    want_grad: bool,
) -> tuple[Tensor, Tensor]:
    """One training step of an output layer; arguments as in `fanin.kernels.step`. Returns the loss,
    a scalar, and its gradient by the features, without elements where not wanted."""
    value = features.new_empty(())
    grad = torch.empty_like(features) if want_grad else features.new_empty(0)
    arguments = params.StepParams(
        features=described(features),
        connections=params.Connections(*map(described, (indices, starts, tile_labels))),
        weights=trained(weights, weights_m, weights_v),
        bias=trained(bias, bias_m, bias_v),
        positive_instances=described(positive_instances),
        positive_labels=described(positive_labels),
        loss=described(value.view(1)),
        grad_features=described(grad if want_grad else None),
        adam=_adam(learning_rate, step, seed),
        loss_kind=params.LOSSES.get(loss, 0),
        threads=torch.get_num_threads(),
    )
    call(arguments, features)
    return value, grad


fused_step = torch.library.custom_op("fanin::fused_step", mutates_args=(*WEIGHTS, *BIAS))(run_step)


@torch.library.custom_op("fanin::counted_step", mutates_args=(*WEIGHTS, *BIAS, "steps"))
def counted_step(
    features: Tensor,
    indices: Tensor,
    weights: Tensor,
    weights_m: Tensor,
    weights_v: Tensor,
    bias: Tensor,
    bias_m: Tensor,
    bias_v: Tensor,
    steps: Tensor,
    learning_rate: Tensor,
    positive_instances: Tensor,
    positive_labels: Tensor,
    loss: str,
    seed: int,
    want_grad: bool,
) -> tuple[Tensor, Tensor]:
    """`fused_step` as step `steps` + 1, which is counted if it was made. steps and learning_rate:
    scalars on the CPU; numbers would be compiled in, and each new one compiled anew."""
    made = run_step(
        features,
        indices,
        None,
        None,
        weights,
        weights_m,
        weights_v,
        bias,
        bias_m,
        bias_v,
        positive_instances,
        positive_labels,
        loss,
        float(learning_rate),
        int(steps) + 1,
        seed,
        want_grad,
    )
    steps += 1
    return made


@fused_step.register_fake
def _(features: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    names = (*CONNECTIONS, *WEIGHTS, *BIAS, *_POSITIVES)
    refuse_other_devices(features, **dict(zip(names, others, strict=False)))
    return _empty_results(features, others[-1])


@counted_step.register_fake
def _(features: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    # steps and learning_rate, on the CPU, stand between the layer and the positives.
    names = ("indices", *WEIGHTS, *BIAS, *_POSITIVES)
    refuse_other_devices(features, **dict(zip(names, others[:7] + others[9:11], strict=True)))
    return _empty_results(features, others[-1])


def _empty_results(features: Tensor, want_grad: bool) -> tuple[Tensor, Tensor]:
    return features.new_empty(()), features.new_empty(features.shape if want_grad else (0,))


def run_dense_relu(features: Tensor, weights: Tensor, bias: Tensor | None) -> Tensor:
    """relu(features weights^T + bias), [batch, units]; weights [units, inputs]."""
    outputs = features.new_empty((features.shape[0], weights.shape[0]))
    arguments = params.DenseForwardParams(
        features=described(features),
        weights=described(weights),
        bias=described(bias),
        outputs=described(outputs),
        relu=True,
        threads=torch.get_num_threads(),
    )
    call(arguments, features)
    return outputs


dense_relu = torch.library.custom_op("fanin::dense_relu", mutates_args=())(run_dense_relu)


@dense_relu.register_fake
def _(features: Tensor, weights: Tensor, bias: Tensor | None) -> Tensor:
    refuse_other_devices(features, weights=weights, bias=bias)
    return features.new_empty((features.shape[0], weights.shape[0]))


def run_dense_relu_update(
    grad: Tensor,
    outputs: Tensor,
    features: Tensor,
    weights: Tensor,
    weights_m: Tensor,
    weights_v: Tensor,
    bias: Tensor | None,
    bias_m: Tensor | None,
    bias_v: Tensor | None,
    learning_rate: float,
    step: int,
    seed: int,
    want_grad: bool,
) -> Tensor:
    """Backward pass of `dense_relu` with Adam; the gradient of features where it is wanted."""
    grad_features = torch.empty_like(features) if want_grad else features.new_empty(0)
    arguments = params.DenseUpdateParams(
        grad_outputs=described(grad),
        outputs=described(outputs),
        features=described(features),
        weights=trained(weights, weights_m, weights_v),
        bias=trained(bias, bias_m, bias_v),
        grad_features=described(grad_features if want_grad else None),
        adam=_adam(learning_rate, step, seed),
        threads=torch.get_num_threads(),
    )
    call(arguments, features)
    return grad_features


dense_relu_update = torch.library.custom_op(
    "fanin::dense_relu_update", mutates_args=(*WEIGHTS, *BIAS)
)(run_dense_relu_update)


@dense_relu_update.register_fake
def _(grad: Tensor, outputs: Tensor, features: Tensor, *others: Any) -> Tensor:
    names = (*WEIGHTS, *BIAS)
    refuse_other_devices(
        features, grad=grad, outputs=outputs, **dict(zip(names, others, strict=False))
    )
    return features.new_empty(features.shape if others[-1] else (0,))


def run_sparse_relu(
    values: Tensor, starts: Tensor, columns: Tensor, weights: Tensor, bias: Tensor | None
) -> Tensor:
    """relu(features weights + bias), [batch, units], of CSR features [batch, inputs]; arguments as
    in `fanin.kernels.sparse_forward`. weights [inputs, units]."""
    outputs = _outputs(values, starts, weights)
    arguments = params.SparseForwardParams(
        values=described(values),
        starts=described(starts),
        columns=described(columns),
        weights=described(weights),
        bias=described(bias),
        outputs=described(outputs),
        relu=True,
        threads=torch.get_num_threads(),
    )
    call(arguments, values)
    return outputs


sparse_relu = torch.library.custom_op("fanin::sparse_relu", mutates_args=())(run_sparse_relu)


@sparse_relu.register_fake
def _(
    values: Tensor, starts: Tensor, columns: Tensor, weights: Tensor, bias: Tensor | None
) -> Tensor:
    refuse_other_devices(values, starts=starts, columns=columns, weights=weights, bias=bias)
    return _outputs(values, starts, weights)


def _outputs(values: Tensor, starts: Tensor, weights: Tensor) -> Tensor:
    """Memory for the layer's outputs. ValueError where their size is unknown; the library checks
    the rest."""
    if starts.ndim != 1 or not starts.shape[0] or weights.ndim != 2:
        raise ValueError(
            "starts must be [batch + 1] and weights [inputs, units], got "
            f"{list(starts.shape)} and {list(weights.shape)}"
        )
    return values.new_empty((starts.shape[0] - 1, weights.shape[1]))


def run_sparse_relu_update(
    grad: Tensor,
    outputs: Tensor,
    words: Tensor,
    word_starts: Tensor,
    instances: Tensor,
    values: Tensor,
    weights: Tensor,
    weights_m: Tensor | None,
    weights_v: Tensor,
    bias: Tensor | None,
    bias_m: Tensor | None,
    bias_v: Tensor | None,
    learning_rate: float,
    step: int,
    seed: int,
) -> None:
    """Backward pass of `sparse_relu` with Adam on the rows of `words`; arguments as in
    `fanin.kernels.sparse_update`. weights_m: None for row moments."""
    arguments = params.SparseUpdateParams(
        grad_outputs=described(grad),
        outputs=described(outputs),
        words=described(words),
        word_starts=described(word_starts),
        instances=described(instances),
        values=described(values),
        weights=trained(weights, weights_m, weights_v),
        bias=trained(bias, bias_m, bias_v),
        adam=_adam(learning_rate, step, seed),
        threads=torch.get_num_threads(),
    )
    call(arguments, grad)


sparse_relu_update = torch.library.custom_op(
    "fanin::sparse_relu_update", mutates_args=(*WEIGHTS, *BIAS)
)(run_sparse_relu_update)


@sparse_relu_update.register_fake
def _(grad: Tensor, *others: Any) -> None:
    names = ("outputs", *_WORDS, *WEIGHTS, *BIAS)
    refuse_other_devices(grad, **dict(zip(names, others, strict=False)))


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
        run_dense_relu_update(
            grad, outputs, features, *_state(layer), learning_rate, step, _INTERMEDIATE_SEED, False
        )

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
        adam = (learning_rate, step, _INTERMEDIATE_SEED)
        run_sparse_relu_update(grad, outputs, *features, *_state(layer), *adam)

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
            learning_rate,
            step,
            _OUTPUT_SEED,
            self.intermediate is not None,
        )

    def best(self, features: Tensor, k: int) -> np.ndarray:
        values = (self.output.weights.values, self.output.bias.values)
        _, ids = top_k(features, *self._connections(), *values, k)
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


def _state(layer: Layer) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    weights, bias = layer.weights, layer.bias
    return weights.values, weights.m, weights.v, bias.values, bias.m, bias.v


def make_executor(setup: LayerSetup, *, device: str, threads: int) -> TorchFused:
    """See `fanin.backends.registry.make_trainer`."""
    return TorchFused(setup, TorchDevice(device, threads))
