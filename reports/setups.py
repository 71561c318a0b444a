"""The setups as a report names, orders and colours them: one colour per setup everywhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from fanin.backends.registry import BACKENDS
from fanin.benchmarks.records.published import intermediate_label
from fanin.benchmarks.records.task import Task

# Okabe & Ito (2008): told apart with every common form of colour blindness. The two members of a
# family (without and with an intermediate layer) are the light and the strong shade of one hue.
COLOURS = {
    "Dense": "#000000",
    "Unstructured": "#E69F00",
    "Unstructured+intermediate": "#D55E00",
    "FFI": "#56B4E9",
    "FFI+intermediate": "#0072B2",
    "Bottleneck": "#CC79A7",
}

# How a variant says that the execution is that one.
FUSED = "fused"


@dataclass(frozen=True)
class Setup:
    """One row's model as the paper prints it.

    connectivity: inputs of a label; of a dense layer all of them, None where a failed run never
    learnt the width of its data. variant: hyper-parameters that depart from the defaults, such as
    `dropout=0.2` and `fused`.
    """

    kind: str
    connectivity: int | None
    intermediate: int | None
    variant: tuple[str, ...]

    @classmethod
    def from_task(cls, task: Task, inputs: int | None) -> Setup:
        """inputs: of the data set, where they are known."""
        kind = task.kind
        connectivity = {"Dense": inputs, "Bottleneck": task.intermediate}.get(
            kind, task.connectivity
        )
        return cls(kind, connectivity, task.intermediate, variant(task))

    @property
    def name(self) -> str:
        """One of `COLOURS`."""
        inner = self.intermediate and self.kind != "Bottleneck"
        return f"{self.kind}+intermediate" if inner else self.kind

    @property
    def colour(self) -> str:
        return COLOURS[self.name]

    @property
    def label(self) -> str:
        """Short and unique within a data set: `FFI 32-16k`, then the variant if there is one."""
        sizes = {
            "Dense": "",
            "Bottleneck": f" {self.intermediate}",
        }.get(self.kind, f" {self.connectivity}")
        if self.intermediate and self.kind != "Bottleneck":
            sizes += f"-{self.intermediate_label}"
        return ", ".join([f"{self.kind}{sizes}", *self.variant])

    @property
    def intermediate_label(self) -> str | None:
        """Units of the intermediate layer as the paper writes them, `16k` for 16384; None without
        one."""
        return intermediate_label(self.intermediate) if self.intermediate else None

    @property
    def order(self) -> tuple[int, bool, int, int, tuple[str, ...]]:
        """Dense, Unstructured, FFI, Bottleneck; without intermediate first; then by size."""
        return (
            list(COLOURS).index(self.kind),
            self.intermediate is not None,
            self.connectivity or 0,
            self.intermediate or 0,
            self.variant,
        )

    def without(self, shared: Sequence[str]) -> Setup:
        """The setup with only those departures in its variant that do not stand elsewhere."""
        return replace(self, variant=tuple(part for part in self.variant if part not in shared))

    def is_fused_variant(self, shared: Sequence[str]) -> bool:
        """Whether it is to be told from the same setup in the framework's own execution."""
        return FUSED in self.without(shared).variant


def variant(task: Task) -> tuple[str, ...]:
    """What departs from the defaults, as a report says it."""
    return tuple(FUSED if d == "execution=fused" else d for d in task.departures)


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
