"""The setups as a report names, orders and colours them: one colour per setup everywhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from fanin.backends.recipes import RecipeName
from fanin.backends.registry import BACKENDS
from fanin.benchmarks.records.published import intermediate_label
from fanin.benchmarks.records.task import Task


@dataclass(frozen=True)
class Kind:
    """A kind of setup as the paper's tables name it, and its colour: Okabe & Ito (2008), told apart
    with every common form of colour blindness.

    with_intermediate: the colour behind an intermediate layer, the strong shade of the same hue;
    None where the kind itself says whether there is one.
    """

    word: str
    colour: str
    with_intermediate: str | None = None


# The name of a model in slugs -> what the tables call it, in their order.
KINDS = {
    "dense": Kind("Dense", "#000000"),
    "unstructured": Kind("Unstructured", "#E69F00", "#D55E00"),
    "ffi": Kind("FFI", "#56B4E9", "#0072B2"),
    "bottleneck": Kind("Bottleneck", "#CC79A7"),
}
_INTERMEDIATE = "+intermediate"
# Name of a setup -> its colour, in the order of the tables.
COLOURS = {
    name: colour
    for kind in KINDS.values()
    for name, colour in (
        (kind.word, kind.colour),
        (f"{kind.word}{_INTERMEDIATE}", kind.with_intermediate),
    )
    if colour
}

# How a variant says that the execution, or the recipe, is that one.
FUSED = "fused"
BEST = "recipe best"
_WORDS = {"execution=fused": FUSED, "recipe=best": BEST}
# Kinds whose output layer is dense.
_DENSE = ("Dense", "Bottleneck")


@dataclass(frozen=True)
class Setup:
    """One row's model as the paper prints it.

    kind: the word of one of `KINDS`. connectivity: inputs of a label; of a dense layer all of them,
    None where a failed run never learnt the width of its data. variant: hyper-parameters that
    depart from the recipe, such as `dropout=0.2` and `fused`, and before them `recipe best` where
    it is that. group_size: how many labels share their sources; None where each has its own.
    head: the output layer of the most frequent labels and their share, such as `Dense 10 %`; None
    where all labels have the same one.
    """

    kind: str
    connectivity: int | None
    intermediate: int | None
    variant: tuple[str, ...]
    group_size: int | None = None
    head: str | None = None

    @classmethod
    def from_task(cls, task: Task, inputs: int | None) -> Setup:
        """inputs: of the data set, where they are known."""
        # A dense output layer connects a label with all that it reads.
        connectivity = task.connectivity or task.intermediate or inputs
        word, inner = KINDS[task.model_name].word, task.intermediate
        head = None
        if task.head_fraction:
            kind = f"FFI {task.head_connectivity}" if task.head_connectivity else "Dense"
            head = f"{kind} {100 * task.head_fraction:g} %"
        return cls(word, connectivity, inner, variant(task), task.group_size, head)

    @property
    def name(self) -> str:
        """One of `COLOURS`."""
        inner = f"{self.kind}{_INTERMEDIATE}"
        return inner if self.intermediate and inner in COLOURS else self.kind

    @property
    def colour(self) -> str:
        return COLOURS[self.name]

    @property
    def label(self) -> str:
        """Short and unique within a data set: `FFI 32-16k`, `FFI 32/g16` in groups of 16 labels,
        `Dense 10 % + FFI 32` with a head, then the variant if there is one."""
        if self.name in _DENSE:
            sizes = f" {self.intermediate}" if self.intermediate else ""
        else:
            inner = f"-{self.intermediate_label}" if self.intermediate else ""
            group = f"/g{self.group_size}" if self.group_size else ""
            sizes = f" {self.connectivity}{group}{inner}"
        head = f"{self.head} + " if self.head else ""
        return ", ".join([f"{head}{self.kind}{sizes}", *self.variant])

    @property
    def intermediate_label(self) -> str | None:
        """Units of the intermediate layer as the paper writes them, `16k` for 16384; None without
        one."""
        return intermediate_label(self.intermediate) if self.intermediate else None

    @property
    def order(self) -> tuple[int, bool, int, int, int, str, tuple[str, ...]]:
        """Dense, Unstructured, FFI, Bottleneck; without intermediate first; then by size."""
        return (
            list(COLOURS).index(self.kind),
            self.intermediate is not None,
            self.connectivity or 0,
            self.intermediate or 0,
            self.group_size or 0,
            self.head or "",
            self.variant,
        )

    def without(self, shared: Sequence[str]) -> Setup:
        """The setup with only those departures in its variant that do not stand elsewhere."""
        return replace(self, variant=tuple(part for part in self.variant if part not in shared))

    @property
    def recipe(self) -> RecipeName:
        return "best" if BEST in self.variant else "paper"

    def is_fused_variant(self, shared: Sequence[str]) -> bool:
        """Whether it is to be told from the same setup in the framework's own execution."""
        return FUSED in self.without(shared).variant


def variant(task: Task) -> tuple[str, ...]:
    """What departs from the defaults, as a report says it."""
    return tuple(_WORDS.get(departure, departure) for departure in task.departures)


def shared_departures(setups: Sequence[Setup]) -> list[str]:
    """Departures from the defaults that every setup has; they stand once instead of in every
    row."""
    variants = [setup.variant for setup in setups]
    if not variants:
        return []
    return [part for part in variants[0] if all(part in other for other in variants)]


def with_departures(caption: str, shared: Sequence[str]) -> str:
    """A caption, and what all rows below it have in common: `words (all: dropout=0.2)`."""
    return f"{caption} (all: {', '.join(shared)})" if shared else caption


def backend_order(backend: str) -> tuple[int, str]:
    """The order of the registry; a backend that is not in it comes last."""
    known = list(BACKENDS)
    return known.index(backend) if backend in known else len(known), backend


def backend_name(backend: str) -> str:
    """`PyTorch` for torch and so on; the name itself for one that is not known."""
    return BACKENDS[backend].display_name if backend in BACKENDS else backend


def backend_marker(backend: str) -> str:
    """matplotlib's name for the shape of a backend's points."""
    return BACKENDS[backend].marker if backend in BACKENDS else "D"


def dataset_label(name: str, synthetic: bool) -> str:
    """A data set's name as it stands everywhere in a report; generated data says so."""
    return f"{name} (synthetic)" if synthetic else name
