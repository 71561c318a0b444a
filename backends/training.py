"""How a recipe trains: the learning rate of each step, when and how much to rewire, one epoch.

All of it follows from the recipe, the seed and the step, so a training that was interrupted can go
on to the same numbers.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np

from fanin.backends.arrays import Rewiring, drawn_seed
from fanin.backends.gradients import OutputLayer, plan_towards_gradients
from fanin.backends.head_and_tail import ranks_of
from fanin.backends.interface import OnStep
from fanin.backends.kinds import ORDER, Part
from fanin.backends.recipes import Recipe, half_cosine
from fanin.backends.trainer import Trainer
from fanin.datasets import Batches
from fanin.kernels import top_k

# From the paper's public code: halve the rate when val P@3 has not risen by 1e-3 for 2 epochs,
# not below 1e-4; stop when it has not risen by 5e-5 for 4 epochs.
RATE_FACTOR, RATE_RISE, RATE_PATIENCE, RATE_FLOOR = 0.5, 1e-3, 2, 1e-4
STOP_RISE, STOP_PATIENCE = 5e-5, 4

# A linear schedule falls to this share of its first rate, and changes every so many steps. A cosine
# falls to 0 and changes with each, as torch's `CosineAnnealingLR` and Keras' `CosineDecay` do.
RATE_LAST, RATE_STEPS = 0.02, 50


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
    alone. steps: of all epochs that the recipe allows.

    Where the recipe has a warm-up, the rate rises in it step by step, from rate / n in the first
    step to the whole rate in the last of n; falling begins after it.
    """

    def __init__(self, recipe: Recipe, steps: int) -> None:
        self.rate = recipe.learning_rate
        self.best_epoch = 0
        self._kind = recipe.schedule
        self._steps = steps
        self._warm_up = recipe.warm_up * steps
        self._rate_plateau = Plateau(RATE_RISE, RATE_PATIENCE)
        self._stop_plateau = Plateau(STOP_RISE, STOP_PATIENCE)

    def observe(self, epoch: int, value: float) -> bool:
        """Take in the validation P@3 of the next epoch; True when it is the best so far."""
        self._rate_plateau.observe(value)
        if self._rate_plateau.reached and self._kind == "plateau":
            if self.rate > RATE_FLOOR:  # a smaller one that was asked for stays
                self.rate = max(self.rate * RATE_FACTOR, RATE_FLOOR)
            self._rate_plateau.waited = 0
        rose = self._stop_plateau.observe(value)
        if rose:
            self.best_epoch = epoch
        return rose

    @property
    def has_stalled(self) -> bool:
        """Whether validation has not risen for as long as the paper's protocol waits."""
        return self._stop_plateau.reached

    @property
    def is_over(self) -> bool:
        return self.has_stalled and self._kind == "plateau"

    def rate_at(self, step: int) -> float:
        """The learning rate of a step, counted from 1."""
        if step < self._warm_up:
            return self.rate * step / self._warm_up
        if self._kind == "plateau":
            return self.rate
        done = step - 1 if self._kind == "cosine" else (step - 1) // RATE_STEPS * RATE_STEPS
        fallen = max(0.0, done - self._warm_up) / (self._steps - self._warm_up)
        if self._kind == "cosine":
            return self.rate * half_cosine(fallen)
        return self.rate * max(RATE_LAST, 1 - fallen)


def rewire_due(step: int, recipe: Recipe, steps_per_epoch: int) -> bool:
    """Whether connections are rewired at the start of `step` (counted from 1): at steps 1,
    1 + interval, ...; interval -1 means once per epoch, 0 never; until the recipe's share of all
    steps is over. Towards gradients, step 1 is left out: connections were just chosen so."""
    interval = recipe.rewire_interval
    if interval == 0 or step - 1 > recipe.rewire_until * recipe.epochs * steps_per_epoch:
        return False
    if step == 1 and recipe.rewire_towards == "gradient":
        return False
    return (step - 1) % (steps_per_epoch if interval == -1 else interval) == 0


def has_rewiring(recipe: Recipe, steps_per_epoch: int) -> bool:
    """Whether `rewire_due` is true at any step of a training."""
    interval = steps_per_epoch if recipe.rewire_interval == -1 else recipe.rewire_interval
    first = 1 + (interval if recipe.rewire_towards == "gradient" else 0)
    in_time = first <= recipe.epochs * steps_per_epoch
    return in_time and rewire_due(first, recipe, steps_per_epoch)


def rewire_fraction(step: int, recipe: Recipe, steps_per_epoch: int) -> float:
    """Which fraction of the connections is rewired at that step."""
    return recipe.rewire_fraction * _decayed(step, recipe, steps_per_epoch)


def rewire_threshold(step: int, recipe: Recipe, steps_per_epoch: int) -> float:
    """The |weight| below which connections are rewired at that step, infinite where all may be."""
    if not recipe.rewire_threshold:
        return math.inf
    return recipe.rewire_threshold * _decayed(step, recipe, steps_per_epoch)


def _decayed(step: int, recipe: Recipe, steps_per_epoch: int) -> float:
    """What is left at that step of what rewiring began with."""
    if recipe.rewire_decay == "none":
        return 1.0
    return half_cosine((step - 1) / (recipe.rewire_until * recipe.epochs * steps_per_epoch))


def rewiring_seed(seed: int, step: int) -> int:
    """The randomness of the rewiring at one step depends on the run's seed and the step alone."""
    return drawn_seed(np.random.default_rng([seed, step, 1]))


def train_epoch(
    trainer: Trainer,
    batches: Batches,
    number: int,
    recipe: Recipe,
    seed: int,
    schedule: Schedule,
    on_step: OnStep | None = None,
) -> tuple[np.ndarray, int]:
    """Epoch `number` (from 1): losses [steps] and how many connections were rewired."""
    steps = len(batches)
    step = (number - 1) * steps
    last = step + steps
    stream = batches.epoch(number - 1)
    due = [s for s in range(step + 1, last + 1) if rewire_due(s, recipe, steps)]
    losses, rewired = [], 0
    while step < last:
        if due and due[0] == step + 1:
            del due[0]
            if trainer.setup.is_rewired:
                rewired += rewire(trainer, batches, recipe, seed, step + 1)
        # Up to the next step that begins with a rewiring.
        count = (due[0] - 1 if due else last) - step
        steps_ahead = itertools.islice(stream, count)
        losses.append(trainer.train(steps_ahead, schedule.rate_at, on_step))
        step += count
    return np.concatenate(losses), rewired


def rewire(trainer: Trainer, batches: Batches, recipe: Recipe, seed: int, step: int) -> int:
    """Rewire as the recipe says at that step; how many connections moved."""
    is_blind = recipe.rewire_towards == "random" and recipe.rewired_weights == "kept"
    if is_blind and not recipe.rewire_threshold:
        fraction = rewire_fraction(step, recipe, len(batches))
        return trainer.rewire(fraction, rewiring_seed(seed, step))
    rewirings = plan_rewiring(trainer, batches, recipe, seed, step)
    return sum(map(trainer.apply_rewiring, rewirings))


def plan_rewiring(
    trainer: Trainer, batches: Batches, recipe: Recipe, seed: int, step: int
) -> list[Rewiring]:
    """What `rewire` would move at that step, of one output layer after the other."""
    fraction, drawn = rewire_fraction(step, recipe, len(batches)), rewiring_seed(seed, step)
    if recipe.rewire_towards == "random":
        below = rewire_threshold(step, recipe, len(batches))
        rewirings = trainer.plan_rewiring(fraction, drawn, below)
    else:
        rewirings = _plans_towards_gradients(trainer, batches, fraction, drawn)
    weight = 0.0 if recipe.rewired_weights == "zero" else None
    return [replace(rewiring, weight=weight) for rewiring in rewirings]


def _plans_towards_gradients(
    trainer: Trainer, batches: Batches, fraction: float, seed: int
) -> tuple[Rewiring, ...]:
    trainer.setup.check_chosen()
    plans = []
    for part in trainer.setup.chosen_parts:
        layer, label_ids = output_layer(trainer, part)
        labels = batches.y if label_ids is None else batches.y[:, label_ids]
        plan = plan_towards_gradients(
            batches.x, labels, layer, fraction, seed=seed, threads=trainer.threads
        )
        plans.append(replace(plan, layer=part.name))
    return tuple(plans)


def output_layer(trainer: Trainer, part: Part) -> tuple[OutputLayer, np.ndarray | None]:
    """An output layer as rewiring towards gradients reads it. Where there are several, its labels,
    ascending, too: the layer calls each by its rank among them, and is asked for its own best ones,
    since those of the model may all be in another layer."""
    is_only = len(trainer.setup.parts) == 1
    order = trainer.array(ORDER) if ORDER in trainer.setup.array_shapes() else None
    label_ids: np.ndarray | None = None
    if order is not None and not is_only:
        order, label_ids = ranks_of(part, order)
    indices = trainer.array(part.outside("output.indices"))
    weights, bias = trainer.array(part.weights), trainer.array(part.bias)

    def own_best(features: np.ndarray, k: int) -> np.ndarray:
        read, threads = trainer.transform.apply(features, trainer.threads), trainer.threads
        _, ids = top_k(
            read,
            weights,
            bias,
            k,
            indices=indices,
            group_size=part.kind.group_size,
            label_ids=order,
            threads=threads,
        )
        return ids

    layer = OutputLayer(
        indices=indices,
        weights=weights,
        bias=bias,
        loss=trainer.setup.loss,
        transform=trainer.transform,
        top_k=trainer.top_k if is_only else own_best,
        group_size=part.kind.group_size,
        order=order,
    )
    return layer, label_ids
