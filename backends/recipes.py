"""Recipes: how an output layer is wired, started and trained, by name.

"paper" is the protocol of the paper (Schultheis & Babbar, ECML-PKDD 2023) and of its public code.
"best" is what gave the highest precision at k on real sets; README.md has the figures, and what was
tried beside it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, get_args

from fanin.backends.choosing import Method
from fanin.backends.grouping import Grouping
from fanin.backends.kinds import Dense
from fanin.backends.setup import LayerSetup, Loss

RecipeName = Literal["paper", "best"]
Connections = Literal["random"] | Method
FeatureScaling = Literal["none", "unit_variance"]
FeatureDictionary = Literal["none", "learned"]
InitialWeights = Literal["small", "centroid"]
InitialBias = float | Literal["prior"]
Schedule = Literal["plateau", "linear", "cosine"]
RewireTowards = Literal["random", "gradient"]
RewireDecay = Literal["none", "cosine"]
RewiredWeights = Literal["kept", "zero"]

# Small data are not passed over more often than this for the sake of `Recipe.least_steps`: P@1 of
# a tenth of 2,877 instances that was held out fell from 70.7 to 67.3 between 40 and 80 epochs.
MOST_EPOCHS = 40


@dataclass(frozen=True)
class Recipe:
    """The fields have the names of a task file's keys, which say what they mean; their defaults are
    those of the paper. `for_steps` tells how many epochs small data have."""

    loss_fn: Loss = "squared_hinge"
    learning_rate: float = 1e-3
    schedule: Schedule = "plateau"
    warm_up: float = 0.0
    epochs: int = 100
    least_steps: int = 0
    feature_scaling: FeatureScaling = "none"
    feature_dictionary: FeatureDictionary = "none"
    grouping: Grouping = "frequency"
    connections: Connections = "random"
    initial_weights: InitialWeights = "small"
    initial_bias: InitialBias = 0.0
    rewire_towards: RewireTowards = "random"
    rewire_interval: int = 1000
    rewire_fraction: float = 0.1
    rewire_threshold: float = 0.0
    rewire_until: float = 1.0
    rewire_decay: RewireDecay = "none"
    rewired_weights: RewiredWeights = "kept"
    auxiliary_weight: float = 0.0
    auxiliary_clusters: int = 256
    auxiliary_until: float = 0.15

    def for_steps(self, steps_per_epoch: int) -> Recipe:
        """The recipe where an epoch has so many steps: with more epochs, up to MOST_EPOCHS, where
        all of them would have less than `least_steps`."""
        wanted = min(-(-self.least_steps // steps_per_epoch), MOST_EPOCHS)
        return replace(self, epochs=max(self.epochs, wanted), least_steps=0)


def half_cosine(share: float) -> float:
    """How a "cosine" falls: from 1 at share 0 to 0 at share 1, and beyond."""
    return (1 + math.cos(math.pi * min(1.0, share))) / 2


PAPER = Recipe()
# Of a layer whose labels read few of its inputs; the comments of `recipe_of` say where others
# differ.
_BEST = Recipe(
    loss_fn="bce",
    learning_rate=3e-3,
    schedule="linear",
    epochs=5,
    # P@1 after 400, 800 and 1,600 steps on a tenth of 2,877 instances that was held out: 64.5, 68.3
    # and 68.6 (dense: 62.0, 65.9, 66.6); with 3,000 others 67.0, 67.2, 67.5 (62.0, 63.5, 64.2).
    least_steps=1000,
    feature_scaling="unit_variance",
    feature_dictionary="learned",
    connections="centroid",
    initial_weights="centroid",
    initial_bias="prior",
    rewire_towards="gradient",
    rewire_interval=-1,
    rewire_fraction=0.2,
    rewire_until=0.8,
    rewire_decay="cosine",
    rewired_weights="zero",
)


def check_recipe(name: str) -> None:
    """ValueError for a recipe that is none."""
    if name not in get_args(RecipeName):
        raise ValueError(f"unknown recipe {name!r}; there are {', '.join(get_args(RecipeName))}")


def recipe_of(name: RecipeName, setup: LayerSetup) -> Recipe:
    """The recipe of that name for a model of this setup."""
    check_recipe(name)
    if name == "paper":
        return PAPER
    plain = replace(
        _BEST,
        feature_dictionary="none",
        connections="random",
        initial_weights="small",
        rewire_towards="random",
        rewire_interval=PAPER.rewire_interval,
        rewire_fraction=PAPER.rewire_fraction,
        rewire_decay=PAPER.rewire_decay,
        rewired_weights=PAPER.rewired_weights,
    )
    if setup.sparse_features:
        # TF-IDF weighs words already. With a variance of 1 for each, rare words would outweigh all
        # others: a word of one in n instances would count about sqrt(n) times as much.
        # A row of weights is trained only in the steps in which its word occurs: P@1 of the same
        # instances was 40.1 after 400 steps, 70.4 after 1,600, 70.7 after 3,200; of 10,000 others
        # it was 62.9 after 1,600 steps, 70.2 after 3,100 and 72.8 after 6,300.
        return replace(plain, feature_scaling="none", least_steps=6000)
    if setup.intermediate:
        return plain
    if isinstance(setup.output, Dense):
        # More weights for a score need smaller steps: it moves by the sum of theirs.
        return replace(plain, learning_rate=2e-3)
    best = _BEST if any(part.kind.fan_in for part in setup.parts) else plain
    if any(part.kind.group_size for part in setup.parts):
        best = replace(best, grouping="sources")
    return best
