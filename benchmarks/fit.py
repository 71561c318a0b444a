"""The training loop of the paper's protocol, the same for every backend.

Per epoch: train, rewire where due, validate. The learning rate is halved and training stopped on
the validation P@3; the weights of the best epoch are restored at the end.
"""

from __future__ import annotations

import itertools
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.sparse as sp

from fanin.backends.interface import LayerSetup, OnStep, Trainer
from fanin.benchmarks.metrics import precision
from fanin.benchmarks.results import Epoch, Precision
from fanin.benchmarks.task import Task
from fanin.datasets import Batches, evaluation_blocks

# From the paper's public code: halve the rate when val P@3 has not risen by 1e-3 for 2 epochs,
# not below 1e-4; stop when it has not risen by 5e-5 for 4 epochs.
RATE_FACTOR, RATE_RISE, RATE_PATIENCE, RATE_FLOOR = 0.5, 1e-3, 2, 1e-4
STOP_RISE, STOP_PATIENCE = 5e-5, 4

# Instances predicted together: many, but their inputs to the output layer fill at most 32 MiB.
_EVALUATION_BLOCK, _EVALUATION_FLOATS = 512, 8 << 20


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


def rewire_due(step: int, interval: int, steps_per_epoch: int) -> bool:
    """Whether connections are rewired at the start of `step` (counted from 1): at steps 1,
    1 + interval, ...; interval -1 means once per epoch, 0 never."""
    if interval == 0:
        return False
    return (step - 1) % (steps_per_epoch if interval == -1 else interval) == 0


def rewiring_seed(seed: int, step: int) -> int:
    """The randomness of the rewiring at one step depends on the run's seed and the step alone."""
    return int(np.random.default_rng([seed, step, 1]).integers(2**64, dtype=np.uint64))


def evaluation_block(setup: LayerSetup) -> int:
    """Instances that are predicted together."""
    return min(_EVALUATION_BLOCK, max(32, _EVALUATION_FLOATS // setup.sources // 32 * 32))


def predict(trainer: Trainer, x: np.ndarray) -> np.ndarray:
    """Ids of the best five labels of instances x [instances, inputs], without dropout; fewer
    columns where fewer labels exist."""
    k = min(5, trainer.setup.labels)
    return trainer.top_k(evaluation_blocks(x, evaluation_block(trainer.setup)), k)


def evaluate(trainer: Trainer, x: np.ndarray, y: sp.csr_array) -> Precision:
    """Precision at 1, 3, 5 on instances x [instances, inputs], without dropout."""
    return precision(y, predict(trainer, x))


class BestWeights:
    """The arrays of the best epoch, on disk: a copy in memory would count as the model's."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.epoch = 0

    def keep(self, trainer: Trainer, epoch: int) -> None:
        for name in trainer.setup.array_shapes():
            np.save(self.folder / f"{name}.npy", trainer.array(name))
        self.epoch = epoch

    def restore(self, trainer: Trainer) -> None:
        names = trainer.setup.array_shapes()
        trainer.load_weights({n: np.load(self.folder / f"{n}.npy", mmap_mode="r") for n in names})


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
    on_step: OnStep | None = None,
    on_epoch: Callable[[Epoch], None] | None = None,
) -> Fit:
    """Train until the task's epochs are over or the plateau is reached; restore the best epoch."""
    rate = task.learning_rate
    rate_plateau = Plateau(RATE_RISE, RATE_PATIENCE)
    stop_plateau = Plateau(STOP_RISE, STOP_PATIENCE)
    history: list[Epoch] = []
    with tempfile.TemporaryDirectory(prefix="fanin-best-") as folder:
        best = BestWeights(Path(folder))
        for number in range(1, task.epochs + 1):
            trainer.synchronize()
            start = time.perf_counter()
            losses, rewired = train_epoch(trainer, batches, number, task, seed, rate, on_step)
            trainer.synchronize()
            trained = time.perf_counter()
            validated = evaluate(trainer, *validation)
            trainer.synchronize()
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
            if stop_plateau.observe(validated.at_3):
                best.keep(trainer, number)
            if stop_plateau.reached:
                break
            rate_plateau.observe(validated.at_3)
            if rate_plateau.reached:
                rate = max(rate * RATE_FACTOR, RATE_FLOOR)
                rate_plateau.waited = 0
        if best.epoch != len(history):
            best.restore(trainer)
    return Fit(history, best.epoch)


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
            rewired += trainer.regrow(task.rewire_fraction, rewiring_seed(seed, step + 1))
        # Up to the next step that begins with a rewiring.
        ahead = next((s for s in due if rewire_due(s, task.rewire_interval, steps)), last + 1)
        count = ahead - step - 1
        losses.append(trainer.train(itertools.islice(stream, count), rate, on_step))
        step += count
    return np.concatenate(losses), rewired
