"""The kind of connection of models whose frequent labels have another output layer than the rare
ones."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from fanin.backends import checks
from fanin.backends.drawing import ascending_blocks
from fanin.backends.kinds import (
    ORDER,
    ConnectionKind,
    Dense,
    FixedFanIn,
    IndexArray,
    Part,
    Shapes,
)

HEAD, TAIL = "head", "tail"


@dataclass(frozen=True)
class HeadAndTail(ConnectionKind):
    """Two output layers that read the same inputs: the first `head_labels` positions are the head,
    all others the tail, each of a kind of its own. `output.order` tells which label stands where
    (`starting` puts frequent ones first); by default at position l label l.

    The arrays of the head are `head.weights` and so on, those of the tail `tail.weights`; each has
    a bias of its own. Loss and best labels are those of one layer with all labels.
    """

    head: ConnectionKind
    tail: ConnectionKind
    head_labels: int

    def check(self, inputs: int) -> None:
        checks.whole("head_labels", self.head_labels, 1)
        for name, kind in zip((HEAD, TAIL), self.kinds, strict=True):
            if not isinstance(kind, ConnectionKind) or isinstance(kind, HeadAndTail):
                raise ValueError(f"the {name} must be one output layer, got {kind}")
            kind.check(inputs)

    @property
    def kinds(self) -> tuple[ConnectionKind, ...]:
        return (self.head, self.tail)

    def parts(self, labels: int) -> tuple[Part, ...]:
        if self.head_labels >= labels:
            raise ValueError(
                f"head_labels must be below {labels}, the number of labels, got {self.head_labels}"
            )
        return (
            Part(HEAD, self.head, 0, self.head_labels),
            Part(TAIL, self.tail, self.head_labels, labels - self.head_labels),
        )

    def array_shapes(self, inputs: int, labels: int) -> Shapes:
        shapes: Shapes = {ORDER: (labels,)}
        for part in self.parts(labels):
            for name, shape in part.kind.array_shapes(inputs, part.labels).items():
                if name != ORDER:
                    shapes[part.outside(name)] = shape
            shapes[part.bias] = (part.labels,)
        return shapes

    def initial_blocks(
        self, name: str, inputs: int, labels: int, rng: np.random.Generator
    ) -> Iterable[np.ndarray]:
        if name == ORDER:
            return ascending_blocks(labels)
        (part,) = (part for part in self.parts(labels) if part.owns(name))
        return part.kind.initial_blocks(part.inside(name), inputs, part.labels, rng)

    def source_bytes(self, inputs: int, labels: int) -> int:
        return sum(part.kind.source_bytes(inputs, part.labels) for part in self.parts(labels))

    def starts_bytes(self, inputs: int, labels: int) -> int:
        return sum(part.kind.starts_bytes(inputs, part.labels) for part in self.parts(labels))

    def index_arrays(self, inputs: int, labels: int) -> dict[str, IndexArray]:
        arrays = {ORDER: IndexArray("int32", labels, "label_ids", "int32", is_order=True)}
        for part in self.parts(labels):
            for name, array in part.kind.index_arrays(inputs, part.labels).items():
                if name != ORDER:
                    arrays[part.outside(name)] = array
        return arrays


def with_head(
    tail: ConnectionKind, fraction: float, fan_in: int | None, labels: int
) -> ConnectionKind:
    """The output layer where a fraction of so many labels, the most frequent ones, has another one
    than the rest: with a fan-in, or dense. The tail alone for a fraction of 0. ValueError where one
    of the two would have no label."""
    if not fraction:
        return tail
    if labels < 2:
        raise ValueError(f"head_fraction {fraction:g} needs two labels or more, and there is one")
    head = FixedFanIn(fan_in) if fan_in else Dense()
    return HeadAndTail(head, tail, min(max(1, round(fraction * labels)), labels - 1))


def ranks_of(part: Part, order: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The rank among a layer's labels of the one at each of its positions, int32 [part.labels], and
    its labels, ascending, int64. A layer that calls its labels by their ranks has equal scores in
    the order of the ids, and needs to know no others."""
    own = order[part.positions]
    sorted_ids = np.sort(own)
    return np.searchsorted(sorted_ids, own).astype(np.int32), sorted_ids.astype(np.int64)


def best_of_parts(
    parts: Sequence[tuple[np.ndarray, np.ndarray]], k: int
) -> tuple[np.ndarray, np.ndarray]:
    """The k best of several lists, each of ids and scores [batch, some]: ids and scores [batch, k],
    best first. Equal scores stand in the order of their ids, and NaN is last."""
    ids = np.concatenate([each[0] for each in parts], axis=1)
    scores = np.concatenate([each[1] for each in parts], axis=1)
    best = np.lexsort((ids, -scores), axis=1)[:, :k]
    return np.take_along_axis(ids, best, 1), np.take_along_axis(scores, best, 1)
