"""An auxiliary loss over clusters of labels, which helps an intermediate layer through its first
steps.

A sparse output layer, still untrained, hands little on to what stands below it. So, at first, a
small dense layer reads the same outputs and predicts in which clusters of labels an instance has
positives; its gradient is added to that of the output layer, with a weight that falls to 0. It is a
part of the training and not of the model.

From Spartex (Ullah, Schultheis, Lasby, Ioannou & Babbar, "Navigating extremes: dynamic sparsity in
large output spaces", NeurIPS 2024, and its public code): clusters of labels as targets, all of them
that an instance has; binary cross entropy; a weight that falls to 0 as a half cosine, over the
first 12 to 20 % of the steps; 64 labels a cluster. Different here:

- The dense layer reads the outputs of the intermediate layer, and not those of an encoder.
- The clusters are those of `grouping`.
- The loss is added to that of the labels, where Spartex has (1 - a) * labels + a * clusters, and it
  is divided by the number of labels and not of clusters. So a pair (instance, cluster) weighs as
  much as a pair (instance, label), times the weight. The mean over clusters is so much larger that
  Adam's second moments, which forget in thousands of steps, held the intermediate layer back long
  after the weight was 0 (a trial of ten epochs on 2,357 labels and 128 clusters, two seeds: P@1
  65.6 with a weight of 0.67; 72.0 divided by labels, weight 0.92; 70.2 without).
- The dense layer learns by its whole loss, with the optimiser of all others; the weight says how
  much the intermediate layer hears of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from fanin.backends import checks
from fanin.backends.drawing import glorot_blocks, joined_blocks
from fanin.backends.grouping import label_order
from fanin.backends.interface import TrainingBatch
from fanin.backends.label_order import LabelOrder
from fanin.backends.optimizer import Optimizer
from fanin.backends.recipes import Recipe, half_cosine
from fanin.backends.setup import LayerSetup

# Names of its arrays, beside those of `LayerSetup.array_shapes`.
WEIGHTS, BIAS, CLUSTERS = "auxiliary.weights", "auxiliary.bias", "auxiliary.clusters"
CLUSTER_LAYER = (WEIGHTS, BIAS)

# The purpose of a generator is part of its seed.
_WEIGHTS_DRAWN = 2


@dataclass(frozen=True)
class AuxiliaryStep:
    """Of one step: each pair (instance, cluster) that is true, once, as `TrainingBatch` has its
    positives. Scores, loss and gradients are those of a mean over clusters and batch. weight: by
    which the gradient of the outputs is multiplied; rate: by which the learning rate is."""

    positive_instances: np.ndarray  # int32 [pairs]
    positive_clusters: np.ndarray  # int64 [pairs]
    weight: float
    rate: float


class Auxiliary:
    """The clusters, and the weight of each step.

    clusters: the cluster of each label, integers [labels], all from 0 on. weight: of the first
    step. steps: after so many the weight is 0. seed: of the weights of the dense layer, which are
    Glorot-uniform. Raises ValueError where clusters or weight are none.
    """

    def __init__(self, clusters: np.ndarray, weight: float, steps: float, seed: int = 0) -> None:
        self.clusters = _known_clusters(clusters)
        self.count = int(self.clusters.max()) + 1
        self._weight = weight
        self._steps = steps
        self._seed = seed
        if not (0 < weight < np.inf and steps > 0):
            raise ValueError(
                f"an auxiliary loss needs a weight and steps above 0, got {weight!r} and {steps!r}"
            )

    def take(self, clusters: np.ndarray) -> None:
        """Go on with clusters of a training that was begun elsewhere; ValueError for those of
        another one."""
        clusters = _known_clusters(clusters)
        if clusters.shape != self.clusters.shape or int(clusters.max()) + 1 != self.count:
            raise ValueError(
                f"{CLUSTERS} must be {self.count} clusters of {len(self.clusters)} labels, got "
                f"{int(clusters.max()) + 1} of {len(clusters)}"
            )
        self.clusters = clusters

    def array_shapes(self, setup: LayerSetup) -> dict[str, tuple[int, ...]]:
        """Names and shapes of what is trained; ValueError for a model that cannot have them."""
        if not setup.intermediate:
            raise ValueError("an auxiliary loss is for an intermediate layer, and there is none")
        if len(self.clusters) != setup.labels:
            raise ValueError(
                f"{CLUSTERS} must be [{setup.labels}] (the labels), got [{len(self.clusters)}]"
            )
        return {WEIGHTS: (setup.intermediate, self.count), BIAS: (self.count,)}

    def initial_array(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """The values that one of them starts with."""
        if name == BIAS:
            return np.zeros(shape, np.float32)
        rng = np.random.default_rng([self._seed, 0, _WEIGHTS_DRAWN])
        return joined_blocks(shape, glorot_blocks(rng, shape))

    def weight_at(self, step: int) -> float:
        """The weight of a step, counted from 1."""
        return self._weight * half_cosine((step - 1) / self._steps)

    def step(self, batch: TrainingBatch, step: int, optimizer: Optimizer) -> AuxiliaryStep | None:
        """What that step has to learn of clusters; None where the weight is 0."""
        # From a mean over clusters to the mean over labels that all other gradients are of. Adam
        # divides a gradient by its size.
        share = self.count / len(self.clusters)
        rate = 1.0 if optimizer.kind == "adam" else share
        weight = self.weight_at(step) * share
        if not weight:
            return None
        # An id that is out of range is named by the step of the labels, which comes first.
        clusters = self.clusters.take(batch.positive_labels, mode="clip").astype(np.int64)
        pairs = np.unique(batch.positive_instances.astype(np.int64) * self.count + clusters)
        instances, clusters = np.divmod(pairs, self.count)
        return AuxiliaryStep(instances.astype(np.int32), clusters, weight, rate)


def _known_clusters(clusters: np.ndarray) -> np.ndarray:
    """int32 [labels]; ValueError where they are none."""
    known = np.asarray(clusters)
    if known.ndim != 1 or not known.size or not np.issubdtype(known.dtype, np.integer):
        raise ValueError(
            f"{CLUSTERS} must be integers [labels], got {known.dtype} {list(known.shape)}"
        )
    if known.min() < 0 or known.max() >= known.size:
        raise ValueError(
            f"{CLUSTERS} has values {known.min()} to {known.max()}; they must be in "
            f"0..{known.size - 1}"
        )
    return known.astype(np.int32)


def auxiliary_loss(
    recipe: Recipe,
    steps: int,
    features: Any,
    labels: Any,
    *,
    seed: int,
    threads: int = 0,
    are_known: bool = False,
) -> Auxiliary | None:
    """The auxiliary loss of a training of so many steps, as its recipe says; None without one.

    features, labels, threads: as `grouping.label_order` takes them, of all training instances.
    seed: for what is random. are_known: whether the clusters will be loaded; they are not looked
    for then.
    """
    if not recipe.auxiliary_weight:
        return None
    count = labels.shape[1]
    size = _cluster_size(recipe, count)
    positions = np.arange(count)
    if not are_known and size > 1:
        order = label_order(labels, size, "meaning", features=features, seed=seed, threads=threads)
        positions = LabelOrder.of(order).positions
    until = recipe.auxiliary_until * steps
    return Auxiliary(positions // size, recipe.auxiliary_weight, until, seed)


def cluster_count(recipe: Recipe, labels: int) -> int:
    """How many clusters the auxiliary loss of a recipe has, 0 without one."""
    if not recipe.auxiliary_weight:
        return 0
    return -(-labels // _cluster_size(recipe, labels))


def _cluster_size(recipe: Recipe, labels: int) -> int:
    """How many of so many labels a cluster has, but for the last one."""
    return -(-labels // checks.whole("auxiliary_clusters", recipe.auxiliary_clusters, 1))
