"""Shape twins: random data with the real sizes of a published data set, and nothing more.

The time and memory of a training step depend on sizes and not on what the data mean. With a twin
they can be measured where the real files are missing. It has the real numbers of labels, inputs and
instances, but makes only as many instances as its caller asks for. All its data are synthetic.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd

import numpy as np
import numpy.typing as npt
from scipy import sparse

from fanin.datasets.catalogue import FEATURES, PUBLISHED, Published, canonical_name
from fanin.datasets.dataset import DataError


@dataclass(frozen=True)
class ShapeTwin:
    """The sizes of a published data set with one kind of its features."""

    published: Published
    features: str

    @property
    def inputs(self) -> int:
        """How many numbers an instance has."""
        return FEATURES[self.features]

    @property
    def source(self) -> str:
        """One line for reports."""
        return f"random data of the sizes of {self.published.name} (shape twin)"

    def sample(self, instances: int, seed: int) -> tuple[npt.NDArray[np.float32], sparse.csr_array]:
        """Random features [instances, inputs] and positives [instances, labels], bool, sorted.

        Each instance has at least one label, and `labels_per_instance` on average. Labels have a
        long tail: the r-th most frequent one is drawn with a probability proportional to r^-1/2. A
        label that is drawn twice for an instance counts once.
        """
        rng = np.random.default_rng(seed)
        labels = self.published.labels
        counts = 1 + rng.poisson(self.published.labels_per_instance - 1.0, instances)
        # The inverse of the distribution function sqrt(rank / labels).
        ranks = (labels * rng.random(counts.sum()) ** 2).astype(np.int64)
        # In real data the ids of frequent labels are scattered. A step that is coprime to the
        # number of labels scatters them without a table.
        step = next(s for s in range(int(0.618 * labels), labels + 1) if gcd(s, labels) == 1)
        positive_labels = ranks * step % labels
        positive_instances = np.repeat(np.arange(instances), counts)
        ones = np.ones(len(positive_labels), np.bool_)
        pairs = (positive_instances, positive_labels)
        y = sparse.csr_array((ones, pairs), shape=(instances, labels))
        y.sum_duplicates()
        return rng.standard_normal((instances, self.inputs), np.float32), y


def shape_twin(name: str, features: str) -> ShapeTwin:
    """The twin of a published data set; DataError for another name or kind of features."""
    entry = PUBLISHED.get(canonical_name(name))
    if entry is None or features not in entry.features:
        known = ", ".join(
            f"{e.name} ({', '.join(e.features)})" for e in PUBLISHED.values() if e.features
        )
        raise DataError(
            f"no shape is known for {name!r} with {features!r} features; known: {known}"
        )
    return ShapeTwin(entry, features)
