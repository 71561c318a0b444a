"""What the estimator's arguments mean for data of given sizes: a model, a recipe and a storage."""

from __future__ import annotations

import importlib.util
import math
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, get_args

from fanin.backends import checks
from fanin.backends.grouping import Grouping
from fanin.backends.head_and_tail import with_head
from fanin.backends.interface import DEVICES, Execution, Storage, StoredType
from fanin.backends.kinds import LEAST_GROUP_SIZE, ConnectionKind, Dense, FixedFanIn, GroupedFanIn
from fanin.backends.optimizer import Optimizer, OptimizerKind, check_row_moments
from fanin.backends.recipes import Recipe, RecipeName, Schedule, recipe_of
from fanin.backends.registry import BACKENDS
from fanin.backends.setup import LayerSetup, Loss
from fanin.backends.starting import atoms_of, dictionary_fan_in
from fanin.backends.words.setup import OneVersusRestRecipe, OneVersusRestSetup
from fanin.kernels.threads import MOST_THREADS, thread_count

# What "auto" means for fan_in: of a fixed fan-in layer, and of labels that read words.
FAN_IN, WORDS_FAN_IN = 32, 128
AnyRecipe = Recipe | OneVersusRestRecipe
Model = tuple[LayerSetup, Recipe] | tuple[OneVersusRestSetup, OneVersusRestRecipe]


@dataclass(frozen=True)
class Settings:
    """The arguments of `FanInClassifier`, which says what they mean, as a value that can be written
    to a file. Raises ValueError naming the argument that is wrong."""

    fan_in: int | Literal["auto"] | None = "auto"
    group_size: int | None = None
    head_fraction: float = 0.0
    head_fan_in: int | None = None
    grouping: Grouping | None = None
    intermediate: int | Literal["auto"] | None = "auto"
    recipe: RecipeName | Recipe = "best"
    loss: Loss | None = None
    learning_rate: float | None = None
    optimizer: OptimizerKind = "adam"
    weight_decay: float = 0.0
    schedule: Schedule | None = None
    warm_up: float | None = None
    epochs: int | None = None
    batch_size: int = 32
    dropout: float = 0.1
    weights_dtype: StoredType = "float32"
    moments_dtype: StoredType = "float32"
    moments: Literal["full", "row"] = "full"
    execution: Execution = "fused"
    backend: str = "auto"
    device: str = "auto"
    threads: int = 0
    early_stopping: bool = False
    validation_fraction: float = 0.1

    def __post_init__(self) -> None:
        if self.fan_in is not None and self.fan_in != "auto":
            checks.whole("fan_in", self.fan_in, 1)
        if self.group_size is not None:
            least, most = LEAST_GROUP_SIZE, checks.MOST_GROUP_SIZE
            checks.whole("group_size", self.group_size, least, most)
            if self.fan_in is None:
                raise ValueError(
                    f"group_size {self.group_size} is for labels with a fixed fan-in; set fan_in"
                )
        _share("head_fraction", self.head_fraction, least=True)
        if self.head_fan_in is not None:
            checks.whole("head_fan_in", self.head_fan_in, 1)
            if not self.head_fraction:
                raise ValueError(
                    f"head_fan_in {self.head_fan_in} is for frequent labels that have an output "
                    "layer of their own; set head_fraction"
                )
        if self.grouping is not None:
            _one_of("grouping", self.grouping, get_args(Grouping))
            if self.group_size is None:
                raise ValueError(
                    f"grouping {self.grouping!r} is for labels that share their sources; set "
                    "group_size"
                )
        if self.intermediate is not None and self.intermediate != "auto":
            checks.whole("intermediate", self.intermediate, 1)
        if not isinstance(self.recipe, Recipe):
            _one_of("recipe", self.recipe, get_args(RecipeName))
        if self.loss is not None:
            _one_of("loss", self.loss, get_args(Loss))
        if self.learning_rate is not None:
            checks.learning_rate(self.learning_rate)
        _one_of("optimizer", self.optimizer, get_args(OptimizerKind))
        checks.not_negative("weight_decay", self.weight_decay)
        if self.schedule is not None:
            _one_of("schedule", self.schedule, get_args(Schedule))
        if self.warm_up is not None:
            _share("warm_up", self.warm_up, least=True)
        if self.epochs is not None:
            checks.whole("epochs", self.epochs, 1)
        checks.whole("batch_size", self.batch_size, 1)
        _share("dropout", self.dropout, least=True)
        for name in ("weights_dtype", "moments_dtype"):
            _one_of(name, getattr(self, name), get_args(StoredType))
        _one_of("moments", self.moments, ("full", "row"))
        if self.storage.row_moments:
            check_row_moments(self.optimizer_values)
        _one_of("execution", self.execution, get_args(Execution))
        _one_of("backend", self.backend, ("auto", *BACKENDS))
        _one_of("device", self.device, DEVICES)
        checks.whole("threads", self.threads, 0, MOST_THREADS)
        if not isinstance(self.early_stopping, bool):
            raise ValueError(f"early_stopping must be True or False, got {self.early_stopping!r}")
        _share("validation_fraction", self.validation_fraction, least=False)

    @classmethod
    def of(cls, holder: Any) -> Settings:
        """The attributes of an object that have the names of settings."""
        return cls(**{field.name: getattr(holder, field.name) for field in fields(cls)})

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Settings:
        """Undo `as_json`; ValueError or TypeError for values that are no settings."""
        if isinstance(values.get("recipe"), dict):
            values = values | {"recipe": Recipe(**values["recipe"])}
        return cls(**values)

    def as_json(self) -> dict[str, Any]:
        """As numbers, text and None; a recipe of one's own as its fields."""
        return asdict(self)

    @property
    def storage(self) -> Storage:
        row_moments = self.moments == "row"
        return Storage(self.weights_dtype, self.moments_dtype, row_moments=row_moments)

    @property
    def optimizer_values(self) -> Optimizer:
        """How a gradient changes the weights."""
        return Optimizer(self.optimizer, self.weight_decay)

    @property
    def cpu_threads(self) -> int:
        """How many threads work."""
        return thread_count(self.threads)

    def known_backend(self) -> str:
        """The backend by its name: of "auto" the first one that is installed. ImportError where
        none is, with what to install."""
        if self.backend != "auto":
            return self.backend
        for name in BACKENDS:
            if importlib.util.find_spec(name) is not None:
                return name
        ways = ", or ".join(backend.install for backend in BACKENDS.values())
        raise ImportError(f"training needs one of {', '.join(BACKENDS)}: {ways}")

    def model(self, inputs: int, labels: int, is_sparse: bool) -> Model:
        """The model for data of these sizes, and how it is trained. A label is connected to all
        inputs where there are fewer than `fan_in`. is_sparse: whether features are CSR."""
        intermediate = None if self.intermediate == "auto" else self.intermediate
        if is_sparse and intermediate is None:
            return self._one_versus_rest(inputs, labels)
        fan_in = FAN_IN if self.fan_in == "auto" else self.fan_in
        output: ConnectionKind = Dense()
        if fan_in is not None:
            fan_in = min(fan_in, intermediate or inputs)
            output = FixedFanIn(fan_in)
            if self.group_size is not None:
                output = GroupedFanIn(fan_in, self.group_size)
        head = None if self.head_fan_in is None else min(self.head_fan_in, intermediate or inputs)
        output = with_head(output, self.head_fraction, head, labels)
        setup = LayerSetup(inputs, labels, output, intermediate, sparse_features=is_sparse)
        recipe = self._recipe(setup)
        model = replace(
            setup,
            loss=recipe.loss_fn,
            scaled=recipe.feature_scaling != "none",
            atoms=atoms_of(recipe, inputs, labels, dictionary_fan_in(output)),
        )
        if recipe.connections != "random" or recipe.rewire_towards == "gradient":
            model.check_chosen()
        if self.group_size and recipe.grouping == "sources" and recipe.connections == "random":
            raise ValueError(
                "grouping='sources' is for sources that are chosen by the data, and here they are "
                "random: choose another grouping, such as 'meaning'"
            )
        return model, recipe

    def _one_versus_rest(
        self, inputs: int, labels: int
    ) -> tuple[OneVersusRestSetup, OneVersusRestRecipe]:
        """Labels that read words; ValueError for settings that such a model does not know."""
        fan_in = WORDS_FAN_IN if self.fan_in == "auto" else self.fan_in
        wanted: dict[str, tuple[Any, Any]] = {
            "recipe": (self.recipe, "best"),
            "group_size": (self.group_size, None),
            "head_fraction": (self.head_fraction, 0.0),
            "loss": (self.loss or "bce", "bce"),
            "schedule": (self.schedule or "linear", "linear"),
            "warm_up": (self.warm_up or 0.0, 0.0),
            "weights_dtype": (self.weights_dtype, "float32"),
            "moments_dtype": (self.moments_dtype, "float32"),
            "moments": (self.moments, "full"),
            "optimizer": (self.optimizer, "adam"),
            "weight_decay": (self.weight_decay, 0.0),
            "execution": (self.execution, "fused"),
        }
        if self.device == "cuda":
            wanted["device"] = (self.device, "cpu")
        for name, (given, required) in wanted.items():
            if given != required:
                raise ValueError(
                    f"{name}={given!r} is not for labels that read words, as they do with sparse X "
                    f"and no intermediate layer: leave it at {required!r}, or set intermediate to "
                    "a number of units, such as 512"
                )
        if fan_in is None:
            raise ValueError(
                "fan_in=None would connect each label to all words: give a number of words a "
                f"label, such as {WORDS_FAN_IN}, or set intermediate to a number of units"
            )
        recipe = OneVersusRestRecipe()
        given_values = {"learning_rate": self.learning_rate, "epochs": self.epochs}
        recipe = replace(recipe, **{k: v for k, v in given_values.items() if v is not None})  # type: ignore[arg-type]
        return OneVersusRestSetup(inputs, labels, fan_in), recipe

    def _recipe(self, setup: LayerSetup) -> Recipe:
        named = self.recipe
        recipe = named if isinstance(named, Recipe) else recipe_of(named, setup)
        own: dict[str, Any] = {
            "loss_fn": self.loss,
            "learning_rate": self.learning_rate,
            "schedule": self.schedule,
            "warm_up": self.warm_up,
            "epochs": self.epochs,
            "grouping": self.grouping,
        }
        if self.epochs is not None:
            own["least_steps"] = 0
        recipe = replace(recipe, **{key: value for key, value in own.items() if value is not None})
        _share("warm_up", recipe.warm_up, least=True)  # it may be that of a recipe of one's own
        if recipe.loss_fn != "bce" and recipe.initial_bias == "prior":
            # The log-odds are for cross entropy; with squared hinge, where scores of negatives
            # are to be -1, this is where almost all of them are.
            recipe = replace(recipe, initial_bias=-1.0)
        if recipe.schedule == "plateau" and not self.early_stopping:
            raise ValueError(
                "schedule 'plateau' follows precision on validation instances: set "
                "early_stopping=True, or schedule='linear' or 'cosine'"
            )
        if recipe.auxiliary_weight and not setup.intermediate:
            raise ValueError(
                "auxiliary_weight of this recipe is for an intermediate layer, and there is none: "
                "leave it at 0, or set intermediate to a number of units"
            )
        return recipe


def _one_of(name: str, value: Any, known: tuple[Any, ...]) -> None:
    if value not in list(known):  # a list: the value may have no hash
        raise ValueError(f"{name} must be one of {', '.join(map(str, known))}, got {value!r}")


def _share(name: str, value: Any, *, least: bool) -> None:
    """At least 0 (above it, without `least`) and below 1."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not (0 <= value < 1 if least else 0 < value < 1) or math.isnan(value):
        bound = "at least" if least else "above"
        raise ValueError(f"{name} must be {bound} 0 and below 1, got {value!r}")
