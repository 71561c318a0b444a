"""The harness's trainer in TensorFlow: one model, its Adam state, one tf.function per step.

Everything here is TensorFlow's own except the fixed fan-in op. Dense and unstructured outputs are
the baselines, so how TensorFlow does them is the result and nothing about them is improved.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping

import numpy as np
import tensorflow as tf

from fanin.backends.arrays import Rewiring, check_arrays, checked, copied, plan_rewiring
from fanin.backends.fused import FusedTrainer
from fanin.backends.interface import ADAM_BETAS, ADAM_EPSILON, OnStep, Storage, TrainingBatch
from fanin.backends.setup import FixedFanIn, LayerSetup, index_dtype
from fanin.backends.tensorflow.devices import TensorFlowDevice
from fanin.backends.tensorflow.fused import TensorFlowEngine, top_k
from fanin.backends.tensorflow.losses import LOSSES
from fanin.backends.tensorflow.ops import fan_in_linear
from fanin.backends.trainer import Losses

# Scores of one evaluation block at most; larger blocks are split.
_SCORES_BYTES = 256 << 20

_TRAINED = ("intermediate.weights", "intermediate.bias", "output.weights", "output.bias")


def make(
    setup: LayerSetup,
    arrays: Mapping[str, np.ndarray],
    *,
    device: str = "auto",
    threads: int = 0,
) -> TensorFlowTrainer:
    """The trainer of `setup`, starting from `arrays` (copied).

    device: "cpu", "cuda", or "auto" for a GPU when there is one; RuntimeError where TensorFlow sees
    no GPU and "cuda" was asked for. threads: CPU threads of an operation, 0 for all; TensorFlow
    takes the number only before its first operation in a process.
    """
    return TensorFlowTrainer(setup, arrays, TensorFlowDevice(device, threads), threads)


def make_fused(
    setup: LayerSetup,
    arrays: Mapping[str, np.ndarray],
    storage: Storage,
    *,
    device: str = "auto",
    threads: int = 0,
) -> FusedTrainer:
    """See `make`, and `fanin.backends.interface.make_trainer`."""
    engine = TensorFlowEngine(TensorFlowDevice(device, threads), threads)
    return FusedTrainer(setup, arrays, engine, storage)


class TensorFlowTrainer:
    """See `fanin.backends.interface.Trainer`."""

    def __init__(
        self,
        setup: LayerSetup,
        arrays: Mapping[str, np.ndarray],
        device: TensorFlowDevice,
        threads: int,
    ) -> None:
        self.setup = setup
        self.device = device
        self._threads = threads
        self._steps = 0
        self._loss = LOSSES[setup.loss]
        with device.scope():
            self._trained: dict[str, tf.Variable] = {}
            connections: dict[str, np.ndarray] = {}
            for name, array in checked(setup, arrays):
                if name in _TRAINED:
                    self._trained[name] = tf.Variable(np.asarray(array, np.float32), name=name)
                else:
                    connections[name] = array
            # Adam's first and second moments.
            self._moments = {
                name: (tf.Variable(tf.zeros_like(array)), tf.Variable(tf.zeros_like(array)))
                for name, array in self._trained.items()
            }
            # Where the connections are: indices [labels, fan_in] of a fixed fan-in layer, or pairs
            # (row, column) as a tf.SparseTensor wants them.
            self._connections: tf.Variable | None = None
            if setup.is_rewired:
                self._connections = tf.Variable(
                    self._connections_from(connections), trainable=False
                )
        # Compiled once for all sizes: a smaller last batch does not trace anew.
        features = tf.TensorSpec([None, setup.inputs], tf.float32)
        self._step_function = tf.function(
            self._step,
            input_signature=[
                features,
                tf.TensorSpec([None], tf.int32),
                tf.TensorSpec([None], tf.int64),
                tf.TensorSpec([], tf.float32),
            ],
        )
        self._top_k_function = tf.function(
            self._top_k, input_signature=[features, tf.TensorSpec([], tf.int32)]
        )

    # Training -----------------------------------------------------------------------------------

    def train(
        self, batches: Iterable[TrainingBatch], learning_rate: float, on_step: OnStep | None = None
    ) -> np.ndarray:
        """One step per batch, in order; the losses, float64 [steps]."""
        losses = Losses(self.device, self._steps + 1)
        for batch in batches:
            step_size = self._step_size(learning_rate, self._steps + 1)
            positives = (batch.positive_instances, batch.positive_labels)
            loss = self._step_function(batch.features, *positives, step_size)
            self._steps += 1  # a step that was refused does not count
            losses.add(loss)
            if on_step is not None:
                on_step(loss)
        return losses.all()

    def _step_size(self, learning_rate: float, step: int) -> tf.Tensor:
        """Adam's learning rate with its bias correction, which needs more digits than float32 has,
        for the betas that the op sees: 1 - float32(0.999) is 1.3e-5 (relative) off 0.001."""
        beta1, beta2 = (float(np.float32(beta)) for beta in ADAM_BETAS)
        correction = math.sqrt(1 - beta2**step) / (1 - beta1**step)
        return tf.constant(learning_rate * correction, tf.float32)

    def _step(
        self, features: tf.Tensor, rows: tf.Tensor, labels: tf.Tensor, step_size: tf.Tensor
    ) -> tf.Tensor:
        with self.device.scope():
            with tf.GradientTape() as tape:
                scores = self._scores(features)
            loss, scores_gradient = self._loss(scores, rows, labels)
            gradients = tape.gradient(
                scores, list(self._trained.values()), output_gradients=scores_gradient
            )
            # An update is in place only when nobody reads the array any more; TensorFlow would
            # otherwise copy it. So all gradients first.
            with tf.control_dependencies(gradients):
                for name, gradient in zip(self._trained, gradients, strict=True):
                    self._apply_adam(name, gradient, step_size)
            return loss

    def _apply_adam(self, name: str, gradient: tf.Tensor, step_size: tf.Tensor) -> None:
        # In place: m += (1 - beta1) (g - m); v += (1 - beta2) (g^2 - v);
        # w -= lr sqrt(1 - beta2_power) / (1 - beta1_power) m / (sqrt(v) + epsilon).
        m, v = self._moments[name]
        tf.raw_ops.ResourceApplyAdam(
            var=self._trained[name].handle,
            m=m.handle,
            v=v.handle,
            beta1_power=0.0,  # the correction is in the step size already
            beta2_power=0.0,
            lr=step_size,
            beta1=ADAM_BETAS[0],
            beta2=ADAM_BETAS[1],
            epsilon=ADAM_EPSILON,
            grad=gradient,
        )

    def _sources(self, x: tf.Tensor) -> tf.Tensor:
        """What the output layer reads: the features, or the intermediate units."""
        if not self.setup.intermediate:
            return x
        weights, bias = self._trained["intermediate.weights"], self._trained["intermediate.bias"]
        return tf.nn.relu(tf.matmul(x, weights) + bias)

    def _scores(self, features: tf.Tensor) -> tf.Tensor:
        """features [batch, inputs] -> scores [batch, labels]."""
        x = self._sources(features)
        weights, bias = self._trained["output.weights"], self._trained["output.bias"]
        if self._connections is None:
            return tf.matmul(x, weights) + bias
        if isinstance(self.setup.output, FixedFanIn):
            return fan_in_linear(x, self._connections, weights, bias, threads=self._threads)
        shape = (self.setup.labels, self.setup.output_inputs)
        matrix = tf.SparseTensor(self._connections, tf.convert_to_tensor(weights), shape)
        product = tf.sparse.sparse_dense_matmul(matrix, x, adjoint_b=True)
        return tf.transpose(product) + bias

    # Asking -------------------------------------------------------------------------------------

    def top_k(self, features: np.ndarray, k: int) -> np.ndarray:
        """Ids of the k highest scored labels, int64 [instances, k], best first."""
        self.setup.check_k(k)
        rows = max(1, _SCORES_BYTES // (4 * self.setup.labels))
        ids = np.empty((len(features), k), np.int64)
        for first in range(0, len(features), rows):
            some = slice(first, first + rows)
            ids[some] = self._top_k_function(features[some], k).numpy()
        return ids

    def _top_k(self, features: tf.Tensor, k: tf.Tensor) -> tf.Tensor:
        with self.device.scope():
            if not isinstance(self.setup.output, FixedFanIn):
                return tf.math.top_k(self._scores(features), k).indices  # ties: the lower id first
            # fanin's own layer is asked without making its scores.
            connections = {"indices": self._connections}
            weights, bias = self._trained["output.weights"], self._trained["output.bias"]
            asked = self._sources(features)
            return top_k(asked, connections, weights, bias, k, threads=self._threads)[1]

    # Arrays -------------------------------------------------------------------------------------

    def array(self, name: str) -> np.ndarray:
        """A copy of one array of `LayerSetup.array_shapes`."""
        self.setup.check_name(name)
        held = self._trained.get(name, self._connections)
        assert held is not None
        array: np.ndarray = held.numpy()  # a copy
        if name in ("output.rows", "output.columns"):
            return np.array(array[:, 0 if name == "output.rows" else 1], np.int32)
        return array

    def arrays(self) -> Iterator[tuple[str, np.ndarray]]:
        """All arrays, one after the other."""
        return ((name, self.array(name)) for name in self.setup.array_shapes())

    def weights(self) -> dict[str, np.ndarray]:
        """A copy of all arrays."""
        return copied(self.arrays())

    def load_weights(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Take over all arrays; the optimiser's state stays."""
        check_arrays(self.setup, arrays)
        for name, variable in self._trained.items():
            variable.assign(np.asarray(arrays[name], np.float32))
        if self._connections is not None:
            self._connections.assign(self._connections_from(arrays))

    def apply_rewiring(self, rewiring: Rewiring) -> None:
        """Move connections; their moments become 0."""
        positions, sources = rewiring.positions, rewiring.sources
        self.setup.check_rewired()
        assert self._connections is not None
        # By way of the host: seldom done, and TensorFlow scatters integers on a CPU only.
        connections = self._connections.numpy()
        if isinstance(self.setup.output, FixedFanIn):
            connections.reshape(-1)[positions] = sources
        else:
            connections[positions, 1] = sources
        self._connections.assign(connections)
        with self.device.scope():
            shape = self._trained["output.weights"].shape
            where = np.stack(np.unravel_index(positions, shape), axis=1)
            for moment in self._moments["output.weights"]:
                moment.scatter_nd_update(where, tf.zeros(len(positions)))

    def rewire(self, fraction: float, seed: int) -> int:
        """Rewire the connections of smallest |weight|; how many moved."""
        self.setup.check_rewired()
        weights = self.array("output.weights")
        plan = plan_rewiring(weights, fraction, self.setup.output_inputs, seed)
        self.apply_rewiring(plan)
        return len(plan.positions)

    def _connections_from(self, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        if isinstance(self.setup.output, FixedFanIn):
            return np.asarray(arrays["output.indices"], index_dtype(self.setup.output_inputs))
        return np.stack([arrays["output.rows"], arrays["output.columns"]], axis=1).astype(np.int64)

    def _named_moments(self) -> dict[str, tf.Variable]:
        return {
            f"{name}.{moment}": variable
            for name, pair in self._moments.items()
            for moment, variable in zip("mv", pair, strict=True)
        }

    def optimizer_arrays(self) -> Iterator[tuple[str, np.ndarray]]:
        """Adam's moments, `<name>.m` and `<name>.v`, then the number of `steps`."""
        for name, variable in self._named_moments().items():
            yield name, variable.numpy()
        yield "steps", np.array(self._steps, np.int64)

    def load_optimizer_arrays(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Take over what `optimizer_arrays` gave."""
        for name, variable in self._named_moments().items():
            variable.assign(np.asarray(arrays[name], np.float32))
        self._steps = int(arrays["steps"])

    # Measuring ----------------------------------------------------------------------------------

    def state_bytes(self) -> tuple[int, int]:
        """Bytes of the parameters (connections as held here included), of the optimiser state."""

        def size(variables: Iterable[tf.Variable]) -> int:
            return sum(v.shape.num_elements() * v.dtype.size for v in variables)

        connections = [] if self._connections is None else [self._connections]
        moments = self._named_moments().values()
        return size([*self._trained.values(), *connections]), size(moments)
