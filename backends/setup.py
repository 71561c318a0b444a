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

Loss = Literal["squared_hinge", "bce"]
# Whose operations give the scores of a kind in the autograd execution: the framework's dense or
# sparse ones, or fanin's own op.
Operations = Literal["dense", "sparse", "fanin"]
Shapes = dict[str, tuple[int, ...]]


def index_dtype(inputs: int) -> type[np.uint16] | type[np.uint32]:
    """The narrower of the two index types that can name `inputs` sources."""
    return np.uint16 if inputs <= 65536 else np.uint32


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
class KernelForm:
    """How the kernels read an array of connections (`fanin.kernels.step`): as `argument`, converted
    by `ConnectionKind.to_kernel`, in `dtype`."""

    argument: Literal["indices", "starts"]
    dtype: str


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
    # Arrays whose values must ascend.
    ascending: ClassVar[tuple[str, ...]] = ()
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

    def limits(self, inputs: int, labels: int) -> dict[str, int]:
        """Its arrays of integers: all values are at least 0 and below this."""
        return {}

    def kernel_forms(self, inputs: int) -> dict[str, KernelForm]:
        """For each of its arrays of connections: how the kernels read it."""
        return {}

    def to_kernel(self, name: str, array: np.ndarray, labels: int) -> np.ndarray:
        """One of its arrays as the kernels read it, in any integer type."""
        return array

    def from_kernel(self, name: str, array: np.ndarray, labels: int) -> np.ndarray:
        """Undo `to_kernel`."""
        return array

    def source_bytes(self, inputs: int, labels: int) -> int:
        """Bytes of the sources of all connections as the kernels read them."""
        return 0

    def starts_bytes(self, labels: int) -> int:
        """Bytes of where each label's connections start, as the kernels read it."""
        return 0

    def sorting_bytes(self, inputs: int, labels: int) -> int:
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

    def limits(self, inputs: int, labels: int) -> dict[str, int]:
        return {"output.indices": inputs}

    def kernel_forms(self, inputs: int) -> dict[str, KernelForm]:
        return {"output.indices": KernelForm("indices", index_dtype(inputs).__name__)}

    def source_bytes(self, inputs: int, labels: int) -> int:
        return labels * self.fan_in * index_dtype(inputs)().itemsize

    def sorting_bytes(self, inputs: int, labels: int) -> int:
        # Each connection's label within its tile, and its slot.
        return labels * self.fan_in * (2 + np.dtype(self.slot_dtype).itemsize)

    @property
    def slot_dtype(self) -> Literal["uint8", "uint32"]:
        """What can name the slots of a label."""
        return "uint8" if self.fan_in <= 256 else "uint32"


@dataclass(frozen=True)
class Unstructured(ConnectionKind):
    """Any label reads any input, with `connections` per label on average: `output.rows` (labels,
    ascending), `output.columns` (sources) and `output.weights`, each [labels * connections].

    Labels and sources are drawn uniformly and independently; weights as of `FixedFanIn`.
    """

    connections: int

    operations = "sparse"
    source_array = "output.columns"
    ascending = ("output.rows",)

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

    def limits(self, inputs: int, labels: int) -> dict[str, int]:
        return {"output.columns": inputs, "output.rows": labels}

    def kernel_forms(self, inputs: int) -> dict[str, KernelForm]:
        return {
            "output.rows": KernelForm("starts", "int32"),
            "output.columns": KernelForm("indices", index_dtype(inputs).__name__),
        }

    def to_kernel(self, name: str, array: np.ndarray, labels: int) -> np.ndarray:
        if name == "output.rows":
            return np.searchsorted(array, np.arange(labels + 1))
        return array

    def from_kernel(self, name: str, array: np.ndarray, labels: int) -> np.ndarray:
        if name == "output.rows":
            return np.repeat(np.arange(labels, dtype=np.int32), np.diff(array))
        return array.astype(np.int32)

    def source_bytes(self, inputs: int, labels: int) -> int:
        return labels * self.connections * index_dtype(inputs)().itemsize

    def starts_bytes(self, labels: int) -> int:
        return 4 * (labels + 1)


@dataclass(frozen=True)
class LayerSetup:
    """One model: `features -> [dense layer of `intermediate` units, ReLU] -> output layer`.

    inputs, labels: counts. output: how the labels are connected, to the intermediate units where
    there are some and else to the features. Raises ValueError for sizes that make no model.
    """

    inputs: int
    labels: int
    output: ConnectionKind
    intermediate: int | None = None
    loss: Loss = "squared_hinge"

    def __post_init__(self) -> None:
        if self.inputs < 1 or self.labels < 1:
            raise ValueError(f"a layer needs inputs and labels, got {self.inputs}, {self.labels}")
        if self.intermediate is not None:
            checks.whole("intermediate", self.intermediate, 1)
        self.output.check(self.output_inputs)

    @property
    def output_inputs(self) -> int:
        """How many inputs the output layer reads: the intermediate units, or else the features."""
        return self.intermediate or self.inputs

    @property
    def is_rewired(self) -> bool:
        return self.output.source_array is not None

    def check_rewired(self) -> None:
        """ValueError where nothing can be rewired."""
        if not self.is_rewired:
            raise ValueError(f"{type(self.output).__name__} has no connections to rewire")

    def check_k(self, k: int) -> None:
        """ValueError where there are no k best labels."""
        checks.best(k, self.labels)

    def check_name(self, name: str) -> None:
        """KeyError for an array that is none of `array_shapes`."""
        if name not in self.array_shapes():
            raise KeyError(f"{name!r} is none of {', '.join(self.array_shapes())}")

    def array_shapes(self) -> Shapes:
        """Names and shapes of all arrays of the model, in the order of the data flow.

        `intermediate.weights` is [inputs, intermediate]; the kind of connection tells the arrays of
        the output layer, but for `output.bias` [labels].
        """
        shapes: Shapes = {}
        if self.intermediate:
            shapes["intermediate.weights"] = (self.inputs, self.intermediate)
            shapes["intermediate.bias"] = (self.intermediate,)
        shapes |= self.output.array_shapes(self.output_inputs, self.labels)
        shapes["output.bias"] = (self.labels,)
        return shapes

    def initial_array(self, name: str, seed: int) -> np.ndarray:
        """The values that an array starts with. Biases are 0, intermediate weights Glorot-uniform;
        the kind of connection tells the others."""
        self.check_name(name)
        shapes = self.array_shapes()
        # A generator per array: adding a layer does not change the numbers of another.
        rng = np.random.default_rng([seed, list(shapes).index(name)])
        if name.endswith("bias"):
            return np.zeros(shapes[name], np.float32)
        if name == "intermediate.weights":
            return glorot_uniform(rng, shapes[name])
        return self.output.initial_array(name, self.output_inputs, self.labels, rng)

    def check_array(self, name: str, array: np.ndarray) -> None:
        """ValueError where this is not an array of that name: shape, type, range, order."""
        shape = self.array_shapes()[name]
        if array.shape != shape:
            raise ValueError(f"{name} must be {list(shape)}, got {list(array.shape)}")
        limit = self.output.limits(self.output_inputs, self.labels).get(name)
        if limit is not None:
            if not np.issubdtype(array.dtype, np.integer):
                raise ValueError(f"{name} must be integers, got {array.dtype}")
            if array.size:
                low, high = int(array.min()), int(array.max())
                if low < 0 or high >= limit:
                    raise ValueError(
                        f"{name} has values {low} to {high}; they must be in 0..{limit - 1}"
                    )
        if name in self.output.ascending and (array[1:] < array[:-1]).any():
            raise ValueError(f"{name} must ascend: the connections of a label stand together")

    def count(self, name: str) -> int:
        """How many values an array has; 0 where the model has none of that name."""
        return math.prod(self.array_shapes().get(name, (0,)))
