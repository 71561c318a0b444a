"""What the harness and a backend agree upon: batches, devices and types.

Nothing here names a framework. Arrays cross this boundary as NumPy, under the same names in both
backends (see `LayerSetup.array_shapes`), so a model trained in one loads in the other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, SupportsFloat, get_args

import numpy as np
import scipy.sparse as sp

# CSR where the model reads sparse features (`LayerSetup.sparse_features`).
Features = np.ndarray | sp.csr_array

# autograd: scores, loss and gradients one after the other, then the optimiser, by the framework;
# fused: all of it in one pass over the labels, by fanin's kernels.
Execution = Literal["autograd", "fused"]
StoredType = Literal["float32", "bfloat16"]
# Of weights. float8: of labels with a fixed fan-in that read features, see `LayerSetup`.
WeightsType = Literal[StoredType, "float8"]
WEIGHTS_TYPES = get_args(WeightsType)


@dataclass(frozen=True)
class Storage:
    """How weights and moments are stored; bfloat16 and float8 are rounded stochastically and need
    the fused execution. Biases are float32 always. In float8 a weight takes a byte, and the weights
    of a label have one more for their common scale (`fanin.kernels.to_float8`).

    row_moments: with Adam, whether `intermediate.weights` of a model of sparse features have one
    number for each word in place of its two arrays: `v` [inputs], float32, and no `m`. The squared
    gradient is averaged over the word's row; v is the running mean of these averages. (Adafactor's
    row sums and FBGEMM's row-wise Adagrad are relatives.)"""

    weights: WeightsType = "float32"
    moments: StoredType = "float32"
    row_moments: bool = False

    @property
    def is_float32(self) -> bool:
        return self.weights == self.moments == "float32"


FLOAT32 = Storage()

# How many instances are predicted together. Their inputs to the output layer fill at most 8 MiB:
# malloc may take up to ten such blocks from the system before it uses one of them again, and the
# run's peak memory would contain them.
_EVALUATION_BLOCK, _EVALUATION_FLOATS = 512, 2 << 20

# An array as a framework holds it on a device.
DeviceArray = Any

# Called after each step with its loss, which is only converted to a float where somebody looks:
# on a GPU that would wait for the device.
OnStep = Callable[[SupportsFloat], None]


def evaluation_block(output_inputs: int) -> int:
    """Instances that are predicted together, by the inputs of the output layer."""
    return min(_EVALUATION_BLOCK, max(32, _EVALUATION_FLOATS // output_inputs // 32 * 32))


class TrainingBatch(Protocol):
    """What a trainer reads of a batch (`fanin.datasets.Batch` is one)."""

    @property
    def features(self) -> Features: ...  # float32 [batch, inputs], dropout applied
    @property
    def positive_instances(self) -> np.ndarray: ...  # int32 [positives], within the batch
    @property
    def positive_labels(self) -> np.ndarray: ...  # int64 [positives]


@dataclass(frozen=True)
class TransformedBatch:
    """A batch with the features as the model's first layer reads them, and positions in place of
    labels where the model has an order of them."""

    features: Features
    positive_instances: np.ndarray
    positive_labels: np.ndarray


class Device(Protocol):
    """Where a trainer works: it holds the arrays of a model, and tells what measuring asks."""

    is_cpu: bool

    def hold(self, array: np.ndarray, dtype: str) -> DeviceArray:
        """A copy of an array, as `dtype`, in the framework's memory."""

    def zeros(self, shape: tuple[int, ...], dtype: str) -> DeviceArray: ...

    def read(self, array: DeviceArray) -> np.ndarray:
        """The array in NumPy, bfloat16 as float32; may be a view."""

    def write(self, target: DeviceArray, array: np.ndarray) -> None:
        """Overwrite an array on the device."""

    def bytes(self, array: DeviceArray) -> int:
        """Its size in memory."""

    def tensor(self, array: np.ndarray) -> Any:
        """Numbers of a batch as the framework computes with them; may share the memory."""

    def number(self, loss: Any) -> SupportsFloat:
        """A loss as a number. On a GPU reading it would wait, so there it stays a tensor.

        A tensor of four bytes that is kept, step after step, between large ones that are freed also
        keeps the C library from using their memory again: a run would grow without end.
        """

    def synchronize(self) -> None:
        """Wait until it has finished; a no-op on a CPU."""

    def mark(self) -> Any:
        """A mark in its order of work, without waiting for it (a CUDA event; the time, on a CPU).
        None where the framework has no such thing."""

    def seconds(self, marks: Sequence[Any]) -> list[float]:
        """Seconds from each mark to the next; waits for the last one."""

    def description(self) -> dict[str, str]:
        """`framework` with its version and `device`, for the result file."""

    def memory(self) -> dict[str, int | None]:
        """`allocator_peak_bytes` and `allocator_reserved_bytes` of the framework's allocator; None
        where not measurable."""


DEVICES = ("cpu", "cuda", "auto")


def check_device(name: str) -> None:
    """ValueError for a device of another name."""
    if name not in DEVICES:
        raise ValueError(f"device must be one of {', '.join(DEVICES)}, got {name!r}")
