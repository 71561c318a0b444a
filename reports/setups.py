"""The setups as a report names, orders and colours them: one colour per setup everywhere."""

from __future__ import annotations

from dataclasses import dataclass

from fanin.backends.interface import BACKENDS, SETUP_KINDS, kind_of
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

BACKEND_NAMES = {"torch": "PyTorch", "tensorflow": "TensorFlow"}


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
    def of(cls, task: Task, inputs: int | None) -> Setup:
        kind = kind_of(task.architecture)
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
            sizes += f"-{intermediate_label(self.intermediate)}"
        return ", ".join([f"{self.kind}{sizes}", *self.variant])

    @property
    def order(self) -> tuple[int, bool, int, int, tuple[str, ...]]:
        """Dense, Unstructured, FFI, Bottleneck; without intermediate first; then by size."""
        return (
            SETUP_KINDS.index(self.kind),
            self.intermediate is not None,
            self.connectivity or 0,
            self.intermediate or 0,
            self.variant,
        )


def variant(task: Task) -> tuple[str, ...]:
    """What departs from the defaults, as a report says it."""
    return tuple(FUSED if d == "execution=fused" else d for d in task.departures)


def backend_order(backend: str) -> tuple[int, str]:
    known = BACKENDS.index(backend) if backend in BACKENDS else len(BACKENDS)
    return known, backend


def dataset_label(name: str, synthetic: bool) -> str:
    """A data set's name as it stands everywhere in a report; generated data says so."""
    return f"{name} (synthetic)" if synthetic else name
