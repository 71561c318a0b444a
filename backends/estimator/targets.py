"""Labels as a person has them: sparse, sets of names or ids, an indicator, one for each instance.

They become positives in CSR and the names of the labels; a dense array of all labels is accepted
and never made.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from numbers import Integral
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sp
from sklearn.exceptions import DataConversionWarning
from sklearn.utils.multiclass import check_classification_targets

from fanin.backends.passes import known_labels

_SETS = (list, tuple, set, frozenset, np.ndarray)
# Where a line ends.
_ENDS = {"\n", "\r"}


class Targets(NamedTuple):
    """positives: CSR [instances, labels], each once, sorted. classes: what each label is called,
    [labels]. is_single: whether each instance was given one label and no set of them."""

    positives: sp.csr_array
    classes: np.ndarray
    is_single: bool


def known_targets(
    given: Any, instances: int, classes: Any = None, *, ignore_unknown: bool = False
) -> Targets:
    """Labels of so many instances in any of the forms; ValueError that names what is wrong.

    classes: the labels that there are, where they are known, in the order of their ids; for CSR and
    an indicator, the names of its columns. ignore_unknown: leave out labels that are none of these
    instead of refusing them.
    """
    if given is None:
        raise ValueError("FanInClassifier requires y to be passed, but the target y is None")
    known = None if classes is None else known_classes(classes)
    if sp.issparse(given):
        return _by_columns(known_labels(given, instances), known)
    if hasattr(given, "columns") and known is None:  # a pandas frame
        known = known_classes(list(given.columns))
    form = given if isinstance(given, list | tuple) else np.asarray(given)
    if isinstance(form, np.ndarray) and not form.ndim:
        raise ValueError(f"y must hold the labels of {instances} instances, got {given!r}")
    if len(form) != instances:
        raise ValueError(
            f"y must hold the labels of {instances} instances as X does, got {len(form)}"
        )
    if isinstance(form, np.ndarray) and form.ndim > 1:
        return _by_indicator(form, known)
    if any(isinstance(each, _SETS) for each in form):
        return _by_sets(form, known, ignore_unknown)
    return _by_one_each(_array(form), known, ignore_unknown)


def known_classes(given: Any) -> np.ndarray:
    """Names of labels [labels], each once and on one line; ValueError for others."""
    names = _array(given)
    if names.ndim != 1 or not len(names):
        raise ValueError(f"classes must be the names of the labels, got {given!r}")
    if names.dtype.kind in "OU":
        if not all(isinstance(name, str) for name in names):
            raise ValueError("names of labels must be all text or all numbers")
        for name in names:
            if set(name) & _ENDS:
                raise ValueError(f"names of labels must be one line each, got {name!r}")
        names = names.astype(object)  # a long name makes no other longer
    elif names.dtype.kind not in "biuf":
        raise ValueError(f"names of labels must be text or numbers, got {names.dtype}")
    counts = Counter(names.tolist())
    if len(counts) < len(names):
        raise ValueError(f"classes has the label {counts.most_common(1)[0][0]!r} twice")
    return names


def _array(names: Any) -> np.ndarray:
    """Names as NumPy has them; where NumPy would make text of numbers, as objects."""
    array = np.asarray(names)
    if array.dtype.kind == "U" and not isinstance(names, np.ndarray):
        objects = np.asarray(names, object)
        if not all(isinstance(name, str) for name in objects.flat):
            return objects
    return array


def _by_columns(positives: sp.csr_array, classes: np.ndarray | None) -> Targets:
    labels = positives.shape[1]
    if classes is None:
        classes = np.arange(labels)
    if len(classes) != labels:
        raise ValueError(f"y has {labels} labels (columns), but there are {len(classes)} classes")
    return Targets(positives, classes, is_single=False)


def _by_indicator(given: np.ndarray, classes: np.ndarray | None) -> Targets:
    if given.ndim == 2 and given.shape[1] == 1:
        warnings.warn(
            "A column-vector y was passed when a 1d array was expected: it is read as one label "
            "for each instance. Give CSR for one column of 0 and 1.",
            DataConversionWarning,
            stacklevel=2,
        )
        return _by_one_each(given[:, 0], classes, ignore_unknown=False)
    is_number = given.dtype.kind in "biuf"
    if given.ndim != 2 or not is_number or not ((given == 0) | (given == 1)).all():
        raise ValueError(
            f"a dense y [instances, labels] must be of 0 and 1, got {given.dtype} "
            f"{list(given.shape)}; give CSR, or a list of the labels of each instance"
        )
    return _by_columns(known_labels(sp.csr_array(given), len(given)), classes)


def _by_one_each(given: np.ndarray, classes: np.ndarray | None, ignore_unknown: bool) -> Targets:
    if given.dtype.kind == "O" and len({isinstance(name, str) for name in given}) > 1:
        raise ValueError("y must be all names (text) or all numbers, got both")
    check_classification_targets(given)
    if given.dtype.kind not in "biufUO":
        raise ValueError(f"Unknown label type: {given.dtype}")
    if classes is None:
        classes = known_classes(np.unique(given))
    names = given.tolist()
    return Targets(_positives(([name] for name in names), classes, ignore_unknown), classes, True)


def _by_sets(
    given: Sequence[Any] | np.ndarray, classes: np.ndarray | None, ignore_unknown: bool
) -> Targets:
    for instance, each in enumerate(given):
        if not isinstance(each, _SETS):
            raise ValueError(
                f"y[{instance}] is {each!r}; where one instance has a list of labels, all must "
                "have one, if an empty one"
            )
        if len(set(map(_plain, each))) < len(each):
            raise ValueError(
                f"y[{instance}] has a label twice. A list holds the labels of an instance; give "
                "numpy.asarray(y) if this is a row of 0 and 1"
            )
    if classes is None:
        classes = _classes_of({_plain(name) for each in given for name in each})
    rows = ([_plain(name) for name in each] for each in given)
    return Targets(_positives(rows, classes, ignore_unknown), classes, is_single=False)


def _plain(name: Any) -> Any:
    """NumPy's numbers as Python's, which are as keys the same but take longer."""
    return name.item() if isinstance(name, np.generic) else name


def _classes_of(names: set[Any]) -> np.ndarray:
    """Names in order; or, of ids, all up to the largest."""
    if not names:
        raise ValueError("y: no instance has a label: there is nothing to learn")
    if all(isinstance(name, str) for name in names):
        return known_classes(np.array(sorted(names), object))
    if all(isinstance(name, Integral) and not isinstance(name, bool) for name in names):
        if min(names) < 0:
            raise ValueError(f"y has the label id {min(names)}; ids are at least 0")
        return np.arange(max(names) + 1)
    odd = next(name for name in names if not isinstance(name, str))
    raise ValueError(
        f"labels must be all names (text) or all ids (whole numbers), got {odd!r} among "
        f"{len(names)} of them"
    )


def _positives(
    rows: Iterable[Collection[Any]], classes: np.ndarray, ignore_unknown: bool
) -> sp.csr_array:
    ids = {name: label for label, name in enumerate(classes.tolist())}
    columns: list[int] = []
    starts = [0]
    for instance, names in enumerate(rows):
        known = sorted(ids[name] for name in names if name in ids)
        if len(known) < len(names) and not ignore_unknown:
            odd = next(name for name in names if name not in ids)
            raise ValueError(f"y[{instance}] has the label {odd!r}, which is none of the classes")
        columns += known
        starts.append(len(columns))
    ones = np.ones(len(columns), bool)
    shape = (len(starts) - 1, len(ids))
    index = np.int32 if len(columns) < 2**31 else np.int64
    return sp.csr_array((ones, np.array(columns, index), np.array(starts, index)), shape=shape)
