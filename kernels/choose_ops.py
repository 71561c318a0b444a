"""The ops that choose and replace sources by the data, on NumPy arrays; `fanin.backends.choosing`
goes through a data set with them, block after block."""

from __future__ import annotations

import numpy as np

from fanin.kernels import library, params
from fanin.kernels.numpy_ops import Trained, _allocate, _describe, _trained


def add_label_sums(
    features: np.ndarray,
    positive_starts: np.ndarray,
    positive_instances: np.ndarray,
    sums: np.ndarray,
    *,
    starts: np.ndarray | None = None,
    columns: np.ndarray | None = None,
    positive_weights: np.ndarray | None = None,
    threads: int = 0,
) -> None:
    """Add the features of each label's positives, times their weights, to its sums, in place.

    features [instances, inputs] float32; or, of features stored by rows (CSR), the stored values
    [stored], with `starts` [instances + 1] int64 and `columns` [stored] int32.
    positive_instances [positives] int32, label after label; those of label l begin at
    positive_starts[l]: int64 [labels + 1]. positive_weights [positives] float32; without them each
    is 1. sums [labels, inputs] float32. Raises ValueError naming what is wrong; sums are then
    unspecified.
    """
    arguments = params.LabelSumsParams(
        features=_describe(features, "features"),
        starts=_describe(starts, "starts"),
        columns=_describe(columns, "columns"),
        positive_starts=_describe(positive_starts, "positive_starts"),
        positive_instances=_describe(positive_instances, "positive_instances"),
        positive_weights=_describe(positive_weights, "positive_weights"),
        sums=_describe(sums, "sums", written=True),
        threads=threads,
    )
    library.call(arguments, _allocate)


def choose_sources(
    sums: np.ndarray,
    counts: np.ndarray,
    mean: np.ndarray,
    indices: np.ndarray,
    *,
    scale: np.ndarray | None = None,
    values: np.ndarray | None = None,
    first_label: int = 0,
    random: int = 0,
    seed: int = 0,
    threads: int = 0,
) -> None:
    """Write the sources of each label: the inputs i of the largest |value|, ascending, where
    value = (sums[l, i] / counts[l] - mean[i]) * scale[i]. Of equal ones the lower input is taken.

    sums [labels, inputs] float32; counts [labels] int64; mean and scale [inputs] float32; indices
    [labels, fan_in] uint16 or uint32, written; values float32 alike, written where given. The last
    `random` slots of a label, and all of one whose count is 0, are random (see fanin.h).
    first_label: how many labels stand before these. Raises ValueError naming what is wrong.
    """
    for name, value in (("first_label", first_label), ("random", random)):
        if not -(2**63) <= value < 2**63:
            raise ValueError(f"{name} must be at least 0 and below 2^63, got {value}")
    arguments = params.ChooseSourcesParams(
        sums=_describe(sums, "sums"),
        counts=_describe(counts, "counts"),
        mean=_describe(mean, "mean"),
        scale=_describe(scale, "scale"),
        indices=_describe(indices, "indices", written=True),
        values=_describe(values, "values", written=True),
        first_label=first_label,
        random=random,
        seed=seed % 2**64,
        threads=threads,
    )
    library.call(arguments, _allocate)


def replace_sources(
    gradients: np.ndarray,
    indices: np.ndarray,
    weights: Trained,
    replaced: int,
    *,
    keep_weights: bool = False,
    moved: np.ndarray | None = None,
    threads: int = 0,
) -> None:
    """Move the `replaced` connections of smallest |weight| of each label to the inputs of largest
    |gradient| that are no source of it yet, in place (RigL: Evci et al., ICML 2020).

    gradients [labels, inputs] float32, of the loss by each weight of a dense layer; indices
    [labels, fan_in] uint16 or uint32; weights [labels, fan_in]. What moved has moments of 0 and,
    unless `keep_weights`, a weight of 0. An input whose gradient is 0 or NaN is never taken, so
    fewer may move; ties, and which slot gets which input, are in fanin.h. moved [labels] int32: how
    many connections moved, written where given. Raises ValueError naming what is wrong; where that
    is an index, other labels may have been updated.
    """
    if not -(2**63) <= replaced < 2**63:
        raise ValueError(f"replaced must be at least 0 and below 2^63, got {replaced}")
    arguments = params.ReplaceSourcesParams(
        gradients=_describe(gradients, "gradients"),
        indices=_describe(indices, "indices", written=True),
        weights=_trained(weights, "weights"),
        moved=_describe(moved, "moved", written=True),
        replaced=replaced,
        keep_weights=keep_weights,
        threads=threads,
    )
    library.call(arguments, _allocate)
