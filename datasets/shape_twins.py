"""Shape twins: random data with the real sizes of a published data set, and nothing more.

The time and memory of a training step depend on sizes and not on what the data mean. With a twin
they can be measured where the real files are missing. It has the real numbers of labels, inputs and
instances, but makes only as many instances as its caller asks for. All its data are synthetic.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import gcd

import numpy as np
import numpy.typing as npt
from scipy import sparse

from fanin.datasets.catalogue import FEATURES, PUBLISHED, Published, Words, canonical_name
from fanin.datasets.dataset import DataError, Features
from fanin.datasets.folder import BOW

# So many words are drawn for each that an instance is to have: some are drawn again.
_DRAWS_OF_WORDS = 1.175


@dataclass(frozen=True)
class ShapeTwin:
    """The sizes of a published data set with one kind of its features."""

    published: Published
    features: str

    @property
    def words(self) -> Words | None:
        """The sizes of sparse features; None for dense ones."""
        return self.published.words if self.features == BOW else None

    @property
    def inputs(self) -> int:
        """How many numbers an instance has, or how many words there are."""
        return self.words.inputs if self.words else FEATURES[self.features]

    @property
    def source(self) -> str:
        """One line for reports."""
        return f"random data of the sizes of {self.published.name} (shape twin)"

    def sample(self, instances: int, seed: int) -> tuple[Features, sparse.csr_array]:
        """Random features [instances, inputs], CSR where they are of words, and positives
        [instances, labels], bool, sorted.

        Each instance has at least one label, and `labels_per_instance` on average. Labels have a
        long tail: the r-th most frequent one is drawn with a probability proportional to r^-1/2. A
        label that is drawn twice for an instance counts once. Words are drawn by Zipf's law, the
        r-th with a probability proportional to 1 / r, and stand once each in an instance, whose
        values have a sum of squares of 1.
        """
        rng = np.random.default_rng(seed)
        sizes = self.published
        # The inverse of the distribution function sqrt(rank / labels).
        y = _drawn(
            rng, instances, sizes.labels, sizes.labels_per_instance, lambda p: sizes.labels * p**2
        )
        if not self.words:
            return rng.standard_normal((instances, self.inputs), np.float32), y
        inputs, count = self.words.inputs, _DRAWS_OF_WORDS * self.words.per_instance
        x = _drawn(rng, instances, inputs, count, lambda p: (inputs + 1.0) ** p - 1)
        values = 0.5 + rng.random(x.nnz, np.float32)
        x = sparse.csr_array((values, x.indices, x.indptr), shape=x.shape)
        lengths = np.sqrt(np.add.reduceat(values**2, x.indptr[:-1]))
        x.data /= np.repeat(lengths, np.diff(x.indptr))
        return x, y


def _drawn(
    rng: np.random.Generator,
    instances: int,
    columns: int,
    per_instance: float,
    rank_of: Callable[[npt.NDArray[np.float64]], npt.NDArray[np.float64]],
) -> sparse.csr_array:
    """True at random places [instances, columns], at least one an instance, and `per_instance` on
    average but for those that are drawn twice; sorted. rank_of: of a uniform number from 0 to 1,
    the rank of a column, the most frequent being 0."""
    counts = 1 + rng.poisson(per_instance - 1.0, instances)
    ranks = rank_of(rng.random(counts.sum())).astype(np.int64)
    # In real data the ids of frequent labels are scattered. A step that is coprime to their number
    # scatters them without a table.
    step = next(s for s in range(int(0.618 * columns), columns + 1) if gcd(s, columns) == 1)
    ones = np.ones(len(ranks), np.bool_)
    places = (np.repeat(np.arange(instances), counts), ranks * step % columns)
    drawn = sparse.csr_array((ones, places), shape=(instances, columns))
    drawn.sum_duplicates()
    return drawn


def kinds_of(entry: Published) -> tuple[str, ...]:
    """The kinds of features whose sizes are known."""
    return (*entry.features, *([BOW] if entry.words else []))


def has_twin(name: str, features: str) -> bool:
    """Whether there is a twin of that data set with these features."""
    entry = PUBLISHED.get(canonical_name(name))
    return entry is not None and features in kinds_of(entry)


def has_sparse_twin(name: str, features: str | None) -> bool:
    """Whether there is one, and with sparse features."""
    return features == BOW and has_twin(name, BOW)


def shape_twin(name: str, features: str) -> ShapeTwin:
    """The twin of a published data set; DataError for another name or kind of features."""
    entry = PUBLISHED.get(canonical_name(name))
    if entry is None or features not in kinds_of(entry):
        known = ", ".join(
            f"{e.name} ({', '.join(kinds_of(e))})" for e in PUBLISHED.values() if kinds_of(e)
        )
        raise DataError(
            f"no shape is known for {name!r} with {features!r} features; known: {known}"
        )
    return ShapeTwin(entry, features)
