"""A task: one layer setup on one data set with its hyper-parameters. `task_keys` says what they
are; what follows from them together stands here.
"""

from __future__ import annotations

import hashlib
from dataclasses import fields
from typing import Any

from pydantic import ValidationInfo, model_validator

from fanin.backends.head_and_tail import with_head
from fanin.backends.interface import Storage
from fanin.backends.optimizer import ADAM, Optimizer, check_row_moments
from fanin.backends.recipes import PAPER, Recipe
from fanin.backends.setup import LayerSetup
from fanin.backends.starting import atoms_of, dictionary_fan_in
from fanin.benchmarks.records.architecture import keys_of_best, model_slug, output_kind
from fanin.benchmarks.records.task_keys import TaskKeys
from fanin.datasets import canonical_name
from fanin.datasets.folder import SVD512

# In the context of a validation: whether the features are known to be sparse, which a recipe asks.
SPARSE_FEATURES = "sparse_features"
# What a recipe decides where a task does not.
RECIPE_KEYS = tuple(field.name for field in fields(Recipe))

# Of bytes, in the name of a file with an ending behind it (`task_keys.NAMES`).
_LONGEST_SLUG = 240


class TaskError(ValueError):
    """A task file that cannot be used; the message names file, task and key."""


class Task(TaskKeys):
    """Everything that decides a run's numbers, apart from the backend and the repeat."""

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
        self._layer(inputs=2**31, labels=2)
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
        if self.head_connectivity and not self.head_fraction:
            raise ValueError(
                f"head_connectivity {self.head_connectivity} is for frequent labels that have a "
                "layer of their own; set head_fraction"
            )
        if self.grouping != PAPER.grouping and not self.group_size:
            raise ValueError(
                f"grouping {self.grouping!r} is for labels that share their sources; set group_size"
            )
        if self.rewire_threshold and self.rewire_towards != "random":
            raise ValueError(
                f"rewire_threshold is for rewire_towards 'random', got {self.rewire_towards!r}, "
                "where each label moves its share; leave it at 0"
            )
        if self.auxiliary_weight and not self.intermediate:
            raise ValueError(
                "auxiliary_weight is for an intermediate layer, and architecture "
                f"{self.architecture!r} has none; leave it at 0"
            )
        if self.grouping == "sources" and self.connections != "centroid":
            raise ValueError(
                f"grouping 'sources' needs connections 'centroid', got {self.connections!r}"
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

    def check_float8(self) -> None:
        """ValueError where weights are to be in float8 and cannot be. Apart from the other checks:
        of the tasks of a file, those that are chosen may fit when others do not."""
        if self.weights_dtype == "float8":
            self._layer(inputs=2**31, labels=2).check_float8()

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
        output = with_head(output, self.head_fraction, self.head_connectivity, labels)
        return LayerSetup(
            inputs,
            labels,
            output,
            self.intermediate,
            self.loss_fn,
            scaled=self.feature_scaling != "none",
            atoms=atoms_of(self.recipe_values, inputs, labels, dictionary_fan_in(output)),
            sparse_features=sparse_features,
        )

    @property
    def departures(self) -> tuple[str, ...]:
        """The recipe where it is not the paper's, and hyper-parameters that differ from its own, as
        `dropout=0.2`, by name."""
        sizes = {"connectivity", "group_size", "intermediate", "head_fraction", "head_connectivity"}
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
        `ffi-32-g16` in groups of 16 labels, `ffi-32-h0.1` with a dense head of a tenth of the
        labels, `ffi-32-h0.1x64` where it has 64 connections a label."""
        group = f"g{self.group_size}" if self.group_size else None
        head = f"h{self.head_fraction:g}" if self.head_fraction else None
        if self.head_connectivity:
            head = f"{head}x{self.head_connectivity}"
        sizes = (str(n) for n in (self.connectivity, group, head, self.intermediate) if n)
        return "-".join([self.model_name, *sizes])

    @property
    def model_name(self) -> str:
        """`dense`, `unstructured`, `ffi` or `bottleneck`: the setup without its sizes."""
        return model_slug(self.architecture)

    @property
    def title(self) -> str:
        """Data set and setup, as a line of progress begins: `wordnet ffi-32-16384 fused`."""
        return f"{self.dataset} {self.setup_name}{' fused' * (self.execution == 'fused')}"
