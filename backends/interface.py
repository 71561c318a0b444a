"""What the harness knows about a backend: the layer setup it asks for and the trainer it gets.

Nothing here names a framework. Arrays cross this boundary as NumPy, under the same names in both
backends (see `LayerSetup.array_shapes`), so a model trained in one loads in the other.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, SupportsFloat

import numpy as np

from fanin.backends import checks

Architecture = Literal[
    "dense", "sparse", "dense-sparse", "stratified", "dense-stratified", "bottleneck"
]
Loss = Literal["squared_hinge", "bce"]
# autograd: scores, loss and gradients one after the other, then the optimiser, by the framework;
# fused: all of it in one pass over the labels, by fanin's kernels.
Execution = Literal["autograd", "fused"]
StoredType = Literal["float32", "bfloat16"]

ADAM_BETAS = (0.9, 0.999)
# Keras' default, and it matters: |dLoss/dscore| is of this order for 670,000 labels. It is added to
# sqrt(v) before the bias correction ("epsilon hat" in Kingma & Ba, 2015, end of section 2), which
# is how the paper's framework does it; both backends do the same.
ADAM_EPSILON = 1e-7


def kind_of(architecture: Architecture) -> str:
    """The name used in the paper's tables; one of `SETUP_KINDS`."""
    if architecture in ("dense", "bottleneck"):
        return architecture.capitalize()
    return "Unstructured" if "sparse" in architecture else "FFI"


@dataclass(frozen=True)
class LayerSetup:
    """One model: `features -> [Dense(intermediate, relu)] -> output layer over the labels`.

    connectivity: connections per label (exactly for stratified, on average for sparse); None for
    dense and bottleneck. intermediate: units of the hidden layer, or None.
    """

    architecture: Architecture
    inputs: int
    labels: int
    connectivity: int | None = None
    intermediate: int | None = None
    loss: Loss = "squared_hinge"

    def __post_init__(self) -> None:
        sparse = self.architecture not in ("dense", "bottleneck")
        hidden = self.architecture in ("dense-sparse", "dense-stratified", "bottleneck")
        if self.inputs < 1 or self.labels < 1:
            raise ValueError(f"a layer needs inputs and labels, got {self.inputs}, {self.labels}")
        if hidden and not self.intermediate:
            raise ValueError(f"architecture {self.architecture!r} needs `intermediate` >= 1")
        if not hidden and self.intermediate:
            raise ValueError(
                f"architecture {self.architecture!r} has no intermediate layer, got "
                f"intermediate={self.intermediate}"
            )
        if sparse and not self.connectivity:
            raise ValueError(f"architecture {self.architecture!r} needs `connectivity` >= 1")
        if not sparse and self.connectivity:
            raise ValueError(
                f"architecture {self.architecture!r} is dense; leave `connectivity` out, got "
                f"{self.connectivity}"
            )
        if sparse and self.connectivity and self.connectivity > self.sources:
            raise ValueError(
                f"connectivity {self.connectivity} is larger than the {self.sources} inputs of "
                "the output layer"
            )

    @property
    def sources(self) -> int:
        """Inputs of the output layer: the intermediate units, or else the features."""
        return self.intermediate or self.inputs

    @property
    def kind(self) -> str:
        return kind_of(self.architecture)

    @property
    def is_rewired(self) -> bool:
        return self.connectivity is not None

    def check_rewired(self) -> None:
        """ValueError where nothing can be rewired."""
        if not self.is_rewired:
            raise ValueError(f"{self.kind} has no connections to rewire")

    def check_k(self, k: int) -> None:
        """ValueError where there are no k best labels."""
        checks.best(k, self.labels)

    def check_name(self, name: str) -> None:
        """KeyError for an array that is none of `array_shapes`."""
        if name not in self.array_shapes():
            raise KeyError(f"{name!r} is none of {', '.join(self.array_shapes())}")

    def array_shapes(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of all arrays of the model, in the order of the data flow.

        `intermediate.weights` is [inputs, intermediate]; `output.weights` is [sources, labels] for
        a dense output, [labels, connectivity] with `output.indices` for fixed fan-in, and a flat
        [connections] with `output.rows` (label, ascending) and `output.columns` (source) for
        unstructured connections.
        """
        shapes: dict[str, tuple[int, ...]] = {}
        if self.intermediate:
            shapes["intermediate.weights"] = (self.inputs, self.intermediate)
            shapes["intermediate.bias"] = (self.intermediate,)
        if self.connectivity is None:
            shapes["output.weights"] = (self.sources, self.labels)
        elif self.kind == "FFI":
            shapes["output.indices"] = (self.labels, self.connectivity)
            shapes["output.weights"] = (self.labels, self.connectivity)
        else:
            connections = self.labels * self.connectivity
            shapes["output.rows"] = (connections,)
            shapes["output.columns"] = (connections,)
            shapes["output.weights"] = (connections,)
        shapes["output.bias"] = (self.labels,)
        return shapes


@dataclass(frozen=True)
class Storage:
    """How weights and Adam's moments are stored; bfloat16 is rounded stochastically and needs the
    fused execution. Biases are float32 always."""

    weights: StoredType = "float32"
    moments: StoredType = "float32"


SETUP_KINDS = ("Dense", "Unstructured", "FFI", "Bottleneck")

# Called after each step with its loss, which is only converted to a float where somebody looks:
# on a GPU that would wait for the device.
OnStep = Callable[[SupportsFloat], None]


class TrainingBatch(Protocol):
    """What a trainer reads of a batch (`fanin.datasets.Batch` is one)."""

    @property
    def features(self) -> np.ndarray: ...  # float32 [batch, inputs], dropout applied
    @property
    def rows(self) -> np.ndarray: ...  # int32 [positives], instance within the batch
    @property
    def labels(self) -> np.ndarray: ...  # int64 [positives]


class Device(Protocol):
    """Where a trainer works, as far as measuring asks."""

    is_cpu: bool

    def synchronize(self) -> None:
        """Wait until it has finished; a no-op on a CPU."""

    def mark(self) -> Any:
        """A mark in its order of work, without waiting for it (a CUDA event; the time, on a CPU).
        None where the framework has no such thing."""

    def seconds(self, marks: Sequence[Any]) -> list[float]:
        """Seconds from each mark to the next; waits for the last one."""

    def description(self) -> dict[str, str]:
        """`framework` with its version and `device`, for the result file."""

    def memory(self) -> dict[str, int | None]:
        """`allocator_peak_bytes` and `allocator_reserved_bytes` of the framework's allocator; None
        where not measurable."""


class Trainer(Protocol):
    """A model in one framework, its optimiser state and the ways to train and ask it."""

    setup: LayerSetup

    @property
    def device(self) -> Device: ...

    def train(
        self, batches: Iterable[TrainingBatch], learning_rate: float, on_step: OnStep | None = None
    ) -> np.ndarray:
        """One step per batch, in order; the losses, float64 [steps]. Raises FloatingPointError
        naming the step whose loss is not finite."""

    def top_k(self, features: np.ndarray, k: int) -> np.ndarray:
        """Ids of the k highest scored labels, int64 [instances, k], best first; no dropout.
        features: float32 [instances, inputs]. Ties go to the lower id. ValueError where k is not
        in 1..labels."""

    def array(self, name: str) -> np.ndarray:
        """One array of `LayerSetup.array_shapes` as it is now; it may be a view that the next step
        changes. KeyError for another name."""

    def rewire(self, slots: np.ndarray, sources: np.ndarray) -> None:
        """Give the connections at the flat positions `slots` of `output.weights` new `sources`.
        Weights keep their value; their Adam moments become 0. ValueError for a layer without
        connections, here and in `regrow`."""

    def regrow(self, fraction: float, seed: int) -> int:
        """Rewire as `fanin.backends.arrays.plan_rewiring` has it; how many connections moved."""

    def arrays(self) -> Iterator[tuple[str, np.ndarray]]:
        """All arrays with their names in `LayerSetup.array_shapes`, one after the other, so that
        they need not be in memory beside the model. Each may be a view and holds until the next
        one is asked for; the model must not be used before the last one."""

    def weights(self) -> dict[str, np.ndarray]:
        """A copy of all arrays under the names of `LayerSetup.array_shapes`."""

    def load_weights(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Take over all arrays; ValueError names what is missing or does not fit."""

    def optimizer_arrays(self) -> Iterator[tuple[str, np.ndarray]]:
        """Adam's state: `<name>.m` and `<name>.v` for each trained array, and `steps`, an int64
        scalar; as `arrays`, one after the other."""

    def load_optimizer_arrays(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Take over what `optimizer_arrays` gave, in this or the other backend. Each array is
        asked for once, when it is its turn."""

    def state_bytes(self) -> tuple[int, int]:
        """Bytes of the parameters (indices included) and of the optimiser state, counted."""


BACKENDS = ("torch", "tensorflow")
DEVICES = ("cpu", "cuda", "auto")

_STEPS_BETWEEN_LOOKS = 100

INSTALL = {
    "torch": "pip install 'fanin[torch]'",
    "tensorflow": "pip install 'fanin[tensorflow]' (or 'fanin[tensorflow-cpu]')",
}


def check_device(name: str) -> None:
    """ValueError for a device of another name."""
    if name not in DEVICES:
        raise ValueError(f"device must be one of {', '.join(DEVICES)}, got {name!r}")


def make_trainer(
    backend: str,
    setup: LayerSetup,
    arrays: Mapping[str, np.ndarray],
    *,
    execution: Execution = "autograd",
    storage: Storage = Storage(),
    device: str = "auto",
    threads: int = 0,
) -> Trainer:
    """Build the trainer of `backend`; imports that framework and no other.

    execution, storage: see there. device: "cpu", "cuda", or "auto" for a GPU when there is one.
    threads: CPU threads, 0 for all.
    A missing framework raises ImportError with what to install: never a silent skip.
    """
    if execution == "autograd" and storage != Storage():
        raise ValueError("bfloat16 weights or moments need execution 'fused'")
    if backend not in BACKENDS:
        raise ValueError(f"unknown backend {backend!r}; there are {', '.join(BACKENDS)}")
    try:
        module = importlib.import_module(f"fanin.backends.{backend}.trainer")
    except ModuleNotFoundError as error:
        if error.name and error.name.partition(".")[0] in BACKENDS:
            raise ImportError(
                f"backend {backend!r} was asked for but {error.name} is not installed: "
                f"{INSTALL[backend]}"
            ) from error
        raise
    trainer: Trainer
    if execution == "fused":
        trainer = module.make_fused(setup, arrays, storage, device=device, threads=threads)
    else:
        trainer = module.make(setup, arrays, device=device, threads=threads)
    return trainer


class Losses:
    """The losses of consecutive steps, from `first_step` on; FloatingPointError names the first
    that is not finite.

    On a CPU, where a loss is there at once, each is looked at as it comes: the next step would
    find what this one made of the weights, and complain of that. On a GPU, where a look waits for
    the device, every so many are.
    """

    def __init__(self, device: Device, first_step: int) -> None:
        self._between_looks = 1 if device.is_cpu else _STEPS_BETWEEN_LOOKS
        self._first_step = first_step
        self._seen: list[float] = []
        self._unseen: list[SupportsFloat] = []

    def add(self, loss: SupportsFloat) -> None:
        self._unseen.append(loss)
        if len(self._unseen) == self._between_looks:
            self._look()

    def all(self) -> np.ndarray:
        """All that were added, float64 [steps]."""
        self._look()
        return np.array(self._seen, np.float64)

    def _look(self) -> None:
        for loss in self._unseen:
            value = float(loss)
            if not math.isfinite(value):
                raise FloatingPointError(
                    f"the loss of step {self._first_step + len(self._seen)} is {value}; lower the "
                    "learning rate or look at the features"
                )
            self._seen.append(value)
        self._unseen = []
