"""What a task will need before it runs: bytes of the model, peak memory, hours.

The fused execution's scratch memory is what `kernels/src/core/call.h` lays out. The frameworks' own
temporaries follow from what their trainers hold at once: so many arrays of the size of the scores
or of the connections, found in the code and checked against measured peaks. Hours are a rough
guide: the bytes that a step has to move over the machine's bandwidth, and its arithmetic over the
rate of a dense product.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass

import numpy as np
from threadpoolctl import threadpool_limits

from fanin.backends.arrays import index_dtype
from fanin.backends.interface import LayerSetup
from fanin.benchmarks.harness.fit import evaluation_block
from fanin.benchmarks.records.statistics import GIB
from fanin.benchmarks.records.task import Task
from fanin.kernels import sorted_labels, sorting_pays

LANES = 32

# Bytes of all arrays that the bandwidth is measured with: far above any cache, and no load.
_COPIED = 256 << 20

_BYTES = {"float32": 4, "bfloat16": 2}
# Beside all arrays: Python's objects, and what the allocators round up, a share of all bytes.
_OVERHEAD, _ROUNDING = 4 << 20, {"torch": 0.01, "tensorflow": 0.04}
# What the libraries under torch hold for their dense and sparse products.
_PRODUCTS = {"Dense": 36 << 20, "Bottleneck": 36 << 20, "Unstructured": 36 << 20, "FFI": 10 << 20}

# Arrays [batch, labels] that a step holds at its peak, in both frameworks: the loss, mostly.
_SCORES = 5.0


class TooLargeError(MemoryError):
    """The model needs more memory than there is."""


@dataclass(frozen=True)
class Estimate:
    """Bytes by what they are for. temporary: the most that one phase (a step, prediction, keeping
    the best weights) holds beside the model. moved: by one training step, at least. flops: of one
    step's products."""

    parameter_bytes: int
    optimizer_bytes: int
    gradient_bytes: int
    temporary_bytes: int
    overhead_bytes: int
    moved_bytes: int
    flops: int

    @property
    def peak_bytes(self) -> int:
        """Peak resident set above its baseline (on a GPU, of its memory)."""
        return (
            self.parameter_bytes
            + self.optimizer_bytes
            + self.gradient_bytes
            + self.temporary_bytes
            + self.overhead_bytes
        )


@dataclass(frozen=True)
class Sizes:
    """Of a data set, as far as a plan needs them."""

    inputs: int
    labels: int
    train_instances: int
    test_instances: int


@dataclass(frozen=True)
class Speed:
    """Of a machine: bytes and floating-point operations per second."""

    bandwidth: float
    flops: float


def measured_bandwidth(threads: int) -> float:
    """Bytes per second that this machine copies, in about half a second."""
    size = max(1, _COPIED // 8 // threads)
    pairs = [(np.ones(size, np.float32), np.empty(size, np.float32)) for _ in range(threads)]

    def copy() -> None:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(lambda pair: np.copyto(pair[1], pair[0]), pairs))

    return 2 * 4 * size * threads / _fastest(copy)


def measured_flops(threads: int) -> float:
    """Operations per second of a dense product here, in about half a second."""
    square = np.ones((1536, 1536), np.float32)
    with threadpool_limits(threads, "blas"):
        return 2 * len(square) ** 3 / _fastest(lambda: square @ square)


def _fastest(work: Callable[[], object]) -> float:
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def hours_per_epoch(expected: Estimate, task: Task, sizes: Sizes, speed: Speed) -> float:
    """Training and validation of one epoch; right within a factor of about two."""

    def seconds(steps: float, moved: float, flops: float) -> float:
        return steps * (moved / speed.bandwidth + flops / speed.flops)

    training = seconds(
        math.ceil(sizes.train_instances / task.batch_size), expected.moved_bytes, expected.flops
    )
    # The forward pass has a third of a step's arithmetic, and reads the parameters.
    groups = sizes.test_instances / task.batch_size
    validation = seconds(groups, expected.parameter_bytes, expected.flops / 3)
    return (training + validation) / 3600


# Of `Plan.cells`.
HEADS = (
    *("parameters", "model", "optimiser", "gradients", "temporary", "peak", "fits"),
    *("h/epoch", "hours"),
)


@dataclass(frozen=True)
class Plan:
    """What one task needs in one backend, on a machine with so many bytes of free memory."""

    task: Task
    backend: str
    parameters: int
    expected: Estimate
    available_bytes: int
    hours_per_epoch: float

    @classmethod
    def of(
        cls, task: Task, backend: str, sizes: Sizes, speed: Speed, available: int, threads: int
    ) -> Plan:
        setup = task.setup(sizes.inputs, sizes.labels)
        expected = estimate(task, setup, backend, threads)
        trained = (
            math.prod(shape)
            for name, shape in setup.array_shapes().items()
            if name.endswith(("weights", "bias"))
        )
        hours = hours_per_epoch(expected, task, sizes, speed)
        return cls(task, backend, sum(trained), expected, available, hours)

    @property
    def fits(self) -> bool:
        return self.expected.peak_bytes <= self.available_bytes

    @property
    def hours(self) -> float:
        """For all epochs that the task allows, and all its repeats."""
        return self.hours_per_epoch * self.task.epochs * self.task.repeat

    def cells(self) -> list[str]:
        """As text, under `HEADS`; bytes in GiB."""
        of = self.expected
        parts = (of.parameter_bytes, of.optimizer_bytes, of.gradient_bytes, of.temporary_bytes)
        return [
            f"{self.parameters / 1e6:,.1f} M",
            *(f"{part / GIB:.2f}" for part in (*parts, of.peak_bytes)),
            "yes" if self.fits else "NO",
            f"{self.hours_per_epoch:.2f}",
            f"{self.hours:,.0f}",
        ]

    def as_json(self) -> dict[str, object]:
        """For a program; bytes and hours."""
        return {
            "task": self.task.model_dump(mode="json"),
            "backend": self.backend,
            "parameters": self.parameters,
            **asdict(self.expected),
            "peak_bytes": self.expected.peak_bytes,
            "fits": self.fits,
            "hours_per_epoch": self.hours_per_epoch,
            "hours": self.hours,
        }


def check_fits(expected: Estimate, available: int) -> None:
    """TooLargeError with both figures where the expected peak is above the available bytes."""
    if expected.peak_bytes > available:
        raise TooLargeError(
            f"needs about {expected.peak_bytes / GIB:.1f} GiB, and {available / GIB:.1f} GiB are "
            "available here"
        )


def check_counted(expected: Estimate, available_bytes: int) -> None:
    """TooLargeError where the arrays of model and optimiser alone, which are counted and not
    estimated, are more than the available bytes: the system would kill who tries."""
    counted = expected.parameter_bytes + expected.optimizer_bytes
    if counted > available_bytes:
        raise TooLargeError(
            f"model and optimiser state alone are {counted / GIB:.1f} GiB, and "
            f"{available_bytes / GIB:.1f} GiB are available here; `fanin plan` says what fits"
        )


def estimate(
    task: Task, setup: LayerSetup, backend: str, threads: int, cpu: str | None = None
) -> Estimate:
    """What training `setup` as the task says needs in this backend on a CPU: the one of that name,
    or this machine's."""
    if task.execution == "fused":
        return _fused(task, setup, backend, threads, cpu)
    return _autograd(task, setup, backend, threads)


def _overhead(backend: str, of: int) -> int:
    """Bytes that no array accounts for, in a model of so many."""
    return _OVERHEAD + round(_ROUNDING[backend] * of)


def _count(setup: LayerSetup, name: str) -> int:
    return math.prod(setup.array_shapes().get(name, (0,)))


def _fused(task: Task, setup: LayerSetup, backend: str, threads: int, cpu: str | None) -> Estimate:
    weight, moment = _BYTES[task.weights_dtype], _BYTES[task.moments_dtype]
    hidden, connections = _count(setup, "intermediate.weights"), _count(setup, "output.weights")
    biases = setup.labels + (setup.intermediate or 0)
    is_sorted = setup.kind == "FFI" and sorting_pays(setup.sources, cpu)
    index = index_dtype(setup.sources)().itemsize if setup.connectivity else 0
    place = (2 + (1 if (setup.connectivity or 0) <= 256 else 4)) if is_sorted else 0
    starts = 4 * (setup.labels + 1) if setup.kind == "Unstructured" else 0

    groups = -(-task.batch_size // LANES)
    block = evaluation_block(setup)
    # Features in lanes, and where there is a layer below, an accumulator for each thread.
    lanes = groups * LANES * 4 * setup.sources
    # Of sorted connections: a tile's scores, and a sum for each of its connections.
    tile_labels = sorted_labels(setup.sources, setup.labels) if is_sorted else 0
    tile = LANES * 4 * tile_labels
    sums = 4 * min(tile_labels, setup.labels) * (setup.connectivity or 0)
    step = lanes * (1 + (threads if setup.intermediate else 0))
    step += threads * (groups * tile + sums)
    step += groups * setup.labels * 4  # masks of the positives
    # Outputs of the layer below, and their gradient.
    step += 2 * task.batch_size * 4 * (setup.intermediate or 0)
    predict = 2 * block * 4 * setup.sources + threads * tile
    # The best weights are written array by array; some have another form outside.
    copied = 4 * connections if setup.kind == "Unstructured" else 0
    if task.weights_dtype != "float32":
        copied = 4 * max(hidden, connections)

    # TensorFlow makes a dense layer of three more copies of its weights.
    building = 0
    if backend == "tensorflow":
        dense = connections if setup.connectivity is None else 0
        building = 3 * 4 * max(hidden, dense) - 2 * moment * (hidden + connections)

    moved = hidden * (3 * weight + 4 * moment) + connections * (2 * weight + 4 * moment + index)
    if is_sorted:
        # Connections pass by twice, for the scores and for the gradients; once more each, where
        # lanes are worked on by halves, but then they come from a cache.
        moved += connections * (weight + index + 2 * 2)
    return Estimate(
        parameter_bytes=(hidden + connections) * weight
        + biases * 4
        + connections * (index + place)
        + starts,
        optimizer_bytes=2 * (hidden + connections) * moment + 2 * biases * 4,
        gradient_bytes=0,
        # The allocators keep what a step took while others predict.
        temporary_bytes=max(step + max(predict, copied), building),
        overhead_bytes=_overhead(backend, 4 * 3 * (hidden + connections)),
        moved_bytes=moved,
        flops=6 * task.batch_size * (hidden + connections),
    )


def _of_connections(task: Task, setup: LayerSetup, backend: str) -> float:
    """Arrays of [connections] that the framework's own sparse operations hold besides."""
    if setup.kind != "Unstructured":
        return 0.0
    if backend == "tensorflow":
        # Each gradient gathers two of [connections, batch].
        return (4 if setup.intermediate else 2) * task.batch_size + 10
    # torch sorts the matrix by columns for the gradient of its inputs.
    return 6.6 if setup.intermediate else 1.6


def _autograd(task: Task, setup: LayerSetup, backend: str, threads: int) -> Estimate:
    hidden, connections = _count(setup, "intermediate.weights"), _count(setup, "output.weights")
    biases = setup.labels + (setup.intermediate or 0)
    structure = 0
    if setup.kind == "FFI":
        structure = connections * index_dtype(setup.sources)().itemsize
    elif setup.kind == "Unstructured":
        # torch: rows, columns and where rows start, int32; TensorFlow: pairs of int64.
        structure = connections * (16 if backend == "tensorflow" else 8)
        structure += 0 if backend == "tensorflow" else 4 * (setup.labels + 1)
    trained = 4 * (hidden + connections + biases)
    scores = task.batch_size * setup.labels * 4
    lanes = -(-task.batch_size // LANES) * LANES * 4 * setup.sources
    held = _SCORES * scores + _of_connections(task, setup, backend) * 4 * connections
    products = 0
    if backend == "torch" and (setup.kind != "FFI" or setup.intermediate):
        products = _PRODUCTS[setup.kind]
    if backend == "tensorflow":
        held = max(held, 2 * trained)  # of Keras' Adam, when the scores are gone
    return Estimate(
        parameter_bytes=trained + structure,
        optimizer_bytes=2 * trained,
        gradient_bytes=trained,
        temporary_bytes=round(held) + (2 + threads) * lanes,
        overhead_bytes=_overhead(backend, 3 * trained) + products,
        moved_bytes=9 * trained + structure + 8 * scores,
        flops=6 * task.batch_size * (hidden + connections),
    )
