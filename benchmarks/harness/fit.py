"""The training loop, the same for every backend.

Per epoch: train, rewire where due, validate. In the paper's protocol the learning rate is halved
and training stopped on the validation P@3; a linear or cosine schedule lowers the rate by itself
and runs to its end. The weights of the best epoch are restored at the end.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp

from fanin.backends.interface import OnStep, evaluation_block
from fanin.backends.metrics import NO_LABEL
from fanin.backends.trainer import Trainer
from fanin.backends.training import Schedule, train_epoch
from fanin.benchmarks.harness.checkpoint import Checkpoint
from fanin.benchmarks.measuring.metrics import precision
from fanin.benchmarks.records.base import Precision
from fanin.benchmarks.records.run import Epoch
from fanin.benchmarks.records.task import Task
from fanin.datasets import Batches, Features, evaluation_blocks


class Split(NamedTuple):
    """Instances to train or to evaluate on."""

    x: Features  # [instances, inputs]
    y: sp.csr_array  # positives [instances, labels]
    left_out: sp.csr_array | None = None  # pairs [instances, labels] that evaluation leaves out


def predict(trainer: Trainer, x: Features, left_out: sp.csr_array | None = None) -> np.ndarray:
    """Ids of the best five labels of the features x [instances, inputs], without dropout; fewer
    columns where fewer labels exist. left_out: pairs [instances, labels] that are no prediction;
    NO_LABEL stands where fewer others exist."""
    # One array is made before all blocks. Small arrays that stay between large ones that go would
    # split the memory that malloc gets back, and each block would take new memory.
    ids = np.empty((x.shape[0], min(5, trainer.setup.labels)), np.int64)
    done = 0
    for block in evaluation_blocks(x, evaluation_block(trainer.setup.output_inputs)):
        instances = slice(done, done + block.shape[0])
        if left_out is None:
            ids[instances] = trainer.top_k(block, ids.shape[1])
        else:
            ids[instances] = _best_of_others(trainer, block, ids.shape[1], left_out[instances])
        done += block.shape[0]
    return ids


def _best_of_others(trainer: Trainer, x: Features, k: int, left_out: sp.csr_array) -> np.ndarray:
    """`Trainer.top_k` of the labels that are not left out."""
    labels, counts = trainer.setup.labels, np.diff(left_out.indptr)
    ids = trainer.top_k(x, min(k + int(counts.max()), labels))
    # A pair (instance, label) is one number.
    instances = np.arange(x.shape[0], dtype=np.int64)
    pairs = np.repeat(instances, counts) * labels + left_out.indices
    ids[np.isin(instances[:, None] * labels + ids, pairs)] = NO_LABEL
    others_first = np.argsort(ids == NO_LABEL, axis=1, kind="stable")
    return np.take_along_axis(ids, others_first, axis=1)[:, :k]


def evaluate(
    trainer: Trainer, x: Features, y: sp.csr_array, left_out: sp.csr_array | None = None
) -> Precision:
    """Precision at 1, 3, 5 on the features x [instances, inputs], without dropout and without the
    pairs left out."""
    return precision(y, predict(trainer, x, left_out))


@dataclass(frozen=True)
class Fit:
    """What training leaves behind, apart from the trainer with its best weights."""

    history: list[Epoch]
    best_epoch: int


def fit(
    trainer: Trainer,
    batches: Batches,
    validation: Split,
    task: Task,
    seed: int,
    checkpoint: Checkpoint,
    on_step: OnStep | None = None,
    on_epoch: Callable[[Epoch], None] | None = None,
) -> Fit:
    """Train until the task's epochs are over or the plateau is reached; restore the best epoch.

    Goes on from what the checkpoint holds. Batches, dropout and rewiring are functions of seed,
    epoch and step, so the numbers are those of a training that was never interrupted.
    """
    recipe = task.recipe_values.for_steps(len(batches))
    schedule = Schedule(recipe, recipe.epochs * len(batches))
    history = checkpoint.history
    if history:
        checkpoint.restore(trainer)
    for epoch in history:
        schedule.observe(epoch.epoch, epoch.validation.at_3)
    while len(history) < recipe.epochs and not schedule.is_over:
        number = len(history) + 1
        rate = schedule.rate_at((number - 1) * len(batches) + 1)
        trainer.device.synchronize()
        start = time.perf_counter()
        losses, rewired = train_epoch(trainer, batches, number, recipe, seed, schedule, on_step)
        trainer.device.synchronize()
        trained = time.perf_counter()
        validated = evaluate(trainer, *validation)
        trainer.device.synchronize()
        epoch = Epoch(
            epoch=number,
            steps=len(losses),
            loss=float(losses.mean()),
            learning_rate=rate,
            validation=validated,
            train_seconds=trained - start,
            evaluate_seconds=time.perf_counter() - trained,
            rewired=rewired,
        )
        history.append(epoch)
        if on_epoch:
            on_epoch(epoch)
        if schedule.observe(number, validated.at_3):
            checkpoint.keep_best(trainer, number)
        checkpoint.save(trainer, history)
    if schedule.best_epoch != len(history):
        checkpoint.restore_best(trainer)
    return Fit(history, schedule.best_epoch)
