"""What a recipe makes of the training data before the training: scale, dictionary, connections,
weights and biases."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import scipy.sparse as sp

from fanin.backends import checks
from fanin.backends.choosing import Chosen, choose_sources, log_odds, unit_variance_scale
from fanin.backends.dictionary import atom_count, feature_dictionary
from fanin.backends.features import DICTIONARY, SCALE
from fanin.backends.grouping import label_order
from fanin.backends.kinds import ORDER, ConnectionKind, Dense
from fanin.backends.passes import input_statistics, known_data, known_labels
from fanin.backends.recipes import Recipe, RecipeName, recipe_of
from fanin.backends.setup import LayerSetup
from fanin.kernels.threads import within_share

# A weight starts with this share of the difference that its input was chosen by. With three times
# as much, scores are too far apart, and the first epoch has to repair them (figures: README.md).
CENTROID_SHARE = 0.1
# The mean over few positives is mostly chance: a difference counts as if the label had so many more
# positives, which are average instances.
MORE_POSITIVES = 10


def looks_at_data(recipe: Recipe, kind: ConnectionKind = Dense()) -> bool:  # noqa: B008 (frozen)
    """Whether anything that is made before the training depends on the data: an array of
    `starting_arrays`, or the clusters of an auxiliary loss."""
    return (
        bool(kind.group_size and recipe.grouping != "random")
        or len(kind.kinds) > 1
        or recipe.connections != "random"
        or recipe.feature_scaling != "none"
        or recipe.feature_dictionary != "none"
        or recipe.initial_bias == "prior"
        or recipe.auxiliary_weight > 0
    )


def starting_arrays(
    features: Any,
    labels: Any,
    recipe: Recipe,
    kind: ConnectionKind,
    *,
    seed: int = 0,
    threads: int = 0,
    on_labels: Callable[[int], None] | None = None,
) -> dict[str, np.ndarray]:
    """The arrays that a model of this recipe starts with in place of the usual ones, by their names
    in `LayerSetup.array_shapes`.

    features, labels: all training instances, as `choosing.choose_sources` takes them, which also
    says what `on_labels` is. kind: how the labels are connected. seed: for what is random. With a
    head and a tail, frequent labels come first.
    """
    threads = within_share(threads)
    given: dict[str, np.ndarray] = {}
    fan_in = dictionary_fan_in(kind)
    atoms = atoms_of(recipe, features.shape[1], labels.shape[1], fan_in)
    mean: np.ndarray | None = None
    if recipe.feature_scaling != "none" or recipe.connections != "random" or atoms:
        mean, deviation = input_statistics(features)
        if recipe.feature_scaling != "none":
            given[SCALE] = unit_variance_scale(mean, deviation)
    if atoms and fan_in and mean is not None:
        given[DICTIONARY] = feature_dictionary(
            features,
            labels,
            mean,
            atoms,
            fan_in,
            scale=given.get(SCALE),
            seed=seed,
            threads=threads,
        )
    choose = partial(
        choose_sources,
        features,
        mean=mean,
        scale=given.get(SCALE),
        dictionary=given.get(DICTIONARY),
        seed=seed,
        threads=threads,
    )
    parts = kind.parts(labels.shape[1])
    if len(parts) == 1:
        start = partial(choose, on_labels=on_labels)
        arrays, order = _layer_arrays(features, labels, recipe, kind, start, choose, seed, threads)
        if order is not None:
            given[ORDER] = order
        return given | arrays
    whole = label_order(labels, 2, "frequency", seed=seed)
    by_label = sp.csc_array(known_labels(labels, labels.shape[0]))
    for part in parts:
        own = sp.csr_array(by_label[:, whole[part.positions]])
        start = partial(choose, on_labels=_counted_from(part.first, on_labels))
        arrays, order = _layer_arrays(
            features, own, recipe, part.kind, start, choose, seed, threads
        )
        if order is not None:
            whole[part.positions] = whole[part.positions][order]
        given |= {part.outside(name): array for name, array in arrays.items()}
    return given | {ORDER: whole}


def _counted_from(
    first: int, on_labels: Callable[[int], None] | None
) -> Callable[[int], None] | None:
    """`on_labels` for a layer that comes after so many labels."""
    return None if on_labels is None else lambda done: on_labels(first + done)


def _layer_arrays(
    features: Any,
    labels: Any,
    recipe: Recipe,
    kind: ConnectionKind,
    start: Callable[..., Chosen],
    choose: Callable[..., Chosen],
    seed: int,
    threads: int,
) -> tuple[dict[str, np.ndarray], np.ndarray | None]:
    """Of one output layer, and the order of its labels where it has one. start, choose:
    `choosing.choose_sources`, for what the layer starts with and for a look at each label."""
    given: dict[str, np.ndarray] = {}
    is_chosen = recipe.connections != "random" and kind.fan_in
    if is_chosen:
        numbers = (labels, kind.fan_in)
        start, choose = (
            partial(each, *numbers, method=recipe.connections) for each in (start, choose)
        )
    order: np.ndarray | None = None
    if kind.group_size:
        looks = is_chosen and recipe.grouping == "sources"
        order = label_order(
            labels,
            kind.group_size,
            recipe.grouping,
            features=features,
            chosen=choose(want_values=True) if looks else None,
            seed=seed,
            threads=threads,
        )
    if is_chosen:
        wants_values = recipe.initial_weights == "centroid"
        chosen = start(group_size=kind.group_size, order=order, want_values=wants_values)
        given["output.indices"] = chosen.indices
        if chosen.values is not None:
            given["output.weights"] = chosen.values * _by_position(_shares(labels), order)
    if recipe.initial_bias == "prior":
        given["output.bias"] = _by_position(log_odds(labels), order)
    elif recipe.initial_bias:
        given["output.bias"] = np.full(labels.shape[1], recipe.initial_bias, np.float32)
    return given, order


def dictionary_fan_in(kind: ConnectionKind) -> int | None:
    """The fan-in that a dictionary is for: of the last output layer that has one; None where none
    has."""
    fan_ins = [each.fan_in for each in kind.kinds if each.fan_in]
    return fan_ins[-1] if fan_ins else None


def _by_position(by_label: np.ndarray, order: np.ndarray | None) -> np.ndarray:
    """Rows of labels in the order that the labels have in the layer."""
    return by_label if order is None else by_label[order]


def _shares(labels: Any) -> np.ndarray:
    """The share of each label's differences that its weights start with, float32 [labels, 1]."""
    known = known_labels(labels, labels.shape[0])
    positives = np.bincount(known.indices, minlength=known.shape[1])
    shares = CENTROID_SHARE * positives / (positives + MORE_POSITIVES)
    return shares[:, None].astype(np.float32)


def atoms_of(recipe: Recipe, inputs: int, labels: int, fan_in: int | None) -> int | None:
    """How many atoms the dictionary of such a model has, None where it has none."""
    if recipe.feature_dictionary == "none" or not fan_in:
        return None
    return atom_count(inputs, labels, fan_in)


def arrays_for_layer(
    features: Any, labels: Any, name: RecipeName, setup: LayerSetup, *, seed: int, threads: int
) -> dict[str, np.ndarray]:
    """`starting_arrays` for a fixed fan-in layer of a user's own model. ValueError for a recipe
    that does not look at data, and for data that do not fit the layer."""
    recipe = recipe_of(name, setup)
    if not looks_at_data(recipe, setup.output):
        raise ValueError(
            f"a layer of the recipe {name!r} does not look at data; make it with recipe='best'"
        )
    features, labels = known_data(features, labels, setup)
    checks.whole("seed", seed, 0, 2**64 - 1)
    return starting_arrays(features, labels, recipe, setup.output, seed=seed, threads=threads)
