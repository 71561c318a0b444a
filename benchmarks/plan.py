"""What a task will need before it runs: bytes of the model, peak memory, hours.

The fused execution's scratch memory is what `kernels/src/call.h` lays out. The frameworks' own
temporaries follow from what their trainers hold at once: so many arrays of the size of the scores
or of the connections (`_SCORES`, `_CONNECTIONS`); they were found in the code and checked against
measured peaks. Hours are a floor: the bytes that a step has to move, over the machine's bandwidth.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from fanin.backends.arrays import index_dtype
from fanin.backends.fused import SORTED_SOURCES
from fanin.backends.interface import LayerSetup
from fanin.benchmarks.fit import evaluation_block
from fanin.benchmarks.task import Task
from fanin.kernels import build_info

GIB = 2**30
LANES = 32

_BYTES = {"float32": 4, "bfloat16": 2}
# Beside all arrays: allocators, Python's objects.
_OVERHEAD = {"torch": 8 << 20, "tensorflow": 20 << 20}

# Arrays [batch, labels] and [connections] that a step holds at its peak beside the model and its
# gradients, by backend and kind of setup.
_KINDS = ("Dense", "Bottleneck", "FFI", "Unstructured")
_SCORES = {
    **{("torch", kind): 5.0 for kind in _KINDS},
    **{("tensorflow", kind): 5.0 for kind in _KINDS},
}
_CONNECTIONS = {
    **{("torch", kind): 0.0 for kind in _KINDS},
    **{("tensorflow", kind): 0.0 for kind in _KINDS},
}


class TooLargeError(MemoryError):
    """The model needs more memory than there is."""


@dataclass(frozen=True)
class Estimate:
    """Bytes by what they are for. temporary: the most that one phase (a step, prediction, keeping
    the best weights) holds beside the model. moved: by one training step, at least. flops: of the
    dense products of one step."""

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


def check_fits(expected: Estimate, available: int) -> None:
    """TooLargeError with both figures where the expected peak is above the available bytes."""
    if expected.peak_bytes > available:
        raise TooLargeError(
            f"needs about {expected.peak_bytes / GIB:.1f} GiB, and {available / GIB:.1f} GiB are "
            "available here"
        )


def estimate(task: Task, setup: LayerSetup, backend: str, threads: int) -> Estimate:
    """What training `setup` as the task says needs in this backend on a CPU."""
    make = _fused if task.execution == "fused" else _autograd
    return make(task, setup, backend, threads)


def _count(setup: LayerSetup, name: str) -> int:
    return math.prod(setup.array_shapes().get(name, (0,)))


def _fused(task: Task, setup: LayerSetup, backend: str, threads: int) -> Estimate:
    weight, moment = _BYTES[task.weights_dtype], _BYTES[task.moments_dtype]
    hidden, connections = _count(setup, "intermediate.weights"), _count(setup, "output.weights")
    biases = setup.labels + (setup.intermediate or 0)
    is_sorted = setup.kind == "FFI" and setup.sources > SORTED_SOURCES
    index = index_dtype(setup.sources)().itemsize if setup.connectivity else 0
    place = (2 + (1 if (setup.connectivity or 0) <= 256 else 4)) if is_sorted else 0
    starts = 4 * (setup.labels + 1) if setup.kind == "Unstructured" else 0

    groups = -(-task.batch_size // LANES)
    block = evaluation_block(setup)
    # Features in lanes, and where there is a layer below, an accumulator for each thread.
    lanes = groups * LANES * 4 * setup.sources
    tile = LANES * 4 * (build_info()["sorted_labels"] if is_sorted else 0)
    step = lanes * (1 + (threads if setup.intermediate else 0)) + threads * groups * tile
    step += groups * setup.labels * 4  # masks of the positives
    # Outputs of the layer below, and their gradient.
    step += 2 * task.batch_size * 4 * (setup.intermediate or 0)
    predict = 2 * block * 4 * setup.sources + threads * tile
    # The best weights are kept array by array; some have to be copied into another form.
    copied = connections * max(weight, index) if is_sorted else 0
    if task.weights_dtype != "float32":
        copied = 4 * max(hidden, connections)

    moved = hidden * (3 * weight + 4 * moment) + connections * (2 * weight + 4 * moment + index)
    if is_sorted:
        # Connections pass by twice: for the scores, and for the gradients.
        moved += connections * (weight + index + 2 * 2)
    return Estimate(
        parameter_bytes=(hidden + connections) * weight
        + biases * 4
        + connections * (index + place)
        + starts,
        optimizer_bytes=2 * (hidden + connections) * moment + 2 * biases * 4,
        gradient_bytes=0,
        # TensorFlow's allocator keeps what prediction took.
        temporary_bytes=(
            max(step, predict) + copied if backend == "tensorflow" else max(step, predict, copied)
        ),
        overhead_bytes=_OVERHEAD[backend],
        moved_bytes=moved,
        flops=6 * task.batch_size * (hidden + connections),
    )


def _autograd(task: Task, setup: LayerSetup, backend: str, threads: int) -> Estimate:
    hidden, connections = _count(setup, "intermediate.weights"), _count(setup, "output.weights")
    biases = setup.labels + (setup.intermediate or 0)
    structure = 0
    if setup.kind == "FFI":
        structure = connections * index_dtype(setup.sources)().itemsize
    elif setup.kind == "Unstructured":
        structure = 2 * connections * 4
    trained = 4 * (hidden + connections + biases)
    scores = task.batch_size * setup.labels * 4
    lanes = -(-task.batch_size // LANES) * LANES * 4 * setup.sources
    held = _SCORES[backend, setup.kind] * scores + _CONNECTIONS[backend, setup.kind] * (
        connections * 4
    )
    return Estimate(
        parameter_bytes=trained + structure,
        optimizer_bytes=2 * trained,
        gradient_bytes=trained,
        temporary_bytes=round(held) + (2 + threads) * lanes,
        overhead_bytes=_OVERHEAD[backend],
        moved_bytes=9 * trained + structure + 8 * scores,
        flops=6 * task.batch_size * (hidden + connections),
    )
