"""How the labels of a model are cut over ranks, so that each rank trains those that it has.

Hinge and cross entropy are sums over labels, so a rank needs the connections, weights and moments
of its own labels alone. What is cut are positions: each rank has a range of them, and where there
is a head and a tail a range of each. All other arrays are the same on all ranks.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from fanin.backends import checks
from fanin.backends.arrays import InitialArrays
from fanin.backends.drawing import joined_blocks
from fanin.backends.head_and_tail import HeadAndTail
from fanin.backends.kinds import ORDER, ConnectionKind, Part, Unstructured
from fanin.backends.setup import LayerSetup

_MOMENTS = (".m", ".v")


@dataclass(frozen=True)
class OwnLabels:
    """The labels of one rank. Within its own model they are called 0, 1, ... in the order of their
    ids, so that equal scores stand in the same order there.

    labels: of the whole model. first, count: they are `count` labels from `first` on; but where
    labels have an order, label_ids: integers [count], ascending.
    """

    labels: int
    first: int
    count: int
    label_ids: np.ndarray | None = None

    def positives(
        self, positive_instances: np.ndarray, positive_labels: np.ndarray, batch: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Of the positives of a batch of so many instances those of own labels, with the labels as
        they are called here, int64. ValueError where any of the positives is out of range, so that
        all ranks refuse the batch and none waits for another."""
        checks.positives(positive_instances, positive_labels, batch, self.labels)
        if self.label_ids is None:
            own = positive_labels - self.first
            kept = (own >= 0) & (own < self.count)
        else:
            own = np.searchsorted(self.label_ids, positive_labels)
            kept = self.label_ids.take(own, mode="clip") == positive_labels
        return positive_instances[kept], own[kept].astype(np.int64)

    def ids_of(self, own: np.ndarray) -> np.ndarray:
        """Undo that for labels: ids of the whole model, int64."""
        ids = own + self.first if self.label_ids is None else self.label_ids[own]
        return ids.astype(np.int64)

    def own_order(self, order: np.ndarray) -> np.ndarray:
        """`output.order` as the rank's own model has it, int32: of this rank's array, which has ids
        of the whole model."""
        return np.searchsorted(self.ids_of(np.arange(self.count)), order).astype(np.int32)


class LabelRanges:
    """How the labels of one model are cut over ranks: as evenly as whole label groups allow.

    Arrays of the whole model have the names of `LayerSetup.array_shapes`, and the moments of one
    `<name>.m` and `<name>.v`. Those of a rank have the same names and the shapes of `local_setup`,
    and are views where they can be.
    """

    def __init__(
        self,
        setup: LayerSetup,
        ranks: int,
        arrays: Mapping[str, np.ndarray],
    ) -> None:
        """arrays: of the whole model. Only unstructured layers look at them: at their `rows`, since
        each label has another number of connections. ValueError where there are more ranks than
        label groups."""
        self.setup = setup
        self.ranks = checks.whole("ranks", ranks, 1)
        self._labels = {part.name: _bounds(part, ranks) for part in setup.parts}
        self._connections: dict[str, np.ndarray] = {}
        for part in setup.parts:
            name = part.outside("output.rows")
            if isinstance(part.kind, Unstructured):
                bounds = self._labels[part.name]
                before = [np.searchsorted(block, bounds) for block in _blocks(arrays, name)]
                self._connections[part.name] = np.sum(before, axis=0)

    def positions(self, part: Part, rank: int) -> slice:
        """Which positions of an output layer a rank has, counted from the layer's first."""
        return _range(self._labels[part.name], rank)

    def local_setup(self, rank: int) -> LayerSetup:
        """The model of a rank's own labels."""
        kinds = [self._local_kind(part, rank) for part in self.setup.parts]
        labels = [_size(self.positions(part, rank)) for part in self.setup.parts]
        kind = kinds[0] if len(kinds) == 1 else HeadAndTail(kinds[0], kinds[1], labels[0])
        return replace(self.setup, labels=sum(labels), output=kind)

    def _local_kind(self, part: Part, rank: int) -> ConnectionKind:
        if not isinstance(part.kind, Unstructured):
            return part.kind
        return replace(part.kind, total=_size(_range(self._connections[part.name], rank)))

    def own_labels(self, rank: int, order: np.ndarray | None = None) -> OwnLabels:
        """The labels of a rank. order: its array `output.order`, where the model has one."""
        sizes = [self.positions(part, rank) for part in self.setup.parts]
        count = sum(map(_size, sizes))
        if ORDER not in self.setup.array_shapes():
            return OwnLabels(self.setup.labels, sizes[0].start, count)
        if order is None or order.shape != (count,):
            raise ValueError(f"{ORDER} of rank {rank} must have its {count} labels")
        return OwnLabels(self.setup.labels, 0, count, np.sort(order))

    def is_cut(self, name: str) -> bool:
        """Whether each rank has a part of an array, and not all of it. KeyError as below."""
        return bool(self._cuts(name, 0)[1])

    def local_array(self, arrays: Mapping[str, np.ndarray], name: str, rank: int) -> np.ndarray:
        """What a rank has of one of the arrays of a whole model; all of it where it is not of an
        output layer. A view where it can be; beside those of `InitialArrays` that are drawn, only
        blocks of the whole are in memory. `output.order` keeps the ids of the whole model
        (`OwnLabels.own_order`). KeyError for an array that an output layer does not have."""
        axis, cuts = self._cuts(name, rank)
        if not cuts:
            return arrays[name]
        pieces = (
            self._counted_from(name, rank, piece)
            for piece in _pieces(_blocks(arrays, name), axis, cuts)
        )
        if isinstance(arrays, InitialArrays):
            return joined_blocks(self.local_setup(rank).array_shapes()[name], pieces)
        first, *others = pieces
        return np.concatenate([first, *others]) if others else first

    def joined_array(self, name: str, arrays: Sequence[np.ndarray]) -> np.ndarray:
        """An array of the whole model from those of all ranks, in the order of the ranks."""
        axis, cuts = self._cuts(name, 0)
        if not cuts:
            return arrays[0]
        arrays = [self._counted_from(name, rank, a, undo=True) for rank, a in enumerate(arrays)]
        pieces, starts = [], [0] * self.ranks
        for which in range(len(cuts)):
            for rank, array in enumerate(arrays):
                size = _size(self._cuts(name, rank)[1][which])
                own = slice(starts[rank], starts[rank] + size)
                pieces.append(array[(slice(None),) * axis + (own,)])
                starts[rank] += size
        return np.concatenate(pieces, axis)

    def first_source(self, part: Part, rank: int) -> int:
        """The flat position of a rank's first source in the whole model's array of the sources of
        an output layer that is rewired."""
        assert part.source_array
        return self._first(part.source_array, rank)

    def first_weights(self, rank: int) -> dict[str, int]:
        """Of each output layer, by its name, how many weights the ranks before this one have."""
        return {part.name: self._first(part.weights, rank) for part in self.setup.parts}

    def _first(self, name: str, rank: int) -> int:
        axis, (cut,) = self._cuts(name, rank)
        shape = self.setup.array_shapes()[name]
        return cut.start * math.prod(shape[:axis] + shape[axis + 1 :])

    def _cuts(self, name: str, rank: int) -> tuple[int, list[slice]]:
        """The axis along which an array is cut, and what a rank has of it: one piece, or of the
        order one of each output layer; nothing where it has all."""
        if name == ORDER:
            positions = [(part.first, self.positions(part, rank)) for part in self.setup.parts]
            return 0, [slice(at + own.start, at + own.stop) for at, own in positions]
        owner = next((part for part in self.setup.parts if part.owns(name)), None)
        if owner is None:
            return 0, []
        self.setup.check_name(without_moment(name))
        inside, bounds = without_moment(owner.inside(name)), self._labels[owner.name]
        if inside != "output.bias" and owner.name in self._connections:
            bounds = self._connections[owner.name]
        if inside == "output.indices" and owner.kind.group_size:
            bounds = -(-bounds // owner.kind.group_size)
        is_dense = inside == "output.weights" and owner.kind.operations == "dense"
        return int(is_dense), [_range(bounds, rank)]

    def _counted_from(
        self, name: str, rank: int, array: np.ndarray, undo: bool = False
    ) -> np.ndarray:
        """The rows of unstructured connections are counted from the rank's first label."""
        for part in self.setup.parts:
            if part.name in self._connections and name == part.outside("output.rows"):
                first = array.dtype.type(self.positions(part, rank).start)
                return array + first if undo else array - first
        return array


def _bounds(part: Part, ranks: int) -> np.ndarray:
    """Where the positions of an output layer are cut, int64 [ranks + 1]."""
    size = part.kind.group_size or 1
    units = -(-part.labels // size)
    if units < ranks:
        what = f"label groups of {size}" if part.kind.group_size else "labels"
        raise ValueError(
            f"{part.name} has {units} {what}, too few for {ranks} ranks: each needs at least one"
        )
    bounds: np.ndarray = np.minimum(units * np.arange(ranks + 1) // ranks * size, part.labels)
    return bounds


def _blocks(arrays: Mapping[str, np.ndarray], name: str) -> Iterable[np.ndarray]:
    """An array in blocks along its first axis."""
    return arrays.blocks(name) if isinstance(arrays, InitialArrays) else (arrays[name],)


def _pieces(blocks: Iterable[np.ndarray], axis: int, cuts: Sequence[slice]) -> Iterator[np.ndarray]:
    """What is within these cuts along an axis, block by block."""
    first = 0
    for block in blocks:
        for cut in cuts:
            within = slice(max(0, cut.start - first), max(0, cut.stop - first))
            yield block[:, cut] if axis else block[within]
        first += len(block)


def _range(bounds: np.ndarray, rank: int) -> slice:
    return slice(int(bounds[rank]), int(bounds[rank + 1]))


def _size(positions: slice) -> int:
    size: int = positions.stop - positions.start
    return size


def without_moment(name: str) -> str:
    """The name of the array that a moment belongs to; of an array its own name."""
    for moment in _MOMENTS:
        name = name.removesuffix(moment)
    return name
