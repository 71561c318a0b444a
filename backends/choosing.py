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
from fanin.backends.kinds import index_dtype
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
    """indices: sources [labels, fan_in], uint16 up to 65,536 inputs, else uint32. values: by how
    much the mean over a label's positives is above that over all instances, times the scale,
    float32 [labels, fan_in]; None where not wanted."""

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
    dictionary: [inputs, atoms], with which they will be multiplied then (`dictionary`); or None.
    With one, labels read atoms, and every `inputs` below means them.

    "centroid": the inputs of the largest |mean over the label's positives - mean|, of the features
    as the model reads them, ascending; of equal ones the lower. random_share: of a label's slots,
    the last ones, that get random sources instead, as all slots of a label without positives do;
    they follow from `seed`. most_bytes: about so much is used beside the data, the result and the
    positives in another order (4 bytes each). on_labels(done) is called as the work goes on. The
    result depends neither on threads (0 for all) nor, but for rounding, on most_bytes. Raises
    ValueError naming what is wrong.
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
    share = _share(random_share)
    if mean is None:
        mean = input_statistics(features)[0]
    mean = _array("mean", mean, inputs)
    scale = None if scale is None else _array("scale", scale, inputs)

    chosen = np.empty((count, fan_in), index_dtype(read))
    values = np.empty((count, fan_in), np.float32) if want_values else None
    pairs = pairs_by_label(labels)
    del labels
    counts = np.diff(pairs.starts)
    kernel_counts, kernel_mean, kernel_scale = counts, mean, scale
    transform = None
    if dictionary is not None:
        # The kernel gets differences that are written in atoms already, and only chooses.
        transform = FeatureTransform(scale, dictionary)
        kernel_counts = np.minimum(counts, 1)
        kernel_mean, kernel_scale = np.zeros(read, np.float32), None
    for first, sums in label_sums(features, pairs, threads=threads, most_bytes=most_bytes):
        for before, block in label_blocks(sums):
            own = slice(first + before, first + before + len(block))
            if transform is not None:
                block /= np.maximum(counts[own], 1)[:, None]
                block -= mean
                block = transform.apply(block)
            choose_block(
                block,
                kernel_counts[own],
                kernel_mean,
                chosen[own],
                scale=kernel_scale,
                values=None if values is None else values[own],
                first_label=own.start,
                random=int(share * fan_in),
                seed=seed,
                threads=threads,
            )
            if on_labels:
                on_labels(own.stop)
    return Chosen(chosen, values)


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
) -> int:
    """What `choose_sources` takes at most beside the data, the result included: sums, positives by
    label with the places where a label's begin; of features in a memory map, the part that is read,
    and a block's positives in its order; with a dictionary of so many atoms, a block's sums scaled
    and in atoms. Or, before that, what `input_statistics` takes: some instances in float64, and as
    they are in the map."""
    together = labels_together(inputs, labels)
    of_slot = np.dtype(index_dtype(atoms or inputs)).itemsize + 4 * wants_values
    result = labels * fan_in * of_slot
    choosing = 4 * inputs * together + 5 * positives + 12 * labels + result
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
