"""What a training needs before it begins: bytes of the model, peak memory, arithmetic.

The fused execution's scratch memory is what `kernels/src/core/call.h` lays out. The frameworks' own
temporaries are counted in arrays of the size of the scores or of the connections. The counts come
from the code of the trainers and were checked against measured peaks.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

from fanin.backends import features
from fanin.backends.auxiliary import cluster_count
from fanin.backends.choosing import choosing_bytes
from fanin.backends.dictionary import dictionary_bytes
from fanin.backends.first_layer import FirstLayer
from fanin.backends.gradients import rewiring_bytes
from fanin.backends.grouping import meaning_bytes, sources_bytes
from fanin.backends.interface import FLOAT32, Execution, Storage, evaluation_block
from fanin.backends.kinds import Part
from fanin.backends.optimizer import ADAM, Optimizer
from fanin.backends.recipes import Recipe
from fanin.backends.registry import BACKENDS, MemoryModel
from fanin.backends.setup import LayerSetup
from fanin.backends.training import has_rewiring
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
    """Bytes by what they are for. training: the most that one phase (a step, prediction, keeping
    the best weights) holds beside the model. moved: by one training step, at least. flops: of one
    step's products. starting: the most in memory before the first step, while connections are
    chosen and weights are made; it includes what exists of the model by then. reading: what is
    needed to read an array from the framework, beside the copy that is kept of it."""

    parameter_bytes: int
    optimizer_bytes: int
    gradient_bytes: int
    training_bytes: int
    overhead_bytes: int
    moved_bytes: int
    flops: int
    starting_bytes: int = 0
    reading_bytes: int = 0

    @property
    def model_bytes(self) -> int:
        """What is in memory from the first step to the last."""
        return self.parameter_bytes + self.optimizer_bytes + self.gradient_bytes

    @property
    def temporary_bytes(self) -> int:
        """What the peak has beside the model."""
        return max(self.training_bytes, self.starting_bytes - self.model_bytes)

    @property
    def peak_bytes(self) -> int:
        """Peak resident set above its baseline (on a GPU, of its memory)."""
        return self.model_bytes + self.temporary_bytes + self.overhead_bytes

    def peak_with_copy(self, copy_bytes: int, *, while_training: bool) -> int:
        """`peak_bytes` with a copy of the trained arrays, which is made after the last step;
        while_training: whether there may be one during the steps, too."""
        training = self.training_bytes + copy_bytes * while_training
        training = max(training, copy_bytes + self.reading_bytes)
        return max(self.model_bytes + training, self.starting_bytes) + self.overhead_bytes


@dataclass(frozen=True)
class Sizes:
    """Of a data set, as far as a plan needs them. is_mapped: whether the training features are a
    memory map. words: of sparse features, how many an instance has on average; None for dense ones.
    data_bytes: what features and labels take in memory; train_bytes: what a copy of those of the
    training instances would take."""

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


def check_fits(expected: Estimate, available: int) -> None:
    """TooLargeError with both figures where the expected peak is above the available bytes."""
    if expected.peak_bytes > available:
        raise TooLargeError(
            f"needs about {size_text(expected.peak_bytes)}, and {size_text(available)} are "
            "available here"
        )


def check_counted(expected: Estimate, available_bytes: int) -> None:
    """TooLargeError where the arrays of model and optimiser alone, which are counted and not
    estimated, are more than the available bytes: the system would kill the process."""
    counted = expected.parameter_bytes + expected.optimizer_bytes
    if counted > available_bytes:
        raise TooLargeError(
            f"model and optimiser state alone are {size_text(counted)}, and "
            f"{size_text(available_bytes)} are available here; `fanin plan` says what fits"
        )


@dataclass(frozen=True)
class TrainingOptions:
    """How a model is trained, as far as memory depends on it. batch: instances of a step. words: of
    sparse features, how many an instance has on average. other_bytes: what else is in memory while
    the model is trained. clusters: of an auxiliary loss, 0 without one."""

    execution: Execution
    storage: Storage = FLOAT32
    optimizer: Optimizer = ADAM
    batch: int = 32
    threads: int = 1
    words: float | None = None
    other_bytes: int = 0
    clusters: int = 0


def estimate(
    setup: LayerSetup, backend: str, options: TrainingOptions, cpu: str | None = None
) -> Estimate:
    """What training a model in this way needs in this backend on a CPU: the one of that name, or
    this machine's."""
    memory = BACKENDS[backend].memory
    storage, kept = options.storage, len(options.optimizer.keeps)
    first = FirstLayer.of(setup, options.batch, storage.row_moments, options.words, kept)
    if options.execution == "fused":
        expected = _fused(setup, first, memory, options, cpu)
        weight = _BYTES[storage.weights]
    else:
        expected, weight = _autograd(setup, first, memory, options), _BYTES["float32"]
    if options.clusters:
        expected = _with_clusters(expected, setup, memory, options)
    starting = expected.starting_bytes
    if setup.sparse_features:
        # Making these weights may take more memory than all that comes after them.
        starting = max(starting, first.weights * (weight + 4 * memory.words_building))
    # The trainer has the position of each label, too.
    positions = setup.output.order_bytes(setup.output_inputs, setup.labels)
    training = expected.training_bytes + options.other_bytes + positions
    return replace(expected, training_bytes=training, starting_bytes=starting)


def _with_clusters(
    expected: Estimate, setup: LayerSetup, memory: MemoryModel, options: TrainingOptions
) -> Estimate:
    """With the dense layer of an auxiliary loss, which training keeps as it keeps moments."""
    kept, units = len(options.optimizer.keeps), setup.intermediate or 0
    weights = units * options.clusters
    # Another gradient of the intermediate layer's outputs.
    temporary: float = 4 * options.batch * units
    starting = expected.starting_bytes
    if options.execution == "fused":
        moment, number = _BYTES[options.storage.moments], _BYTES[options.storage.weights]
        state, gradients = weights * (number + kept * moment), 0
        made = weights * (number + 4 * memory.dense_copies)
        starting = max(starting, expected.parameter_bytes + made)
    else:
        state, gradients = 4 * weights * (1 + kept), 4 * weights
        temporary += _SCORES * 4 * options.batch * options.clusters
    # Biases with their moments, and the cluster of each label.
    others = 4 * (options.clusters * (1 + kept) + setup.labels)
    return replace(
        expected,
        optimizer_bytes=expected.optimizer_bytes + state + others,
        gradient_bytes=expected.gradient_bytes + gradients,
        training_bytes=expected.training_bytes + round(temporary),
        starting_bytes=starting,
    )


def with_choosing(
    expected: Estimate,
    recipe: Recipe,
    setup: LayerSetup,
    sizes: Sizes,
    batch: int,
    threads: int,
) -> Estimate:
    """The estimate with the memory for choosing connections, label groups and clusters, which
    comes before the model, and for rewiring towards gradients. batch: instances of a step. threads:
    of the CPU."""
    training, starting = expected.training_bytes, expected.starting_bytes
    data = (sizes.train_instances, setup.inputs, setup.labels, sizes.train_positives)
    if cluster_count(recipe, setup.labels):
        starting = max(starting, meaning_bytes(*data, threads))
    steps_per_epoch = -(-sizes.train_instances // batch)
    rewires = recipe.rewire_towards == "gradient" and has_rewiring(recipe, steps_per_epoch)
    # Of several output layers each has its own positives, a second time.
    beside = _POSITIVE_COPIES * sizes.train_positives if len(setup.parts) > 1 else 0
    for part in setup.parts:
        own = (*data[:2], part.labels, data[3])
        fan_in, group_size = part.kind.fan_in, part.kind.group_size
        if group_size and recipe.grouping == "meaning":
            starting = max(starting, meaning_bytes(*own, threads) + beside)
        if fan_in is None:
            continue
        choosing = _choosing(recipe, setup, part, own, sizes.is_mapped, threads)
        starting = max(starting, choosing + beside)
        if rewires:
            rewiring = rewiring_bytes(*own, fan_in, setup.atoms, group_size)
            training = max(training, rewiring + beside)
    return replace(expected, training_bytes=training, starting_bytes=starting)


def _choosing(
    recipe: Recipe,
    setup: LayerSetup,
    part: Part,
    data: tuple[int, int, int, int],
    is_mapped: bool,
    threads: int,
) -> int:
    """What choosing the connections of an output layer takes; data: instances, inputs, its labels,
    positives."""
    fan_in, group_size = part.kind.fan_in, part.kind.group_size
    if recipe.connections == "random" or fan_in is None:
        return 0
    choose = partial(choosing_bytes, *data, fan_in, is_mapped=is_mapped, atoms=setup.atoms)
    wants_values = recipe.initial_weights == "centroid"
    choosing = choose(wants_values=wants_values, group_size=group_size)
    if group_size and recipe.grouping == "sources":
        grouping = sources_bytes(setup.output_inputs, part.labels, fan_in, threads)
        choosing = max(choosing, choose(wants_values=True), grouping)
    if setup.atoms:
        learning = dictionary_bytes(setup.inputs, setup.labels, setup.atoms)
        choosing = max(choosing, learning)
    return choosing


# Bytes for each positive: its label and whether it is there, by label and again by instance.
_POSITIVE_COPIES = 2 * (4 + 1)

# Arrays of int64: with a number for each training instance, while the order of an epoch is made;
# and with five for each instance that is ranked together, while precision is computed (`metrics`).
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
    setup: LayerSetup,
    first: FirstLayer,
    memory: MemoryModel,
    options: TrainingOptions,
    cpu: str | None,
) -> Estimate:
    weight, moment = _BYTES[options.storage.weights], _BYTES[options.storage.moments]
    kept = len(options.optimizer.keeps)
    inner, connections = first.weights, setup.connections()
    biases = setup.labels + (setup.intermediate or 0)
    kind, inputs, labels = setup.output, setup.output_inputs, setup.labels
    sorted_parts = [each for each in setup.parts if each.kind.is_sortable]
    is_sorted = bool(sorted_parts) and sorting_pays(inputs, cpu)
    sources = kind.source_bytes(inputs, labels)
    sorting = sum(each.kind.sorting_bytes(each.labels) for each in sorted_parts if is_sorted)

    groups = -(-options.batch // LANES)
    block = evaluation_block(setup.output_inputs)
    # Features in lanes, and with an intermediate layer, an accumulator for each thread.
    lanes = groups * LANES * 4 * inputs
    # Of sorted connections: a tile's scores, and a sum for each of its connections.
    tile_labels = sorted_labels(inputs, labels) if is_sorted else 0
    tile = LANES * 4 * tile_labels
    sums = 4 * min(tile_labels, labels) * (connections // labels)
    step = lanes * (1 + (options.threads if setup.intermediate else 0))
    step += options.threads * (groups * tile + sums)
    step += groups * setup.labels * 4  # masks of the positives
    # Outputs of the intermediate layer, and their gradient.
    step += 2 * options.batch * 4 * (setup.intermediate or 0)
    predict = 2 * block * 4 * inputs + options.threads * tile
    # The best weights are written array by array; some in another form.
    copied = 4 * setup.connections("sparse")
    if options.storage.weights != "float32":
        copied = 4 * max(inner, connections)

    # A dense layer's weights on their way into the framework; the moments are made after that.
    dense = setup.connections("dense")
    moments = (first.moments + kept * connections) * moment + 4 * first.row_moments
    made = dense if setup.sparse_features else max(inner, dense)

    moved = first.touched * 3 * weight + connections * (2 * weight + 2 * kept * moment) + sources
    moved += 0 if first.row_moments else first.touched * 2 * kept * moment
    if is_sorted:
        # Connections pass by twice, for the scores and for the gradients; once more each, where
        # lanes are worked on by halves, but then they come from a cache.
        moved += connections * (weight + 2 * 2) + sources
    parameters = (inner + connections) * weight + (biases + _transform_values(setup)) * 4
    order = kind.order_bytes(inputs, labels)
    parameters += sources + sorting + kind.starts_bytes(inputs, labels) + order
    return Estimate(
        parameter_bytes=parameters,
        optimizer_bytes=moments + kept * biases * 4,
        gradient_bytes=0,
        # The allocators keep what a step took while others predict.
        training_bytes=step + max(predict, copied),
        overhead_bytes=_overhead(memory, 4 * (inner + first.moments + (1 + kept) * connections)),
        moved_bytes=moved,
        flops=_flops(setup, first, options),
        starting_bytes=parameters + memory.dense_copies * 4 * made,
        reading_bytes=max(copied, memory.read_copies * weight * made),
    )


def _flops(setup: LayerSetup, first: FirstLayer, options: TrainingOptions) -> int:
    products = 3 * (first.products + setup.connections())
    return 2 * options.batch * (products + _transform_values(setup))


def _autograd(
    setup: LayerSetup, first: FirstLayer, memory: MemoryModel, options: TrainingOptions
) -> Estimate:
    connections = setup.connections()
    biases = setup.labels + (setup.intermediate or 0)
    kind, inputs, labels = setup.output, setup.output_inputs, setup.labels
    structure = kind.order_bytes(inputs, labels)
    for part in setup.parts:
        if part.kind.operations == "sparse":  # in the framework's form, not in that of the kernels
            structure += setup.connections("sparse") * memory.sparse_index_bytes
            structure += memory.sparse_starts_bytes * (part.labels + 1)
        else:
            structure += part.kind.source_bytes(inputs, part.labels)
    others = 4 * (connections + biases)  # than the weights of the first layer
    trained = 4 * first.weights + others
    kept = len(options.optimizer.keeps)
    moments = 4 * (first.moments + first.row_moments) + kept * others
    # Of sparse features the gradient of these weights has the rows that occur, and goes.
    gradients = others if setup.sparse_features else trained
    scores = options.batch * labels * 4
    lanes = -(-options.batch // LANES) * LANES * 4 * inputs
    temporary = _SCORES * scores + memory.sparse_temporary_bytes(setup, options.batch)
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
        training_bytes=round(temporary) + (2 + options.threads) * lanes,
        overhead_bytes=_overhead(memory, trained + moments) + memory.library_bytes(setup),
        # Weights, gradients and moments, each read and written, and weights once more.
        moved_bytes=(5 + 2 * kept) * (4 * first.touched + others) + structure + 8 * scores,
        flops=_flops(setup, first, options),
    )
