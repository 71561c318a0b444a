"""`FixedFanIn`: the fixed fan-in layer for a user's own Keras 3 model (TensorFlow backend)."""

from __future__ import annotations

import random
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from fanin.backends import checks
from fanin.backends.arrays import drawn_seed, plan_rewiring
from fanin.backends.kinds import index_dtype
from fanin.backends.recipes import RecipeName
from fanin.backends.setup import Loss
from fanin.backends.tensorflow.connected import Connected
from fanin.backends.tensorflow.optimizers import resets_of
from fanin.kernels.threads import MOST_THREADS

# Keras has others, whose tensors the op does not read.
_KERAS_BACKEND = "tensorflow"


def checked_options(labels: int, fan_in: int, threads: int) -> tuple[int, int, int]:
    """The three. What makes no layer: ValueError; another Keras backend than TensorFlow:
    RuntimeError."""
    if keras.backend.backend() != _KERAS_BACKEND:
        raise RuntimeError(
            "this layer needs Keras' TensorFlow backend, and Keras is set to "
            f"{keras.backend.backend()!r}; set KERAS_BACKEND=tensorflow before importing keras"
        )
    return (
        checks.whole("labels", labels, 1),
        checks.whole("fan_in", fan_in, 1),
        checks.whole("threads", threads, 0, MOST_THREADS),
    )


def known_inputs(input_shape: tuple[int | None, ...], fan_in: int) -> int:
    """The size of the last input axis; ValueError where it is not known or too small."""
    inputs = input_shape[-1]
    if inputs is None:
        raise ValueError("the size of the last input axis must be known, got None")
    checks.fitting_fan_in(fan_in, inputs)
    return checks.whole("inputs", inputs, 1, checks.MOST_INPUTS)


@keras.saving.register_keras_serializable(package="fanin")
class FixedFanIn(Connected):
    """A linear layer in which every label (output) reads exactly `fan_in` of the inputs.

    outputs[..., l] = bias[l] + sum_k kernel[l, k] * inputs[..., indices[l, k]]

    Inputs [..., inputs] float, finite; outputs [..., labels]. Weights: `kernel` [labels, fan_in],
    `bias` [labels], and `indices` [labels, fan_in], which are not trained but saved with the rest
    (uint16 up to 65,536 inputs, else uint32). float64 layers compute in float64; all others in
    float32, also under a mixed precision policy, and return the policy's compute type.

    labels, fan_in: at least 1, and fan_in no larger than the inputs. seed: of the indices, drawn
    uniformly and independently (a label may name an input twice); None for Keras' global seed.
    kernel_initializer: is asked for one flat vector of labels * fan_in values, as in the paper's
    code (arXiv 2306.03725), so that "glorot_uniform" has the limit sqrt(3 / (labels * fan_in)).
    recipe: "paper", or "best" for a layer that scales its features and, up to 4,096 inputs, writes
    them in the atoms of a dictionary, which labels read then; `start_from` fills the variables of
    both, `feature_scale` and `feature_dictionary` [inputs, atoms]. threads: CPU
    threads, 0 for all. Raises ValueError for values that make no layer.

    Sparse inputs are made dense, and a mask is handed on. The layer is a custom op: it has no XLA
    form (Keras goes without, a tf.function with jit_compile=True fails), and a process that loads
    an exported SavedModel has to import fanin.backends.tensorflow first.

    group_size: how many labels share their sources, 8 to 64; indices are [label groups, fan_in]
    then. None: each label has its own. A weight `order` has the label at each position. At first
    that is the label of the same number; `start_from` gives the order of the recipe. Kernel, bias
    and indices are in the order of the positions, outputs in that of the labels.
    """

    def __init__(
        self,
        labels: int,
        fan_in: int,
        *,
        use_bias: bool = True,
        seed: int | None = None,
        kernel_initializer: Any = "glorot_uniform",
        bias_initializer: Any = "zeros",
        kernel_regularizer: Any = None,
        recipe: RecipeName = "paper",
        group_size: int | None = None,
        threads: int = 0,
        **kwargs: Any,
    ) -> None:
        labels, fan_in, threads = checked_options(labels, fan_in, threads)
        super().__init__(**kwargs)
        self.group_size = group_size
        self.labels = labels
        self.fan_in = fan_in
        self._follow(recipe)
        self.use_bias = use_bias
        self.seed = seed
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.bias_initializer = keras.initializers.get(bias_initializer)
        self.kernel_regularizer = keras.regularizers.get(kernel_regularizer)
        self.threads = threads

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        inputs = known_inputs(input_shape, self.fan_in)
        self.input_spec = keras.layers.InputSpec(min_ndim=2, axes={-1: inputs})
        connections, read = (self.labels, self.fan_in), self._setup.output_inputs

        def draw_indices(shape: tuple[int, ...], dtype: str) -> np.ndarray:
            # Python's generator is what keras.utils.set_random_seed governs.
            seed = random.randrange(2**32) if self.seed is None else self.seed
            return np.random.default_rng(seed).integers(0, read, shape, dtype)

        def draw_kernel(shape: tuple[int, ...], dtype: str) -> tf.Tensor:
            return tf.reshape(self.kernel_initializer((self.labels * self.fan_in,), dtype), shape)

        self.indices = self.add_weight(
            name="indices",
            shape=self._setup.array_shapes()["output.indices"],
            dtype=np.dtype(index_dtype(read)).name,
            initializer=draw_indices,
            trainable=False,
        )
        # No autocast: the op reads the weights in their own precision.
        self.kernel = self.add_weight(
            name="kernel",
            shape=connections,
            initializer=draw_kernel,
            regularizer=self.kernel_regularizer,
            autocast=False,
        )
        self.bias = None
        if self.use_bias:
            self.bias = self.add_weight(
                name="bias", shape=(self.labels,), initializer=self.bias_initializer, autocast=False
            )
        self._add_order()
        self._add_features()
        super().build(input_shape)

    @property
    def _feature_type(self) -> str:
        return "float64" if self.variable_dtype == "float64" else "float32"

    def call(self, inputs: Any) -> tf.Tensor:
        return self._scores(inputs)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "labels": self.labels,
            "fan_in": self.fan_in,
            "use_bias": self.use_bias,
            "seed": self.seed,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
            "bias_initializer": keras.initializers.serialize(self.bias_initializer),
            "kernel_regularizer": keras.regularizers.serialize(self.kernel_regularizer),
            "recipe": self.recipe,
            "group_size": self.group_size,
            "threads": self.threads,
        }

    def rewire(
        self,
        fraction: float,
        optimizer: keras.optimizers.Optimizer | None = None,
        rng: np.random.Generator | int | None = None,
    ) -> int:
        """Give the `fraction` of connections with the smallest |weight| new random inputs.

        Weights keep their value (see `fanin.backends.arrays.plan_rewiring`). An optimizer's moments
        of a moved connection belong to its old input: hand over the `optimizer` that trains this
        layer, and they start again (Adam's at 0), while an average of weights (`use_ema`) takes
        the weight. rng: a generator or a seed.

        Returns how many connections moved. Where labels share their sources, sources are compared,
        by the mean |weight| of their group, and sources are counted. Raises ValueError where
        fraction is not in [0, 1), the layer is not built, the optimizer trains other layers only,
        or is not Keras' own.
        """
        self._check_built("rewire")
        fraction = checks.fraction(fraction)
        resets = [] if optimizer is None else resets_of(optimizer, self.kernel)
        read = self._setup.output_inputs
        magnitudes = self._kind.source_magnitudes(self.kernel.numpy())
        plan = plan_rewiring(magnitudes, fraction, read, drawn_seed(rng))
        return self._move(plan, resets)

    def rewire_towards_gradients(
        self,
        features: Any,
        labels: Any,
        fraction: float = 0.2,
        optimizer: keras.optimizers.Optimizer | None = None,
        *,
        loss: Loss = "bce",
        rng: np.random.Generator | int | None = None,
    ) -> int:
        """Move the `fraction` of each label's connections with the smallest |weight| to the inputs
        whose weight would change most; their new weight is 0.

        features, labels: the training data, as in `start_from`. optimizer, rng, and what is
        returned: as in `rewire`. loss: what the layer is trained with, "bce" or "squared_hinge".
        See `fanin.backends.gradients.plan_towards_gradients`. Raises ValueError for others.
        """
        self._check_built("rewire")
        resets = [] if optimizer is None else resets_of(optimizer, self.kernel)
        return self._rewire_towards_gradients(features, labels, fraction, rng, loss, resets)
