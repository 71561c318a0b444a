"""What a model is: `LayerSetup`, and the kinds of connection that its output layer may have.

A kind of connection is one class. It owns all that differs between kinds and that needs no
framework: the arrays, their initial values and checks, the form that the kernels read, bytes, and
what can be rewired. How a framework computes the scores of a kind stands in its `autograd.py`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from fanin.backends import checks
from fanin.backends.features import DICTIONARY, SCALE, inputs_as_atoms

Loss = Literal["squared_hinge", "bce"]
# Whose operations give the scores of a kind in the autograd execution: the framework's dense or
# sparse ones, or fanin's own op.
Operations = Literal["dense", "sparse", "fanin"]
Shapes = dict[str, tuple[int, ...]]


def index_dtype(inputs: int) -> type[np.uint16] | type[np.uint32]:
    """The narrower of the two index types that can name `inputs` sources."""
    return np.uint16 if inputs <= 65536 else np.uint32


def slot_dtype(fan_in: int) -> Literal["uint8", "uint32"]:
    """The narrower of the two types that can name the slots of a label."""
    return "uint8" if fan_in <= 256 else "uint32"


def glorot_uniform(
    rng: np.random.Generator, shape: tuple[int, ...], fans: int | None = None
) -> np.ndarray:
    """float32 values, uniform within sqrt(6 / fans); fans: by default those of a matrix, rows +
    columns (Glorot & Bengio, 2010)."""
    limit = np.sqrt(6 / (sum(shape) if fans is None else fans))
    values = rng.random(shape, np.float32)
    values *= np.float32(2 * limit)
    values -= np.float32(limit)
    return values


@dataclass(frozen=True)
class IndexArray:
    """An array of integers that says where connections are.

    dtype: its type outside. limit: its values are at least 0 and below this. argument: how the
    kernels call it (`fanin.kernels.step`), converted by `ConnectionKind.to_kernel`; kernel_dtype:
    its type there. ascends: whether its values must ascend.
    """

    dtype: str
    limit: int
    argument: Literal["indices", "starts"]
    kernel_dtype: str
    ascends: bool = False


class ConnectionKind(ABC):
    """How the labels are connected to the inputs of the output layer.

    In all methods `inputs` and `labels` are counts. Array names are those of
    `LayerSetup.array_shapes`; every kind has `output.weights`, and its other arrays say where the
    connections are.
    """

    operations: ClassVar[Operations]
    # The array with the source of each connection, in the order of the flat weights; None where
    # connections cannot be rewired.
    source_array: ClassVar[str | None] = None
    # Whether the kernels may sort the connections within tiles of labels (`fanin.h` tells why).
    is_sortable: ClassVar[bool] = False

    @abstractmethod
    def check(self, inputs: int) -> None:
        """ValueError for a kind that a layer of so many inputs cannot have."""

    @abstractmethod
    def array_shapes(self, inputs: int, labels: int) -> Shapes:
        """Names and shapes of its arrays, in the order of the data flow."""

    @abstractmethod
    def initial_array(
        self, name: str, inputs: int, labels: int, rng: np.random.Generator
    ) -> np.ndarray:
        """The values that one of its arrays starts with."""

    def index_arrays(self, inputs: int, labels: int) -> dict[str, IndexArray]:
        """Its arrays besides `output.weights`."""
        return {}

    def to_kernel(self, name: str, array: np.ndarray, labels: int) -> np.ndarray:
        """One of its index arrays as the kernels read it, but of any integer type."""
        return array

    def from_kernel(self, name: str, array: np.ndarray, labels: int) -> np.ndarray:
        """Undo `to_kernel`."""
        return array

    def source_bytes(self, inputs: int, labels: int) -> int:
        """Bytes of the sources of all connections as the kernels read them."""
        shapes = self.array_shapes(inputs, labels)
        return sum(
            math.prod(shapes[name]) * np.dtype(array.kernel_dtype).itemsize
            for name, array in self.index_arrays(inputs, labels).items()
            if array.argument == "indices"
        )

    def starts_bytes(self, inputs: int, labels: int) -> int:
        """Bytes of where each label's connections start, as the kernels read it."""
        arrays = self.index_arrays(inputs, labels).values()
        return sum(
            (labels + 1) * np.dtype(array.kernel_dtype).itemsize
            for array in arrays
            if array.argument == "starts"
        )

    def sorting_bytes(self, labels: int) -> int:
        """Bytes that sorted connections need besides."""
        return 0


@dataclass(frozen=True)
class Dense(ConnectionKind):
    """Every label reads every input: `output.weights` [inputs, labels], Glorot-uniform."""

    operations = "dense"

    def check(self, inputs: int) -> None:
        pass

    def array_shapes(self, inputs: int, labels: int) -> Shapes:
        return {"output.weights": (inputs, labels)}

    def initial_array(
        self, name: str, inputs: int, labels: int, rng: np.random.Generator
    ) -> np.ndarray:
        return glorot_uniform(rng, (inputs, labels))


@dataclass(frozen=True)
class FixedFanIn(ConnectionKind):
    """Every label reads exactly `fan_in` inputs: `output.indices` [labels, fan_in], and
    `output.weights` alike.

    Sources are drawn uniformly and independently, so that a label may name one twice. For the
    weights Glorot's limit takes one flat vector of all n = labels * fan_in connections as both its
    fans, as Keras does and the paper's code did: sqrt(3 / n), near zero.
    """

    fan_in: int

    operations = "fanin"
    source_array = "output.indices"
    is_sortable = True

    def check(self, inputs: int) -> None:
        checks.whole("fan_in", self.fan_in, 1)
        checks.fitting_fan_in(self.fan_in, inputs)

    def array_shapes(self, inputs: int, labels: int) -> Shapes:
        shape = (labels, self.fan_in)
        return {"output.indices": shape, "output.weights": shape}

    def initial_array(
        self, name: str, inputs: int, labels: int, rng: np.random.Generator
    ) -> np.ndarray:
        shape = (labels, self.fan_in)
        if name == "output.indices":
            return rng.integers(0, inputs, shape, index_dtype(inputs))
        return glorot_uniform(rng, shape, fans=2 * labels * self.fan_in)

    def index_arrays(self, inputs: int, labels: int) -> dict[str, IndexArray]:
        dtype = index_dtype(inputs).__name__
        return {"output.indices": IndexArray(dtype, inputs, "indices", dtype)}

    def sorting_bytes(self, labels: int) -> int:
        # Each connection's label within its tile, and its slot.
        return labels * self.fan_in * (2 + np.dtype(slot_dtype(self.fan_in)).itemsize)


@dataclass(frozen=True)
class Unstructured(ConnectionKind):
    """Any label reads any input, with `connections` per label on average: `output.rows` (labels,
    ascending), `output.columns` (sources) and `output.weights`, each [labels * connections].

    Labels and sources are drawn uniformly and independently; weights as of `FixedFanIn`.
    """

    connections: int

    operations = "sparse"
    source_array = "output.columns"

    def check(self, inputs: int) -> None:
        checks.whole("connections", self.connections, 1)
        if self.connections > inputs:
            raise ValueError(f"connections {self.connections} is larger than the {inputs} inputs")

    def array_shapes(self, inputs: int, labels: int) -> Shapes:
        shape = (labels * self.connections,)
        return {"output.rows": shape, "output.columns": shape, "output.weights": shape}

    def initial_array(
        self, name: str, inputs: int, labels: int, rng: np.random.Generator
    ) -> np.ndarray:
        shape = (labels * self.connections,)
        if name == "output.rows":
            return np.sort(rng.integers(0, labels, shape, np.int32))
        if name == "output.columns":
            return rng.integers(0, inputs, shape, np.int32)
        return glorot_uniform(rng, shape, fans=2 * labels * self.connections)

    def index_arrays(self, inputs: int, labels: int) -> dict[str, IndexArray]:
        return {
            "output.rows": IndexArray("int32", labels, "starts", "int32", ascends=True),
            "output.columns": IndexArray("int32", inputs, "indices", index_dtype(inputs).__name__),
        }

    def to_kernel(self, name: str, array: np.ndarray, labels: int) -> np.ndarray:
        if name == "output.rows":
            return np.searchsorted(array, np.arange(labels + 1))
        return array

    def from_kernel(self, name: str, array: np.ndarray, labels: int) -> np.ndarray:
        if name == "output.rows":
            return np.repeat(np.arange(labels, dtype=np.int32), np.diff(array))
        return array.astype(np.int32)


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
    def is_rewired(self) -> bool:
        return self.output.source_array is not None

    @property
    def lazily_trained(self) -> frozenset[str]:
        """Names of the arrays whose rows are words: in a step of training only the rows of words
        that occur in the batch are read and updated."""
        return frozenset({"intermediate.weights"} if self.sparse_features else ())

    def check_rewired(self) -> str:
        """The array of sources that are rewired; ValueError where nothing can be."""
        if self.output.source_array is None:
            raise ValueError(f"{type(self.output).__name__} has no connections to rewire")
        return self.output.source_array

    def check_chosen(self) -> None:
        """ValueError where connections cannot be chosen by the data: where labels do not read a
        fixed number of features."""
        if not isinstance(self.output, FixedFanIn) or self.intermediate:
            raise ValueError(
                "connections are chosen by the data in a fixed fan-in layer that reads features, "
                f"not in {type(self.output).__name__}"
                + (f" above {self.intermediate} intermediate units" if self.intermediate else "")
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
        """The arrays of `array_shapes` that say where connections are; all others but those of the
        features are trained."""
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
        self.check_name(name)
        shape = self.array_shapes()[name]
        if name == SCALE:
            return np.ones(shape, np.float32)
        if name == DICTIONARY:
            return inputs_as_atoms(self.inputs, shape[1])
        # A generator per array: adding a layer does not change the numbers of another.
        names = [each for each in self.array_shapes() if each not in self._transform_shapes()]
        rng = np.random.default_rng([seed, names.index(name)])
        if name.endswith("bias"):
            return np.zeros(shape, np.float32)
        if name == "intermediate.weights":
            fans = 2 * shape[1] if self.sparse_features else None
            return glorot_uniform(rng, shape, fans)
        return self.output.initial_array(name, self.output_inputs, self.labels, rng)

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

    def count(self, name: str) -> int:
        """How many values an array has; 0 where the model has none of that name."""
        return math.prod(self.array_shapes().get(name, (0,)))
