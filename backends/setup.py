"""What a model is: `LayerSetup`."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from fanin.backends import checks
from fanin.backends.drawing import filled_blocks, glorot_blocks, joined_blocks
from fanin.backends.features import DICTIONARY, SCALE, inputs_as_atoms
from fanin.backends.kinds import (
    ConnectionKind,
    IndexArray,
    Operations,
    Part,
    Shapes,
)
from fanin.backends.label_order import check_order

Loss = Literal["squared_hinge", "bce"]


@dataclass(frozen=True)
class LayerSetup:
    """One model: `features -> [dense layer of `intermediate` units, ReLU] -> output layer`.

    inputs, labels: counts. output: how the labels are connected, to the intermediate units where
    there are some and else to the features. scaled: whether the features are multiplied by numbers
    of the model, one an input, before anything else; atoms: of a dictionary with which they are
    multiplied then, None for none (`features`). sparse_features: whether the model reads CSR
    features, which are never made dense: the intermediate layer, which such a model must have, adds
    up the rows of its weights for the words of an instance (`sparse`).
    Raises ValueError for sizes that make no model.
    """

    inputs: int
    labels: int
    output: ConnectionKind
    intermediate: int | None = None
    loss: Loss = "squared_hinge"
    scaled: bool = False
    atoms: int | None = None
    sparse_features: bool = False

    def __post_init__(self) -> None:
        if self.inputs < 1 or self.labels < 1:
            raise ValueError(f"a layer needs inputs and labels, got {self.inputs}, {self.labels}")
        if self.intermediate is not None:
            checks.whole("intermediate", self.intermediate, 1)
        if self.atoms is not None:
            checks.whole("atoms", self.atoms, 1)
        if self.sparse_features:
            checks.sparse_features(type(self.output).__name__, self.intermediate, self.atoms)
        self.output.check(self.output_inputs)
        self.output.parts(self.labels)

    @property
    def first_inputs(self) -> int:
        """How many numbers the first layer reads: the atoms of the dictionary, or else the
        features."""
        return self.atoms or self.inputs

    @property
    def output_inputs(self) -> int:
        """How many inputs the output layer reads: the intermediate units, or else what the first
        layer reads."""
        return self.intermediate or self.first_inputs

    @property
    def parts(self) -> tuple[Part, ...]:
        """The output layers, in the order of their labels' positions; most models have one."""
        return self.output.parts(self.labels)

    def layer_setup(self, part: Part) -> LayerSetup:
        """A model of one of several output layers alone."""
        if part.kind is self.output:
            return self
        return LayerSetup(self.output_inputs, part.labels, part.kind, loss=self.loss)

    @property
    def rewired_parts(self) -> tuple[Part, ...]:
        """The output layers with connections that can be rewired."""
        return tuple(part for part in self.parts if part.source_array)

    @property
    def is_rewired(self) -> bool:
        return bool(self.rewired_parts)

    @property
    def chosen_parts(self) -> tuple[Part, ...]:
        """The output layers whose connections the data can choose, see `check_chosen`."""
        return () if self.intermediate else tuple(part for part in self.parts if part.kind.fan_in)

    @property
    def lazily_trained(self) -> frozenset[str]:
        """Names of the arrays whose rows are words: in a step of training only the rows of words
        that occur in the batch are read and updated."""
        return frozenset({"intermediate.weights"} if self.sparse_features else ())

    def check_rewired(self) -> tuple[Part, ...]:
        """The output layers that are rewired; ValueError where none can be."""
        if not self.rewired_parts:
            raise ValueError(f"{type(self.output).__name__} has no connections to rewire")
        return self.rewired_parts

    def check_chosen(self) -> None:
        """ValueError where connections cannot be chosen by the data: where labels do not read a
        fixed number of features."""
        if not self.chosen_parts:
            raise ValueError(
                "connections are chosen by the data in a fixed fan-in layer that reads features, "
                f"not in {type(self.output).__name__}"
                + (f" above {self.intermediate} intermediate units" if self.intermediate else "")
            )

    def check_float8(self) -> None:
        """ValueError where weights cannot be in float8: where labels do not read a fixed number of
        features. A dense layer's rows have too many weights for one scale, and a step of any other
        kind does not pass over a label's weights as a whole."""
        if not self.output.fan_in or self.intermediate:
            raise ValueError(
                "weights in float8 are for a fixed fan-in layer that reads features, not for "
                f"{type(self.output).__name__}"
                + (f" above {self.intermediate} intermediate units" if self.intermediate else "")
                + "; use float32 or bfloat16"
            )

    def check_k(self, k: int) -> None:
        """ValueError where there are no k best labels."""
        checks.best(k, self.labels)

    def check_name(self, name: str) -> None:
        """KeyError for an array that is none of `array_shapes`."""
        if name not in self.array_shapes():
            raise KeyError(f"{name!r} is none of {', '.join(self.array_shapes())}")

    def array_shapes(self) -> Shapes:
        """Names and shapes of all arrays of the model, in the order of the data flow.

        `features.scale` is [inputs], `features.dictionary` [inputs, atoms], `intermediate.weights`
        [inputs or atoms, intermediate]; the kind of connection tells the arrays of the output
        layer, but for `output.bias` [labels].
        """
        shapes = self._transform_shapes()
        if self.intermediate:
            shapes["intermediate.weights"] = (self.first_inputs, self.intermediate)
            shapes["intermediate.bias"] = (self.intermediate,)
        shapes |= self.output.array_shapes(self.output_inputs, self.labels)
        if len(self.parts) == 1:  # several have their own
            shapes["output.bias"] = (self.labels,)
        return shapes

    def _transform_shapes(self) -> Shapes:
        shapes: Shapes = {}
        if self.scaled:
            shapes[SCALE] = (self.inputs,)
        if self.atoms:
            shapes[DICTIONARY] = (self.inputs, self.atoms)
        return shapes

    def index_arrays(self) -> dict[str, IndexArray]:
        """The arrays of `array_shapes` that say where connections are and which label stands where;
        all others but those of the features are trained."""
        return self.output.index_arrays(self.output_inputs, self.labels)

    def initial_array(self, name: str, seed: int) -> np.ndarray:
        """The values that an array starts with. Scale and dictionary change nothing: the atoms
        are the inputs, over and over. Biases are 0, intermediate weights Glorot-uniform; the kind
        of connection tells the others.

        Weights that read sparse features are uniform within sqrt(3 / units), a variance of
        1 / units, whatever the number of words. An instance has few words, and as TF-IDF it has a
        norm of 1. Its outputs before ReLU then have a norm of 1 on average, as in a random
        projection, which keeps distances (Johnson & Lindenstrauss, 1984). Glorot's
        sqrt(6 / (inputs + units)) is for inputs that are all present, each of variance 1.
        """
        blocks = self.initial_blocks(name, seed)
        return joined_blocks(self.array_shapes()[name], blocks)

    def initial_blocks(self, name: str, seed: int) -> Iterable[np.ndarray]:
        """`initial_array` in blocks along its first axis, the large arrays without ever holding
        the whole."""
        self.check_name(name)
        shape = self.array_shapes()[name]
        if name == SCALE:
            return (np.ones(shape, np.float32),)
        if name == DICTIONARY:
            return (inputs_as_atoms(self.inputs, shape[1]),)
        # A generator per array: adding a layer does not change the numbers of another.
        names = [each for each in self.array_shapes() if each not in self._transform_shapes()]
        rng = np.random.default_rng([seed, names.index(name)])
        if name.endswith("bias"):
            return filled_blocks(shape, 0)
        if name == "intermediate.weights":
            fans = 2 * shape[1] if self.sparse_features else None
            return glorot_blocks(rng, shape, fans)
        return self.output.initial_blocks(name, self.output_inputs, self.labels, rng)

    def check_array(self, name: str, array: np.ndarray) -> None:
        """ValueError where this is not an array of that name: shape, type, range, order."""
        shape = self.array_shapes()[name]
        if array.shape != shape:
            raise ValueError(f"{name} must be {list(shape)}, got {list(array.shape)}")
        if name == SCALE and not (np.isfinite(array) & (array > 0)).all():
            raise ValueError(f"{name} must be finite and above 0")
        if name == DICTIONARY and not np.isfinite(array).all():
            raise ValueError(f"{name} must be finite")
        index_array = self.index_arrays().get(name)
        if index_array is None:
            return
        if not np.issubdtype(array.dtype, np.integer):
            raise ValueError(f"{name} must be integers, got {array.dtype}")
        if array.size:
            low, high, limit = int(array.min()), int(array.max()), index_array.limit
            if low < 0 or high >= limit:
                raise ValueError(
                    f"{name} has values {low} to {high}; they must be in 0..{limit - 1}"
                )
        if index_array.ascends and (array[1:] < array[:-1]).any():
            raise ValueError(f"{name} must ascend: the connections of a label stand together")
        if index_array.is_order:
            check_order(name, array)

    def connections(self, operations: Operations | None = None) -> int:
        """How many weights the output layers have; of those alone that a framework computes by
        these operations."""
        return sum(
            self.count(part.weights)
            for part in self.parts
            if operations in (None, part.kind.operations)
        )

    def count(self, name: str) -> int:
        """How many values an array has; 0 where the model has none of that name."""
        return math.prod(self.array_shapes().get(name, (0,)))
