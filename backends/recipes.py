"""Recipes: how an output layer is wired, started and trained, by name.

"paper" is the protocol of the paper (Schultheis & Babbar, ECML-PKDD 2023) and of its public code.
"best" is what gave the highest precision at k on real sets; README.md has the figures, and what was
tried beside it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, get_args

from fanin.backends.choosing import Method
from fanin.backends.setup import Dense, FixedFanIn, LayerSetup, Loss

RecipeName = Literal["paper", "best"]
Connections = Literal["random"] | Method
FeatureScaling = Literal["none", "unit_variance"]
FeatureDictionary = Literal["none", "learned"]
InitialWeights = Literal["small", "centroid"]
InitialBias = float | Literal["prior"]
Schedule = Literal["plateau", "linear"]
RewireTowards = Literal["random", "gradient"]
RewireDecay = Literal["none", "cosine"]
RewiredWeights = Literal["kept", "zero"]


@dataclass(frozen=True)
class Recipe:
    """The fields have the names of a task file's keys, which say what they mean; their defaults are
    those of the paper."""

    loss_fn: Loss = "squared_hinge"
    learning_rate: float = 1e-3
    schedule: Schedule = "plateau"
    epochs: int = 100
    feature_scaling: FeatureScaling = "none"
    feature_dictionary: FeatureDictionary = "none"
    connections: Connections = "random"
    initial_weights: InitialWeights = "small"
    initial_bias: InitialBias = 0.0
    rewire_towards: RewireTowards = "random"
    rewire_interval: int = 1000
    rewire_fraction: float = 0.1
    rewire_until: float = 1.0
    rewire_decay: RewireDecay = "none"
    rewired_weights: RewiredWeights = "kept"


PAPER = Recipe()
# Of a layer whose labels read few of its inputs; the comments of `recipe_of` say where others
# differ.
_BEST = Recipe(
    loss_fn="bce",
    learning_rate=3e-3,
    schedule="linear",
    epochs=5,
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
        return replace(plain, feature_scaling="none")
    if setup.intermediate:
        return plain
    if isinstance(setup.output, Dense):
        # More weights for a score need smaller steps: it moves by the sum of theirs.
        return replace(plain, learning_rate=2e-3)
    return _BEST if isinstance(setup.output, FixedFanIn) else plain
