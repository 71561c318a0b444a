"""What a task will need before it runs: bytes of the model, peak memory, hours.

The fused execution's scratch memory is what `kernels/src/core/call.h` lays out. The frameworks' own
temporaries follow from what their trainers hold at once: so many arrays of the size of the scores
or of the connections, found in the code and checked against measured peaks. Hours are a rough
guide: the bytes that a step has to move over the machine's bandwidth, and its arithmetic over the
rate of a dense product.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace

from fanin.backends import features
from fanin.backends.choosing import choosing_bytes
from fanin.backends.dictionary import dictionary_bytes
from fanin.backends.gradients import rewiring_bytes
from fanin.backends.registry import BACKENDS, MemoryModel
from fanin.backends.setup import LayerSetup
from fanin.benchmarks.harness.first_layer import FirstLayer
from fanin.benchmarks.harness.fit import evaluation_block
from fanin.benchmarks.harness.speed import Speed
from fanin.benchmarks.records.task import Task
from fanin.datasets.memory import size_text
from fanin.kernels import sorted_labels, sorting_pays

LANES = 32

_BYTES = {"float32": 4, "bfloat16": 2}
# Beside all arrays: Python's objects.
_OVERHEAD = 4 << 20

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
    """Of a data set, as far as a plan needs them. is_mapped: whether the training features are a
    memory map. words: of sparse features, how many an instance has on average; None for dense ones.
    data_bytes: what features and labels take in memory; train_bytes: what those of the training
    instances would take, in a copy of them."""

    inputs: int
    labels: int
    train_instances: int
    test_instances: int
    train_positives: int = 0
    is_mapped: bool = False
    words: float | None = None
    data_bytes: int = 0
    train_bytes: int = 0

    @property
    def is_sparse(self) -> bool:
        return self.words is not None


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


@dataclass(frozen=True)
class Plan:
    """What one task needs in one backend, on a machine with so many bytes of free memory."""

    task: Task
    backend: str
    parameters: int
    expected: Estimate
    data_bytes: int
    available_bytes: int
    hours_per_epoch: float

    @classmethod
    def of(
        cls, task: Task, backend: str, sizes: Sizes, speed: Speed, available: int, threads: int
    ) -> Plan:
        setup = task.setup(sizes.inputs, sizes.labels, sizes.is_sparse)
        beside = bytes_of_instances(sizes)
        expected = estimate(task, setup, backend, threads, words=sizes.words, beside=beside)
        expected = with_choosing(expected, task, setup, sizes)
        trained = (
            math.prod(shape)
            for name, shape in setup.array_shapes().items()
            if name.endswith(("weights", "bias"))
        )
        hours = hours_per_epoch(expected, task, sizes, speed)
        # Validation instances are taken out of the others, as a copy of both.
        data = sizes.data_bytes + (sizes.train_bytes if task.protocol == "holdout" else 0)
        return cls(task, backend, sum(trained), expected, data, available, hours)

    @property
    def fits(self) -> bool:
        return self.expected.peak_bytes + self.data_bytes <= self.available_bytes

    @property
    def hours(self) -> float:
        """For all epochs that the task allows, and all its repeats."""
        return self.hours_per_epoch * self.task.epochs * self.task.repeat

    def as_json(self) -> dict[str, object]:
        """For a program; bytes and hours."""
        return {
            "task": self.task.model_dump(mode="json"),
            "backend": self.backend,
            "parameters": self.parameters,
            **asdict(self.expected),
            "peak_bytes": self.expected.peak_bytes,
            "data_bytes": self.data_bytes,
            "fits": self.fits,
            "hours_per_epoch": self.hours_per_epoch,
            "hours": self.hours,
        }


def check_fits(expected: Estimate, available: int) -> None:
    """TooLargeError with both figures where the expected peak is above the available bytes."""
    if expected.peak_bytes > available:
        raise TooLargeError(
            f"needs about {size_text(expected.peak_bytes)}, and {size_text(available)} are "
            "available here"
        )


def check_counted(expected: Estimate, available_bytes: int) -> None:
    """TooLargeError where the arrays of model and optimiser alone, which are counted and not
    estimated, are more than the available bytes: the system would kill who tries."""
    counted = expected.parameter_bytes + expected.optimizer_bytes
    if counted > available_bytes:
        raise TooLargeError(
            f"model and optimiser state alone are {size_text(counted)}, and "
            f"{size_text(available_bytes)} are available here; `fanin plan` says what fits"
        )


def estimate(
    task: Task,
    setup: LayerSetup,
    backend: str,
    threads: int,
    cpu: str | None = None,
    *,
    words: float | None = None,
    beside: int = 0,
) -> Estimate:
    """What training `setup` as the task says needs in this backend on a CPU: the one of that name,
    or this machine's. words: of sparse features, how many an instance has; beside: bytes that a run
    has beside the model once that is made."""
    memory = BACKENDS[backend].memory
    first = FirstLayer.of(task, setup, words)
    if task.execution == "fused":
        expected = _fused(task, setup, first, memory, threads, cpu)
        weight = _BYTES[task.weights_dtype]
    else:
        expected, weight = _autograd(task, setup, first, memory, threads), _BYTES["float32"]
    model = expected.parameter_bytes + expected.optimizer_bytes + expected.gradient_bytes
    temporary = expected.temporary_bytes + beside
    if setup.sparse_features:
        # These weights may be too large to be taken over in the memory of what comes after them.
        building = first.weights * (weight + 4 * memory.words_building)
        temporary = max(temporary, building - model)
    return replace(expected, temporary_bytes=temporary)


def with_choosing(expected: Estimate, task: Task, setup: LayerSetup, sizes: Sizes) -> Estimate:
    """The estimate with the memory for choosing connections, which comes before the model, and for
    rewiring towards gradients."""
    if not task.connectivity:
        return expected
    temporary = expected.temporary_bytes
    data = (sizes.train_instances, setup.inputs, setup.labels, sizes.train_positives)
    if task.connections != "random":
        choosing = choosing_bytes(*data, task.connectivity, is_mapped=sizes.is_mapped)
        if setup.atoms:
            learning = dictionary_bytes(setup.inputs, setup.labels, setup.atoms)
            choosing = max(choosing, learning)
        model = expected.parameter_bytes + expected.optimizer_bytes + expected.gradient_bytes
        temporary = max(temporary, choosing - model)
    if task.rewire_towards == "gradient":
        temporary = max(temporary, rewiring_bytes(*data, task.connectivity))
    return replace(expected, temporary_bytes=temporary)


# Arrays of int64: for each training instance, while their order in an epoch is made; and with five
# for each instance that is ranked together, while precision is computed (`metrics`).
_ORDER_ARRAYS, _METRIC_ARRAYS, _RANKED = 6, 12, 16_384


def bytes_of_instances(sizes: Sizes) -> int:
    """What a run has of its instances beside the data: their order in an epoch, or five predicted
    labels of each."""
    instances = max(sizes.train_instances, sizes.test_instances)
    ranked = 5 * 8 * (instances + _METRIC_ARRAYS * min(instances, _RANKED))
    return max(_ORDER_ARRAYS * 8 * sizes.train_instances, ranked)


def _transform_values(setup: LayerSetup) -> int:
    """How many numbers say what the model does to its features."""
    return sum(map(setup.count, features.NAMES))


def _overhead(memory: MemoryModel, model_bytes: int) -> int:
    """Bytes that no array accounts for, in a model of so many."""
    return _OVERHEAD + round(memory.rounding * model_bytes)


def _fused(
    task: Task,
    setup: LayerSetup,
    first: FirstLayer,
    memory: MemoryModel,
    threads: int,
    cpu: str | None,
) -> Estimate:
    weight, moment = _BYTES[task.weights_dtype], _BYTES[task.moments_dtype]
    inner, connections = first.weights, setup.count("output.weights")
    biases = setup.labels + (setup.intermediate or 0)
    kind, inputs, labels = setup.output, setup.output_inputs, setup.labels
    is_sorted = kind.is_sortable and sorting_pays(inputs, cpu)
    sources = kind.source_bytes(inputs, labels)
    sorting = kind.sorting_bytes(labels) if is_sorted else 0

    groups = -(-task.batch_size // LANES)
    block = evaluation_block(setup)
    # Features in lanes, and where there is a layer below, an accumulator for each thread.
    lanes = groups * LANES * 4 * inputs
    # Of sorted connections: a tile's scores, and a sum for each of its connections.
    tile_labels = sorted_labels(inputs, labels) if is_sorted else 0
    tile = LANES * 4 * tile_labels
    sums = 4 * min(tile_labels, labels) * (connections // labels)
    step = lanes * (1 + (threads if setup.intermediate else 0))
    step += threads * (groups * tile + sums)
    step += groups * setup.labels * 4  # masks of the positives
    # Outputs of the layer below, and their gradient.
    step += 2 * task.batch_size * 4 * (setup.intermediate or 0)
    predict = 2 * block * 4 * inputs + threads * tile
    # The best weights are written array by array; some have another form outside.
    copied = 4 * connections if kind.operations == "sparse" else 0
    if task.weights_dtype != "float32":
        copied = 4 * max(inner, connections)

    # A dense layer's weights on their way into the framework; the moments are made after that.
    dense = connections if kind.operations == "dense" else 0
    moments = (first.moments + 2 * connections) * moment + 4 * first.row_moments
    building = memory.dense_copies * 4 * max(inner, dense) - moments
    if setup.sparse_features:
        building = memory.dense_copies * 4 * dense - moments

    moved = first.touched * 3 * weight + connections * (2 * weight + 4 * moment) + sources
    moved += 0 if first.row_moments else first.touched * 4 * moment
    if is_sorted:
        # Connections pass by twice, for the scores and for the gradients; once more each, where
        # lanes are worked on by halves, but then they come from a cache.
        moved += connections * (weight + 2 * 2) + sources
    return Estimate(
        parameter_bytes=(inner + connections) * weight
        + (biases + _transform_values(setup)) * 4
        + sources
        + sorting
        + kind.starts_bytes(inputs, labels),
        optimizer_bytes=moments + 2 * biases * 4,
        gradient_bytes=0,
        # The allocators keep what a step took while others predict.
        temporary_bytes=max(step + max(predict, copied), building),
        overhead_bytes=_overhead(memory, 4 * (inner + first.moments + 3 * connections)),
        moved_bytes=moved,
        flops=_flops(task, setup, first),
    )


def _flops(task: Task, setup: LayerSetup, first: FirstLayer) -> int:
    products = 3 * (first.products + setup.count("output.weights"))
    return 2 * task.batch_size * (products + _transform_values(setup))


def _autograd(
    task: Task, setup: LayerSetup, first: FirstLayer, memory: MemoryModel, threads: int
) -> Estimate:
    connections = setup.count("output.weights")
    biases = setup.labels + (setup.intermediate or 0)
    kind, inputs, labels = setup.output, setup.output_inputs, setup.labels
    structure = kind.source_bytes(inputs, labels)
    if kind.operations == "sparse":  # in the framework's form, not in that of the kernels
        structure = connections * memory.sparse_index_bytes
        structure += memory.sparse_starts_bytes * (labels + 1)
    others = 4 * (connections + biases)  # than the weights of the first layer
    trained = 4 * first.weights + others
    moments = 4 * (first.moments + first.row_moments) + 2 * others
    # Of sparse features the gradient of these weights has the rows that occur, and goes.
    gradients = others if setup.sparse_features else trained
    scores = task.batch_size * labels * 4
    lanes = -(-task.batch_size // LANES) * LANES * 4 * inputs
    temporary = _SCORES * scores + memory.sparse_temporary_bytes(setup, task.batch_size)
    temporary = max(temporary, memory.optimizer_copies * gradients)
    temporary += memory.words_rows * 4 * first.gathered
    temporary = max(temporary, memory.words_predicted * 4 * first.predicted)
    if setup.sparse_features:
        # Moments are copied in a step, weights where they are read after it.
        copied = memory.words_copies * 4 * first.weights
        temporary = temporary + copied if first.moments else max(temporary, copied)
    return Estimate(
        parameter_bytes=trained + structure + 4 * _transform_values(setup),
        optimizer_bytes=moments,
        gradient_bytes=gradients,
        temporary_bytes=round(temporary) + (2 + threads) * lanes,
        overhead_bytes=_overhead(memory, trained + moments) + memory.library_bytes(setup),
        moved_bytes=9 * (4 * first.touched + others) + structure + 8 * scores,
        flops=_flops(task, setup, first),
    )
