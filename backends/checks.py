"""What the layers of both frameworks ask of their arguments, worded once. Each raises ValueError
that names the argument, its value and what it has to be."""

from __future__ import annotations

import math
import operator
from typing import Any

import numpy as np
import scipy.sparse as sp

MOST_INPUTS = 2**31 - 1
MOST_GROUP_SIZE = 64  # labels that share their sources, see fanin.h


def whole(name: str, value: Any, least: int, most: int | None = None) -> int:
    """The integer that `value` is (NumPy's count, 2.0 and True do not)."""
    try:
        if isinstance(value, bool | np.bool_):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        raise ValueError(f"{name} must be a whole number, got {value!r}") from None
    if number < least or (most is not None and number > most):
        limit = f"at least {least}" if most is None else f"in {least}..{most}"
        raise ValueError(f"{name} must be {limit}, got {number}")
    return number


def fitting_fan_in(fan_in: int, inputs: int) -> None:
    """A label cannot have more connections than there are inputs."""
    if fan_in > inputs:
        raise ValueError(f"fan_in {fan_in} is larger than the {inputs} inputs")


def no_scipy_matrix(name: str, given: Any) -> None:
    """A user's layer reads tensors, of all its inputs."""
    if sp.issparse(given):
        raise ValueError(
            f"{name} must be a dense tensor, got a SciPy {type(given).__name__}: of words, hand "
            "over sums of embeddings, as the README of backends shows (Sparse features); of few "
            f"inputs, {name}.toarray()"
        )


def sparse_features(output: str, intermediate: int | None, atoms: int | None) -> None:
    """ValueError unless an intermediate layer reads the sparse features, without a dictionary.
    output: the kind of the output layer; atoms: of a dictionary, None for none."""
    if intermediate is None:
        raise ValueError(
            f"an output layer {output} does not read sparse features itself: set intermediate to a "
            "number of units, such as 1024, or make the features dense"
        )
    if atoms is not None:
        raise ValueError(
            f"a dictionary of {atoms} atoms would make sparse features dense: leave it out, or "
            "make the features dense"
        )


def best(k: Any, labels: int) -> int:
    """How many of the best labels are asked for: 1..labels."""
    try:
        number = operator.index(k)
    except TypeError:
        number = 0
    if not 1 <= number <= labels:
        raise ValueError(f"k must be in 1..{labels} (the labels), got {k}")
    return number


def not_negative(name: str, value: Any) -> float:
    """The number as a float, finite and not negative."""
    try:
        if isinstance(value, bool | np.bool_ | str):
            raise TypeError
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not (number >= 0 and math.isfinite(number)):
        raise ValueError(f"{name} must be finite and at least 0, got {value!r}")
    return number


def learning_rate(value: Any) -> float:
    """The rate as a float, finite and not negative."""
    return not_negative("learning_rate", value)


def fraction(value: Any) -> float:
    """The share of the connections that are rewired: at least 0, below 1."""
    try:
        part = float(value)
    except (TypeError, ValueError):
        part = math.nan
    if not 0 <= part < 1:
        raise ValueError(f"fraction must be at least 0 and below 1, got {value!r}")
    return part


def loaded_indices(indices: Any, inputs: int) -> None:
    """Indices that come from a file or another layer. A framework converts them to the type of the
    layer's own without a word, and one that is out of range becomes another."""
    values = np.asarray(indices)
    if not np.issubdtype(values.dtype, np.integer):
        raise ValueError(f"indices must be integers, got {values.dtype}")
    in_range("indices", values, inputs, f"{inputs} inputs")


def in_range(name: str, values: np.ndarray, end: int, limit: str) -> None:
    """Integers that are all in 0..end - 1. limit: what they must fit, as the error says it."""
    if not values.size or (values.min() >= 0 and values.max() < end):
        return
    at = tuple(map(int, np.argwhere((values < 0) | (values >= end))[0]))
    place = ", ".join(map(str, at))
    raise ValueError(f"{name}[{place}] is {values[at]}, out of range for {limit}")


def positives(instances: np.ndarray, label_ids: np.ndarray, batch: int, labels: int) -> None:
    """The positives of a batch. Indexing would take a negative number for one of the last instances
    or labels, without a word."""
    in_range("positive_instances", instances, batch, f"a batch of {batch}")
    in_range("positive_labels", label_ids, labels, f"{labels} labels")


def connections(indices: Any, shape: tuple[int, ...], inputs: int) -> np.ndarray:
    """The sources of all connections of a layer, as an array; shape: [labels, fan_in]."""
    sources = np.asarray(indices)
    if sources.shape != shape:
        raise ValueError(f"indices must be {list(shape)}, got {list(sources.shape)}")
    loaded_indices(sources, inputs)
    return sources
