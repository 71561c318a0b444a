"""A task: one layer setup on one data set with its hyper-parameters, read from a task file.

A task file is the original experiments' JSON, `{"defaults": {...}, "tasks": [{...}, ...]}`: each
entry of `tasks` overrides `defaults`. Where a key is silent, the paper's protocol holds
(Schultheis & Babbar, ECML-PKDD 2023, arXiv 2306.03725, and its public code).

fanin's own files lie in `tasks/<dataset>/<features>.json`; those of published data sets hold
exactly the published rows, and `<features>-ablations.json` beside them what else the authors tried.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from fanin.backends.interface import FLOAT32, Execution, Storage, StoredType
from fanin.backends.setup import (
    ConnectionKind,
    Dense,
    FixedFanIn,
    LayerSetup,
    Loss,
    Unstructured,
)
from fanin.datasets import canonical_name

EvaluationProtocol = Literal["paper", "holdout"]
Connections = Literal["random", "centroid"]
FeatureScaling = Literal["none", "unit_variance"]

# The paper's names of its models.
Architecture = Literal[
    "dense", "sparse", "dense-sparse", "stratified", "dense-stratified", "bottleneck"
]


@dataclass(frozen=True)
class _Model:
    """What an architecture is made of. slug: its name in those of files and on the command line.
    connections: the kind of output layer for a connectivity; None where that has none."""

    slug: str
    connections: Callable[[int], ConnectionKind] | None
    has_intermediate: bool


_MODELS: dict[Architecture, _Model] = {
    "dense": _Model("dense", None, False),
    "sparse": _Model("unstructured", Unstructured, False),
    "dense-sparse": _Model("unstructured", Unstructured, True),
    "stratified": _Model("ffi", FixedFanIn, False),
    "dense-stratified": _Model("ffi", FixedFanIn, True),
    "bottleneck": _Model("bottleneck", None, True),
}

# Both become folder names below the results folder.
_FILE_NAME = r"^[A-Za-z0-9_-][A-Za-z0-9._-]*$"

TASK_FOLDER = Path(__file__).parent.parent / "tasks"
_ABLATIONS = "-ablations"
# What one's own data are trained with when no task file is named.
USUAL_TASKS = TASK_FOLDER / "wordnet" / "tfidf-svd512.json"


class TaskError(ValueError):
    """A task file that cannot be used; the message names file, task and key."""


class Task(BaseModel):
    """Everything that decides a run's numbers, apart from the backend and the repeat."""

    # Strict: `true` is no number, nor is "8".
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    dataset: str = Field(min_length=1, pattern=_FILE_NAME)
    features: str = Field(min_length=1, pattern=_FILE_NAME)
    architecture: Architecture
    connectivity: int | None = Field(default=None, ge=1)
    intermediate: int | None = Field(default=None, ge=1)
    repeat: int = Field(
        default=1, ge=1, le=10_000, description="how many runs, each with its own seed"
    )
    dropout: float = Field(default=0.1, ge=0, lt=1)
    learning_rate: float = Field(default=1e-3, gt=0)
    rewire_interval: int = Field(
        default=1000, ge=-1, description="steps; -1 once per epoch, 0 never"
    )
    rewire_fraction: float = Field(default=0.1, ge=0, lt=1)
    loss_fn: Loss = "squared_hinge"
    batch_size: int = Field(default=32, ge=1)
    epochs: int = Field(default=100, ge=1, description="at most; early stopping may end sooner")
    seed: int = Field(default=0, ge=0)
    protocol: EvaluationProtocol = "paper"
    execution: Execution = "autograd"
    weights_dtype: StoredType = "float32"
    moments_dtype: StoredType = "float32"
    connections: Connections = Field(
        default="random", description="centroid: chosen by the data, see fanin.backends.choosing"
    )
    feature_scaling: FeatureScaling = "none"
    initial_bias: float | Literal["prior"] = Field(
        default=0.0, description="of the output layer; prior: each label's log-odds"
    )

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, values: Any) -> Any:
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
        return values

    @model_validator(mode="after")
    def _fits(self) -> Task:
        # The widths of the data set are not known yet; everything else about the setup is.
        self._layer(inputs=2**31, labels=1)
        if self.execution == "autograd" and self.storage != FLOAT32:
            raise ValueError(
                "weights_dtype and moments_dtype other than float32 need execution 'fused'"
            )
        if self.connections != "random":
            if self.architecture == "dense-stratified":
                raise ValueError(
                    f"connections {self.connections!r} are chosen by the features, and this output "
                    "layer reads an intermediate layer; use connections 'random' there"
                )
            if self.architecture != "stratified":
                raise ValueError(
                    f"connections {self.connections!r} need architecture 'stratified', which has a "
                    f"fixed fan-in, got {self.architecture!r}"
                )
        if self.initial_bias == "prior" and self.loss_fn != "bce":
            raise ValueError(
                f"initial_bias 'prior' is for loss_fn 'bce', got {self.loss_fn!r}; give a number"
            )
        return self

    @property
    def looks_at_data(self) -> bool:
        """Whether initial arrays depend on the training instances."""
        chosen = self.connections != "random" or self.feature_scaling != "none"
        return chosen or self.initial_bias == "prior"

    @property
    def storage(self) -> Storage:
        return Storage(self.weights_dtype, self.moments_dtype)

    def setup(self, inputs: int, labels: int) -> LayerSetup:
        """The model for data of these widths; TaskError where it does not fit them."""
        try:
            return self._layer(inputs, labels)
        except ValueError as error:
            name = self.setup_name
            raise TaskError(
                f"{self.dataset}, {self.features} features, setup {name}: {error}"
            ) from error

    def _layer(self, inputs: int, labels: int) -> LayerSetup:
        model, output_inputs = _MODELS[self.architecture], self.intermediate or inputs
        if model.has_intermediate and not self.intermediate:
            raise ValueError(f"architecture {self.architecture!r} needs `intermediate` >= 1")
        if not model.has_intermediate and self.intermediate:
            raise ValueError(
                f"architecture {self.architecture!r} has no intermediate layer, got "
                f"intermediate={self.intermediate}"
            )
        output: ConnectionKind = Dense()
        if model.connections:
            if not self.connectivity:
                raise ValueError(f"architecture {self.architecture!r} needs `connectivity` >= 1")
            if self.connectivity > output_inputs:
                raise ValueError(
                    f"connectivity {self.connectivity} is larger than the {output_inputs} inputs "
                    "of the output layer"
                )
            output = model.connections(self.connectivity)
        scaled = self.feature_scaling != "none"
        return LayerSetup(inputs, labels, output, self.intermediate, self.loss_fn, scaled)

    @property
    def departures(self) -> tuple[str, ...]:
        """Hyper-parameters that differ from the defaults, each as `dropout=0.2`, by name."""
        named = {"dataset", "features", "architecture", "connectivity", "intermediate", "repeat"}
        own = self.model_dump(include=named - {"repeat"})
        usual = type(self).model_validate(own)
        return tuple(
            f"{key}={getattr(self, key)}"
            for key in sorted(type(self).model_fields)
            if key not in named and getattr(self, key) != getattr(usual, key)
        )

    @property
    def slug(self) -> str:
        """A readable name, unique among tasks: `ffi-32-16384`, then what departs from defaults."""
        return "_".join([self.setup_name, *self.departures])

    @property
    def setup_name(self) -> str:
        """What a command calls its setup, whatever else departs from the defaults."""
        sizes = (str(n) for n in (self.connectivity, self.intermediate) if n)
        return "-".join([self.model_name, *sizes])

    @property
    def model_name(self) -> str:
        """`dense`, `unstructured`, `ffi` or `bottleneck`: the setup without its sizes."""
        return _MODELS[self.architecture].slug

    @property
    def title(self) -> str:
        """Data set and setup, as a line of progress begins: `wordnet ffi-32-16384 fused`."""
        return f"{self.dataset} {self.setup_name}{' fused' * (self.execution == 'fused')}"


def task_files() -> dict[str, Path]:
    """fanin's own task files by their short names, such as `amazon-670k/slice-ablations`."""
    files = sorted(TASK_FOLDER.glob("*/*.json"))
    return {path.relative_to(TASK_FOLDER).with_suffix("").as_posix(): path for path in files}


def files_of(dataset: str, features: str | None = None) -> list[Path]:
    """The task files of a data set, one per kind of features, without the ablations; only that of
    `features` if they are named. Empty where fanin has none."""
    return [
        path
        for path in task_files().values()
        if path.parent.name == canonical_name(dataset)
        and not path.stem.endswith(_ABLATIONS)
        and features in (None, path.stem)
    ]


def find_tasks(name: Path) -> Path:
    """The task file that `--tasks` names: a file, or else one of fanin's own by its short name."""
    own = task_files()
    if name.is_file() or name.suffix == ".json":
        return name  # where there is no such file, reading says so
    if name.as_posix() not in own:
        raise TaskError(f"{name}: no such task file; fanin's own are {', '.join(own)}")
    return own[name.as_posix()]


def read_tasks(path: Path, overrides: dict[str, Any] | None = None) -> list[Task]:
    """All tasks of one file, in its order; `overrides` win over the file (command line options).

    Entries that are the same task are one, with the largest of their repeats: the original's files
    list a task of their tables once more among its ablations. Raises TaskError for a file that
    cannot be used.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = [key for key, _ in pairs]
        if twice := next((key for key in keys if keys.count(key) > 1), None):
            raise TaskError(f"{path}: key {twice!r} stands twice in an object; keep it once")
        return dict(pairs)

    try:
        content = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=unique)
    except TaskError:
        raise
    except FileNotFoundError as error:
        raise TaskError(f"{path}: no such task file") from error
    except OSError as error:
        raise TaskError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise TaskError(f"{path}: not UTF-8 text: {error}") from error
    except json.JSONDecodeError as error:
        raise TaskError(f"{path}:{error.lineno}: not JSON: {error.msg}") from error
    except (RecursionError, ValueError) as error:  # too deep; a number of thousands of digits
        raise TaskError(f"{path}: not usable as JSON: {error}") from error
    if not isinstance(content, dict) or not isinstance(content.get("tasks"), list):
        raise TaskError(f'{path}: expected {{"defaults": {{...}}, "tasks": [...]}}')
    defaults = content.get("defaults", {})
    if not isinstance(defaults, dict):
        raise TaskError(f"{path}: `defaults` must be an object, got {defaults!r}")
    if unknown := set(content) - {"defaults", "tasks"}:
        raise TaskError(f"{path}: unknown keys {sorted(unknown)}; use `defaults` and `tasks`")
    merged: dict[tuple[str, str, str], Task] = {}
    for task in _tasks(path, defaults, content["tasks"], overrides or {}):
        key = (task.dataset, task.features, task.slug)
        known = merged.setdefault(key, task)
        if task.repeat > known.repeat:
            merged[key] = task
    return list(merged.values())


def _tasks(
    path: Path, defaults: dict[str, Any], entries: list[Any], overrides: dict[str, Any]
) -> Iterator[Task]:
    if not entries:
        raise TaskError(f"{path}: `tasks` is empty")
    for number, entry in enumerate(entries):
        where = f"{path}: tasks[{number}]"
        if not isinstance(entry, dict):
            raise TaskError(f"{where}: expected an object, got {entry!r}")
        values = {**defaults, **entry, **overrides}
        if values.get("architecture") == "sparse" and "rewire_fraction" not in entry | overrides:
            # The original never handed its default fraction to this layer, which kept its own.
            values.pop("rewire_fraction", None)
        try:
            yield Task.model_validate(values)
        except ValidationError as error:
            given = ", ".join(f"{key}={value}" for key, value in overrides.items())
            asked = f" with {given}" if given else ""
            raise TaskError(f"{where}{asked}: {_explain(error)}") from error


def _explain(error: ValidationError) -> str:
    known = ", ".join(Task.model_fields)
    lines = []
    for item in error.errors():
        key = ".".join(str(part) for part in item["loc"])
        value = "" if item["type"] in ("missing", "value_error") else f" (got {item['input']!r})"
        hint = f"; known keys: {known}" if item["type"] == "extra_forbidden" else ""
        message = item["msg"].removeprefix("Value error, ")
        lines.append(f"{key + ': ' if key else ''}{message}{value}{hint}")
    return "; ".join(lines)
