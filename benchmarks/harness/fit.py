"""The training loop, the same for every backend.

Per epoch: train, rewire where due, validate. In the paper's protocol the learning rate is halved
and training stopped on the validation P@3; a linear schedule lowers the rate step by step and runs
to its end. The weights of the best epoch are restored at the end.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp

from fanin.backends.arrays import Rewiring, drawn_seed
from fanin.backends.gradients import plan_towards_gradients
from fanin.backends.interface import OnStep
from fanin.backends.setup import LayerSetup
from fanin.backends.trainer import Trainer
from fanin.benchmarks.harness.checkpoint import Checkpoint
from fanin.benchmarks.measuring.metrics import NO_LABEL, precision
from fanin.benchmarks.records.base import Precision
from fanin.benchmarks.records.run import Epoch
from fanin.benchmarks.records.task import Task
from fanin.datasets import Batches, Features, evaluation_blocks

# From the paper's public code: halve the rate when val P@3 has not risen by 1e-3 for 2 epochs,
# not below 1e-4; stop when it has not risen by 5e-5 for 4 epochs.
RATE_FACTOR, RATE_RISE, RATE_PATIENCE, RATE_FLOOR = 0.5, 1e-3, 2, 1e-4
STOP_RISE, STOP_PATIENCE = 5e-5, 4

# A linear schedule falls to this share of its first rate, and changes every so many steps.
RATE_LAST, RATE_STEPS = 0.02, 50

# How many instances are predicted together. Their inputs to the output layer fill at most 8 MiB:
# malloc may take up to ten such blocks from the system before it uses one of them again, and the
# run's peak memory would contain them.
_EVALUATION_BLOCK, _EVALUATION_FLOATS = 512, 2 << 20


class Plateau:
    """Tells when a value has not risen by more than `rise` for `patience` observations."""

    def __init__(self, rise: float, patience: int) -> None:
        self.rise = rise
        self.patience = patience
        self.best = -np.inf
        self.waited = 0

    def observe(self, value: float) -> bool:
        """Take in the next value; True when it rose above the best by more than `rise`."""
        if value > self.best + self.rise:
            self.best, self.waited = value, 0
            return True
        self.waited += 1
        return False

    @property
    def reached(self) -> bool:
        return self.waited >= self.patience


class Schedule:
    """Learning rate, best epoch and end of a training: they follow from its history and its length
    alone. steps: of all epochs that the task allows."""

    def __init__(self, task: Task, steps: int) -> None:
        self.rate = task.learning_rate
        self.best_epoch = 0
        self._is_linear = task.schedule == "linear"
        self._steps = steps
        self._rate_plateau = Plateau(RATE_RISE, RATE_PATIENCE)
        self._stop_plateau = Plateau(STOP_RISE, STOP_PATIENCE)

    def observe(self, epoch: Epoch) -> bool:
        """Take in the next epoch; True when it is the best so far."""
        value = epoch.validation.at_3
        self._rate_plateau.observe(value)
        if self._rate_plateau.reached and not self._is_linear:
            if self.rate > RATE_FLOOR:  # a smaller one that was asked for stays
                self.rate = max(self.rate * RATE_FACTOR, RATE_FLOOR)
            self._rate_plateau.waited = 0
        rose = self._stop_plateau.observe(value)
        if rose:
            self.best_epoch = epoch.epoch
        return rose

    @property
    def is_over(self) -> bool:
        return self._stop_plateau.reached and not self._is_linear

    def rate_at(self, step: int) -> float:
        """The learning rate of a step, counted from 1."""
        if not self._is_linear:
            return self.rate
        done = (step - 1) // RATE_STEPS * RATE_STEPS / self._steps
        return self.rate * max(RATE_LAST, 1 - done)

    def keeps_rate_until(self, step: int) -> float:
        """The last step with the same rate as this one."""
        return (step - 1) // RATE_STEPS * RATE_STEPS + RATE_STEPS if self._is_linear else math.inf


def rewire_due(step: int, task: Task, steps_per_epoch: int) -> bool:
    """Whether connections are rewired at the start of `step` (counted from 1): at steps 1,
    1 + interval, ...; interval -1 means once per epoch, 0 never; until the task's share of all
    steps is over. Towards gradients, step 1 is left out: connections were just chosen so."""
    interval = task.rewire_interval
    if interval == 0 or step - 1 > task.rewire_until * task.epochs * steps_per_epoch:
        return False
    if step == 1 and task.rewire_towards == "gradient":
        return False
    return (step - 1) % (steps_per_epoch if interval == -1 else interval) == 0


def rewire_fraction(step: int, task: Task, steps_per_epoch: int) -> float:
    """Which fraction of the connections is rewired at that step."""
    if task.rewire_decay == "none":
        return task.rewire_fraction
    done = (step - 1) / (task.rewire_until * task.epochs * steps_per_epoch)
    return task.rewire_fraction * (1 + math.cos(math.pi * min(1, done))) / 2


def rewiring_seed(seed: int, step: int) -> int:
    """The randomness of the rewiring at one step depends on the run's seed and the step alone."""
    return drawn_seed(np.random.default_rng([seed, step, 1]))


class Split(NamedTuple):
    """Instances to train or to evaluate on."""

    x: Features  # [instances, inputs]
    y: sp.csr_array  # positives [instances, labels]
    left_out: sp.csr_array | None = None  # pairs [instances, labels] that evaluation leaves out


def evaluation_block(setup: LayerSetup) -> int:
    """Instances that are predicted together."""
    return min(_EVALUATION_BLOCK, max(32, _EVALUATION_FLOATS // setup.output_inputs // 32 * 32))


def predict(trainer: Trainer, x: Features, left_out: sp.csr_array | None = None) -> np.ndarray:
    """Ids of the best five labels of the features x [instances, inputs], without dropout; fewer
    columns where fewer labels exist. left_out: pairs [instances, labels] that are no prediction;
    NO_LABEL stands where fewer others exist."""
    # One array is made before all blocks. Small arrays that stay between large ones that go would
    # split the memory that malloc gets back, and each block would take new memory.
    ids = np.empty((x.shape[0], min(5, trainer.setup.labels)), np.int64)
    done = 0
    for block in evaluation_blocks(x, evaluation_block(trainer.setup)):
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
    schedule = Schedule(task, task.epochs * len(batches))
    history = checkpoint.history
    if history:
        checkpoint.restore(trainer)
    for epoch in history:
        schedule.observe(epoch)
    while len(history) < task.epochs and not schedule.is_over:
        number = len(history) + 1
        rate = schedule.rate_at((number - 1) * len(batches) + 1)
        trainer.device.synchronize()
        start = time.perf_counter()
        losses, rewired = train_epoch(trainer, batches, number, task, seed, schedule, on_step)
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
        if schedule.observe(epoch):
            checkpoint.keep_best(trainer, number)
        checkpoint.save(trainer, history)
    if schedule.best_epoch != len(history):
        checkpoint.restore_best(trainer)
    return Fit(history, schedule.best_epoch)


def train_epoch(
    trainer: Trainer,
    batches: Batches,
    number: int,
    task: Task,
    seed: int,
    schedule: Schedule,
    on_step: OnStep | None = None,
) -> tuple[np.ndarray, int]:
    """Epoch `number` (from 1): losses [steps] and how many connections were rewired."""
    steps = len(batches)
    step = (number - 1) * steps
    last = step + steps
    stream = batches.epoch(number - 1)
    due = [s for s in range(step + 1, last + 1) if rewire_due(s, task, steps)]
    losses, rewired = [], 0
    while step < last:
        if due and due[0] == step + 1:
            del due[0]
            if trainer.setup.is_rewired:
                rewired += rewire(trainer, batches, task, seed, step + 1)
        # Up to the next step that begins with a rewiring, or has another rate.
        ahead = due[0] - 1 if due else last
        count = int(min(ahead, schedule.keeps_rate_until(step + 1))) - step
        rate = schedule.rate_at(step + 1)
        losses.append(trainer.train(itertools.islice(stream, count), rate, on_step))
        step += count
    return np.concatenate(losses), rewired


def rewire(trainer: Trainer, batches: Batches, task: Task, seed: int, step: int) -> int:
    """Rewire as the task says at that step; how many connections moved."""
    if task.rewire_towards == "random" and task.rewired_weights == "kept":
        fraction = rewire_fraction(step, task, len(batches))
        return trainer.rewire(fraction, rewiring_seed(seed, step))
    rewiring = plan_rewiring(trainer, batches, task, seed, step)
    trainer.apply_rewiring(rewiring)
    return len(rewiring.positions)


def plan_rewiring(trainer: Trainer, batches: Batches, task: Task, seed: int, step: int) -> Rewiring:
    """What `rewire` would move at that step."""
    fraction, drawn = rewire_fraction(step, task, len(batches)), rewiring_seed(seed, step)
    if task.rewire_towards == "random":
        rewiring = trainer.plan_rewiring(fraction, drawn)
    else:
        layer, threads = trainer.output_layer(), trainer.threads
        rewiring = plan_towards_gradients(
            batches.x, batches.y, layer, fraction, seed=drawn, threads=threads
        )
    return replace(rewiring, weight=0.0 if task.rewired_weights == "zero" else None)
