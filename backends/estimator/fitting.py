"""The loop of a fit: the epochs of a recipe, and the best of them where validation is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp

from fanin.backends.arrays import InitialArrays
from fanin.backends.estimator.progress import FitProgress
from fanin.backends.estimator.settings import Settings
from fanin.backends.interface import Features, evaluation_block
from fanin.backends.metrics import precision_at
from fanin.backends.recipes import Recipe
from fanin.backends.registry import make_trainer
from fanin.backends.setup import FixedFanIn, LayerSetup
from fanin.backends.starting import starting_arrays
from fanin.backends.trainer import Trainer
from fanin.backends.training import Schedule, train_epoch
from fanin.datasets import Batches, evaluation_blocks

# The purpose of a generator is part of its seed.
_VALIDATION = 2
# Of validation: precision at so many labels, as in the paper.
_K = 3


class Instances(NamedTuple):
    """features [instances, inputs], dense or CSR; positives CSR [instances, labels]."""

    features: Features
    positives: sp.csr_array


class Epoch(NamedTuple):
    """What one epoch gave: the mean loss, and P@3 on the validation instances."""

    loss: float
    precision: float | None


class Fitted(NamedTuple):
    """The arrays of the best epoch, or of the last without validation; and all epochs."""

    arrays: dict[str, np.ndarray]
    history: list[Epoch]
    best_epoch: int


def split(data: Instances, fraction: float, seed: int) -> tuple[Instances, Instances]:
    """Training and validation instances; ValueError where none would be left to train on."""
    count = data.features.shape[0]
    if count < 2:
        raise ValueError(f"early_stopping needs at least 2 instances, got {count}")
    order = np.random.default_rng([seed, _VALIDATION]).permutation(count)
    held_out = min(count - 1, max(1, int(fraction * count)))
    parts = np.sort(order[held_out:]), np.sort(order[:held_out])
    training, validation = (Instances(data.features[p], data.positives[p]) for p in parts)
    return training, validation


def new_trainer(
    settings: Settings,
    setup: LayerSetup,
    arrays: Mapping[str, np.ndarray],
) -> Trainer:
    """A trainer that begins with these arrays, without moments."""
    return make_trainer(
        settings.known_backend(),
        setup,
        arrays,
        execution=settings.execution,
        storage=settings.storage,
        device=settings.device,
        threads=settings.threads,
    )


def first_arrays(
    setup: LayerSetup, recipe: Recipe, data: Instances, seed: int, threads: int
) -> InitialArrays:
    """What a model begins with, as the recipe makes it from the data."""
    fan_in = setup.output.fan_in if isinstance(setup.output, FixedFanIn) else None
    given = starting_arrays(*data, recipe, fan_in, seed=seed, threads=threads)
    return InitialArrays(setup, seed, given)


def fit(
    settings: Settings,
    setup: LayerSetup,
    recipe: Recipe,
    training: Instances,
    validation: Instances | None,
    seed: int,
    verbose: bool,
) -> Fitted:
    """Train a model of this setup by this recipe."""
    batches = Batches(*training, settings.batch_size, settings.dropout, seed)
    steps = recipe.epochs * len(batches)
    history: list[Epoch] = []
    best: dict[str, np.ndarray] | None = None
    with FitProgress(steps, verbose) as progress:
        progress.phase("looking at the data")
        arrays = first_arrays(setup, recipe, training, seed, settings.threads)
        trainer = new_trainer(settings, setup, arrays)
        del arrays
        schedule = Schedule(recipe, steps)
        while len(history) < recipe.epochs and not (validation and schedule.has_stalled):
            number = len(history) + 1
            losses, _ = train_epoch(trainer, batches, number, recipe, seed, schedule, progress.step)
            epoch = Epoch(float(losses.mean()), None)
            if validation:
                progress.phase("validating")
                precision = _precision(trainer, validation)
                epoch = epoch._replace(precision=precision)
                if schedule.observe(number, precision):
                    best = None  # the memory of the old ones first
                    best = trainer.weights()
            history.append(epoch)
            progress.epoch(number, *epoch)
    if best is None:
        return Fitted(trainer.weights(), history, len(history))
    return Fitted(best, history, schedule.best_epoch)


def _precision(trainer: Trainer, validation: Instances) -> float:
    k = min(_K, trainer.setup.labels)
    blocks = evaluation_blocks(validation.features, evaluation_block(trainer.setup.output_inputs))
    top = np.concatenate([trainer.top_k(block, k) for block in blocks])
    return precision_at(validation.positives, top, _K)
