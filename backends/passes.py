"""Features and labels of a whole data set, read in passes over instances or labels.

Features are float32 [instances, inputs], C-contiguous, or CSR; of a memory map some instances are
read after others, and their pages are given back.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp

from fanin.backends.interface import Features
from fanin.backends.label_order import LabelOrder
from fanin.backends.setup import LayerSetup
from fanin.kernels import add_label_sums

# Half for the sums of labels, half for the instances that are read together from a memory map.
MOST_BYTES = 1 << 30
STATISTICS_BYTES = 16 << 20
# How many labels' sums are changed together, and how large they are at most.
_BLOCK_LABELS, _BLOCK_BYTES = 4096, 64 << 20


def known_features(given: Any) -> Features:
    """Features as they are read here; ValueError for others."""
    features: Features
    is_sparse = bool(sp.issparse(given))  # as a condition, it would hide all but SciPy's base class
    if is_sparse:
        if given.format != "csr":
            raise ValueError(f"sparse features must be CSR, got {given.format}")
        check_sparse("features", given)
        features = sp.csr_array(given)
    elif isinstance(given, np.ndarray):
        if not given.flags.c_contiguous:
            raise ValueError("features must be C-contiguous; make a contiguous copy first")
        features = given
    else:
        kind = type(given).__name__
        raise ValueError(f"features must be a NumPy array or a SciPy CSR array, got {kind}")
    if features.ndim != 2 or 0 in features.shape:
        raise ValueError(
            "features must be [instances, inputs] with at least one each, got "
            f"{list(features.shape)}"
        )
    if features.dtype != np.float32:
        raise ValueError(f"features must be float32, got {features.dtype}")
    return features


def check_sparse(name: str, matrix: Any) -> None:
    """ValueError where a SciPy sparse matrix names rows or columns that it does not have: SciPy's
    own functions would read and write beside their arrays then."""
    try:
        if matrix.format in ("csr", "csc", "bsr"):
            matrix.check_format(full_check=True)
        elif matrix.format == "coo":
            for ids, size in zip(matrix.coords, matrix.shape, strict=True):
                if len(ids) and not 0 <= ids.min() <= ids.max() < size:
                    raise ValueError(f"ids {ids.min()} to {ids.max()}, for {size}")
    except ValueError as error:
        raise ValueError(
            f"{name} must be a valid {matrix.format.upper()} matrix {list(matrix.shape)}: {error}"
        ) from error


def check_unmasked(name: str, given: Any) -> None:
    """ValueError where an array has masked values: NumPy would use what is behind the mask."""
    if np.ma.is_masked(given):
        at = np.argwhere(np.ma.getmaskarray(given))[0].tolist()
        raise ValueError(f"{name} is masked at {at}: fill it, such as by `filled(0)`")


def check_numbers(name: str, given: Any) -> None:
    """ValueError where an array or a frame has masked values, or times: NumPy would make numbers of
    both in silence."""
    check_unmasked(name, given)
    types = getattr(given, "dtypes", None)  # of a frame, one for each column
    for each in [getattr(given, "dtype", None)] if types is None else np.atleast_1d(types):
        if getattr(each, "kind", None) in ("m", "M"):
            raise ValueError(f"{name} must be numbers, got {each}: make numbers of times first")


def known_labels(labels: Any, instances: int) -> sp.csr_array:
    """The labels as CSR, each positive once; ValueError where they do not fit the instances."""
    is_sparse = bool(sp.issparse(labels))
    if not is_sparse:
        kind = type(labels).__name__
        raise ValueError(f"labels must be a SciPy sparse array [instances, labels], got {kind}")
    if labels.ndim != 2 or labels.shape[0] != instances:
        raise ValueError(
            f"labels must be [instances, labels] with {instances} instances as in features, got "
            f"{list(labels.shape)}"
        )
    if not labels.shape[1]:
        raise ValueError("labels must be at least 1, got 0")
    check_sparse("labels", labels)
    if labels.dtype.kind not in "biuf":
        raise ValueError(f"labels must be numbers, got {labels.dtype}")
    known = sp.csr_array(labels)
    if not (good := (known.data >= 0) & (known.data < np.inf)).all():
        raise ValueError(
            f"labels has the value {known.data[good.argmin()]}; give positives the value 1"
        )
    if not known.has_canonical_format or not known.data.all():
        known = known.astype(bool)  # a copy; two of the same would be summed
        known.sum_duplicates()
        known.eliminate_zeros()
    return known


def known_data(features: Any, labels: Any, setup: LayerSetup) -> tuple[Features, sp.csr_array]:
    """Both as they are read here; ValueError where they do not fit a model of this setup."""
    known = known_features(features)
    if known.shape[1] != setup.inputs:
        raise ValueError(
            f"features must be [instances, {setup.inputs}] (the inputs), got {list(known.shape)}"
        )
    positives = known_labels(labels, known.shape[0])
    if positives.shape[1] != setup.labels:
        raise ValueError(f"labels must be [instances, {setup.labels}], got {list(positives.shape)}")
    return known, positives


def input_statistics(features: Any) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each input over all instances, float64 [inputs] each.

    features: float32 [instances, inputs], C-contiguous (a memory map is read in passes), or CSR.
    Raises ValueError naming what is wrong, such as an input that is not finite.
    """
    features = known_features(features)
    instances, inputs = features.shape
    total, squares, seen = np.zeros(inputs), np.zeros(inputs), 0
    # Squares about 0 would lose what is small beside the mean; those about the means of blocks are
    # merged (Chan, Golub & LeVeque, 1983).
    with np.errstate(invalid="ignore"):  # infinite features, which are named below
        for part in _block_sums(features):
            if seen:
                distance = part.total / part.count - total / seen
                squares += distance**2 * (seen * part.count / (seen + part.count))
            squares += part.squares
            total += part.total
            seen += part.count
    mean, deviation = total / instances, np.sqrt(squares / instances)
    if not (good := np.isfinite(deviation)).all():
        raise ValueError(
            f"features must be finite, but input {int(np.argmin(good))} is not in every instance"
        )
    return mean, deviation


@dataclass(frozen=True)
class _BlockSums:
    """Of some instances: how many, their sum [inputs], and their squares about their mean."""

    count: int
    total: np.ndarray
    squares: np.ndarray


def _block_sums(features: Features) -> Iterator[_BlockSums]:
    """Sums of one block of instances after another, in float64."""
    instances, inputs = features.shape
    if isinstance(features, sp.csr_array):
        columns, values = features.indices, features.data
        stored = np.bincount(columns, minlength=inputs)
        total = np.bincount(columns, values, inputs)
        mean = total / instances
        squares = np.bincount(columns, (values - mean[columns]) ** 2, inputs)
        yield _BlockSums(instances, total, squares + (instances - stored) * mean**2)
        return
    size = max(1, STATISTICS_BYTES // (4 * inputs))
    for first in range(0, instances, size):
        wide = np.asarray(features[first : first + size], np.float64)
        total = wide.sum(0)
        wide -= total / len(wide)
        yield _BlockSums(len(wide), total, np.einsum("ij,ij->j", wide, wide))
        give_back(features, first, first + size)


@dataclass(frozen=True)
class LabelPairs:
    """Pairs of a label and an instance, by label: those of label l stand at starts[l] to
    starts[l + 1] - 1. starts: int64 [labels + 1]; instances: int32; weights: float32 like
    instances, by which their features count, None for 1 each."""

    starts: np.ndarray
    instances: np.ndarray
    weights: np.ndarray | None = None

    @property
    def labels(self) -> int:
        return len(self.starts) - 1

    def label_ids(self) -> np.ndarray:
        """The label of each pair, int32."""
        return np.repeat(np.arange(self.labels, dtype=np.int32), np.diff(self.starts))

    def block(self, first: int, end: int) -> LabelPairs:
        """Those of the labels first to end - 1."""
        near = self.starts[first : end + 1]
        own = slice(near[0], near[-1])
        weights = None if self.weights is None else self.weights[own]
        return LabelPairs(near - near[0], self.instances[own], weights)


def pairs_by_label(labels: sp.csr_array, order: LabelOrder | None = None) -> LabelPairs:
    """The positives of each label; with an order, of the label at each position."""
    by_label = in_order(labels, order).tocsc()
    starts = by_label.indptr.astype(np.int64)
    return LabelPairs(starts, by_label.indices.astype(np.int32, copy=False))


def in_order(labels: sp.csr_array, order: LabelOrder | None) -> sp.csr_array:
    """The positives with positions in place of labels; the same array without an order. The ids of
    an instance may stand in any order then."""
    if order is None:
        return labels
    return sp.csr_array(
        (labels.data, order.positions[labels.indices], labels.indptr), shape=labels.shape
    )


def labels_together(
    inputs: int, labels: int, most_bytes: int = MOST_BYTES, group_size: int = 0
) -> int:
    """How many labels' sums are in memory at a time: whole groups, but for the last block."""
    return min(labels, _whole_groups(most_bytes // 2 // (4 * inputs), group_size))


def _whole_groups(labels: int, group_size: int) -> int:
    """So many labels or fewer, but whole groups, and at least one."""
    size = group_size or 1
    return max(size, labels // size * size)


def label_sums(
    features: Features,
    pairs: LabelPairs,
    *,
    threads: int,
    most_bytes: int = MOST_BYTES,
    group_size: int = 0,
) -> Iterator[tuple[int, np.ndarray]]:
    """The sum of the features of each label's pairs, times their weights.

    Yields block after block of labels: the first label of the block, and its sums, float32 [labels
    of the block, inputs]. The caller may change them; the next block overwrites them. Blocks divide
    no group of `group_size` labels."""
    inputs = features.shape[1]
    csr = _csr_places(features)
    together = labels_together(inputs, pairs.labels, most_bytes, group_size)
    sums = np.empty((together, inputs), np.float32)
    for first in range(0, pairs.labels, together):
        end = min(first + together, pairs.labels)
        block = sums[: end - first]
        block.fill(0)
        for values, part in _parts(features, pairs.block(first, end), most_bytes // 2):
            add_label_sums(
                values,
                part.starts,
                part.instances,
                block,
                positive_weights=part.weights,
                **csr,
                threads=threads,
            )
        yield first, block


def _labels_of_block(inputs: int) -> int:
    return max(1, min(_BLOCK_LABELS, _BLOCK_BYTES // (4 * inputs)))


def bytes_of_block(inputs: int, labels: int, atoms: int | None) -> int:
    """What a block of `label_blocks` takes once more where it is scaled and written in atoms."""
    return 4 * min(labels, _labels_of_block(inputs)) * (inputs + atoms) if atoms else 0


def label_blocks(sums: np.ndarray, group_size: int = 0) -> Iterator[tuple[int, np.ndarray]]:
    """Sums [labels, inputs] in blocks of few labels, so that changing them needs no second array of
    that size. Yields the first label of each block, and the block, a view of `sums`. Blocks divide
    no group of `group_size` labels."""
    size = _whole_groups(_labels_of_block(sums.shape[1]), group_size)
    for first in range(0, len(sums), size):
        yield first, sums[first : first + size]


def _csr_places(features: Features) -> dict[str, np.ndarray]:
    """Where the values of CSR features belong, as the kernels read it."""
    if isinstance(features, np.ndarray):
        return {}
    return {
        "starts": features.indptr.astype(np.int64, copy=False),
        "columns": features.indices.astype(np.int32, copy=False),
    }


def _parts(
    features: Features, pairs: LabelPairs, most_bytes: int
) -> Iterator[tuple[np.ndarray, LabelPairs]]:
    """The features of some instances, with the pairs that are of these: all at once, or, of a
    memory map, part after part."""
    if not isinstance(features, np.ndarray):
        yield features.data, pairs
        return
    if _memory_map(features) is None:
        yield features, pairs
        return
    size = min(len(features), max(1, most_bytes // (4 * features.shape[1])))
    count = -(-len(features) // size)
    part_of = (pairs.instances // np.int32(size)).astype(np.min_scalar_type(count))
    order = np.argsort(part_of, kind="stable")  # NumPy sorts the narrow types by counting
    label_ids = pairs.label_ids()[order]
    bounds = np.searchsorted(part_of[order], np.arange(count + 1))
    for part in range(count):
        first, near = part * size, slice(bounds[part], bounds[part + 1])
        counts = np.bincount(label_ids[near], minlength=pairs.labels)
        own = LabelPairs(
            np.concatenate([[0], np.cumsum(counts)]),
            pairs.instances[order[near]] - np.int32(first),
            None if pairs.weights is None else pairs.weights[order[near]],
        )
        yield features[first : first + size], own
        give_back(features, first, first + size)


def _memory_map(features: Any) -> mmap.mmap | None:
    """The map that an array reads, if it does."""
    memory = getattr(features, "_mmap", None)
    return memory if isinstance(memory, mmap.mmap) else None


def give_back(features: Any, first: int, end: int) -> None:
    """Let the system have the pages of these instances, if they come from a file and can be read
    again: a private map may have been changed."""
    memory = _memory_map(features)
    if memory is None or features.mode == "c" or not hasattr(memory, "madvise"):
        return
    rows = features[first:end]
    begin = rows.ctypes.data - np.frombuffer(memory, np.uint8).ctypes.data
    begin = begin // mmap.PAGESIZE * mmap.PAGESIZE
    memory.madvise(mmap.MADV_DONTNEED, begin, rows.nbytes)
