"""Connections chosen by the data: for each label the inputs by which its positives differ most from
all instances.

An input's strength for a label is |mean over the label's positives - mean over all instances|, of
the features as the model reads them: scaled and in atoms, where it does that. Where all scores of a
label are equal, this is the size of the loss' gradient by the weight of that input, but for a
factor of the label. The data are read in passes (`passes`); the work itself is done by the kernels
(fanin.h).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import scipy.sparse as sp

from fanin.backends import checks
from fanin.backends.features import FeatureTransform
from fanin.backends.kinds import group_sums, index_dtype
from fanin.backends.label_order import LabelOrder, check_order
from fanin.backends.passes import (
    MOST_BYTES,
    STATISTICS_BYTES,
    bytes_of_block,
    input_statistics,
    known_features,
    known_labels,
    label_blocks,
    label_sums,
    labels_together,
    pairs_by_label,
)
from fanin.kernels import choose_sources as choose_block
from fanin.kernels.threads import MOST_THREADS

Method = Literal["centroid"]

# Rounding gives a constant input a small standard deviation. Below this share of its mean an input
# counts as constant.
_CONSTANT = 1e-6


@dataclass(frozen=True)
class Chosen:
    """indices: sources [labels, fan_in], or [label groups, fan_in], uint16 up to 65,536 inputs,
    else uint32. values: by how much the mean over a label's positives is above that over all
    instances, times the scale, float32 [labels, fan_in], by position where an order was given; None
    where not wanted."""

    indices: np.ndarray
    values: np.ndarray | None


def unit_variance_scale(mean: np.ndarray, deviation: np.ndarray) -> np.ndarray:
    """What brings each input to a variance of 1, float32 [inputs]: 1 / deviation; 1 for an input
    that is constant."""
    varies = deviation > _CONSTANT * np.abs(mean)
    return np.divide(1.0, deviation, out=np.ones_like(deviation), where=varies).astype(np.float32)


def log_odds(labels: sp.csr_array) -> np.ndarray:
    """The logarithm of each label's odds, float32 [labels], from positives [instances, labels].
    Half a positive and half a negative are added to each, so that all are finite."""
    labels = known_labels(labels, labels.shape[0])
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
    dictionary: np.ndarray | None = None,
    group_size: int = 0,
    order: Any = None,
    random_share: float = 0.0,
    seed: int = 0,
    threads: int = 0,
    most_bytes: int = MOST_BYTES,
    want_values: bool = False,
    on_labels: Callable[[int], None] | None = None,
) -> Chosen:
    """Choose `fan_in` distinct sources for each label, or for each group of labels.

    features: float32 [instances, inputs], C-contiguous or a memory map, or CSR. labels: the
    positives, SciPy sparse [instances, labels]. mean: of each input, where it is known already.
    scale: [inputs], by which features will be multiplied (`unit_variance_scale`); None for 1.
    dictionary: [inputs, atoms], with which they will be multiplied then (`dictionary`); or None.
    With one, labels read atoms, and every `inputs` below means them. group_size: so many labels,
    one after the other, are a group that shares its sources; 0 for none. order: of a grouped layer,
    the label at each position, integers [labels] (`grouping.label_order`); None for ascending ones.

    "centroid": the inputs of the largest |mean over the label's positives - mean|, of the features
    as the model reads them, ascending; of equal ones the lower. For a group, of the largest root of
    the sum of their squares over its labels, each times how many positives it has. random_share: of
    the slots of a label or group, the last ones, that get random sources instead, as all slots do
    where there are no positives; they follow from `seed`. most_bytes: about so much is used beside
    the data, the result and the positives in another order (4 bytes each; with `order` 9 more).
    on_labels(done) is called as the work goes on. The result depends neither on threads (0 for all)
    nor, but for rounding, on most_bytes. Raises ValueError naming what is wrong.
    """
    if method not in get_args(Method):
        known = ", ".join(get_args(Method))
        raise ValueError(f"unknown method {method!r} of choosing sources; there are {known}")
    features = known_features(features)
    instances, inputs = features.shape
    labels = known_labels(labels, instances)
    count = labels.shape[1]
    read = inputs  # how many numbers a label can read
    if dictionary is not None:
        read = np.shape(dictionary)[-1]
        dictionary = _array("dictionary", dictionary, inputs, read)
    fan_in = checks.whole("fan_in", fan_in, 1)
    checks.fitting_fan_in(fan_in, read)
    checks.whole("threads", threads, 0, MOST_THREADS)
    checks.whole("most_bytes", most_bytes, 1)
    if group_size:
        checks.whole("group_size", group_size, 2, checks.MOST_GROUP_SIZE)
    known_order = _known_order(order, count, group_size)
    share = _share(random_share)
    if mean is None:
        mean = input_statistics(features)[0]
    mean = _array("mean", mean, inputs)
    scale = None if scale is None else _array("scale", scale, inputs)

    groups = -(-count // (group_size or 1))
    chosen = np.empty((groups, fan_in), index_dtype(read))
    values = np.empty((count, fan_in), np.float32) if want_values else None
    pairs = pairs_by_label(labels, known_order)
    del labels
    counts = np.diff(pairs.starts)
    transform = FeatureTransform(scale, dictionary)
    zeros = np.zeros(read, np.float32)
    random: dict[str, Any] = {"random": int(share * fan_in), "seed": seed, "threads": threads}
    sums_of_blocks = label_sums(
        features, pairs, threads=threads, most_bytes=most_bytes, group_size=group_size
    )
    for first, sums in sums_of_blocks:
        for before, block in label_blocks(sums, group_size):
            own = slice(first + before, first + before + len(block))
            own_counts, own_values = counts[own], None if values is None else values[own]
            if group_size or dictionary is not None:
                block /= np.maximum(own_counts, 1)[:, None]
                block -= mean
                block = transform.apply(block)
            if group_size:
                rows = slice(own.start // group_size, -(-own.stop // group_size))
                norms = group_norms(block, group_size, own_counts)
                group_counts = group_sums(own_counts, group_size)
                given = norms, np.minimum(group_counts, 1), zeros, chosen[rows]
                choose_block(*given, first_label=rows.start, **random)
                if own_values is not None:
                    own_values[:] = _values_at(chosen[rows], block, group_size)
                    own_values[own_counts == 0] = 0
            elif dictionary is not None:  # the kernel gets differences, and only chooses
                given = block, np.minimum(own_counts, 1), zeros, chosen[own]
                choose_block(*given, values=own_values, first_label=own.start, **random)
            else:
                given = block, own_counts, mean, chosen[own]
                choose_block(
                    *given, scale=scale, values=own_values, first_label=own.start, **random
                )
            if on_labels:
                on_labels(own.stop)
    return Chosen(chosen, values)


def _values_at(indices: np.ndarray, differences: np.ndarray, group_size: int) -> np.ndarray:
    """Each label's differences at its group's sources, [labels, fan_in]."""
    sources = np.repeat(indices.astype(np.intp), group_size, axis=0)[: len(differences)]
    values: np.ndarray = np.take_along_axis(differences, sources, 1)
    return values


def group_norms(rows: np.ndarray, group_size: int, weights: np.ndarray | None = None) -> np.ndarray:
    """The root of the sum of weights * rows^2 over the labels of each group, float32 [label groups,
    inputs]. rows: float32 [labels, inputs]; weights: [labels], None for 1 each."""
    squares = rows * rows
    if weights is not None:
        squares *= weights[:, None].astype(np.float32)
    sums = group_sums(squares, group_size)
    return np.sqrt(sums, out=sums)


def _known_order(order: Any, labels: int, group_size: int) -> LabelOrder | None:
    if order is None:
        return None
    if not group_size:
        raise ValueError("order is of labels that share their sources: give group_size, too")
    array = np.asarray(order)
    if array.shape != (labels,) or array.dtype.kind not in "iu":
        raise ValueError(
            f"order must be integers [{labels}] (the labels), got {array.dtype} {list(array.shape)}"
        )
    if not 0 <= array.min() <= array.max() < labels:
        raise ValueError(
            f"order must be in 0..{labels - 1}, got {int(array.min())}..{int(array.max())}"
        )
    check_order("order", array)
    return LabelOrder.of(array)


def choosing_bytes(
    instances: int,
    inputs: int,
    labels: int,
    positives: int,
    fan_in: int,
    *,
    is_mapped: bool,
    atoms: int | None = None,
    wants_values: bool = False,
    group_size: int = 0,
) -> int:
    """What `choose_sources` takes at most beside the data, the result included: sums, positives by
    label with the places where a label's begin; of features in a memory map, the part that is read,
    and a block's positives in its order; with a dictionary of so many atoms, a block's sums scaled
    and in atoms; where labels share sources, positives by position, too, and a block's differences
    scaled and squared. Or, before that, what `input_statistics` takes: some instances in float64,
    and as they are in the map."""
    together = labels_together(inputs, labels, group_size=group_size)
    rows = -(-labels // (group_size or 1))
    result = rows * fan_in * np.dtype(index_dtype(atoms or inputs)).itemsize
    result += labels * fan_in * 4 * wants_values
    choosing = 4 * inputs * together + 5 * positives + 12 * labels + result
    if group_size:
        choosing += 5 * positives + 4 * labels
        choosing += 2 * bytes_of_block(inputs, labels, atoms or inputs)
    else:
        choosing += bytes_of_block(inputs, labels, atoms)
    features = 4 * instances * inputs
    read = min(STATISTICS_BYTES, features)
    if is_mapped:
        choosing += min(MOST_BYTES // 2, features) + 24 * -(-positives * together // labels)
    return max(choosing, (2 + is_mapped) * read)


def _share(value: Any) -> float:
    try:
        share = float(value)
    except (TypeError, ValueError):
        share = -1.0
    if not 0 <= share <= 1:
        raise ValueError(f"random_share must be in 0..1, got {value!r}")
    return share


def _array(name: str, values: Any, *shape: int) -> np.ndarray:
    array = np.ascontiguousarray(values, np.float32)
    if array.shape != shape:
        raise ValueError(f"{name} must be {list(shape)} (the inputs), got {list(array.shape)}")
    if not np.isfinite(array).all():
        at = np.unravel_index(int(np.isfinite(array).argmin()), shape)
        place = ", ".join(map(str, at))
        raise ValueError(f"{name}[{place}] is {array[at]}; all of {name} must be finite")
    return array
