"""The training loop of the paper's protocol, the same for every backend.

Per epoch: train, rewire where due, validate. The learning rate is halved and training stopped on
the validation P@3; the weights of the best epoch are restored at the end.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from fanin.backends.arrays import drawn_seed
from fanin.backends.interface import OnStep
from fanin.backends.setup import LayerSetup
from fanin.backends.trainer import Trainer
from fanin.benchmarks.harness.checkpoint import Checkpoint
from fanin.benchmarks.measuring.metrics import precision
from fanin.benchmarks.records.base import Precision
from fanin.benchmarks.records.run import Epoch
from fanin.benchmarks.records.task import Task
from fanin.datasets import Batches, evaluation_blocks

# From the paper's public code: halve the rate when val P@3 has not risen by 1e-3 for 2 epochs,
# not below 1e-4; stop when it has not risen by 5e-5 for 4 epochs.
RATE_FACTOR, RATE_RISE, RATE_PATIENCE, RATE_FLOOR = 0.5, 1e-3, 2, 1e-4
STOP_RISE, STOP_PATIENCE = 5e-5, 4

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
    """Learning rate, best epoch and end of a training: they follow from its history alone."""

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self.best_epoch = 0
        self._rate_plateau = Plateau(RATE_RISE, RATE_PATIENCE)
        self._stop_plateau = Plateau(STOP_RISE, STOP_PATIENCE)

    def observe(self, epoch: Epoch) -> bool:
        """Take in the next epoch; True when it is the best so far."""
        value = epoch.validation.at_3
        self._rate_plateau.observe(value)
        if self._rate_plateau.reached:
            if self.rate > RATE_FLOOR:  # a smaller one that was asked for stays
                self.rate = max(self.rate * RATE_FACTOR, RATE_FLOOR)
            self._rate_plateau.waited = 0
        rose = self._stop_plateau.observe(value)
        if rose:
            self.best_epoch = epoch.epoch
        return rose

    @property
    def is_over(self) -> bool:
        return self._stop_plateau.reached


def rewire_due(step: int, interval: int, steps_per_epoch: int) -> bool:
    """Whether connections are rewired at the start of `step` (counted from 1): at steps 1,
    1 + interval, ...; interval -1 means once per epoch, 0 never."""
    if interval == 0:
        return False
    return (step - 1) % (steps_per_epoch if interval == -1 else interval) == 0


def rewiring_seed(seed: int, step: int) -> int:
    """The randomness of the rewiring at one step depends on the run's seed and the step alone."""
    return drawn_seed(np.random.default_rng([seed, step, 1]))


def evaluation_block(setup: LayerSetup) -> int:
    """Instances that are predicted together."""
    return min(_EVALUATION_BLOCK, max(32, _EVALUATION_FLOATS // setup.output_inputs // 32 * 32))


def predict(trainer: Trainer, x: np.ndarray) -> np.ndarray:
    """Ids of the best five labels of instances x [instances, inputs], without dropout; fewer
    columns where fewer labels exist."""
    # One array is made before all blocks. Small arrays that stay between large ones that go would
    # split the memory that malloc gets back, and each block would take new memory.
    ids = np.empty((len(x), min(5, trainer.setup.labels)), np.int64)
    done = 0
    for block in evaluation_blocks(x, evaluation_block(trainer.setup)):
        ids[done : done + len(block)] = trainer.top_k(block, ids.shape[1])
        done += len(block)
    return ids


def evaluate(trainer: Trainer, x: np.ndarray, y: sp.csr_array) -> Precision:
    """Precision at 1, 3, 5 on instances x [instances, inputs], without dropout."""
    return precision(y, predict(trainer, x))


@dataclass(frozen=True)
class Fit:
    """What training leaves behind, apart from the trainer with its best weights."""

    history: list[Epoch]
    best_epoch: int


def fit(
    trainer: Trainer,
    batches: Batches,
    validation: tuple[np.ndarray, sp.csr_array],
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
    schedule = Schedule(task.learning_rate)
    history = checkpoint.history
    if history:
        checkpoint.restore(trainer)
    for epoch in history:
        schedule.observe(epoch)
    while len(history) < task.epochs and not schedule.is_over:
        number, rate = len(history) + 1, schedule.rate
        trainer.device.synchronize()
        start = time.perf_counter()
        losses, rewired = train_epoch(trainer, batches, number, task, seed, rate, on_step)
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
    rate: float,
    on_step: OnStep | None = None,
) -> tuple[np.ndarray, int]:
    """Epoch `number` (from 1): losses [steps] and how many connections were rewired."""
    steps = len(batches)
    step = (number - 1) * steps
    last = step + steps
    stream = batches.epoch(number - 1)
    losses, rewired = [], 0
    while step < last:
        due = range(step + 2, last + 1)
        if trainer.setup.is_rewired and rewire_due(step + 1, task.rewire_interval, steps):
            rewired += trainer.rewire(task.rewire_fraction, rewiring_seed(seed, step + 1))
        # Up to the next step that begins with a rewiring.
        ahead = next((s for s in due if rewire_due(s, task.rewire_interval, steps)), last + 1)
        count = ahead - step - 1
        losses.append(trainer.train(itertools.islice(stream, count), rate, on_step))
        step += count
    return np.concatenate(losses), rewired
