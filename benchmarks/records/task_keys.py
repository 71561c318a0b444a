"""The keys of a task: their types, their ranges, and what they mean. `task.Task` adds what follows
from them together.

Where a key is silent, the recipe decides; without one the paper's protocol holds (Schultheis &
Babbar, ECML-PKDD 2023, arXiv 2306.03725, and its public code).
"""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from fanin.backends import recipes
from fanin.backends.checks import MOST_GROUP_SIZE
from fanin.backends.grouping import Grouping
from fanin.backends.interface import Execution, StoredType, WeightsType
from fanin.backends.kinds import LEAST_GROUP_SIZE
from fanin.backends.optimizer import ADAM, OptimizerKind
from fanin.backends.recipes import PAPER, RecipeName
from fanin.backends.setup import Loss
from fanin.benchmarks.records.architecture import Architecture
from fanin.benchmarks.records.ranges import MOST, Count, Decay, LearningRate, Size

EvaluationProtocol = Literal["paper", "holdout"]
Moments = Literal["full", "row"]

# Where scores begin, and they are float32.
InitialBias = Annotated[float, Field(ge=-1e6, le=1e6)]

# Data set and features give their names to folders below the results folder and to cached files,
# and a slug to files with an ending behind it. A file system takes names of 255 bytes.
_NAME = r"^[A-Za-z0-9_-][A-Za-z0-9._-]{0,199}$"
NAMES = (
    "a name has 1 to 200 of the letters A-Z and a-z, digits, `.`, `_` and `-`, and does not begin "
    "with a dot"
)


def is_name(text: str) -> bool:
    """Whether a data set or features may be called so; `NAMES` says how."""
    return re.fullmatch(_NAME, text) is not None


class TaskKeys(BaseModel):
    """One task's, each checked by itself."""

    # Strict: `true` is no number, nor is "8".
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    dataset: str = Field(pattern=_NAME)
    features: str = Field(pattern=_NAME)
    architecture: Architecture
    connectivity: Size | None = None
    group_size: int | None = Field(
        default=None,
        ge=LEAST_GROUP_SIZE,
        le=MOST_GROUP_SIZE,
        description="so many labels share their sources; of a fixed fan-in, see "
        "fanin.backends.kinds.GroupedFanIn",
    )
    intermediate: Size | None = None
    head_fraction: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="share of the labels, the most frequent ones, with an output layer of their "
        "own, see fanin.backends.head_and_tail; 0 for none",
    )
    head_connectivity: Size | None = Field(
        default=None, description="inputs of a label there; without it the layer is dense"
    )
    repeat: int = Field(
        default=1, ge=1, le=10_000, description="how many runs, each with its own seed"
    )
    dropout: float = Field(default=0.1, ge=0, lt=1)
    recipe: RecipeName = Field(
        default="paper",
        description="decides the keys from loss_fn to auxiliary_until",
    )
    loss_fn: Loss = PAPER.loss_fn
    learning_rate: LearningRate = PAPER.learning_rate
    schedule: recipes.Schedule = Field(
        default=PAPER.schedule,
        description="plateau: the rate is halved and the training ended where validation does not "
        "rise; linear: the rate falls to 0 over all epochs; cosine: it does so as a half cosine",
    )
    warm_up: float = Field(
        default=PAPER.warm_up,
        ge=0,
        lt=1,
        description="share of all steps in which the rate rises, before it may fall",
    )
    epochs: int = Field(
        default=PAPER.epochs,
        ge=1,
        le=1_000_000,
        description="at most; early stopping may end sooner",
    )
    least_steps: int = Field(
        default=PAPER.least_steps,
        ge=0,
        le=MOST,
        description="if all epochs together have fewer steps, there are more, up to "
        f"{recipes.MOST_EPOCHS}; 0 where a task names its epochs",
    )
    feature_scaling: recipes.FeatureScaling = PAPER.feature_scaling
    feature_dictionary: recipes.FeatureDictionary = Field(
        default=PAPER.feature_dictionary,
        description="see fanin.backends.dictionary; features of very many inputs stay as they are",
    )
    grouping: Grouping = Field(
        default=PAPER.grouping,
        description="which labels share their sources, see fanin.backends.grouping",
    )
    connections: recipes.Connections = Field(
        default=PAPER.connections,
        description="centroid: chosen by the data, see fanin.backends.choosing",
    )
    initial_weights: recipes.InitialWeights = Field(
        default=PAPER.initial_weights,
        description="of the output layer; centroid: a share of what its inputs were chosen by",
    )
    initial_bias: InitialBias | Literal["prior"] = Field(
        default=PAPER.initial_bias,
        description="of the output layer; prior: each label's log-odds",
    )
    rewire_towards: recipes.RewireTowards = Field(
        default=PAPER.rewire_towards,
        description="random: any input; gradient: those of largest gradient, see "
        "fanin.backends.gradients",
    )
    rewire_interval: int = Field(
        default=PAPER.rewire_interval,
        ge=-1,
        le=MOST,
        description="steps; -1 once per epoch, 0 never",
    )
    rewire_fraction: float = Field(default=PAPER.rewire_fraction, ge=0, lt=1)
    rewire_threshold: float = Field(
        default=PAPER.rewire_threshold,
        ge=0,
        le=1e6,
        description="of the fraction, only connections whose |weight| is below this move; 0: all",
    )
    rewire_until: float = Field(
        default=PAPER.rewire_until, gt=0, le=1, description="share of all epochs, then no more"
    )
    rewire_decay: recipes.RewireDecay = Field(
        default=PAPER.rewire_decay,
        description="cosine: fraction and threshold fall to 0 at rewire_until as half a cosine",
    )
    rewired_weights: recipes.RewiredWeights = Field(
        default=PAPER.rewired_weights, description="what connections that moved have as weight"
    )
    auxiliary_weight: float = Field(
        default=PAPER.auxiliary_weight,
        ge=0,
        le=1e6,
        description="of the loss over clusters of labels, see fanin.backends.auxiliary; 0 for none",
    )
    auxiliary_clusters: int = Field(
        default=PAPER.auxiliary_clusters, ge=1, le=MOST, description="at most"
    )
    auxiliary_until: float = Field(
        default=PAPER.auxiliary_until,
        gt=0,
        le=1,
        description="share of all steps until which the weight falls to 0, as a half cosine does",
    )
    optimizer: OptimizerKind = Field(
        default=ADAM.kind,
        description="sgd: no moments; momentum: one for each weight, see "
        "fanin.backends.optimizer.Optimizer",
    )
    momentum: float = Field(
        default=ADAM.momentum, gt=0, lt=1, description="of optimizer 'momentum' alone"
    )
    weight_decay: Decay = Field(
        default=ADAM.weight_decay,
        description="decoupled, as in AdamW; of weights, not of biases, see "
        "fanin.backends.optimizer.Optimizer",
    )
    l2: Decay = Field(
        default=ADAM.l2, description="added to the gradient, times the weights; not of biases"
    )
    batch_size: Size = 32
    seed: Count = 0
    protocol: EvaluationProtocol = "paper"
    execution: Execution = "autograd"
    weights_dtype: WeightsType = "float32"
    moments_dtype: StoredType = "float32"
    moments: Moments = Field(
        default="full",
        description="row: of the weights that read sparse features one number a word, see "
        "fanin.backends.interface.Storage",
    )
