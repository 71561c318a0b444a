"""Connections chosen by the data: for each label the inputs by which its positives differ most from
all instances.

An input's strength for a label is |mean over the label's positives - mean over all instances|,
times a scale where features are scaled. Features and labels are read in passes: of labels, as many
together as their sums have room for; of instances, all that are in memory, or a part of a memory
map, whose pages are given back. The work itself is done by the kernels (fanin.h).
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import scipy.sparse as sp

from fanin.backends import checks
from fanin.backends.setup import index_dtype
from fanin.kernels import add_label_sums
from fanin.kernels import choose_sources as choose_block

Method = Literal["centroid"]
Features = np.ndarray | sp.csr_array

# Half for the sums of labels, half for the instances that are read together from a memory map.
MOST_BYTES = 1 << 30
_STATISTICS_BYTES = 16 << 20
# Rounding gives a constant input a small standard deviation. Below this share of its mean an input
# counts as constant.
_CONSTANT = 1e-6


@dataclass(frozen=True)
class Chosen:
    """indices: sources [labels, fan_in], uint16 up to 65,536 inputs, else uint32. values: by how
    much the mean over a label's positives is above that over all instances, times the scale,
    float32 alike; None where not wanted."""

    indices: np.ndarray
    values: np.ndarray | None


def input_statistics(features: Any) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each input over all instances, float64 [inputs] each.

    features: float32 [instances, inputs], C-contiguous (a memory map is read in passes), or CSR.
    Raises ValueError naming what is wrong, such as an input that is not finite.
    """
    features = _known_features(features)
    instances, inputs = features.shape
    total, squares, seen = np.zeros(inputs), np.zeros(inputs), 0
    # Squares about 0 would lose what is small beside the mean; those about the means of blocks are
    # merged (Chan, Golub & LeVeque, 1983).
    with np.errstate(invalid="ignore"):  # infinite features, which are named below
        for part in _sums(features):
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


def unit_variance_scale(mean: np.ndarray, deviation: np.ndarray) -> np.ndarray:
    """What brings each input to a variance of 1, float32 [inputs]: 1 / deviation; 1 for an input
    that is constant."""
    varies = deviation > _CONSTANT * np.abs(mean)
    return np.divide(1.0, deviation, out=np.ones_like(deviation), where=varies).astype(np.float32)


def log_odds(labels: sp.csr_array) -> np.ndarray:
    """The logarithm of each label's odds, float32 [labels], from positives [instances, labels].
    Half a positive and half a negative are added to each, so that all are finite."""
    labels = _known_labels(labels, labels.shape[0])
    positives = np.bincount(labels.indices, minlength=labels.shape[1])
    return np.log((positives + 0.5) / (labels.shape[0] - positives + 0.5)).astype(np.float32)


def choose_sources(
    features: Any,
    labels: Any,
    fan_in: int,
    *,
    method: Method = "centroid",
    mean: np.ndarray | None = None,
    scale: np.ndarray | None = None,
    random_share: float = 0.0,
    seed: int = 0,
    threads: int = 0,
    most_bytes: int = MOST_BYTES,
    want_values: bool = False,
    on_labels: Callable[[int], None] | None = None,
) -> Chosen:
    """Choose `fan_in` distinct sources for each label.

    features: float32 [instances, inputs], C-contiguous or a memory map, or CSR. labels: the
    positives, SciPy sparse [instances, labels]. mean: of each input, where it is known already.
    scale: [inputs], by which features will be multiplied (`unit_variance_scale`); None for 1.

    "centroid": the inputs of the largest |mean over the label's positives - mean| * scale,
    ascending; of equal ones the lower. random_share: of a label's slots, the last ones, that get
    random sources instead, as all slots of a label without positives do; they follow from `seed`.
    most_bytes: about so much is used beside the data, the result and the positives in another
    order (4 bytes each). on_labels(done) is called as the work goes on. The result depends neither
    on threads (0 for all) nor, but for rounding, on most_bytes. Raises ValueError naming what is
    wrong.
    """
    if method not in get_args(Method):
        known = ", ".join(get_args(Method))
        raise ValueError(f"unknown method {method!r} of choosing sources; there are {known}")
    features = _known_features(features)
    instances, inputs = features.shape
    labels = _known_labels(labels, instances)
    count = labels.shape[1]
    fan_in = checks.whole("fan_in", fan_in, 1)
    checks.fitting_fan_in(fan_in, inputs)
    checks.whole("threads", threads, 0, checks.MOST_THREADS)
    checks.whole("most_bytes", most_bytes, 1)
    share = _share(random_share)
    if mean is None:
        mean = input_statistics(features)[0]
    mean = _vector("mean", mean, inputs)
    scale = None if scale is None else _vector("scale", scale, inputs)

    chosen = np.empty((count, fan_in), index_dtype(inputs))
    values = np.empty((count, fan_in), np.float32) if want_values else None
    by_label = labels.tocsc()
    starts = by_label.indptr.astype(np.int64)
    positives = by_label.indices.astype(np.int32, copy=False)
    del by_label, labels
    stored = _stored(features)
    together = labels_together(inputs, count, most_bytes)
    sums = np.empty((together, inputs), np.float32)
    for first in range(0, count, together):
        end = min(first + together, count)
        block = sums[: end - first]
        block.fill(0)
        near = starts[first : end + 1]
        own = positives[near[0] : near[-1]]
        for part in _parts(features, near - near[0], own, most_bytes // 2):
            add_label_sums(*part, block, **stored, threads=threads)
        choose_block(
            block,
            np.diff(near),
            mean,
            chosen[first:end],
            scale=scale,
            values=None if values is None else values[first:end],
            first_label=first,
            random=int(share * fan_in),
            seed=seed,
            threads=threads,
        )
        if on_labels:
            on_labels(end)
    return Chosen(chosen, values)


def labels_together(inputs: int, labels: int, most_bytes: int = MOST_BYTES) -> int:
    """How many labels' sums are held at a time."""
    return max(1, min(labels, most_bytes // 2 // (4 * inputs)))


def choosing_bytes(
    instances: int, inputs: int, labels: int, positives: int, fan_in: int, *, is_mapped: bool
) -> int:
    """What `choose_sources` takes at most beside the data, the result included: sums, positives by
    label with the places where a label's begin; of features in a memory map, the part that is read,
    and a block's positives in its order. Or, before that, what `input_statistics` takes: some
    instances in float64, and as they are in the map."""
    together = labels_together(inputs, labels)
    result = labels * fan_in * np.dtype(index_dtype(inputs)).itemsize
    choosing = 4 * inputs * together + 5 * positives + 12 * labels + result
    features = 4 * instances * inputs
    read = min(_STATISTICS_BYTES, features)
    if is_mapped:
        choosing += min(MOST_BYTES // 2, features) + 24 * -(-positives * together // labels)
    return max(choosing, (2 + is_mapped) * read)


# What is read ----------------------------------------------------------------------------------


def _known_features(given: Any) -> Features:
    """Features as they are read here; ValueError for others."""
    features: Features
    is_sparse = bool(sp.issparse(given))  # as a condition, it would hide all but SciPy's base class
    if is_sparse:
        if given.format != "csr":
            raise ValueError(f"sparse features must be CSR, got {given.format}")
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


def _stored(features: Features) -> dict[str, np.ndarray]:
    """Where the values of CSR features belong, as the kernels read it."""
    if isinstance(features, np.ndarray):
        return {}
    return {
        "starts": features.indptr.astype(np.int64, copy=False),
        "columns": features.indices.astype(np.int32, copy=False),
    }


def _known_labels(labels: Any, instances: int) -> sp.csr_array:
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
    known: sp.csr_array = labels.tocsr()
    if not known.has_canonical_format or not known.data.all():
        known = known.astype(bool)  # a copy; two of the same would be summed
        known.sum_duplicates()
        known.eliminate_zeros()
    return known


def _share(value: Any) -> float:
    try:
        share = float(value)
    except (TypeError, ValueError):
        share = -1.0
    if not 0 <= share <= 1:
        raise ValueError(f"random_share must be in 0..1, got {value!r}")
    return share


def _vector(name: str, values: Any, inputs: int) -> np.ndarray:
    vector = np.ascontiguousarray(values, np.float32)
    if vector.shape != (inputs,):
        raise ValueError(f"{name} must be [{inputs}] (the inputs), got {list(vector.shape)}")
    if not np.isfinite(vector).all():
        at = int(np.isfinite(vector).argmin())
        raise ValueError(f"{name}[{at}] is {vector[at]}; all of {name} must be finite")
    return vector


@dataclass(frozen=True)
class _Sums:
    """Of some instances: how many, their sum [inputs], and their squares about their mean."""

    count: int
    total: np.ndarray
    squares: np.ndarray


def _sums(features: Features) -> Iterator[_Sums]:
    """Of some instances after others, in float64."""
    instances, inputs = features.shape
    if isinstance(features, sp.csr_array):
        columns, values = features.indices, features.data
        stored = np.bincount(columns, minlength=inputs)
        total = np.bincount(columns, values, inputs)
        mean = total / instances
        squares = np.bincount(columns, (values - mean[columns]) ** 2, inputs)
        yield _Sums(instances, total, squares + (instances - stored) * mean**2)
        return
    size = max(1, _STATISTICS_BYTES // (4 * inputs))
    for first in range(0, instances, size):
        wide = np.asarray(features[first : first + size], np.float64)
        total = wide.sum(0)
        wide -= total / len(wide)
        yield _Sums(len(wide), total, np.einsum("ij,ij->j", wide, wide))
        _give_back(features, first, first + size)


Part = tuple[np.ndarray, np.ndarray, np.ndarray]


def _parts(
    features: Features, starts: np.ndarray, instances: np.ndarray, most_bytes: int
) -> Iterator[Part]:
    """The features of some instances, and which of them are positives of which labels of a block,
    as `kernels.add_label_sums` reads them: all at once, or, of a memory map, part after part."""
    if not isinstance(features, np.ndarray):
        yield features.data, starts, instances
        return
    if _memory_map(features) is None:
        yield features, starts, instances
        return
    size = min(len(features), max(1, most_bytes // (4 * features.shape[1])))
    parts = -(-len(features) // size)
    part_of = (instances // np.int32(size)).astype(np.min_scalar_type(parts))
    order = np.argsort(part_of, kind="stable")  # NumPy sorts the narrow types by counting
    labels = np.repeat(np.arange(len(starts) - 1, dtype=np.int32), np.diff(starts))[order]
    bounds = np.searchsorted(part_of[order], np.arange(parts + 1))
    for part in range(parts):
        near = slice(bounds[part], bounds[part + 1])
        counts = np.bincount(labels[near], minlength=len(starts) - 1)
        first = part * size
        yield (
            features[first : first + size],
            np.concatenate([[0], np.cumsum(counts)]),
            instances[order[near]] - np.int32(first),
        )
        _give_back(features, first, first + size)


def _memory_map(features: Any) -> mmap.mmap | None:
    """The map that an array reads, if it does."""
    memory = getattr(features, "_mmap", None)
    return memory if isinstance(memory, mmap.mmap) else None


def _give_back(features: Any, first: int, end: int) -> None:
    """Let the system have the pages of these instances, if they come from a file and can be read
    again: a private map may have been changed."""
    memory = _memory_map(features)
    if memory is None or features.mode == "c" or not hasattr(memory, "madvise"):
        return
    rows = features[first:end]
    begin = rows.ctypes.data - np.frombuffer(memory, np.uint8).ctypes.data
    begin = begin // mmap.PAGESIZE * mmap.PAGESIZE
    memory.madvise(mmap.MADV_DONTNEED, begin, rows.nbytes)
