"""fanin in TensorFlow for the conformance tests: NumPy in, NumPy out."""

from __future__ import annotations

import keras
import numpy as np
import tensorflow as tf

from fanin.backends.tensorflow import FixedFanIn, FusedFanIn, fan_in_linear
from fanin.backends.tensorflow.losses import LOSSES

# float32 products of float32 numbers, as on a CPU.
tf.config.experimental.enable_tensor_float_32_execution(False)


class Adapter:
    """data_error: what a number in the data raises that cannot be used, on a CPU. ways: whether
    functions are traced. load_error: what a saved layer raises that does not fit. The rest is how
    errors are worded in TensorFlow."""

    data_error = tf.errors.InvalidArgumentError
    load_error = ValueError
    ways = (False, True)
    not_trained = "Adam does not train .*/kernel"

    def type_text(self, name):
        return name

    def shape_text(self, shape):
        return str(tuple(shape))

    def width_text(self, inputs, shape, *, called=False):
        """called: of a layer that is called, not one of its methods: then it is Keras's."""
        return "expected axis -1" if called else f"inputs must be [batch, {inputs}], got {shape}"

    def __init__(self, device):
        self.device = {"cpu": "/CPU:0", "cuda": "/GPU:0"}[device]

    def scope(self):
        return tf.device(self.device)

    def tensor(self, array):
        with self.scope():
            return None if array is None else tf.constant(array)

    def op(self, features, indices, weights, bias=None, *, traced=False):
        arguments = [self.tensor(each) for each in (features, indices, weights, bias)]
        run = tf.function(fan_in_linear) if traced else fan_in_linear
        with self.scope():
            return run(*arguments).numpy()

    def op_gradients(self, arrays, grad, *, traced=False, group_size=0):
        """Scores, and the gradients of features, weights and bias (if there is one)."""
        features, indices, weights, bias = map(self.tensor, arrays)
        wanted = [each for each in (features, weights, bias) if each is not None]

        def scores_and_gradients():
            with tf.GradientTape() as tape:
                tape.watch(wanted)
                scores = fan_in_linear(features, indices, weights, bias, group_size=group_size)
            return scores, tape.gradient(scores, wanted, output_gradients=tf.constant(grad))

        run = tf.function(scores_and_gradients) if traced else scores_and_gradients
        with self.scope():
            scores, gradients = run()
        return scores.numpy(), [gradient.numpy() for gradient in gradients]

    def loss(self, name, scores, positive_instances, positive_labels):
        """A loss, and its gradient by the scores."""
        positives = (positive_instances.astype(np.int32), positive_labels.astype(np.int64))
        loss, gradient = LOSSES[name](self.tensor(scores), *positives)
        return loss.numpy(), gradient.numpy()

    def fixed_layer(self, *sizes, **options):
        return FixedLayer(self, *sizes, **options)

    def fused_layer(self, *sizes, **options):
        return FusedLayer(self, *sizes, **options)


class Built:
    """A Keras layer with its variables."""

    adapter: Adapter
    layer: keras.layers.Layer

    def build(self, inputs):
        with self.adapter.scope():
            self.layer.build((None, inputs))

    def __call__(self, features):
        with self.adapter.scope():
            return self.layer(self.adapter.tensor(features)).numpy()

    def start_from(self, *arguments, **options):
        with self.adapter.scope():
            self.layer.start_from(*arguments, **options)

    def rewire_towards_gradients(self, *arguments, **options):
        with self.adapter.scope():
            return self.layer.rewire_towards_gradients(*arguments, **options)

    def feature_arrays(self):
        """The scale and the dictionary of the features, those that there are."""
        arrays = [self.layer.feature_scale, self.layer.feature_dictionary]
        return [array.numpy() for array in arrays if array is not None]

    def model(self):
        """The layer alone, as Keras saves it."""
        return keras.Sequential([keras.Input((self.layer.input_spec.axes[-1],)), self.layer])

    def save(self, folder):
        self.model().save_weights(folder / "layer.weights.h5")

    def load(self, folder):
        self.model().load_weights(folder / "layer.weights.h5")


class FixedLayer(Built):
    """`FixedFanIn`."""

    def __init__(
        self, adapter, inputs, labels, fan_in, *, seed=None, dtype="float32", bias=True, **more
    ):
        self.adapter = adapter
        self.layer = FixedFanIn(labels, fan_in, seed=seed, dtype=dtype, use_bias=bias, **more)
        if seed is not None:
            initializer = keras.initializers.GlorotUniform(seed=seed)
            self.layer.kernel_initializer = initializer
        self.build(inputs)

    @property
    def indices(self):
        return self.layer.indices.numpy()

    @property
    def order(self):
        return self.layer.order.numpy()

    @property
    def weights(self):
        return self.layer.kernel.numpy()

    @property
    def bias(self):
        return self.layer.bias.numpy()

    def rewire(self, *arguments, **options):
        return self.layer.rewire(*arguments, **options)

    def adam(self, *, untrained=False):
        """An optimizer of this layer; untrained: before its first step."""
        optimizer = keras.optimizers.Adam()
        if not untrained:
            features = np.random.default_rng(0).standard_normal((5, self.layer.input_spec.axes[-1]))
            with self.adapter.scope(), tf.GradientTape() as tape:
                loss = tf.reduce_sum(self.layer(tf.constant(features, tf.float32)) ** 2)
            variables = self.layer.trainable_variables
            optimizer.apply(tape.gradient(loss, variables), variables)
        return optimizer

    def other_adam(self):
        """An optimizer that does not train this layer."""
        other, adam = FixedFanIn(50, 8), keras.optimizers.Adam(name="Adam")
        other.build((None, 20))
        adam.build(other.trainable_variables)
        return adam

    def moments(self, optimizer):
        shape = self.layer.kernel.shape
        return [v.numpy() for v in optimizer.variables if v.shape == shape]

    def learn(self, features, targets):
        """Train it behind a dense layer; the share of instances whose target is the best label."""
        dense = keras.layers.Dense(self.layer.input_spec.axes[-1], "relu")
        model = keras.Sequential([keras.Input((features.shape[1],)), dense, self.layer])
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.Adam(1e-2), loss)
        # One epoch of 200 steps: an epoch of Keras takes longer than such a step.
        features_of_all, targets_of_all = np.tile(features, (200, 1)), np.tile(targets, 200)
        batch = {"batch_size": len(features), "shuffle": False}
        model.fit(features_of_all, targets_of_all, **batch, verbose=0)
        return (model.predict(features, verbose=0).argmax(1) == targets).mean()


# The names of variables in the conformance tests, and in Keras.
NAMES = {
    **{"indices": "indices", "weights": "kernel", "weights_m": "kernel_m"},
    **{"weights_v": "kernel_v", "bias": "bias", "bias_m": "bias_m", "bias_v": "bias_v"},
    **{"steps": "steps", "order": "order"},
}


class FusedLayer(Built):
    """`FusedFanIn`."""

    def __init__(
        self,
        adapter,
        inputs,
        labels,
        fan_in,
        *,
        seed=None,
        dtype="float32",
        moments="float32",
        **more,
    ):
        self.adapter = adapter
        options = {"kernel_dtype": dtype, "moments_dtype": moments, "seed": seed, **more}
        self.layer = FusedFanIn(labels, fan_in, **options)
        self.build(inputs)

    def loss(self, method, features, positive_instances, positive_labels, *, traced=False):
        ask = getattr(self.layer, method)
        with self.adapter.scope():
            run = tf.function(ask) if traced else ask
            return float(run(self.adapter.tensor(features), positive_instances, positive_labels))

    def loss_and_gradient(
        self, method, features, positive_instances, positive_labels, *, traced=False
    ):
        """The loss times 3, and its gradient by the features."""

        def step(x):
            with tf.GradientTape() as tape:
                tape.watch(x)
                loss = 3 * getattr(self.layer, method)(x, positive_instances, positive_labels)
            return loss, tape.gradient(loss, x)

        with self.adapter.scope():
            loss, gradient = (tf.function(step) if traced else step)(self.adapter.tensor(features))
        return float(loss), gradient.numpy()

    def top_k(self, features, k):
        with self.adapter.scope():
            values, ids = self.layer.top_k(self.adapter.tensor(features), k)
        return values.numpy(), ids.numpy()

    def rewire(self, *arguments):
        return self.layer.rewire(*arguments)

    def arrays(self):
        def numpy(variable):
            array = np.asarray(variable.numpy())
            return array.astype(np.float32) if array.dtype.name == "bfloat16" else array

        arrays = {name: getattr(self.layer, own) for name, own in NAMES.items()}
        return {name: numpy(array) for name, array in arrays.items() if array is not None}

    @property
    def learning_rate(self):
        return float(self.layer.learning_rate)

    @learning_rate.setter
    def learning_rate(self, value):
        self.layer.learning_rate = value

    def trained_by_optimizers(self):
        return self.layer.trainable_variables
