"""`Connected`: what both fixed fan-in layers have in common. That is their connections, and what a
recipe adds: a transform of the features, and a start from the training data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from fanin.backends import checks
from fanin.backends.arrays import Rewiring, drawn_seed
from fanin.backends.features import DICTIONARY, SCALE, FeatureTransform, inputs_as_atoms
from fanin.backends.gradients import OutputLayer, plan_for_layer
from fanin.backends.kinds import ORDER, ConnectionKind, FixedFanIn, GroupedFanIn
from fanin.backends.moments import Resets
from fanin.backends.passes import known_features
from fanin.backends.recipes import Recipe, RecipeName, recipe_of
from fanin.backends.setup import LayerSetup, Loss
from fanin.backends.starting import arrays_for_layer, atoms_of
from fanin.backends.tensorflow.linear import fan_in_linear
from fanin.backends.tensorflow.ops import top_k


class Connected(keras.layers.Layer):
    """A layer with a variable `indices` [labels, fan_in], and, where its recipe changes features,
    with `feature_scale` [inputs] and `feature_dictionary` [inputs, atoms]: labels read atoms
    then. Where labels share their sources, a variable `order` [labels] has the label at each
    position."""

    labels: int
    fan_in: int
    threads: int
    group_size: int | None = None
    order: keras.Variable | None = None
    feature_scale: keras.Variable | None = None
    feature_dictionary: keras.Variable | None = None
    own_moments: tuple[str, ...] = ()
    """Names of the variables that belong to the connections, of a layer that trains itself."""
    own_progress: tuple[str, ...] = ()
    """Names of the other variables that are 0 before the training."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.supports_masking = True  # scores of one time step know nothing of the others
        self.supports_jit = False  # else compile() would pick XLA on a GPU

    @property
    def _setup(self) -> LayerSetup:
        return self._setup_of(self.input_spec.axes[-1])

    def _setup_of(self, inputs: int) -> LayerSetup:
        plain = LayerSetup(inputs, self.labels, self._kind)
        recipe = recipe_of(self.recipe, plain)
        return replace(plain, atoms=atoms_of(recipe, inputs, self.labels, self.fan_in))

    @property
    def _kind(self) -> ConnectionKind:
        if self.group_size is None:
            return FixedFanIn(self.fan_in)
        return GroupedFanIn(self.fan_in, self.group_size)

    def _follow(self, name: RecipeName) -> Recipe:
        """Take over a recipe; ValueError for one that is none."""
        # A layer that is not built does not know its inputs; no recipe asks for them.
        recipe = recipe_of(name, LayerSetup(self.fan_in, self.labels, self._kind))
        self.recipe = name
        return recipe

    def _check_built(self, action: str) -> None:
        if not self.built:
            raise ValueError(f"the layer is not built yet, so there is nothing to {action}")

    @property
    def _feature_type(self) -> str:
        """What the layer computes in."""
        return "float32"

    def _add_features(self) -> None:
        """The variables that the recipe needs; they leave features as they are."""
        recipe, inputs = recipe_of(self.recipe, self._setup), self.input_spec.axes[-1]
        options = {"dtype": self._feature_type, "trainable": False, "autocast": False}
        if recipe.feature_scaling != "none":
            self.feature_scale = self.add_weight(
                name="feature_scale", shape=(inputs,), initializer="ones", **options
            )
        if atoms := self._setup.atoms:
            self.feature_dictionary = self.add_weight(
                name="feature_dictionary",
                shape=(inputs, atoms),
                initializer=lambda shape, dtype: tf.cast(inputs_as_atoms(*shape), dtype),
                **options,
            )

    def _add_order(self) -> None:
        """Where labels share their sources: the variable with the label at each position, at first
        its own. TensorFlow keeps int32 variables in the host's memory, so it is uint32."""
        if self.group_size is not None:
            self.order = self.add_weight(
                name="order",
                shape=(self.labels,),
                dtype="uint32",
                initializer=lambda shape, dtype: np.arange(*shape, dtype=dtype),
                trainable=False,
                autocast=False,
            )

    def _positions(self) -> tf.Tensor | None:
        """Where each label stands, int32 [labels]; None where that is its own number."""
        if self.order is None:
            return None
        # On a GPU it copies the order to the host; scatter_nd was far slower on a CPU.
        return tf.math.invert_permutation(tf.cast(self.order.value, tf.int32))

    def _connections(self) -> dict[str, Any]:
        """The connections as the ops take them."""
        connections = {"indices": self.indices.value}
        if self.order is not None:
            connections["label_ids"] = self.order.value
        return connections

    def __call__(self, inputs: Any, *args: Any, **more: Any) -> Any:
        checks.no_scipy_matrix("inputs", inputs)  # Keras would not say what to do
        return super().__call__(inputs, *args, **more)

    def _read(self, inputs: Any) -> tf.Tensor:
        """Inputs [..., inputs] in the type that the layer computes in; sparse ones are made dense.
        ValueError for what is no array of real numbers."""
        checks.no_scipy_matrix("inputs", inputs)
        if isinstance(inputs, tf.RaggedTensor):
            raise ValueError(
                "inputs must not be a tf.RaggedTensor; make it padded first (inputs.to_tensor())"
            )
        if isinstance(inputs, tf.SparseTensor):
            inputs = keras.ops.convert_to_tensor(inputs, sparse=False)
        features = tf.convert_to_tensor(inputs)
        if not (features.dtype.is_floating or features.dtype.is_integer or features.dtype.is_bool):
            raise ValueError(f"inputs must be real numbers, got {features.dtype.name}")
        return tf.cast(features, self._feature_type)

    def _scores(self, inputs: Any) -> tf.Tensor:
        """[..., labels] of inputs [..., inputs], in the policy's compute type."""
        features = self._read(inputs)
        dtype, shape = features.dtype, features.shape
        flat = features if shape.rank == 2 else tf.reshape(features, [-1, shape[-1]])
        scores = fan_in_linear(
            self._transformed(flat),
            self.indices,
            tf.cast(self.kernel, dtype),
            None if self.bias is None else tf.cast(self.bias, dtype),
            group_size=self.group_size or 0,
            threads=self.threads,
        )
        if (positions := self._positions()) is not None:
            scores = tf.gather(scores, positions, axis=1)
        if shape.rank != 2:
            scores = tf.reshape(scores, tf.concat([tf.shape(features)[:-1], [self.labels]], 0))
            scores = tf.ensure_shape(scores, [*shape[:-1], self.labels])
        return tf.cast(scores, self.compute_dtype)

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        return (*input_shape[:-1], self.labels)

    def _transformed(self, features: tf.Tensor) -> tf.Tensor:
        """Features [batch, inputs] as the labels read them."""
        if self.feature_scale is not None:
            features = features * self.feature_scale.value
        if self.feature_dictionary is not None:
            features = tf.matmul(features, self.feature_dictionary.value)
        return features

    def start_from(self, features: Any, labels: Any, *, seed: int = 0) -> None:
        """Choose scale, dictionary, connections, weights and biases by the training data, as the
        layer's recipe says, and take them over. A layer that trains itself begins anew; one that is
        not built is built.

        features: float32 [instances, inputs], a NumPy array or CSR; labels: the positives, SciPy
        sparse [instances, labels]; seed: of sources that no positive tells. ValueError for others,
        and for the recipe "paper", which does not look at data; nothing has changed then.
        """
        features = known_features(features)
        setup = self._setup if self.built else self._setup_of(features.shape[1])
        given = arrays_for_layer(
            features, labels, self.recipe, setup, seed=seed, threads=self.threads
        )
        if not self.built:
            self.build((None, setup.inputs))
        if "output.indices" in given:
            self.set_connections(given["output.indices"])
        targets = {
            ORDER: self.order,
            SCALE: self.feature_scale,
            DICTIONARY: self.feature_dictionary,
            "output.weights": self.kernel,
            "output.bias": self.bias,
        }
        for name, target in targets.items():
            if target is not None and name in given:
                target.assign(given[name])
        for name in (*self.own_moments, *self.own_progress):
            variable = getattr(self, name)
            variable.assign(tf.zeros_like(variable.value))

    def set_connections(self, indices: Any) -> None:
        """Take over the sources of all connections, integers [labels, fan_in], or [label groups,
        fan_in] where labels share them, each below the inputs, or the atoms of a dictionary: as
        `fanin.backends.choosing.choose_sources` gives them, say.

        The kernel keeps its values, and in a layer that trains itself the moments of connections
        whose source has changed become 0. ValueError for others, where nothing has changed, and for
        a layer that is not built.
        """
        if not self.built:
            raise ValueError("the layer is not built yet, so it has no connections to set")
        before = self.indices.numpy()
        sources = checks.connections(indices, before.shape, self._setup.output_inputs).astype(
            before.dtype
        )
        self.indices.assign(sources)
        moved = np.flatnonzero(sources != before)
        where = self._kind.connections_of(moved, self.labels)
        for name in self.own_moments:
            moment = getattr(self, name)
            values = np.array(moment.numpy())
            values.reshape(-1)[where] = 0
            moment.assign(values)

    def _rewire_towards_gradients(
        self,
        features: Any,
        labels: Any,
        fraction: float,
        rng: np.random.Generator | int | None,
        loss: Loss,
        resets: Resets,
    ) -> int:
        order, size = self.order, self.group_size or 0

        def best(asked: np.ndarray, k: int) -> np.ndarray:
            connections = self._connections()
            read = tf.cast(self._transformed(tf.cast(asked, self._feature_type)), tf.float32)
            numbers = {"group_size": size, "threads": self.threads}
            _, ids = top_k(read, connections, kernel, bias, k, **numbers)
            best_ids: np.ndarray = ids.numpy()
            return best_ids

        kernel = tf.cast(self.kernel.value, tf.float32)
        bias = tf.zeros(self.labels) if self.bias is None else tf.cast(self.bias.value, tf.float32)
        named = {SCALE: self.feature_scale, DICTIONARY: self.feature_dictionary}
        transform = {name: array.numpy() for name, array in named.items() if array is not None}
        layer = OutputLayer(
            indices=self.indices.numpy(),
            weights=kernel.numpy(),
            bias=bias.numpy(),
            loss=loss,
            transform=FeatureTransform.from_arrays(transform),
            top_k=best,
            group_size=size,
            order=None if order is None else np.asarray(order.numpy(), np.int32),
        )
        seed, threads = drawn_seed(rng), self.threads
        plan = plan_for_layer(
            features, labels, layer, self._setup, fraction, seed=seed, threads=threads
        )
        return self._move(plan, resets)

    def _move(self, rewiring: Rewiring, resets: Resets) -> int:
        """Give the connections their new sources, and weights where they get some, and reset what
        an optimizer keeps of them; how many moved."""
        moved = rewiring.positions
        where = self._kind.connections_of(moved, self.labels)
        weights: Any = self.kernel.numpy().reshape(-1)[where]
        changes: list[tuple[Any, np.ndarray, Any]] = [(self.indices, moved, rewiring.sources)]
        if rewiring.weight is not None:
            weights = rewiring.weight
            changes.append((self.kernel, where, weights))
        changes += [(array, where, weights if start is None else start) for array, start in resets]
        for variable, positions, new in changes:
            values = np.array(variable.numpy())
            values.reshape(-1)[positions] = new
            variable.assign(values)
        return len(moved)

    def _check_indices(self, count: int, value: Callable[[int], Any]) -> None:
        """value(i): of the i-th of `count` weights. Other numbers of them Keras refuses."""
        if not count or count != len(self.weights):
            return
        for at, variable in enumerate(self.weights):
            if variable is self.indices:
                checks.loaded_indices(value(at), self._setup.output_inputs)
            elif variable is self.order:
                self._setup.check_array(ORDER, np.asarray(value(at)))

    def set_weights(self, weights: Sequence[Any]) -> None:
        self._check_indices(len(weights), weights.__getitem__)
        super().set_weights(weights)

    def load_own_variables(self, store: Any) -> None:
        # Keras names them by their number.
        self._check_indices(len(store.keys()), lambda i: store[str(i)])
        super().load_own_variables(store)
