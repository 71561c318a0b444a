"""What a child process needs before it trains: its instances, its batches, its trainer."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import scipy.sparse as sp

from fanin.backends.arrays import InitialArrays
from fanin.backends.auxiliary import Auxiliary, auxiliary_loss
from fanin.backends.kinds import ConnectionKind
from fanin.backends.registry import make_trainer
from fanin.backends.setup import LayerSetup
from fanin.backends.starting import starting_arrays
from fanin.backends.trainer import Trainer
from fanin.benchmarks.harness.fit import Split, evaluate
from fanin.benchmarks.harness.request import Request
from fanin.benchmarks.measuring.machine import describe_machine
from fanin.benchmarks.records.base import DatasetInfo, Machine
from fanin.benchmarks.records.task import Task
from fanin.datasets import Batch, Batches, DataError, Dataset, Features
from fanin.kernels.threads import thread_count

# Of the training instances, in protocol "holdout".
HOLDOUT_FRACTION = 0.1


def dataset_info(data: Dataset) -> DatasetInfo:
    """What a result file holds about a data set."""
    return DatasetInfo(
        name=data.name,
        features=data.features,
        source=data.source,
        synthetic=data.synthetic,
        identity=data.identity,
        inputs=data.inputs,
        labels=data.labels,
        train_instances=data.train_instances,
        test_instances=data.test_instances,
        train_positives=int(data.train_y.nnz),
        train_stored=int(data.train_x.nnz) if isinstance(data.train_x, sp.csr_array) else None,
        left_out_pairs=0 if data.test_left_out is None else int(data.test_left_out.nnz),
    )


def setup_for(task: Task, data: Dataset) -> LayerSetup:
    """The task's model for these data."""
    return task.setup(data.inputs, data.labels, data.sparse_features)


def split(data: Dataset, task: Task) -> tuple[Split, Split]:
    """Training and validation instances. Protocol "paper" validates on the test set, as the
    original did; "holdout" takes a tenth of the training instances out, the same for all repeats
    of a task. Raises DataError where it would leave none to train on."""
    train = Split(data.train_x, data.train_y, data.train_left_out)
    if task.protocol == "paper":
        return train, Split(data.test_x, data.test_y, data.test_left_out)
    if data.train_instances < 2:
        raise DataError(
            f"{data.name} ({data.source}): {data.train_instances} training instance, but protocol "
            "holdout takes one out and needs another: give more, or use protocol paper"
        )
    order = np.random.default_rng([task.seed, 2]).permutation(data.train_instances)
    count = max(1, int(HOLDOUT_FRACTION * data.train_instances))
    validation, rest = np.sort(order[:count]), np.sort(order[count:])
    return _instances(train, rest), _instances(train, validation)


def _instances(split: Split, chosen: np.ndarray) -> Split:
    """Some instances of a split."""
    left_out = None if split.left_out is None else split.left_out[chosen]
    return Split(split.x[chosen], split.y[chosen], left_out)


def make_batches(task: Task, train: Split, seed: int) -> Batches:
    """The training stream of a run."""
    return Batches(train.x, train.y, task.batch_size, task.dropout, seed)


def endless(batches: Batches) -> Iterator[Batch]:
    """Epoch after epoch."""
    return (batch for epoch in itertools.count() for batch in batches.epoch(epoch))


def kind_for(task: Task, train: Split) -> ConnectionKind:
    """How labels are connected in the task's model of these data."""
    is_sparse = isinstance(train.x, sp.csr_array)
    return task.setup(train.x.shape[1], train.y.shape[1], is_sparse).output


def chosen_arrays(
    request: Request, train: Split, on_labels: Callable[[int], None] | None = None
) -> dict[str, np.ndarray]:
    """The arrays that the task's recipe makes from the training instances, in place of the usual
    initial ones. on_labels: see `choosing.choose_sources`."""
    task = request.task
    output = kind_for(task, train)
    return starting_arrays(
        train.x,
        train.y,
        task.recipe_values,
        output,
        seed=request.seed,
        threads=request.threads,
        on_labels=on_labels,
    )


def auxiliary_of(
    request: Request, train: Split, steps_per_epoch: int, are_known: bool = False
) -> Auxiliary | None:
    """The auxiliary loss that the task's recipe wants. are_known: whether a checkpoint has its
    clusters."""
    recipe = request.task.recipe_values.for_steps(steps_per_epoch)
    return auxiliary_loss(
        recipe,
        recipe.epochs * steps_per_epoch,
        train.x,
        train.y,
        seed=request.seed,
        threads=request.threads,
        are_known=are_known,
    )


def build(
    request: Request,
    setup: LayerSetup,
    seed: int | None = None,
    given: Mapping[str, np.ndarray] | None = None,
    auxiliary: Auxiliary | None = None,
    over_ranks: bool = False,
) -> Trainer:
    """A trainer of a setup as the request wants it, with initial weights of the run's own seed or
    another; given: arrays that start otherwise (`chosen_arrays`); auxiliary: see `auxiliary_of`;
    over_ranks: see `make_trainer`."""
    return make_trainer(
        request.backend,
        setup,
        InitialArrays(setup, request.seed if seed is None else seed, given),
        execution=request.task.execution,
        storage=request.task.storage,
        optimizer=request.task.optimizer_values,
        device=request.options.device,
        threads=request.threads,
        auxiliary=auxiliary,
        over_ranks=over_ranks,
    )


def warm_up(request: Request, sparse_features: bool) -> Machine:
    """Import the framework, let a tiny model of the same kind train, rewire and predict, and
    describe the machine.

    A framework is hundreds of megabytes of code that becomes resident as it is first used, and
    looking up versions takes tens; after this they are part of the baseline and not of the
    model's memory.
    """
    task = request.task
    small = {"connectivity": task.connectivity and 1, "intermediate": task.intermediate and 8}
    small["head_connectivity"] = task.head_connectivity and 1
    setup = task.model_copy(update=small).setup(8, 8, sparse_features)
    trainer = build(request, setup, seed=0)
    x: Features = np.ones((2, 8), np.float32)
    if sparse_features:
        x = sp.csr_array(x)
    y = sp.csr_array(np.eye(2, 8, dtype=bool))
    trainer.train(Batches(x, y).epoch(0), task.learning_rate)
    if setup.is_rewired:
        trainer.rewire(0.5, 0)
    evaluate(trainer, x, y)
    threads, processes = thread_count(request.options.threads), request.options.processes
    return describe_machine(trainer.device, threads, processes)
