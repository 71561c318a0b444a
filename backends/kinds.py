"""The kinds of connection that an output layer may have.

A kind is one class. It owns all that differs between kinds and that needs no framework: the arrays,
their initial values and checks, the form that the kernels read, bytes, and what can be rewired. How
a framework computes the scores of a kind stands in its `autograd.py`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import numpy as np

from fanin.backends import checks
from fanin.backends.drawing import ascending_blocks, glorot_blocks, integer_blocks, row_blocks

# Whose operations give the scores of a kind in the autograd execution: the framework's dense or
# sparse ones, or fanin's own op.
Operations = Literal["dense", "sparse", "fanin"]
Shapes = dict[str, tuple[int, ...]]

# What the arrays of an output layer begin with, where it is the only one.
OUTPUT = "output"
# The array that tells which label stands at each position of an output layer.
ORDER = "output.order"
# The kernels take smaller groups, but there the indices are no longer small beside the weights.
LEAST_GROUP_SIZE = 8


def index_dtype(inputs: int) -> type[np.uint16] | type[np.uint32]:
    """The narrower of the two index types that can name `inputs` sources."""
    return np.uint16 if inputs <= 65536 else np.uint32


def slot_dtype(fan_in: int) -> Literal["uint8", "uint32"]:
    """The narrower of the two types that can name the slots of a label."""
    return "uint8" if fan_in <= 256 else "uint32"


def group_sums(rows: np.ndarray, group_size: int) -> np.ndarray:
    """The sum of the rows of each label group: [labels, ...] becomes [label groups, ...]. The last
    label group has the labels that remain."""
    sums: np.ndarray = np.add.reduceat(rows, np.arange(0, len(rows), group_size), axis=0)
    return sums


@dataclass(frozen=True)
class IndexArray:
    """An array of integers that says where connections are, or which label stands where.

    dtype: its type outside. limit: its values are at least 0 and below this. argument: how the
    kernels call it (`fanin.kernels.step`, `top_k`), converted by `ConnectionKind.to_kernel`;
    kernel_dtype: its type there. ascends: whether its values must ascend. is_order: whether it has
    each value once (`label_order`).
    """

    dtype: str
    limit: int
    argument: Literal["indices", "starts", "label_ids"]
    kernel_dtype: str
    ascends: bool = False
    is_order: bool = False


@dataclass(frozen=True)
class Part:
    """One of the output layers that a kind consists of.

    name: of its arrays, `<name>.weights` and so on. kind: of its connections. first, labels: it has
    so many labels, from that position on.
    """

    name: str
    kind: ConnectionKind
    first: int
    labels: int

    @property
    def positions(self) -> slice:
        return slice(self.first, self.first + self.labels)

    @property
    def weights(self) -> str:
        """The name of its weights."""
        return self.outside("output.weights")

    @property
    def bias(self) -> str:
        """The name of its biases."""
        return self.outside("output.bias")

    @property
    def source_array(self) -> str | None:
        """The name of its `ConnectionKind.source_array`."""
        inside = self.kind.source_array
        return None if inside is None else self.outside(inside)

    def owns(self, name: str) -> bool:
        """Whether an array of the model is one of this layer's."""
        return name.startswith(f"{self.name}.")

    def inside(self, name: str) -> str:
        """What a model of this output layer alone calls its array."""
        return OUTPUT + name.removeprefix(self.name)

    def outside(self, name: str) -> str:
        """Undo `inside`."""
        return self.name + name.removeprefix(OUTPUT)


class ConnectionKind(ABC):
    """How the labels are connected to the inputs of the output layer.

    In all methods `inputs` and `labels` are counts. Array names are those of
    `LayerSetup.array_shapes`; every kind has `output.weights`, and its other arrays say where the
    connections are.
    """

    operations: ClassVar[Operations]
    # The array with the source of each connection, in the order of the flat weights, or, where
    # labels share sources, that of each label group; None where connections cannot be rewired.
    source_array: ClassVar[str | None] = None
    # How many inputs every label reads; None where not all read the same number.
    fan_in: int | None = None
    # How many labels share their sources; 0 where each has its own.
    group_size: int = 0
    # Whether the kernels may sort the connections within tiles of labels (`fanin.h` tells why).
    is_sortable: ClassVar[bool] = False

    @abstractmethod
    def check(self, inputs: int) -> None:
        """ValueError for a kind that a layer of so many inputs cannot have."""

    @abstractmethod
    def array_shapes(self, inputs: int, labels: int) -> Shapes:
        """Names and shapes of its arrays, in the order of the data flow."""

    @abstractmethod
    def initial_blocks(
        self, name: str, inputs: int, labels: int, rng: np.random.Generator
    ) -> Iterable[np.ndarray]:
        """The values that one of its arrays starts with, in blocks along its first axis."""

    def index_arrays(self, inputs: int, labels: int) -> dict[str, IndexArray]:
        """Its arrays besides `output.weights`."""
        return {}

    @property
    def kinds(self) -> tuple[ConnectionKind, ...]:
        """Those of the output layers that it consists of."""
        return (self,)

    def parts(self, labels: int) -> tuple[Part, ...]:
        """These output layers, in the order of their labels' positions."""
        return (Part(OUTPUT, self, 0, labels),)

    def to_kernel(self, name: str, array: np.ndarray, labels: int) -> np.ndarray:
        """One of its index arrays as the kernels read it, but of any integer type."""
        return array

    def from_kernel(self, name: str, array: np.ndarray, labels: int) -> np.ndarray:
        """Undo `to_kernel`."""
        return array

    def source_magnitudes(self, weights: np.ndarray) -> np.ndarray:
        """How much each entry of `source_array` matters, as rewiring compares them: the |weight| of
        its connection, with or without a sign."""
        return weights

    def connections_of(self, sources: np.ndarray, labels: int) -> np.ndarray:
        """Flat positions in the weights of the connections that read these entries of
        `source_array`, which are flat positions, too."""
        return sources

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

    def order_bytes(self, inputs: int, labels: int) -> int:
        """Bytes of which label stands where, as the kernels read it."""
        arrays = self.index_arrays(inputs, labels).values()
        return sum(
            labels * np.dtype(array.kernel_dtype).itemsize for array in arrays if array.is_order
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

    def initial_blocks(
        self, name: str, inputs: int, labels: int, rng: np.random.Generator
    ) -> Iterable[np.ndarray]:
        return glorot_blocks(rng, (inputs, labels))


@dataclass(frozen=True)
class FixedFanIn(ConnectionKind):
    """Every label reads exactly `fan_in` inputs: `output.indices` [labels, fan_in], and
    `output.weights` alike.

    Sources are drawn uniformly and independently, so that a label may name one twice. For the
    weights Glorot's limit takes one flat vector of all n = labels * fan_in connections as both its
    fans, as Keras does and the paper's code did: sqrt(3 / n), near zero.
    """

    fan_in: int = field()  # without the default of the class above

    operations = "fanin"
    source_array = "output.indices"
    is_sortable = True

    def check(self, inputs: int) -> None:
        checks.whole("fan_in", self.fan_in, 1)
        checks.fitting_fan_in(self.fan_in, inputs)

    def array_shapes(self, inputs: int, labels: int) -> Shapes:
        shape = (labels, self.fan_in)
        return {"output.indices": shape, "output.weights": shape}

    def initial_blocks(
        self, name: str, inputs: int, labels: int, rng: np.random.Generator
    ) -> Iterable[np.ndarray]:
        shape = (labels, self.fan_in)
        if name == "output.indices":
            return integer_blocks(rng, inputs, shape, index_dtype(inputs))
        return glorot_blocks(rng, shape, fans=2 * labels * self.fan_in)

    def index_arrays(self, inputs: int, labels: int) -> dict[str, IndexArray]:
        dtype = index_dtype(inputs).__name__
        return {"output.indices": IndexArray(dtype, inputs, "indices", dtype)}

    def sorting_bytes(self, labels: int) -> int:
        # Each connection's label within its tile, and its slot.
        return labels * self.fan_in * (2 + np.dtype(slot_dtype(self.fan_in)).itemsize)


@dataclass(frozen=True)
class GroupedFanIn(ConnectionKind):
    """Every label reads exactly `fan_in` inputs, and `group_size` labels that stand side by side
    read the same ones: `output.indices` [label groups, fan_in], `output.order` [labels] and
    `output.weights` [labels, fan_in]. The last group has the labels that remain.

    `output.order` tells which label stands at each position; by default at position l label l.
    Indices, weights and biases are in the order of the positions. Sources and weights are drawn as
    those of `FixedFanIn`.
    """

    fan_in: int = field()  # both without the defaults of the class above
    group_size: int = field()

    operations = "fanin"
    source_array = "output.indices"

    def check(self, inputs: int) -> None:
        checks.whole("fan_in", self.fan_in, 1)
        checks.fitting_fan_in(self.fan_in, inputs)
        checks.whole("group_size", self.group_size, LEAST_GROUP_SIZE, checks.MOST_GROUP_SIZE)

    def groups(self, labels: int) -> int:
        """How many label groups there are."""
        return -(-labels // self.group_size)

    def array_shapes(self, inputs: int, labels: int) -> Shapes:
        return {
            "output.indices": (self.groups(labels), self.fan_in),
            ORDER: (labels,),
            "output.weights": (labels, self.fan_in),
        }

    def initial_blocks(
        self, name: str, inputs: int, labels: int, rng: np.random.Generator
    ) -> Iterable[np.ndarray]:
        shape = self.array_shapes(inputs, labels)[name]
        if name == ORDER:
            return ascending_blocks(labels)
        if name == "output.indices":
            return integer_blocks(rng, inputs, shape, index_dtype(inputs))
        return glorot_blocks(rng, shape, fans=2 * labels * self.fan_in)

    def index_arrays(self, inputs: int, labels: int) -> dict[str, IndexArray]:
        dtype = index_dtype(inputs).__name__
        return {
            "output.indices": IndexArray(dtype, inputs, "indices", dtype),
            ORDER: IndexArray("int32", labels, "label_ids", "int32", is_order=True),
        }

    def from_kernel(self, name: str, array: np.ndarray, labels: int) -> np.ndarray:
        return array.astype(np.int32, copy=False) if name == ORDER else array

    def source_magnitudes(self, weights: np.ndarray) -> np.ndarray:
        """The mean |weight| over the labels of the group, float32 [label groups, fan_in]."""
        sums = group_sums(np.abs(weights), self.group_size)
        sizes = group_sums(np.ones((len(weights), 1), np.int64), self.group_size)
        return (sums / sizes).astype(np.float32)

    def connections_of(self, sources: np.ndarray, labels: int) -> np.ndarray:
        groups, slots = np.divmod(sources, self.fan_in)
        own = groups[:, None] * self.group_size + np.arange(self.group_size)
        return (own * self.fan_in + slots[:, None])[own < labels]


@dataclass(frozen=True)
class Unstructured(ConnectionKind):
    """Any label reads any input, with `connections` per label on average: `output.rows` (labels,
    ascending), `output.columns` (sources) and `output.weights`, each [labels * connections].

    Labels and sources are drawn uniformly and independently; weights as of `FixedFanIn`.

    total: how many connections there are, where that is another number: a part of the labels of a
    layer rarely has just its share of them.
    """

    connections: int
    total: int | None = field(default=None, repr=False)

    operations = "sparse"
    source_array = "output.columns"

    def check(self, inputs: int) -> None:
        checks.whole("connections", self.connections, 1)
        if self.total is not None:
            checks.whole("total", self.total, 0)
        if self.connections > inputs:
            raise ValueError(f"connections {self.connections} is larger than the {inputs} inputs")

    def array_shapes(self, inputs: int, labels: int) -> Shapes:
        shape = (labels * self.connections if self.total is None else self.total,)
        return {"output.rows": shape, "output.columns": shape, "output.weights": shape}

    def initial_blocks(
        self, name: str, inputs: int, labels: int, rng: np.random.Generator
    ) -> Iterable[np.ndarray]:
        shape = self.array_shapes(inputs, labels)[name]
        if name == "output.rows":
            return self._initial_rows(labels, shape, rng)
        if name == "output.columns":
            return integer_blocks(rng, inputs, shape, np.int32)
        return glorot_blocks(rng, shape, fans=2 * shape[0])

    def _initial_rows(
        self, labels: int, shape: tuple[int, ...], rng: np.random.Generator
    ) -> Iterator[np.ndarray]:
        counts = np.zeros(labels, np.int32)
        for drawn in integer_blocks(rng, labels, shape, np.int32):
            np.add.at(counts, drawn, np.int32(1))  # 30 times as fast as with Python's 1
        first = 0
        for block, _ in row_blocks((labels, self.connections)):
            own = np.arange(first, first + block, dtype=np.int32)
            yield np.repeat(own, counts[first : first + block])
            first += block

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
