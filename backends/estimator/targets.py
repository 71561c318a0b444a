"""Labels as a person has them: sparse, sets of names or ids, an indicator, one for each instance.

They become positives in CSR and the names of the labels; a dense array of all labels is accepted
and never made.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from numbers import Integral, Real
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sp
from sklearn.exceptions import DataConversionWarning
from sklearn.utils.multiclass import check_classification_targets

from fanin.backends.estimate import TooLargeError
from fanin.backends.estimator.saved import are_ids
from fanin.backends.passes import check_unmasked, known_labels
from fanin.datasets.memory import available_bytes, size_text

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
    check_unmasked("y", given)
    known = None if classes is None else known_classes(classes)
    if sp.issparse(given):
        return _by_columns(known_labels(given, instances), known)
    columns = getattr(given, "columns", None)
    if columns is not None and len(columns) > 1 and known is None:  # a pandas frame
        known = known_classes(list(columns))
    form = given if isinstance(given, list | tuple) else np.asarray(given)
    if isinstance(form, np.ndarray) and not form.ndim:
        raise ValueError(
            f"y must hold the labels of {instances} instances, got {_form(given)}: give CSR, or a "
            "list of the labels of each instance"
        )
    if len(form) != instances:
        raise ValueError(
            f"y must hold the labels of {instances} instances as X does, got {len(form)}"
        )
    if isinstance(form, np.ndarray) and form.ndim == 2 and form.shape[1] == 1:
        warnings.warn(
            "A column-vector y was passed when a 1d array was expected: each instance has what "
            "stands in the column. Give CSR for one column of 0 and 1.",
            DataConversionWarning,
            stacklevel=2,
        )
        form = form[:, 0]
    if isinstance(form, np.ndarray) and form.ndim > 1:
        return _by_indicator(form, known)
    if any(isinstance(each, _SETS) for each in form):
        return _by_sets(form, known, ignore_unknown)
    return _by_one_each(_array(form), known, ignore_unknown)


def known_classes(given: Any) -> np.ndarray:
    """Names of labels [labels], each once and on one line; ValueError for others."""
    names = _array(given)
    if names.ndim != 1 or not len(names):
        raise ValueError(f"classes must be the names of the labels, as a list, got {_form(given)}")
    if names.dtype.kind in "OU":
        if not all(isinstance(name, str) for name in names):
            raise ValueError("names of labels must be all text or all numbers")
        for name in names.tolist():
            if set(name) & _ENDS:
                raise ValueError(f"names of labels must be one line each, got {name!r}")
        names = names.astype(object)  # a long name makes no other longer
    elif names.dtype.kind not in "biuf":
        raise ValueError(f"names of labels must be text or numbers, got {names.dtype}")
    elif not np.isfinite(names).all():
        raise ValueError("names of labels must be finite numbers, or text")
    counts = Counter(names.tolist())
    if len(counts) < len(names):
        raise ValueError(f"classes has the label {counts.most_common(1)[0][0]!r} twice")
    return names


def _form(given: Any) -> str:
    """What was given, for a message: of an array or a list its type and shape, not its values."""
    shape = getattr(given, "shape", None)
    if isinstance(given, Collection) or shape:
        return f"{type(given).__name__}" + (f" {list(shape)}" if shape else "")
    return repr(given)


def _ids(labels: int) -> np.ndarray:
    """Ids of so many labels; TooLargeError where memory has no room for them."""
    size, available = 24 * labels, available_bytes()  # with the copies that checks make
    if size > available:
        raise TooLargeError(
            f"y has label ids up to {labels - 1}: the ids of so many labels alone are "
            f"{size_text(size)}, and {size_text(available)} are available here; if these are "
            "names and not ids, give them as text"
        )
    return np.arange(labels)


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
        classes = _ids(labels)
    if len(classes) != labels:
        raise ValueError(f"y has {labels} labels (columns), but there are {len(classes)} classes")
    return Targets(positives, classes, is_single=False)


def _by_indicator(given: np.ndarray, classes: np.ndarray | None) -> Targets:
    if given.dtype.kind == "O" and all(isinstance(value, Real) for value in given.flat):
        given = given.astype(np.float64)  # of a frame whose values may be missing
    is_number = given.dtype.kind in "biuf"
    if given.ndim != 2 or not is_number or not ((given == 0) | (given == 1)).all():
        raise ValueError(
            f"a dense y [instances, labels] must be of 0 and 1, got {given.dtype} "
            f"{list(given.shape)}; give CSR, or a list of the labels of each instance"
        )
    return _by_columns(known_labels(sp.csr_array(given), len(given)), classes)


def _by_one_each(given: np.ndarray, classes: np.ndarray | None, ignore_unknown: bool) -> Targets:
    if given.dtype.kind == "O":
        _check_one_each(given)
    check_classification_targets(given)
    if given.dtype.kind not in "biufUO":
        raise ValueError(f"Unknown label type: {given.dtype}")
    if classes is None:
        classes = known_classes(np.unique(given))
    names = given.tolist()
    return Targets(_positives(([name] for name in names), classes, ignore_unknown), classes, True)


def _check_one_each(given: np.ndarray) -> None:
    """ValueError where these are not all names or all numbers."""
    are_names = isinstance(given[0], str)
    for instance, name in enumerate(given):
        if not isinstance(name, str | Real):
            raise ValueError(
                f"y[{instance}] is {name!r}, a {type(name).__name__}, which is no label: give a "
                "name (text) or a number, or for each instance a list of its labels, which may be "
                "empty"
            )
        if isinstance(name, str) != are_names:
            raise ValueError(
                f"y must be all names (text) or all numbers, but y[0] is {given[0]!r} and "
                f"y[{instance}] is {name!r}; for instances without a label give lists of labels"
            )


def _by_sets(
    given: Sequence[Any] | np.ndarray, classes: np.ndarray | None, ignore_unknown: bool
) -> Targets:
    for instance, each in enumerate(given):
        if not isinstance(each, _SETS):
            raise ValueError(
                f"y[{instance}] is {each!r}; where one instance has a list of labels, all must "
                "have one, which may be empty"
            )
        try:
            count = len(set(map(_plain, each)))
        except TypeError as error:  # a list within the list, say
            raise ValueError(
                f"y[{instance}] is {each!r}; its labels must be names (text) or ids"
            ) from error
        if count < len(each):
            raise ValueError(
                f"y[{instance}] has a label twice. A list holds the labels of an instance; give "
                "numpy.asarray(y) if this is a row of 0 and 1"
            )
    if classes is None:
        classes = _classes_of(given)
    rows = ([_plain(name) for name in each] for each in given)
    return Targets(_positives(rows, classes, ignore_unknown), classes, is_single=False)


def _plain(name: Any) -> Any:
    """NumPy's numbers as Python's, which are as keys the same but take longer."""
    return name.item() if isinstance(name, np.generic) else name


def _classes_of(given: Sequence[Any] | np.ndarray) -> np.ndarray:
    """Names in order; or, of ids, all up to the largest."""
    names: set[Any] = set()
    for instance, each in enumerate(given):
        for name in {name for name in map(_plain, each) if name not in names}:
            if fault := _fault(name, names):
                raise ValueError(
                    f"y[{instance}] has the label {name!r}, {fault}: labels must be all names or "
                    "all ids"
                )
            names.add(name)
    if not names:
        raise ValueError("y: no instance has a label: there is nothing to learn")
    if isinstance(next(iter(names)), str):
        return known_classes(np.array(sorted(names), object))
    return _ids(max(names) + 1)


def _fault(name: Any, others: set[Any]) -> str | None:
    """What is wrong with a label beside these others, None where nothing is."""
    if not isinstance(name, str | Integral) or isinstance(name, bool):
        return "which is neither a name (text) nor an id (a whole number)"
    other = next(iter(others), name)  # all others are of one type
    if isinstance(name, str) != isinstance(other, str):
        return f"and another one is {other!r}"
    if not isinstance(name, str) and name < 0:
        return "and ids are at least 0"
    return None


def _finder(classes: np.ndarray) -> Callable[[Any], int | None]:
    """A function that gives the id of a name, or None where no label has that name."""
    if not are_ids(classes):
        return {name: label for label, name in enumerate(classes.tolist())}.get
    labels = len(classes)

    def find(name: Any) -> int | None:
        # A dictionary of as many ids would take far more memory than the labels that occur.
        is_known = isinstance(name, int | float) and 0 <= name < labels and name == int(name)
        return int(name) if is_known else None

    return find


def _positives(
    rows: Iterable[Collection[Any]], classes: np.ndarray, ignore_unknown: bool
) -> sp.csr_array:
    find = _finder(classes)
    columns: list[int] = []
    starts = [0]
    for instance, names in enumerate(rows):
        known = sorted(label for name in names if (label := find(name)) is not None)
        if len(known) < len(names) and not ignore_unknown:
            unknown = next(name for name in names if find(name) is None)
            raise ValueError(
                f"y[{instance}] has the label {unknown!r}, which is none of the classes"
            )
        columns += known
        starts.append(len(columns))
    ones = np.ones(len(columns), bool)
    shape = (len(starts) - 1, len(classes))
    index = np.int32 if len(columns) < 2**31 else np.int64
    return sp.csr_array((ones, np.array(columns, index), np.array(starts, index)), shape=shape)
