"""The fused execution in TensorFlow: its ops, `FusedFanIn` for a user's own Keras model, and the
harness' engine.

The ops update variables (weights and Adam's moments) in place, as TensorFlow's own optimiser ops
do.
"""

from __future__ import annotations

import math
import random
import warnings
from collections.abc import Sequence
from typing import Any, SupportsFloat

import keras
import numpy as np
import tensorflow as tf

from fanin.backends import checks, fused
from fanin.backends.arrays import drawn_seed
from fanin.backends.interface import ADAM_BETAS, ADAM_EPSILON, TrainingBatch
from fanin.backends.setup import index_dtype
from fanin.backends.tensorflow.devices import TensorFlowDevice
from fanin.backends.tensorflow.layers import Connected, checked_options, known_inputs
from fanin.backends.tensorflow.losses import LOSSES
from fanin.backends.tensorflow.ops import fan_in_linear, ops
from fanin.kernels import params

Variables = Sequence[tf.Variable]


def _on_host() -> Any:
    """Where an op's scalars are made: the host reads them, and to fetch them from a GPU it would
    have to wait for it."""
    return tf.device("/CPU:0")


def _adam(learning_rate: Any, step: Any) -> dict[str, Any]:
    beta1, beta2 = ADAM_BETAS
    with _on_host():
        return {
            # The hint keeps a Python float from being rounded to float32 on the way.
            "learning_rate": tf.cast(
                tf.convert_to_tensor(learning_rate, dtype_hint=tf.float64), tf.float64
            ),
            "beta1": tf.constant(beta1, tf.float64),
            "beta2": tf.constant(beta2, tf.float64),
            "epsilon": tf.constant(ADAM_EPSILON, tf.float64),
            "step": tf.cast(step, tf.int64),
        }


def _handles(weights: Variables, bias: Variables) -> dict[str, Any]:
    names = ("weights", "weights_m", "weights_v")
    handles = {name: array.handle for name, array in zip(names, weights, strict=True)}
    return {**handles, "bias": [array.handle for array in bias]}


def _connections(connections: dict[str, Any]) -> dict[str, Any]:
    names = ("indices", "starts", "tile_labels")
    return {name: [connections[name]] if name in connections else [] for name in names}


def fused_step(
    features: Any,
    connections: dict[str, Any],
    weights: Variables,
    bias: Variables,
    positive_instances: Any,
    positive_labels: Any,
    loss: str,
    learning_rate: Any,
    step: Any,
    *,
    seed: int = 0,
    want_grad: bool = True,
    threads: int = 0,
) -> tuple[tf.Tensor, tf.Tensor]:
    """One training step of an output layer; see `fanin.kernels.step`.

    weights, bias: each the variables of values, m and v, updated in place (bias may be empty).
    connections: `indices`, `starts` (but uint32), `tile_labels` as there. Returns the loss, a
    scalar, and its gradient by the features, empty where not wanted. What is wrong raises
    tf.errors.InvalidArgumentError.
    """
    value, grad = ops().fanin_fused_step(
        features=features,
        **_connections(connections),
        **_handles(weights, bias),
        positive_instances=positive_instances,
        positive_labels=positive_labels,
        **_adam(learning_rate, step),
        loss_kind=params.LOSSES[loss],
        seed=seed,
        want_grad=want_grad,
        threads=threads,
    )
    return value, grad


def top_k(
    features: Any,
    connections: dict[str, Any],
    weights: Any,
    bias: Any,
    k: Any,
    *,
    threads: int = 0,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Scores and ids [batch, k] of the best labels, best first, equal scores in order of their
    label; all scores are never held. See `fanin.kernels.top_k`."""
    with _on_host():
        k = tf.cast(k, tf.int64)
    scores, ids = ops().fanin_top_k(
        features=features,
        **_connections(connections),
        weights=weights,
        bias=[] if bias is None else [bias],
        k=k,
        threads=threads,
    )
    return scores, ids


def rewire(
    indices: tf.Variable,
    weights: Variables,
    inputs: int,
    fraction: float,
    seed: int,
    *,
    threads: int = 0,
) -> int:
    """Rewire in place, see `fanin.kernels.rewire`; how many connections moved."""
    signed = int(np.uint64(seed).astype(np.int64))
    values, m, v = (array.handle for array in weights)
    with _on_host():
        scalars = {
            "inputs": tf.constant(inputs, tf.int64),
            "fraction": tf.constant(fraction, tf.float64),
            "seed": tf.constant(signed, tf.int64),
        }
    moved = ops().fanin_rewire(
        indices=indices.handle,
        weights=values,
        weights_m=m,
        weights_v=v,
        **scalars,
        threads=threads,
    )
    return int(moved)


def _positives(
    positive_instances: Any, positive_labels: Any, batch: int | None, labels: int
) -> tuple[tf.Tensor, tf.Tensor]:
    """The positives' instances, int32, and labels, int64; ValueError for types and shapes that name
    no positives. What is out of range is an InvalidArgumentError here, where the numbers are at
    hand, or found by the op that reads them."""
    instances = tf.convert_to_tensor(positive_instances)
    label_ids = tf.convert_to_tensor(positive_labels)
    named = (("positive_instances", instances), ("positive_labels", label_ids))
    for name, values in named:
        # An empty list is float32.
        if not values.dtype.is_integer and values.shape.num_elements() != 0:
            raise ValueError(f"{name} must be integers, got {values.dtype.name}")
    vectors = instances.shape.is_compatible_with([None])
    if not (vectors and label_ids.shape.is_compatible_with(instances.shape)):
        raise ValueError(
            "positive_instances and positive_labels must be two vectors of one length, got "
            f"{instances.shape} and {label_ids.shape}"
        )
    limits = ((batch, f"a batch of {batch}"), (labels, f"{labels} labels"))
    for (name, values), (limit, meaning) in zip(named, limits, strict=True):
        at_hand = not tf.is_symbolic_tensor(values) and "CPU" in values.device
        if at_hand and limit is not None:
            numbers = values.numpy()
            bad = np.flatnonzero((numbers < 0) | (numbers >= limit))
            if bad.size:
                message = f"{name}[{bad[0]}] is {numbers[bad[0]]}, out of range for {meaning}"
                raise tf.errors.InvalidArgumentError(None, None, message)
    if instances.dtype != tf.int32:  # in which larger ones would wrap around
        largest = tf.constant(tf.int32.max, tf.int64)
        clipped = tf.clip_by_value(tf.cast(instances, tf.int64), -1, largest)
        instances = tf.cast(clipped, tf.int32)
    return instances, tf.cast(label_ids, tf.int64)


def _once_differentiable(x: tf.Tensor, grad: tf.Tensor, grad_loss: tf.Tensor) -> tf.Tensor:
    """grad_loss * grad. Its own derivative is an error: what grad owes to x is gone, and a gradient
    without that part would be wrong."""

    @tf.custom_gradient
    def scaled(x: tf.Tensor, grad_loss: tf.Tensor) -> tuple[tf.Tensor, Any]:
        def refuse(*_: Any) -> Any:
            raise NotImplementedError("FusedFanIn.training_step has no second derivative")

        return grad_loss * grad, refuse

    return scaled(x, grad_loss)


@keras.saving.register_keras_serializable(package="fanin")
class FusedFanIn(Connected):
    """A fixed fan-in output layer that trains itself: score, loss, gradients and Adam in one pass.

    Called like any layer, it gives the scores [batch, labels] of inputs [batch, inputs]. Training
    is `loss = layer.training_step(inputs, positive_instances, positive_labels)`: the last two name
    the positives, and the layer has been updated when the loss is there; a GradientTape around it
    hands the gradient of the inputs upstream, where any optimizer may train the rest. Neither
    scores nor gradients of weights are ever held.

    The layer's variables are not trainable, so no optimizer takes hold of them, and all of them are
    saved with the model: `indices`, `kernel` [labels, fan_in] and `bias` [labels] with their
    moments (`kernel_m`, ...), `steps` and `learning_rate`; set that between steps as you like
    (`layer.learning_rate = 1e-4`, as with an optimizer of Keras).

    loss: "squared_hinge" or "bce", the mean over labels, then over the batch. kernel_dtype,
    moments_dtype: "float32" or "bfloat16", the latter rounded stochastically. seed: of indices and
    initial kernel, None for Keras' global seed. On a GPU nothing waits for the device but `rewire`.
    Raises ValueError for values that make no layer.
    """

    def __init__(
        self,
        labels: int,
        fan_in: int,
        *,
        loss: str = "squared_hinge",
        learning_rate: float = 1e-3,
        kernel_dtype: str = "float32",
        moments_dtype: str = "float32",
        seed: int | None = None,
        threads: int = 0,
        **kwargs: Any,
    ) -> None:
        labels, fan_in, threads = checked_options(labels, fan_in, threads)
        super().__init__(**kwargs)
        if loss not in params.LOSSES:
            raise ValueError(f"unknown loss {loss!r}; there are {', '.join(params.LOSSES)}")
        for name, dtype in (("kernel_dtype", kernel_dtype), ("moments_dtype", moments_dtype)):
            if dtype not in ("float32", "bfloat16"):
                raise ValueError(f"{name} must be float32 or bfloat16, got {dtype!r}")
        self.labels = labels
        self.fan_in = fan_in
        self.loss = loss
        self.initial_learning_rate = checks.learning_rate(learning_rate)
        self.kernel_dtype = kernel_dtype
        self.moments_dtype = moments_dtype
        self.seed = seed
        self.threads = threads
        self.supports_jit = False
        self._told = False  # that `fit` does not train it

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        inputs = known_inputs(input_shape, self.fan_in)
        self.input_spec = keras.layers.InputSpec(ndim=2, axes={-1: inputs})
        # Python's generator is what keras.utils.set_random_seed governs.
        rng = np.random.default_rng(random.randrange(2**32) if self.seed is None else self.seed)
        # Glorot's limit for one flat vector of all connections, as in the paper's code.
        limit = np.sqrt(3 / (self.labels * self.fan_in))

        def add(name: str, dtype: str, draw: Any, shape: tuple[int, ...]) -> Any:
            return self.add_weight(
                name=name,
                shape=shape,
                dtype=dtype,
                initializer=draw,
                trainable=False,
                autocast=False,
            )

        connections, labels = (self.labels, self.fan_in), (self.labels,)
        index = np.dtype(index_dtype(inputs)).name
        self.indices = add(
            "indices",
            index,
            lambda shape, dtype: rng.integers(0, inputs, shape, dtype),
            connections,
        )
        self.kernel = add(
            "kernel",
            self.kernel_dtype,
            lambda shape, dtype: tf.cast(rng.uniform(-limit, limit, shape), dtype),
            connections,
        )
        self.kernel_m = add("kernel_m", self.moments_dtype, "zeros", connections)
        self.kernel_v = add("kernel_v", self.moments_dtype, "zeros", connections)
        self.bias = add("bias", "float32", "zeros", labels)
        self.bias_m = add("bias_m", "float32", "zeros", labels)
        self.bias_v = add("bias_v", "float32", "zeros", labels)
        rate = keras.initializers.Constant(self.initial_learning_rate)
        with _on_host():
            self.steps = add("steps", "int64", "zeros", ())
            self._learning_rate = add("learning_rate", "float32", rate, ())
        super().build(input_shape)

    @property
    def learning_rate(self) -> keras.Variable | float:
        """A variable once the layer is built."""
        return self._learning_rate if self.built else self.initial_learning_rate

    @learning_rate.setter
    def learning_rate(self, value: Any) -> None:
        if self.built:
            # In a tf.function it may be a tensor, of which nothing is known.
            known = value if tf.is_symbolic_tensor(value) else checks.learning_rate(value)
            self._learning_rate.assign(known)
        else:
            self.initial_learning_rate = checks.learning_rate(value)

    def call(self, inputs: tf.Tensor, training: bool = False) -> tf.Tensor:
        if training and not self._told:
            self._told = True
            warnings.warn(
                "FusedFanIn only gives scores when it is called, as `fit` does: nothing trains it "
                "but its method `training_step`; for `fit` there is FixedFanIn",
                stacklevel=2,
            )
        kernel = tf.cast(self.kernel, tf.float32)
        features = tf.cast(inputs, tf.float32)
        scores = fan_in_linear(features, self.indices, kernel, self.bias, threads=self.threads)
        return tf.cast(scores, self.compute_dtype)

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        return (*input_shape[:-1], self.labels)

    def _weights(self) -> Variables:
        return [array.value for array in (self.kernel, self.kernel_m, self.kernel_v)]

    def _features(self, inputs: Any) -> tf.Tensor:
        """Inputs in float32, ValueError for another width than the layer's; builds the layer."""
        features = tf.cast(inputs, tf.float32)
        if not self.built:
            self.build(features.shape)
        expected = tf.TensorShape([None, self.input_spec.axes[-1]])
        if not features.shape.is_compatible_with(expected):
            raise ValueError(f"inputs must be [batch, {expected[1]}], got {features.shape}")
        return tf.ensure_shape(features, expected)  # where it is not known while tracing

    def training_step(
        self, inputs: Any, positive_instances: Any, positive_labels: Any
    ) -> tf.Tensor:
        """Train the layer once; returns the loss before that, a scalar, differentiable once in the
        inputs.

        inputs [batch, inputs] float; positive_instances and positive_labels: integers [positives],
        each a positive's instance within the batch and its label; a pair that stands twice counts
        once. Eagerly or in a tf.function.
        """
        features = self._features(inputs)
        positives = _positives(positive_instances, positive_labels, features.shape[0], self.labels)
        bias = [array.value for array in (self.bias, self.bias_m, self.bias_v)]
        with _on_host():
            step = self.steps.value + 1

        @tf.custom_gradient
        def run(x: tf.Tensor) -> tuple[tf.Tensor, Any]:
            loss, grad = fused_step(
                x,
                {"indices": self.indices.value},
                self._weights(),
                bias,
                *positives,
                self.loss,
                self._learning_rate.value,
                step,
                threads=self.threads,
            )
            return loss, lambda grad_loss: _once_differentiable(x, grad, grad_loss)

        loss: tf.Tensor = run(features)
        with tf.control_dependencies([loss]), _on_host():
            self.steps.value.assign_add(1)  # a step that was refused does not count
        return loss

    def evaluate_loss(
        self, inputs: Any, positive_instances: Any, positive_labels: Any
    ) -> tf.Tensor:
        """The loss without a step; arguments as in `training_step`. All scores are held."""
        features = self._features(inputs)
        if features.shape[0] == 0:
            message = "a loss needs at least one instance; the batch is empty"
            raise tf.errors.InvalidArgumentError(None, None, message)
        instances, label_ids = _positives(
            positive_instances, positive_labels, features.shape[0], self.labels
        )
        scores = tf.cast(self(features), tf.float32)
        loss: tf.Tensor = LOSSES[self.loss](scores, instances, label_ids)[0]
        # A GPU reads 0 where there is nothing; a CPU has raised an error by now.
        known = (instances >= 0) & (instances < tf.shape(scores)[0])
        known &= (label_ids >= 0) & (label_ids < self.labels)
        return tf.where(tf.reduce_all(known), loss, math.nan)

    def top_k(self, inputs: Any, k: int) -> tuple[tf.Tensor, tf.Tensor]:
        """Scores and ids of the k best labels, [batch, k] each, best first, ties to the lower id;
        all scores are never held. k: a number, or in a tf.function a tensor."""
        return top_k(
            self._features(inputs),
            {"indices": self.indices.value},
            self.kernel.value,
            self.bias.value,
            k if tf.is_tensor(k) else checks.best(k, self.labels),
            threads=self.threads,
        )

    def rewire(self, fraction: float, rng: np.random.Generator | int | None = None) -> int:
        """Give the `fraction` of connections with the smallest |weight| new random inputs; their
        weight stays and their moments become 0. rng: a generator or a seed. Returns how many moved.
        See `fanin.backends.arrays.plan_rewiring`."""
        if not self.built:
            raise ValueError("the layer is not built yet, so there is nothing to rewire")
        return rewire(
            self.indices.value,
            self._weights(),
            self.input_spec.axes[-1],
            checks.fraction(fraction),
            drawn_seed(rng),
            threads=self.threads,
        )

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "labels": self.labels,
            "fan_in": self.fan_in,
            "loss": self.loss,
            "learning_rate": self.initial_learning_rate,
            "kernel_dtype": self.kernel_dtype,
            "moments_dtype": self.moments_dtype,
            "seed": self.seed,
            "threads": self.threads,
        }


class TensorFlowEngine:
    """See `fanin.backends.fused.Engine`.

    TensorFlow has variables of all types that the kernels read on a GPU too, uint16, uint32 and
    bfloat16 included, but for int32, which it keeps in the host's memory whatever the device. What
    is to be int32 is therefore held as uint32.
    """

    def __init__(self, device: TensorFlowDevice, threads: int) -> None:
        self.device = device
        self._threads = threads
        self.sorts_connections = device.is_cpu

    def features(self, array: np.ndarray) -> tf.Tensor:
        with self.device.scope():
            return tf.convert_to_tensor(array)

    def hold(self, array: np.ndarray, dtype: str) -> tf.Variable:
        with self.device.scope():
            return tf.Variable(_converted(array, _held_type(dtype)), trainable=False)

    def zeros(self, shape: tuple[int, ...], dtype: str) -> tf.Variable:
        with self.device.scope():  # not by way of NumPy, whose array would be there beside it
            return tf.Variable(tf.zeros(shape, _held_type(dtype)), trainable=False)

    def read(self, held: tf.Variable) -> np.ndarray:
        if held.dtype == tf.bfloat16:
            rounded: np.ndarray = held.numpy().astype(np.float32)
            return rounded
        # A view, where `numpy()` would copy; who changes the variable while it lives copies first.
        return np.asarray(memoryview(held.read_value()))

    def write(self, held: tf.Variable, array: np.ndarray) -> None:
        # The whole at once: TensorFlow copies a variable at every later reading once parts of it
        # have been assigned.
        held.assign(_converted(array, held.dtype))

    def bytes(self, held: tf.Variable) -> int:
        return held.shape.num_elements() * held.dtype.size

    def forward(self, features: tf.Tensor, layer: fused.Layer) -> tf.Tensor:
        with self.device.scope():
            outputs: tf.Tensor = ops().fanin_dense_relu(
                features=features,
                weights=layer.weights.values,
                bias=[layer.bias.values],
                threads=self._threads,
            )
        return outputs

    def update(
        self,
        grad: tf.Tensor,
        outputs: tf.Tensor,
        features: tf.Tensor,
        layer: fused.Layer,
        rate: float,
        step: int,
    ) -> None:
        with self.device.scope():
            ops().fanin_dense_relu_update(
                grad_outputs=grad,
                outputs=outputs,
                features=features,
                **_handles(*self._state(layer)),
                **_adam(rate, step),
                seed=1,
                want_grad=False,
                threads=self._threads,
            )

    def step(
        self,
        features: tf.Tensor,
        layer: fused.Layer,
        batch: TrainingBatch,
        loss: str,
        rate: float,
        step: int,
        want_grad: bool,
    ) -> tuple[SupportsFloat, tf.Tensor]:
        with self.device.scope():
            value, grad = fused_step(
                features,
                layer.connections,
                *self._state(layer),
                batch.positive_instances,
                batch.positive_labels,
                loss,
                rate,
                step,
                want_grad=want_grad,
                threads=self._threads,
            )
        return self.device.number(value), grad

    def top_k(self, features: tf.Tensor, layer: fused.Layer, k: int) -> np.ndarray:
        with self.device.scope():
            _, ids = top_k(
                features,
                layer.connections,
                layer.weights.values,
                layer.bias.values,
                k,
                threads=self._threads,
            )
        found: np.ndarray = ids.numpy()
        return found

    def sort(self, layer: fused.Layer, sources: int, undo: bool) -> None:
        values, m, v = (array.handle for array in self._state(layer)[0])
        ops().fanin_sort_connections(
            indices=layer.connections["indices"].handle,
            tile_labels=layer.connections["tile_labels"].handle,
            slots=layer.slots.handle,
            weights=values,
            weights_m=m,
            weights_v=v,
            inputs=tf.constant(sources, tf.int64),
            undo=undo,
            threads=self._threads,
        )

    def rewire(self, layer: fused.Layer, sources: int, fraction: float, seed: int) -> int:
        indices, weights = layer.connections["indices"], self._state(layer)[0]
        return rewire(indices, weights, sources, fraction, seed, threads=self._threads)

    @staticmethod
    def _state(layer: fused.Layer) -> tuple[Variables, Variables]:
        weights, bias = layer.weights, layer.bias
        return (weights.values, weights.m, weights.v), (bias.values, bias.m, bias.v)


def _held_type(dtype: str) -> tf.DType:
    return tf.as_dtype("uint32" if dtype == "int32" else dtype)


def _converted(array: np.ndarray, dtype: tf.DType) -> np.ndarray:
    return np.ascontiguousarray(array, dtype.as_numpy_dtype)
