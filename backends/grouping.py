"""Which labels share their sources: the order in which a grouped layer has them.

A grouped layer divides its labels, in that order, into groups of equal size (the last may be
smaller). Labels that mean similar things need similar sources, so they are divided by the mean
features of their positives: into two balanced halves by spherical 2-means, each half again, down to
groups, as Parabel builds its trees (Prabhu et al., 2018). It is better to divide them likewise by
the sources that each would choose for itself, since a group has to agree on them.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, get_args

import numpy as np
import scipy.sparse as sp
from threadpoolctl import threadpool_limits

from fanin.backends import checks
from fanin.backends.choosing import Chosen
from fanin.backends.interface import Features
from fanin.backends.kinds import index_dtype
from fanin.backends.passes import (
    give_back,
    known_features,
    known_labels,
    label_blocks,
    pairs_by_label,
)
from fanin.kernels import add_label_sums
from fanin.kernels.threads import MOST_THREADS, thread_count

Grouping = Literal["random", "frequency", "meaning", "sources"]

# Mean features are compared in a random projection to so many numbers, which keeps distances
# (Johnson & Lindenstrauss, 1984): 2.8 million labels then take 1.4 GB.
PROJECTED = 128
# Rounds of 2-means; most halves stop to change before.
_ROUNDS = 12
# What tells the halves of a larger part apart is found with so many of its labels.
_SAMPLE = 16384
# So many labels are worked on together: what is known of them stays in a cache.
_TOGETHER = 4096
# How many instances are projected at a time, and how many projected ones are in memory.
_BLOCK, _PROJECTED_TOGETHER = 2048, 1 << 18


def label_order(
    labels: Any,
    group_size: int,
    grouping: Grouping,
    *,
    features: Any = None,
    chosen: Chosen | None = None,
    seed: int = 0,
    threads: int = 0,
) -> np.ndarray:
    """The label at each position of a grouped layer, int32 [labels]; equal seeds give equal orders,
    for any number of threads (0 for all).

    labels: the positives, SciPy sparse [instances, labels]. features: float32 [instances, inputs],
    C-contiguous or a memory map, or CSR; only "meaning" looks at them. "random": a random order.
    "frequency": by the number of positives, most first; of equal ones the lower label. "meaning":
    neighbours have positives with similar features. "sources": neighbours would choose similar
    sources, each for itself; these are `chosen`, by `choosing.choose_sources` without groups and
    with values. With both, labels without positives come last, in ascending order. Raises
    ValueError naming what is wrong.
    """
    if grouping not in get_args(Grouping):
        known = ", ".join(get_args(Grouping))
        raise ValueError(f"unknown grouping {grouping!r}; there are {known}")
    checks.whole("group_size", group_size, 2)
    checks.whole("seed", seed, 0, 2**64 - 1)
    checks.whole("threads", threads, 0, MOST_THREADS)
    if grouping == "meaning":
        features = known_features(features)
        labels = known_labels(labels, features.shape[0])
    else:
        labels = known_labels(labels, getattr(labels, "shape", (0,))[0])
    described = labels  # the labels of what features are of
    if grouping == "sources":
        features, described = _own_sources(chosen, labels.shape[1])
    rng = np.random.default_rng(seed)
    if grouping == "random":
        return rng.permutation(np.arange(labels.shape[1], dtype=np.int32))
    counts = np.bincount(labels.indices, minlength=labels.shape[1])
    if grouping == "frequency":
        return np.argsort(-counts, kind="stable").astype(np.int32)
    # One thread for each product: more would wait for one another in the blocks' threads, and
    # their number would change the last bits.
    with threadpool_limits(1, "blas"), ThreadPoolExecutor(thread_count(threads)) as pool:
        meanings = _meanings(features, described, rng, pool)
        order = rng.permutation(np.flatnonzero(counts).astype(np.int32))
        _divide(order, meanings, group_size, pool)
    return np.concatenate([order, np.flatnonzero(counts == 0).astype(np.int32)])


def meaning_bytes(
    instances: int, inputs: int, labels: int, positives: int, threads: int = 0
) -> int:
    """What `label_order` takes at most beside the data for "meaning", the result included: the
    projection; of each label what is known of it and its places; of some instances what they are
    projected to, and their positives in two orders; of each thread what it works on."""
    size = min(PROJECTED, inputs)
    together = min(instances, _PROJECTED_TOGETHER)
    own_positives = -(-positives * together // instances)
    of_thread = max(4 * _BLOCK * (inputs + size), 4 * _SAMPLE * (size + 4))
    of_labels = labels * (4 * size + 40)
    of_instances = 4 * size * (inputs + together) + 10 * own_positives
    return max(8 * positives, of_labels + of_instances + thread_count(threads) * of_thread)


def sources_bytes(inputs: int, labels: int, fan_in: int, threads: int = 0) -> int:
    """What `label_order` takes at most for "sources", and what was chosen besides, of so many
    inputs or atoms: indices and values, both once more as a matrix, and what it takes for
    "meaning" of that."""
    of_slot = np.dtype(index_dtype(inputs)).itemsize + 4 + 8
    own = labels * (fan_in * of_slot + 20)
    return own + meaning_bytes(labels, inputs, labels, labels, threads)


def _own_sources(chosen: Chosen | None, labels: int) -> tuple[sp.csr_array, sp.csr_array]:
    """How much each label would like to read each input, as features of as many instances as there
    are labels, and the label of each of them."""
    if chosen is None or chosen.values is None or len(chosen.indices) != labels:
        raise ValueError(
            "grouping 'sources' needs chosen: what choose_sources chooses for each of the "
            f"{labels} labels, without groups and with want_values=True"
        )
    size, fan_in = chosen.indices.size, chosen.indices.shape[1]
    narrow = np.int32 if size < 2**31 else np.int64  # SciPy has both in one type
    starts = np.arange(0, size + 1, fan_in, dtype=narrow)
    columns = chosen.indices.reshape(-1).astype(narrow)
    inputs = int(columns.max()) + 1
    wanted = sp.csr_array((np.abs(chosen.values).reshape(-1), columns, starts), (labels, inputs))
    each = np.arange(labels + 1, dtype=np.int32)
    return wanted, sp.csr_array((np.ones(labels, bool), each[:-1], each), (labels, labels))


def _meanings(
    features: Features,
    labels: sp.csr_array,
    rng: np.random.Generator,
    pool: ThreadPoolExecutor,
) -> np.ndarray:
    """The direction in which the mean over each label's positives lies, in a random projection:
    float32 [labels, PROJECTED] of length 1; 0 for a label without positives."""
    instances, inputs = features.shape
    size = min(PROJECTED, inputs)
    if inputs > size:
        projection = rng.standard_normal((inputs, size), np.float32)
    else:
        projection = np.eye(inputs, dtype=np.float32)
    sums = np.zeros((labels.shape[1], size), np.float32)
    projected = np.empty((min(instances, _PROJECTED_TOGETHER), size), np.float32)

    for start in range(0, instances, len(projected)):
        end = min(start + len(projected), instances)

        def project(first: int, start: int = start, end: int = end) -> None:
            last = min(first + _BLOCK, end)
            with np.errstate(invalid="ignore"):  # features that are not finite, named below
                projected[first - start : last - start] = features[first:last] @ projection
            give_back(features, first, last)

        list(pool.map(project, range(start, end, _BLOCK)))
        _add_sums(projected[: end - start], labels[start:end], sums)
    for first, block in label_blocks(sums):
        if not (good := np.isfinite(block).all(axis=1)).all():
            label = first + int(np.argmin(good))
            raise ValueError(
                f"features must be finite, but those of label {label}'s positives are not"
            )
        block /= np.maximum(np.linalg.norm(block, axis=1, keepdims=True), 1e-30)
    return sums


def _add_sums(projected: np.ndarray, labels: sp.csr_array, sums: np.ndarray) -> None:
    pairs = pairs_by_label(labels)
    add_label_sums(projected, pairs.starts, pairs.instances, sums)


def _divide(
    order: np.ndarray, meanings: np.ndarray, group_size: int, pool: ThreadPoolExecutor
) -> None:
    """Bring labels into an order, in place, in which neighbours mean similar things."""
    starts, sizes = np.zeros(1, np.int64), np.array([len(order)])
    while True:
        groups = -(-sizes // group_size)
        divided = groups > 1
        starts, sizes, groups = starts[divided], sizes[divided], groups[divided]
        if not len(starts):
            return
        firsts = (groups + 1) // 2 * group_size
        parts = _parts_together(starts, sizes, firsts)
        list(pool.map(lambda some: _halve(order, meanings, *some), parts))
        starts = np.concatenate([starts, starts + firsts])
        sizes = np.concatenate([firsts, sizes - firsts])


def _parts_together(
    starts: np.ndarray, sizes: np.ndarray, firsts: np.ndarray
) -> Iterator[tuple[np.ndarray, int, int]]:
    """Parts of equal size that are halved together: where they start, their size, that of their
    first half. Sizes at a level differ by one group at most, but for the last part."""
    for size in np.unique(sizes):
        equal = np.flatnonzero(sizes == size)
        together = max(1, _TOGETHER // size)
        for first in range(0, len(equal), together):
            some = equal[first : first + together]
            yield starts[some], int(size), int(firsts[some[0]])


def _halve(
    order: np.ndarray, meanings: np.ndarray, starts: np.ndarray, size: int, first_size: int
) -> None:
    """Put one half of each of these parts before the other half; labels stay in their order within
    each. That order was random, so a part's first labels are a sample of it."""
    members = order[starts[:, None] + np.arange(size)]  # [parts, size]
    sample = min(size, _SAMPLE)
    known = meanings[members[:, :sample]]
    directions = _directions(known, max(1, first_size * sample // size))
    values = np.empty((len(starts), size), np.float32)
    for first in range(0, size, _SAMPLE):
        own = slice(first, first + _SAMPLE)
        some = known if size <= _SAMPLE else meanings[members[:, own]]
        values[:, own] = (some @ directions[:, :, None])[:, :, 0]
    is_second = ~_lowest(values, first_size)
    places = np.argsort(is_second, axis=1, kind="stable")
    order[starts[:, None] + np.arange(size)] = np.take_along_axis(members, places, 1)


def _directions(meanings: np.ndarray, first_size: int) -> np.ndarray:
    """The direction from one half of each part to the other by spherical 2-means, float32 [parts,
    PROJECTED]. meanings: [parts, size, PROJECTED]; first_size: of the half where it begins."""
    totals = meanings.sum(1)
    # From a label and the one that is least like it.
    likeness = (meanings @ meanings[:, 0, :, None])[:, :, 0]
    ends = meanings[:, 0], meanings[np.arange(len(meanings)), likeness.argmin(1)]
    before = None
    for _ in range(_ROUNDS):
        directions: np.ndarray = ends[1] - ends[0]
        is_first = _lowest((meanings @ directions[:, :, None])[:, :, 0], first_size)
        if before is not None and np.array_equal(is_first, before):
            break
        before = is_first
        sums = (is_first[:, None].astype(np.float32) @ meanings)[:, 0]
        ends = _unit(sums), _unit(totals - sums)
    return directions


def _unit(vectors: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit: np.ndarray = vectors / np.maximum(lengths, 1e-30)
    return unit


def _lowest(values: np.ndarray, count: int) -> np.ndarray:
    """Which values [parts, size] are among the `count` lowest of their part, bool."""
    lowest = np.zeros(values.shape, bool)
    np.put_along_axis(lowest, np.argpartition(values, count - 1, axis=1)[:, :count], True, 1)
    return lowest
