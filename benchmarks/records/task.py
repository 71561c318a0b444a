"""A task: one layer setup on one data set with its hyper-parameters.

Where a key is silent, the recipe decides; without one the paper's protocol holds (Schultheis &
Babbar, ECML-PKDD 2023, arXiv 2306.03725, and its public code).
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import fields
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, model_validator

from fanin.backends import recipes
from fanin.backends.checks import MOST_GROUP_SIZE
from fanin.backends.grouping import Grouping
from fanin.backends.interface import Execution, Storage, StoredType
from fanin.backends.kinds import LEAST_GROUP_SIZE
from fanin.backends.optimizer import ADAM, Optimizer, OptimizerKind, check_row_moments
from fanin.backends.recipes import PAPER, Recipe, RecipeName
from fanin.backends.setup import LayerSetup, Loss
from fanin.backends.starting import atoms_of
from fanin.benchmarks.records.architecture import (
    Architecture,
    keys_of_best,
    model_slug,
    output_kind,
)
from fanin.benchmarks.records.ranges import MOST, Count, Decay, LearningRate, Size
from fanin.datasets import canonical_name
from fanin.datasets.folder import SVD512

EvaluationProtocol = Literal["paper", "holdout"]
Moments = Literal["full", "row"]
# In the context of a validation: whether the features are known to be sparse, which a recipe asks.
SPARSE_FEATURES = "sparse_features"
# What a recipe decides where a task does not.
RECIPE_KEYS = tuple(field.name for field in fields(Recipe))

# Where scores begin, and they are float32.
InitialBias = Annotated[float, Field(ge=-1e6, le=1e6)]

# Data set and features give their names to folders below the results folder and to cached files,
# and a slug to files with an ending behind it. A file system takes names of 255 bytes.
_NAME = r"^[A-Za-z0-9_-][A-Za-z0-9._-]{0,199}$"
NAMES = (
    "a name has 1 to 200 of the letters A-Z and a-z, digits, `.`, `_` and `-`, and does not begin "
    "with a dot"
)
_LONGEST_SLUG = 240


def is_name(text: str) -> bool:
    """Whether a data set or features may be called so; `NAMES` says how."""
    return re.fullmatch(_NAME, text) is not None


class TaskError(ValueError):
    """A task file that cannot be used; the message names file, task and key."""


class Task(BaseModel):
    """Everything that decides a run's numbers, apart from the backend and the repeat."""

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
    repeat: int = Field(
        default=1, ge=1, le=10_000, description="how many runs, each with its own seed"
    )
    dropout: float = Field(default=0.1, ge=0, lt=1)
    recipe: RecipeName = Field(
        default="paper",
        description="decides the keys from loss_fn to rewired_weights",
    )
    loss_fn: Loss = PAPER.loss_fn
    learning_rate: LearningRate = PAPER.learning_rate
    schedule: recipes.Schedule = Field(
        default=PAPER.schedule,
        description="plateau: the rate is halved and the training ended where validation does not "
        "rise; linear: the rate falls to 0 over all epochs",
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
    rewire_until: float = Field(
        default=PAPER.rewire_until, gt=0, le=1, description="share of all epochs, then no more"
    )
    rewire_decay: recipes.RewireDecay = Field(
        default=PAPER.rewire_decay,
        description="cosine: the fraction falls to 0 at rewire_until as a half cosine does",
    )
    rewired_weights: recipes.RewiredWeights = Field(
        default=PAPER.rewired_weights, description="what connections that moved have as weight"
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
    weights_dtype: StoredType = "float32"
    moments_dtype: StoredType = "float32"
    moments: Moments = Field(
        default="full",
        description="row: of the weights that read sparse features one number a word, see "
        "fanin.backends.interface.Storage",
    )

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, values: Any, info: ValidationInfo) -> Any:
        """The paper's tables name the number of inputs as connectivity of a dense layer and let a
        bottleneck's connectivity repeat its width; both follow from the rest. In the original's
        files 0 stands for none. Its unstructured layer without an intermediate one rewired 1 %
        instead of 10 %."""
        if isinstance(values, dict):
            values = dict(values)
            for key in ("connectivity", "intermediate"):
                if values.get(key) == 0 and values[key] is not False:
                    values[key] = None
            if isinstance(values.get("dataset"), str):
                values["dataset"] = canonical_name(values["dataset"])
            if values.get("architecture") in ("dense", "bottleneck"):
                values.pop("connectivity", None)
            if values.get("architecture") == "bottleneck":
                values.setdefault("intermediate", 64)
            if values.get("architecture") == "sparse":
                values.setdefault("rewire_fraction", 0.01)
            is_sparse = (info.context or {}).get(SPARSE_FEATURES, False)
            if values.get("recipe") == "best":
                values = keys_of_best(values, is_sparse) | values
        return values

    @model_validator(mode="after")
    def _fits(self) -> Task:
        # The widths of the data set are not known yet; everything else about the setup is.
        self._layer(inputs=2**31, labels=1)
        if self.execution == "autograd" and not self.storage.is_float32:
            raise ValueError(
                "weights_dtype and moments_dtype other than float32 need execution 'fused'"
            )
        if self.moments == "row" and not self.intermediate:
            raise ValueError(
                "moments 'row' are for the intermediate layer of sparse features, and architecture "
                f"{self.architecture!r} has none; use 'full'"
            )
        if self.storage.row_moments:
            check_row_moments(self.optimizer_values)
        if self.optimizer != "momentum" and self.momentum != ADAM.momentum:
            raise ValueError(
                f"momentum {self.momentum:g} is for optimizer 'momentum', got {self.optimizer!r}"
            )
        chosen = {"connections": "random", "feature_dictionary": "none", "rewire_towards": "random"}
        for key, plain in chosen.items():
            value = getattr(self, key)
            if value == plain:
                continue
            if self.group_size and key != "feature_dictionary":
                raise ValueError(
                    f"{key} {value!r} is for labels that have sources of their own, and here "
                    f"{self.group_size} share them; use {plain!r}"
                )
            if self.architecture == "dense-stratified":
                raise ValueError(
                    f"{key} {value!r} is for features, and this output layer reads an intermediate "
                    f"layer; use {plain!r} there"
                )
            if self.architecture != "stratified":
                raise ValueError(
                    f"{key} {value!r} needs architecture 'stratified', which has a fixed fan-in, "
                    f"got {self.architecture!r}"
                )
        if self.grouping != PAPER.grouping and not self.group_size:
            raise ValueError(
                f"grouping {self.grouping!r} is for labels that share their sources; set group_size"
            )
        if self.initial_weights == "centroid" and self.connections != "centroid":
            raise ValueError(
                f"initial_weights 'centroid' need connections 'centroid', got {self.connections!r}"
            )
        if self.initial_bias == "prior" and self.loss_fn != "bce":
            raise ValueError(
                f"initial_bias 'prior' is for loss_fn 'bce', got {self.loss_fn!r}; give a number"
            )
        return self

    @property
    def recipe_values(self) -> Recipe:
        """What the recipe decides, as it is in this task."""
        return Recipe(**{key: getattr(self, key) for key in RECIPE_KEYS})

    @property
    def storage(self) -> Storage:
        row_moments = self.moments == "row"
        return Storage(self.weights_dtype, self.moments_dtype, row_moments=row_moments)

    @property
    def optimizer_values(self) -> Optimizer:
        """How a gradient changes the weights, as it is in this task."""
        return Optimizer(self.optimizer, self.weight_decay, self.l2, self.momentum)

    def setup(self, inputs: int, labels: int, sparse_features: bool = False) -> LayerSetup:
        """The model for data of these widths; TaskError where it does not fit them."""
        try:
            if sparse_features and not self.intermediate:
                raise ValueError(
                    "sparse features are read by an intermediate layer, which this setup lacks: "
                    "take a setup that has one, such as ffi-32-512, or the dense features "
                    f"{self.features}{SVD512}"
                )
            if self.moments == "row" and not sparse_features:
                raise ValueError("moments 'row' are for sparse features, and these are dense")
            return self._layer(inputs, labels, sparse_features)
        except ValueError as error:
            name = self.setup_name
            raise TaskError(
                f"{self.dataset}, {self.features} features, setup {name}: {error}"
            ) from error

    def _layer(self, inputs: int, labels: int, sparse_features: bool = False) -> LayerSetup:
        sizes = (self.connectivity, self.group_size, self.intermediate)
        output = output_kind(self.architecture, *sizes, inputs)
        return LayerSetup(
            inputs,
            labels,
            output,
            self.intermediate,
            self.loss_fn,
            scaled=self.feature_scaling != "none",
            atoms=atoms_of(self.recipe_values, inputs, labels, self.connectivity),
            sparse_features=sparse_features,
        )

    @property
    def departures(self) -> tuple[str, ...]:
        """The recipe where it is not the paper's, and hyper-parameters that differ from its own, as
        `dropout=0.2`, by name."""
        sizes = {"connectivity", "group_size", "intermediate"}
        named = {"dataset", "features", "architecture", "repeat", *sizes}
        own = self.model_dump(include=(named | {"recipe"}) - {"repeat"})
        usual = type(self).model_validate(own)
        if self.epochs != usual.epochs and not self.least_steps:
            named.add("least_steps")  # it follows from epochs that are named
        changed = (
            f"{key}={getattr(self, key)}"
            for key in sorted(type(self).model_fields)
            if key not in named and getattr(self, key) != getattr(usual, key)
        )
        return (*(["recipe=best"] if self.recipe == "best" else []), *changed)

    @property
    def slug(self) -> str:
        """A readable name, unique among tasks: `ffi-32-16384`, then what departs from defaults. One
        that is too long for a file ends in a hash."""
        name = "_".join([self.setup_name, *self.departures])
        if len(name) <= _LONGEST_SLUG:
            return name
        digest = hashlib.sha256(name.encode()).hexdigest()[:12]
        return f"{name[: _LONGEST_SLUG - 13]}_{digest}"

    @property
    def setup_name(self) -> str:
        """What a command calls its setup, whatever else departs from the defaults: `ffi-32-16384`,
        `ffi-32-g16` in groups of 16 labels."""
        group = f"g{self.group_size}" if self.group_size else None
        sizes = (str(n) for n in (self.connectivity, group, self.intermediate) if n)
        return "-".join([self.model_name, *sizes])

    @property
    def model_name(self) -> str:
        """`dense`, `unstructured`, `ffi` or `bottleneck`: the setup without its sizes."""
        return model_slug(self.architecture)

    @property
    def title(self) -> str:
        """Data set and setup, as a line of progress begins: `wordnet ffi-32-16384 fused`."""
        return f"{self.dataset} {self.setup_name}{' fused' * (self.execution == 'fused')}"
