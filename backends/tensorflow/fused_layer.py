"""`FusedFanIn`: the fixed fan-in output layer that trains itself, for a user's own Keras model."""

from __future__ import annotations

import math
import random
import warnings
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from fanin.backends import checks
from fanin.backends.arrays import drawn_seed, plan_rewiring
from fanin.backends.kinds import index_dtype
from fanin.backends.moments import Resets
from fanin.backends.optimizer import Optimizer, OptimizerKind
from fanin.backends.recipes import RecipeName
from fanin.backends.setup import Loss
from fanin.backends.tensorflow.connected import Connected
from fanin.backends.tensorflow.layers import checked_options, known_inputs
from fanin.backends.tensorflow.losses import LOSSES, known_positives
from fanin.backends.tensorflow.ops import Variables, on_host, rewire, top_k
from fanin.backends.tensorflow.training_ops import fused_step
from fanin.kernels import params


def _values(*arrays: keras.Variable | None) -> Variables:
    return [None if array is None else array.value for array in arrays]


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
    """A fixed fan-in output layer that trains itself: score, loss, gradients and optimiser in one
    pass.

    Called like any layer, it gives the scores [..., labels] of inputs [..., inputs]. Training is
    `loss = layer.training_step(inputs, positive_instances, positive_labels)`: the last two name the
    positives, and the layer has been updated when the loss is there; a GradientTape around it hands
    the gradient of the inputs upstream, where any optimizer may train the rest. Neither scores nor
    gradients of weights are ever held. Sparse inputs are made dense.

    The layer's variables are not trainable, so no optimizer takes hold of them, and all of them are
    saved with the model: `indices`, `kernel` [labels, fan_in] and `bias` [labels] with their
    moments (`kernel_m`, ...), `steps` and `learning_rate`; set that between steps as you like
    (`layer.learning_rate = 1e-4`, as with an optimizer of Keras).

    recipe: "paper", or "best" for a layer that scales its features and, up to 4,096 inputs, writes
    them in the atoms of a dictionary, which labels read then; `start_from` fills the variables of
    both, `feature_scale` and `feature_dictionary` [inputs, atoms]. loss:
    "squared_hinge" or "bce", the mean over labels, then over the batch; None is the recipe's, as
    for the learning rate. optimizer: "adam", "sgd" (no moments) or "momentum" (m alone); for this,
    momentum, weight_decay and l2 see `fanin.backends.optimizer.Optimizer`. kernel_dtype,
    moments_dtype: "float32" or "bfloat16", the latter rounded stochastically. seed: of indices and
    initial kernel, None for Keras' global seed. On a GPU nothing waits for the device but what
    rewires. Raises ValueError for values that make no layer.

    group_size: see `FixedFanIn`. With it each step on a GPU waits for a copy of `order`, which
    TensorFlow inverts in the host's memory.
    """

    # Moments that the optimizer does not keep.
    kernel_m = kernel_v = bias_m = bias_v = None

    def __init__(
        self,
        labels: int,
        fan_in: int,
        *,
        recipe: RecipeName = "paper",
        loss: Loss | None = None,
        learning_rate: float | None = None,
        optimizer: OptimizerKind = "adam",
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        l2: float = 0.0,
        kernel_dtype: str = "float32",
        moments_dtype: str = "float32",
        seed: int | None = None,
        group_size: int | None = None,
        threads: int = 0,
        **kwargs: Any,
    ) -> None:
        labels, fan_in, threads = checked_options(labels, fan_in, threads)
        super().__init__(**kwargs)
        self.group_size = group_size
        self.labels = labels
        self.fan_in = fan_in
        known = self._follow(recipe)
        loss = known.loss_fn if loss is None else loss
        learning_rate = known.learning_rate if learning_rate is None else learning_rate
        if loss not in params.LOSSES:
            raise ValueError(f"unknown loss {loss!r}; there are {', '.join(params.LOSSES)}")
        for name, dtype in (("kernel_dtype", kernel_dtype), ("moments_dtype", moments_dtype)):
            if dtype not in ("float32", "bfloat16"):
                raise ValueError(f"{name} must be float32 or bfloat16, got {dtype!r}")
        self.loss: Loss = loss
        self.optimizer = Optimizer(optimizer, weight_decay, l2, momentum)
        self.own_moments = tuple(f"kernel_{moment}" for moment in self.optimizer.keeps)
        self.own_progress = (*(f"bias_{moment}" for moment in self.optimizer.keeps), "steps")
        self.initial_learning_rate = checks.learning_rate(learning_rate)
        self.kernel_dtype = kernel_dtype
        self.moments_dtype = moments_dtype
        self.seed = seed
        self.threads = threads
        self._has_warned = False  # that `fit` does not train it

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        inputs = known_inputs(input_shape, self.fan_in)
        self.input_spec = keras.layers.InputSpec(min_ndim=2, axes={-1: inputs})
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
        read = self._setup.output_inputs
        index = np.dtype(index_dtype(read)).name
        self.indices = add(
            "indices",
            index,
            lambda shape, dtype: rng.integers(0, read, shape, dtype),
            self._setup.array_shapes()["output.indices"],
        )
        self.kernel = add(
            "kernel",
            self.kernel_dtype,
            lambda shape, dtype: tf.cast(rng.uniform(-limit, limit, shape), dtype),
            connections,
        )
        for name in self.own_moments:
            setattr(self, name, add(name, self.moments_dtype, "zeros", connections))
        self.bias = add("bias", "float32", "zeros", labels)
        for name in self.own_progress[:-1]:
            setattr(self, name, add(name, "float32", "zeros", labels))
        rate = keras.initializers.Constant(self.initial_learning_rate)
        with on_host():
            self.steps = add("steps", "int64", "zeros", ())
            self._learning_rate = add("learning_rate", "float32", rate, ())
        self._add_order()
        self._add_features()
        super().build(input_shape)

    @property
    def learning_rate(self) -> keras.Variable | float:
        """A variable once the layer is built."""
        return self._learning_rate if self.built else self.initial_learning_rate

    @learning_rate.setter
    def learning_rate(self, value: Any) -> None:
        if self.built:
            # In a tf.function it may be a tensor that has no value yet.
            known = value if tf.is_symbolic_tensor(value) else checks.learning_rate(value)
            self._learning_rate.assign(known)
        else:
            self.initial_learning_rate = checks.learning_rate(value)

    def call(self, inputs: Any, training: bool = False) -> tf.Tensor:
        if training and not self._has_warned:
            self._has_warned = True
            warnings.warn(
                "FusedFanIn only gives scores when it is called, as `fit` does: nothing trains it "
                "but its method `training_step`; for `fit` there is FixedFanIn",
                stacklevel=2,
            )
        return self._scores(inputs)

    def _weights(self) -> Variables:
        return _values(self.kernel, self.kernel_m, self.kernel_v)

    def _features(self, inputs: Any) -> tf.Tensor:
        """Inputs [batch, inputs] in float32, ValueError for another width than the layer's; builds
        the layer."""
        features = self._read(inputs)
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
        positives = self._positives(features, positive_instances, positive_labels)
        bias = _values(self.bias, self.bias_m, self.bias_v)
        with on_host():
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
                self.optimizer,
                self._learning_rate.value,
                step,
                group_size=self.group_size or 0,
                threads=self.threads,
            )
            return loss, lambda grad_loss: _once_differentiable(x, grad, grad_loss)

        loss: tf.Tensor = run(self._transformed(features))
        with tf.control_dependencies([loss]), on_host():
            self.steps.value.assign_add(1)  # a step that was refused does not count
        return loss

    def _positives(
        self, features: tf.Tensor, positive_instances: Any, positive_labels: Any
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """The positives of a batch as the ops read them, with positions in place of labels. An id
        that is out of range stays as it is, for the op to name."""
        known = known_positives(positive_instances, positive_labels, features.shape[0], self.labels)
        if (positions := self._positions()) is None:
            return known
        instances, label_ids = known
        is_known = (label_ids >= 0) & (label_ids < self.labels)
        inside = tf.gather(positions, tf.clip_by_value(label_ids, 0, self.labels - 1))
        return instances, tf.where(is_known, tf.cast(inside, tf.int64), label_ids)

    def evaluate_loss(
        self, inputs: Any, positive_instances: Any, positive_labels: Any
    ) -> tf.Tensor:
        """The loss without a step; arguments as in `training_step`. All scores are held."""
        features = self._features(inputs)
        if features.shape[0] == 0:
            message = "a loss needs at least one instance; the batch is empty"
            raise tf.errors.InvalidArgumentError(None, None, message)
        instances, label_ids = known_positives(
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
            self._transformed(self._features(inputs)),
            self._connections(),
            self.kernel.value,
            self.bias.value,
            k if tf.is_tensor(k) else checks.best(k, self.labels),
            group_size=self.group_size or 0,
            threads=self.threads,
        )

    def rewire(self, fraction: float, rng: np.random.Generator | int | None = None) -> int:
        """Give the `fraction` of connections with the smallest |weight| new random inputs; their
        weight stays and their moments become 0. rng: a generator or a seed. Returns how many moved.
        See `fanin.backends.arrays.plan_rewiring`. Where labels share their sources, sources are
        compared, by the mean |weight| of their group, and sources are counted."""
        self._check_built("rewire")
        if self.group_size is not None:
            kernel = np.asarray(self.kernel.numpy(), np.float32)
            magnitudes, inputs = self._kind.source_magnitudes(kernel), self._setup.output_inputs
            plan = plan_rewiring(magnitudes, fraction, inputs, drawn_seed(rng))
            return self._move(plan, self._resets())
        return rewire(
            self.indices.value,
            self._weights(),
            self._setup.output_inputs,
            checks.fraction(fraction),
            drawn_seed(rng),
            threads=self.threads,
        )

    def rewire_towards_gradients(
        self,
        features: Any,
        labels: Any,
        fraction: float = 0.2,
        *,
        rng: np.random.Generator | int | None = None,
    ) -> int:
        """Move the `fraction` of each label's connections with the smallest |weight| to the inputs
        whose weight would change most; their new weight and their moments are 0.

        features, labels: the training data, as in `start_from`. rng: a generator or a seed. Returns
        how many moved. See `fanin.backends.gradients.plan_towards_gradients`. Raises ValueError for
        others.
        """
        self._check_built("rewire")
        resets = self._resets()
        return self._rewire_towards_gradients(features, labels, fraction, rng, self.loss, resets)

    def _resets(self) -> Resets:
        return [(getattr(self, name), 0.0) for name in self.own_moments]

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "labels": self.labels,
            "fan_in": self.fan_in,
            "recipe": self.recipe,
            "loss": self.loss,
            "learning_rate": self.initial_learning_rate,
            "optimizer": self.optimizer.kind,
            "momentum": self.optimizer.momentum,
            "weight_decay": self.optimizer.weight_decay,
            "l2": self.optimizer.l2,
            "kernel_dtype": self.kernel_dtype,
            "moments_dtype": self.moments_dtype,
            "seed": self.seed,
            "group_size": self.group_size,
            "threads": self.threads,
        }
