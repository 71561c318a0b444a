"""The loop of a fit: the epochs of a recipe, and the best of them where validation is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sp

from fanin.backends.arrays import InitialArrays, copied
from fanin.backends.auxiliary import Auxiliary, auxiliary_loss
from fanin.backends.estimator.predictor import AnySetup, BlockPredictor
from fanin.backends.estimator.progress import FitProgress
from fanin.backends.estimator.saved import make_predictor
from fanin.backends.estimator.settings import AnyRecipe, Settings
from fanin.backends.interface import Features, evaluation_block
from fanin.backends.metrics import precision_at
from fanin.backends.recipes import Recipe
from fanin.backends.registry import make_trainer
from fanin.backends.setup import LayerSetup
from fanin.backends.starting import starting_arrays
from fanin.backends.trainer import Trainer
from fanin.backends.training import Schedule, train_epoch
from fanin.backends.words.fitting import CALL_INSTANCES, start, steps_of, train
from fanin.backends.words.model import OneVersusRest
from fanin.backends.words.setup import OneVersusRestRecipe, OneVersusRestSetup
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


class TrainedModel:
    """The trained arrays, and a trainer while training may go on. The trainer's arrays are read
    when a prediction needs them. Pickle leaves the trainer out."""

    def __init__(self, setup: AnySetup, threads: int) -> None:
        self.trainer: Trainer | OneVersusRest | None = None
        self._setup = setup
        self._threads = threads
        self._predictor: BlockPredictor | None = None

    def take(self, predictor: BlockPredictor) -> None:
        self.trainer, self._predictor = None, predictor

    def train(self, trainer: Trainer | OneVersusRest) -> None:
        """The arrays are the trainer's from now on, and have changed."""
        self.trainer, self._predictor = trainer, None

    @property
    def predictor(self) -> BlockPredictor:
        if self._predictor is None:
            assert self.trainer is not None
            weights = self.trainer.weights()
            self._predictor = make_predictor(self._setup, weights, self._threads)
        return self._predictor

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_predictor": self.predictor, "trainer": None}


def split(data: Instances, fraction: float, seed: int) -> tuple[Instances, Instances]:
    """Training and validation instances; ValueError where nothing would be left to train on."""
    count = data.features.shape[0]
    if count < 2:
        raise ValueError(f"early_stopping needs at least 2 instances, got {count}")
    order = np.random.default_rng([seed, _VALIDATION]).permutation(count)
    held_out = min(count - 1, max(1, int(fraction * count)))
    parts = np.sort(order[held_out:]), np.sort(order[:held_out])
    training, validation = (Instances(data.features[p], data.positives[p]) for p in parts)
    if not training.positives.nnz:
        raise ValueError(
            "early_stopping holds out all instances that have a label: nothing would be left to "
            "learn; give more instances, or a smaller validation_fraction"
        )
    return training, validation


def new_trainer(
    settings: Settings,
    setup: LayerSetup,
    arrays: Mapping[str, np.ndarray],
    auxiliary: Auxiliary | None = None,
) -> Trainer:
    """A trainer that begins with these arrays, without moments."""
    return make_trainer(
        settings.known_backend(),
        setup,
        arrays,
        execution=settings.execution,
        storage=settings.storage,
        optimizer=settings.optimizer_values,
        device=settings.device,
        threads=settings.threads,
        auxiliary=auxiliary,
    )


def trainer_of(
    settings: Settings, setup: AnySetup, arrays: Mapping[str, np.ndarray]
) -> Trainer | OneVersusRest:
    """A trainer for either kind of model. Where labels read words, AdaGrad's sums are among the
    arrays."""
    if isinstance(setup, OneVersusRestSetup):
        threads = settings.threads
        return OneVersusRest.from_arrays(setup.inputs, setup.labels, arrays, threads)
    return new_trainer(settings, setup, arrays)


def add_words(trainer: OneVersusRest, setup: AnySetup, data: Instances) -> None:
    """Labels read words of these instances, too, while there are fewer than the setup allows."""
    assert isinstance(setup, OneVersusRestSetup)
    trainer.extend(*_words(data), setup.most_pairs)


def make_batches(settings: Settings, setup: AnySetup, data: Instances, seed: int) -> Batches:
    """The batches of a pass. Labels that read words take one instance after the other, without
    dropout."""
    if isinstance(setup, OneVersusRestSetup):
        return Batches(*data, CALL_INSTANCES, seed=seed)
    return Batches(*data, settings.batch_size, settings.dropout, seed)


def first_arrays(
    setup: AnySetup, recipe: AnyRecipe, data: Instances, seed: int, threads: int
) -> Mapping[str, np.ndarray]:
    """What a model begins with, as the recipe makes it from the data."""
    if isinstance(setup, OneVersusRestSetup):
        return start(setup, *_words(data), setup.most_pairs, threads).weights()
    assert isinstance(recipe, Recipe)
    given = starting_arrays(*data, recipe, setup.output, seed=seed, threads=threads)
    return InitialArrays(setup, seed, given)


def fit(
    settings: Settings,
    setup: AnySetup,
    recipe: AnyRecipe,
    training: Instances,
    validation: Instances | None,
    seed: int,
    verbose: bool,
) -> Fitted:
    """Train a model of this setup by this recipe."""
    if isinstance(setup, OneVersusRestSetup):
        assert isinstance(recipe, OneVersusRestRecipe)
        return _fit_words(settings, setup, recipe, training, validation, seed, verbose)
    assert isinstance(recipe, Recipe)
    batches = make_batches(settings, setup, training, seed)
    steps = recipe.epochs * len(batches)
    history: list[Epoch] = []
    best: dict[str, np.ndarray] | None = None
    with FitProgress(steps, verbose) as progress:
        progress.phase("looking at the data")
        arrays = first_arrays(setup, recipe, training, seed, settings.threads)
        auxiliary = auxiliary_loss(recipe, steps, *training, seed=seed, threads=settings.threads)
        trainer = new_trainer(settings, setup, arrays, auxiliary)
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
                    best = None  # frees the memory of the old ones first
                    best = trainer.weights()
            history.append(epoch)
            progress.epoch(number, *epoch)
    if best is None:
        return Fitted(trainer.weights(), history, len(history))
    return Fitted(best, history, schedule.best_epoch)


def _fit_words(
    settings: Settings,
    setup: OneVersusRestSetup,
    recipe: OneVersusRestRecipe,
    training: Instances,
    validation: Instances | None,
    seed: int,
    verbose: bool,
) -> Fitted:
    """All passes are made, since they are few and the rate falls until the last. The best one is
    kept."""
    steps = steps_of(recipe, training.features.shape[0])
    history: list[Epoch] = []
    best: dict[str, np.ndarray] | None = None
    best_epoch, highest = 0, -1.0
    with FitProgress(steps, verbose) as progress:
        callbacks = progress.step, progress.phase
        passes = train(setup, recipe, *_words(training), seed, settings.threads, *callbacks)
        for model, loss in passes:
            epoch = Epoch(loss, None)
            if validation:
                progress.phase("validating")
                ids, _ = model.top_k(_words(validation)[0], min(_K, setup.labels))
                precision = precision_at(validation.positives, ids, _K)
                epoch = epoch._replace(precision=precision)
                if precision > highest:
                    best = None  # frees the memory of the old ones first
                    # A copy: later passes change the model's own arrays.
                    best = copied(model.weights().items())
                    best_epoch, highest = len(history) + 1, precision
            history.append(epoch)
            progress.epoch(len(history), *epoch)
    if best is None:
        return Fitted(model.weights(), history, len(history))
    return Fitted(best, history, best_epoch)


def _words(data: Instances) -> tuple[sp.csr_array, sp.csr_array]:
    assert isinstance(data.features, sp.csr_array)
    return data.features, data.positives


def _precision(trainer: Trainer, validation: Instances) -> float:
    k = min(_K, trainer.setup.labels)
    blocks = evaluation_blocks(validation.features, evaluation_block(trainer.setup.output_inputs))
    top = np.concatenate([trainer.top_k(block, k) for block in blocks])
    return precision_at(validation.positives, top, _K)
