"""The autograd execution in TensorFlow; a step is one tf.function.

Everything here is TensorFlow's own except the fixed fan-in op. Dense and unstructured outputs are
the baselines, so how TensorFlow does them is the result and nothing about them is improved.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, SupportsFloat

import numpy as np
import tensorflow as tf

from fanin.backends.autograd import AutogradExecutor, Output
from fanin.backends.auxiliary import CLUSTER_LAYER, AuxiliaryStep
from fanin.backends.interface import Features, TrainingBatch
from fanin.backends.kinds import ORDER, Dense, FixedFanIn, GroupedFanIn, Part, Unstructured
from fanin.backends.optimizer import ADAM_BETAS, ADAM_EPSILON, Optimizer, is_decayed
from fanin.backends.setup import LayerSetup
from fanin.backends.sparse import ByInstance, by_instance
from fanin.backends.tensorflow.device import TensorFlowDevice
from fanin.backends.tensorflow.linear import fan_in_linear
from fanin.backends.tensorflow.losses import LOSSES
from fanin.backends.tensorflow.ops import ops, rewire, top_k
from fanin.backends.trainer import Trained

# As TensorFlow's ops see them.
_BETAS = tuple(float(np.float32(beta)) for beta in ADAM_BETAS)


class TensorFlowOutput(Output):
    """Takes the best labels from the scores of all."""

    device: TensorFlowDevice

    def best(
        self, features: tf.Tensor, weights: tf.Variable, bias: tf.Variable, k: tf.Tensor
    ) -> tf.Tensor:
        scores = self.scores(features, weights, bias)
        return tf.math.top_k(scores, k).indices  # ties: the lower id first


class DenseOutput(TensorFlowOutput):
    """TensorFlow's own matrix product."""

    def scores(self, features: tf.Tensor, weights: tf.Variable, bias: tf.Variable) -> tf.Tensor:
        return tf.matmul(features, weights) + bias


class FanInOutput(TensorFlowOutput):
    """fanin's own op, which is asked for the best labels without making its scores. Where labels
    have an order, scores are by position."""

    def set_connections(self, name: str, array: np.ndarray) -> None:
        ops()  # now: an error while tracing would be shown together with all code that is traced
        super().set_connections(name, array)

    def scores(self, features: tf.Tensor, weights: tf.Variable, bias: tf.Variable) -> tf.Tensor:
        return fan_in_linear(features, self.sources(), weights, bias, **self._numbers())

    def best(
        self, features: tf.Tensor, weights: tf.Variable, bias: tf.Variable, k: tf.Tensor
    ) -> tf.Tensor:
        connections = {"indices": self.sources()}
        if ORDER in self.arrays:
            connections["label_ids"] = self.arrays[ORDER]
        return top_k(features, connections, weights, bias, k, **self._numbers())[1]

    def _numbers(self) -> dict[str, int]:
        return {"group_size": self.setup.output.group_size, "threads": self.device.threads}

    def sources(self) -> tf.Variable:
        return self.arrays["output.indices"]


class SparseOutput(TensorFlowOutput):
    """TensorFlow's own sparse operations, whose tf.SparseTensor wants pairs (label, source)."""

    _COLUMNS: ClassVar = {"output.rows": 0, "output.columns": 1}

    def set_connections(self, name: str, array: np.ndarray) -> None:
        if "pairs" not in self.arrays:
            self.arrays["pairs"] = self.device.zeros((len(array), 2), "int64")
        pairs = self.device.read(self.arrays["pairs"]).copy()
        pairs[:, self._COLUMNS[name]] = array
        self.device.write(self.arrays["pairs"], pairs)

    def connections(self, name: str) -> np.ndarray:
        pairs = self.device.read(self.arrays["pairs"])
        return np.array(pairs[:, self._COLUMNS[name]], np.int32)

    def scores(self, features: tf.Tensor, weights: tf.Variable, bias: tf.Variable) -> tf.Tensor:
        shape = (self.setup.labels, self.setup.output_inputs)
        matrix = tf.SparseTensor(self.arrays["pairs"], tf.convert_to_tensor(weights), shape)
        product = tf.sparse.sparse_dense_matmul(matrix, features, adjoint_b=True)
        return tf.transpose(product) + bias


class TensorFlowAutograd(AutogradExecutor):
    """See `fanin.backends.autograd.AutogradExecutor`."""

    outputs: ClassVar = {
        Dense: DenseOutput,
        FixedFanIn: FanInOutput,
        GroupedFanIn: FanInOutput,
        Unstructured: SparseOutput,
    }
    most_scores = 1 << 26
    device: TensorFlowDevice

    def start(self, trained: Mapping[str, Trained]) -> None:
        super().start(trained)
        # Compiled once for all sizes: a smaller last batch does not trace anew.
        features = tf.TensorSpec([None, self.setup.first_inputs], tf.float32)
        if self.setup.sparse_features:
            types = ByInstance(values=tf.float32, starts=tf.int64, columns=tf.int32)
            features = ByInstance(*(tf.TensorSpec([None], dtype) for dtype in types))
        positives = [tf.TensorSpec([None], tf.int32), tf.TensorSpec([None], tf.int64)]
        signature = [features, *positives, tf.TensorSpec([3], tf.float32)]
        self._step_function = tf.function(self._step, input_signature=signature)
        # With an auxiliary loss. Functions are traced at the first call.
        signature += [*positives, tf.TensorSpec([2], tf.float32)]
        self._auxiliary_function = tf.function(self._step, input_signature=signature)
        self._top_k_function = tf.function(
            self._top_k, input_signature=[features, tf.TensorSpec([], tf.int32)]
        )

    def step(
        self,
        batch: TrainingBatch,
        learning_rate: float,
        step: int,
        auxiliary: AuxiliaryStep | None = None,
    ) -> SupportsFloat:
        positives = (batch.positive_instances, batch.positive_labels)
        given = (_arrays(batch.features), *positives, self._step_sizes(learning_rate, step))
        if not auxiliary:
            return self.device.number(self._step_function(*given))
        pairs = (auxiliary.positive_instances, auxiliary.positive_clusters)
        numbers = tf.constant([auxiliary.weight, auxiliary.rate], tf.float32)
        return self.device.number(self._auxiliary_function(*given, *pairs, numbers))

    def _step_sizes(self, learning_rate: float, step: int) -> tf.Tensor:
        """The learning rate, of Adam with the bias corrections of m and v, and with that of v
        alone; and the share of the weights that decays. They need more digits than float32 has, for
        the betas that the op sees: 1 - float32(0.999) is 1.3e-5 (relative) off 0.001."""
        beta1, beta2 = _BETAS
        decay = learning_rate * self.optimizer.weight_decay
        if self.optimizer.kind != "adam":
            return tf.constant([learning_rate, learning_rate, decay], tf.float32)
        size = learning_rate * math.sqrt(1 - beta2**step)
        return tf.constant([size / (1 - beta1**step), size, decay], tf.float32)

    def _step(
        self,
        features: tf.Tensor | ByInstance,
        positive_instances: tf.Tensor,
        positive_labels: tf.Tensor,
        step_sizes: tf.Tensor,
        *auxiliary: tf.Tensor,
    ) -> tf.Tensor:
        """auxiliary: the arrays of an `AuxiliaryStep`, and its weight and rate; or nothing."""
        # After the end of the auxiliary loss, its layer is not trained.
        trained = {
            name: each
            for name, each in self.trained.items()
            if auxiliary or name not in CLUSTER_LAYER
        }
        values = [each.values for each in trained.values()]
        with self.device.scope():
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(values)
                outputs = self.output_features(features)
                scores = [self.scores(outputs)]
                if auxiliary:
                    weights, bias = self.values("auxiliary")
                    outputs = _with_less_gradient(outputs, auxiliary[2][0])
                    scores.append(tf.matmul(outputs, weights) + bias)
            loss, grad = LOSSES[self.setup.loss](scores[0], positive_instances, positive_labels)
            grad_scores = [grad]
            if auxiliary:
                grad_scores.append(LOSSES["bce"](scores[1], *auxiliary[:2])[1])
            gradients = tape.gradient(scores, values, output_gradients=grad_scores)
            gradients = [*map(_by_words, gradients)]
            if self.optimizer.l2:
                gradients = [
                    _with_l2(gradient, each.values, self.optimizer.l2)
                    if is_decayed(name)
                    else gradient
                    for gradient, (name, each) in zip(gradients, trained.items(), strict=True)
                ]
            # An update is in place only when nobody reads the array any more; TensorFlow would
            # otherwise copy it. So all gradients first.
            with tf.control_dependencies(tf.nest.flatten(gradients, expand_composites=True)):
                for gradient, (name, each) in zip(gradients, trained.items(), strict=True):
                    sizes = step_sizes * auxiliary[2][1] if name in CLUSTER_LAYER else step_sizes
                    if self.optimizer.weight_decay and is_decayed(name):
                        _decay(each.values, gradient, sizes[2])
                    if isinstance(gradient, tf.IndexedSlices):
                        _update_lazily(each, self.optimizer, gradient, sizes)
                    else:
                        _apply(each, self.optimizer, gradient, sizes[0])
            return loss

    def forward(self, features: tf.Tensor, weights: tf.Variable, bias: tf.Variable) -> tf.Tensor:
        return tf.nn.relu(tf.matmul(features, weights) + bias)

    def sparse_forward(
        self, features: ByInstance, weights: tf.Variable, bias: tf.Variable
    ) -> tf.Tensor:
        # tf.nn.embedding_lookup_sparse gives no outputs to a last instance without words, and the
        # gradient of tf.sparse.sparse_dense_matmul has a row for every word.
        batch = tf.size(features.starts) - 1
        instances = tf.repeat(tf.range(batch), features.starts[1:] - features.starts[:-1])
        rows = tf.gather(weights, features.columns) * features.values[:, None]
        return tf.nn.relu(tf.math.unsorted_segment_sum(rows, instances, batch) + bias)

    def joined(self, scores: list[tf.Tensor]) -> tf.Tensor:
        return tf.concat(scores, 1)

    def best(self, features: Features, k: int) -> np.ndarray:
        ids: np.ndarray = self._top_k_function(_arrays(features), k).numpy()
        return ids

    def _top_k(self, features: tf.Tensor | ByInstance, k: tf.Tensor) -> tf.Tensor:
        with self.device.scope():
            outputs = self.output_features(features)
            if len(self.parts) > 1:
                # Held as unsigned numbers, which tf.gather does not take.
                positions = tf.bitcast(self.positions, tf.int32)
                by_label = tf.gather(self.scores(outputs), positions, axis=1)
                return tf.math.top_k(by_label, k).indices  # ties: the lower id first
            return self.output.best(outputs, *self.values("output"), k)

    def rewire(self, part: Part, fraction: float, seed: int) -> int | None:
        sources, weights = self.output_of(part).sources(), self.trained[part.weights]
        if sources is None:
            return None
        state, inputs = (weights.values, weights.m, weights.v), self.setup.output_inputs
        return rewire(sources, state, inputs, fraction, seed, threads=self.device.threads)


def _with_less_gradient(outputs: tf.Tensor, weight: tf.Tensor) -> tf.Tensor:
    """The outputs as they are; their gradient is multiplied by the weight."""

    @tf.custom_gradient
    def same(outputs: tf.Tensor) -> Any:
        return tf.identity(outputs), lambda grad: weight * grad

    with_weight: tf.Tensor = same(outputs)
    return with_weight


def _arrays(features: Features) -> np.ndarray | ByInstance:
    return features if isinstance(features, np.ndarray) else by_instance(features)


def _by_words(gradient: tf.Tensor | tf.IndexedSlices) -> tf.Tensor | tf.IndexedSlices:
    """A sparse gradient with each row once."""
    if not isinstance(gradient, tf.IndexedSlices):
        return gradient
    words, place = tf.unique(gradient.indices)
    rows = tf.math.unsorted_segment_sum(gradient.values, place, tf.size(words))
    return tf.IndexedSlices(rows, words, gradient.dense_shape)


def _with_l2(
    gradient: tf.Tensor | tf.IndexedSlices, weights: tf.Variable, l2: float
) -> tf.Tensor | tf.IndexedSlices:
    """The gradient and that of l2 / 2 times the sum of the weights' squares, in the rows that a
    sparse one has."""
    if isinstance(gradient, tf.IndexedSlices):
        rows = gradient.values + l2 * tf.gather(weights, gradient.indices)
        return tf.IndexedSlices(rows, gradient.indices, gradient.dense_shape)
    return gradient + l2 * weights


def _decay(weights: tf.Variable, gradient: tf.Tensor | tf.IndexedSlices, share: tf.Tensor) -> None:
    """Takes a share of the weights away, in the rows that a sparse gradient has."""
    if isinstance(gradient, tf.IndexedSlices):
        rows = share * tf.gather(weights, gradient.indices)
        weights.scatter_sub(tf.IndexedSlices(rows, gradient.indices))
    else:
        weights.assign_sub(share * weights)


def _update_lazily(
    trained: Trained, optimizer: Optimizer, gradient: tf.IndexedSlices, step_sizes: tf.Tensor
) -> None:
    """The optimiser on the rows in the gradient; all other rows, and their moments, stay as they
    are."""
    beta1, beta2 = _BETAS
    words, change = gradient.indices, gradient.values

    def moved(moment: tf.Variable, target: tf.Tensor, beta: float) -> tf.Tensor:
        """The rows of a moment, after a step towards the target."""
        rows = tf.gather(moment, words)
        rows += (1 - beta) * (target - rows)
        moment.scatter_update(tf.IndexedSlices(rows, words))
        return rows

    size = step_sizes[1 if trained.m is None else 0]
    if optimizer.kind == "sgd":
        change *= size
    elif optimizer.kind == "momentum":
        rows = optimizer.momentum * tf.gather(trained.m, words) + change
        trained.m.scatter_update(tf.IndexedSlices(rows, words))
        change = size * rows
    else:
        if trained.m is None:
            v = moved(trained.v, tf.reduce_mean(tf.square(change), 1), beta2)[:, None]
        else:
            v = moved(trained.v, tf.square(change), beta2)
            change = moved(trained.m, change, beta1)
        change *= size / (tf.sqrt(v) + ADAM_EPSILON)
    trained.values.scatter_sub(tf.IndexedSlices(change, words))


def _apply(
    trained: Trained, optimizer: Optimizer, gradient: tf.Tensor, step_size: tf.Tensor
) -> None:
    if optimizer.kind == "sgd":
        tf.raw_ops.ResourceApplyGradientDescent(
            var=trained.values.handle, alpha=step_size, delta=gradient
        )
        return
    if optimizer.kind == "momentum":
        # In place: m = momentum m + g; w -= lr m.
        tf.raw_ops.ResourceApplyMomentum(
            var=trained.values.handle,
            accum=trained.m.handle,
            lr=step_size,
            grad=gradient,
            momentum=optimizer.momentum,
        )
        return
    # In place: m += (1 - beta1) (g - m); v += (1 - beta2) (g^2 - v);
    # w -= lr sqrt(1 - beta2_power) / (1 - beta1_power) m / (sqrt(v) + epsilon).
    tf.raw_ops.ResourceApplyAdam(
        var=trained.values.handle,
        m=trained.m.handle,
        v=trained.v.handle,
        beta1_power=0.0,  # the correction is in the step size already
        beta2_power=0.0,
        lr=step_size,
        beta1=ADAM_BETAS[0],
        beta2=ADAM_BETAS[1],
        epsilon=ADAM_EPSILON,
        grad=gradient,
    )


def make_executor(
    setup: LayerSetup, optimizer: Optimizer, *, device: str, threads: int
) -> TensorFlowAutograd:
    """See `fanin.backends.registry.make_trainer`."""
    return TensorFlowAutograd(setup, TensorFlowDevice(device, threads), optimizer)
