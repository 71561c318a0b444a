"""Labels in all their forms become the same positives; what is no labels is refused by name."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from sklearn.exceptions import DataConversionWarning

from fanin.backends.estimate import TooLargeError
from fanin.backends.estimator.targets import known_targets

INDICATOR = np.array([[1, 0, 1], [0, 0, 0], [0, 1, 0]])
NAMES = ["ant", "bee", "cat"]
SETS = [["cat", "ant"], [], ["bee"]]


def check(targets, classes, is_single=False):
    np.testing.assert_array_equal(targets.positives.toarray(), INDICATOR)
    assert isinstance(targets.positives, sp.csr_array) and targets.positives.has_canonical_format
    assert targets.classes.tolist() == classes
    assert targets.is_single == is_single


@pytest.mark.parametrize(
    "given",
    [
        sp.csr_array(INDICATOR),
        sp.coo_matrix(INDICATOR),
        sp.csr_matrix(INDICATOR),
        INDICATOR.astype(object),
        pd.DataFrame(INDICATOR).astype("Int64").to_numpy(),
        INDICATOR,
        INDICATOR.astype(bool),
        INDICATOR.astype(float),
        [[2, 0], [], [1]],
        [{2, 0}, set(), {1}],
        ([np.int64(0), 2], (), frozenset([1])),
        [np.array([0, 2]), np.array([], int), np.array([1])],
        pd.Series([[2, 0], [], [1]]),
    ],
    ids=lambda given: type(given).__name__,
)
def test_ids_in_all_forms(given):
    check(known_targets(given, 3), [0, 1, 2])


@pytest.mark.parametrize("given", [SETS, tuple(map(set, SETS)), pd.Series(SETS)])
def test_names_are_in_order(given):
    check(known_targets(given, 3), NAMES)


def test_names_of_columns():
    check(known_targets(sp.csr_array(INDICATOR), 3, NAMES), NAMES)
    check(known_targets(pd.DataFrame(INDICATOR, columns=NAMES), 3), NAMES)


def test_classes_decide_the_order_of_ids():
    targets = known_targets(SETS, 3, ["cat", "bee", "dog", "ant"])
    np.testing.assert_array_equal(
        targets.positives.toarray(), [[1, 0, 0, 1], [0] * 4, [0, 1, 0, 0]]
    )


def test_ids_count_all_up_to_the_largest():
    assert known_targets([[5], [1]], 2).positives.shape == (2, 6)


@pytest.mark.parametrize(
    ("given", "classes"),
    [(["b", "a", "b"], ["a", "b"]), (np.array([7, -1, 7]), [-1, 7]), ([True, False, True], [0, 1])],
)
def test_one_label_for_each_instance(given, classes):
    targets = known_targets(given, 3)
    assert targets.is_single and targets.classes.tolist() == classes
    np.testing.assert_array_equal(targets.positives.toarray(), [[0, 1], [1, 0], [0, 1]])


def test_ids_far_apart_take_no_dictionary_of_all():
    targets = known_targets([[3_000_000], [], [1]], 3)
    assert targets.positives.indices.tolist() == [3_000_000, 1]
    unknown = known_targets([[7.5], [-1], [3_000_001]], 3, targets.classes, ignore_unknown=True)
    assert not unknown.positives.nnz


@pytest.mark.parametrize("largest", [2**40, 10**30])
def test_ids_that_do_not_fit_into_memory(largest):
    with pytest.raises(TooLargeError, match=f"ids up to {largest}.*give them as text"):
        known_targets([[1], [largest], []], 3)
    if largest < 2**63:
        with pytest.raises(TooLargeError, match="ids up to"):
            known_targets(sp.csr_array(([1], ([0], [largest])), shape=(3, largest + 1)), 3)


@pytest.mark.parametrize("column", [NAMES, [["ant"], [], ["cat", "bee"]]])
def test_a_frame_of_one_column_is_the_column(column):
    with pytest.warns(DataConversionWarning, match="column-vector"):
        targets = known_targets(pd.DataFrame({"labels": column}), 3)
    assert targets.classes.tolist() == NAMES


def test_a_column_is_one_label_each():
    with pytest.warns(DataConversionWarning, match="column-vector"):
        assert known_targets(np.array([[1], [0], [1]]), 3).is_single


def test_unknown_labels_may_be_left_out():
    given = [["ant", "dog"], ["dog"], ["bee"]]
    targets = known_targets(given, 3, NAMES, ignore_unknown=True)
    np.testing.assert_array_equal(targets.positives.toarray(), [[1, 0, 0], [0, 0, 0], [0, 1, 0]])


@pytest.mark.parametrize(
    ("given", "classes", "message"),
    [
        (None, None, "requires y to be passed, but the target y is None"),
        (INDICATOR[:2], None, "y must hold the labels of 3 instances as X does, got 2"),
        (sp.csr_array(INDICATOR[:2]), None, "3 instances as in features"),
        (INDICATOR, NAMES[:2], r"y has 3 labels \(columns\), but there are 2 classes"),
        (2 * INDICATOR, None, "must be of 0 and 1, got int64"),
        (INDICATOR[None].repeat(3, 0), None, "must be of 0 and 1"),
        (np.full((3, 2), np.nan), None, "must be of 0 and 1, got float64"),
        ([[0, 1, 1], [0, 0, 1], [1, 0, 0]], None, r"y\[0\] has a label twice.*numpy.asarray\(y\)"),
        ([["a"], "b", ["c"]], None, r"y\[1\] is 'b'; where one instance has a list"),
        ([["a"], [1], []], None, r"y\[1\] has the label 1, and another one is 'a'"),
        ([[0.5], [1], []], None, r"y\[0\] has the label 0.5, which is neither a name"),
        ([[1], [-1], []], None, r"y\[1\] has the label -1, and ids are at least 0"),
        ([[1], [[2]], []], None, r"y\[1\] is \[\[2\]\]; its labels must be names"),
        (["a", None, "b"], None, r"y\[1\] is None, a NoneType, which is no label"),
        (["a", np.nan, "b"], None, r"y\[0\] is 'a' and y\[1\] is nan"),
        ([{1: 2}.keys(), [], []], None, "3 instances|where one instance has a list"),
        ({"a": [1]}, None, "labels of 3 instances, got dict: give CSR"),
        (iter([[1], [], []]), None, "labels of 3 instances, got <list_iterator"),
        ([[], [], []], None, "no instance has a label"),
        (SETS, ["ant", "bee"], r"y\[0\] has the label 'cat', which is none of the classes"),
        (SETS, ["ant", "bee", "cat", "bee"], "classes has the label 'bee' twice"),
        (SETS, [], "classes must be the names"),
        (SETS, [["ant"]], "classes must be the names"),
        (SETS, ["ant", 1], "names of labels"),
        ([["a\nb"], [], []], None, r"one line each, got 'a\\nb'"),
        (["a", 1, "b"], None, r"y\[0\] is 'a' and y\[1\] is 1"),
        (INDICATOR, [np.nan, 1, 2], "finite numbers, or text"),
        (sp.csr_array(INDICATOR.astype(complex)), None, "labels must be numbers, got complex"),
        (sp.csr_array(np.where(INDICATOR, np.inf, 0)), None, "labels has the value"),
        ([0.5, 1.25, 3], None, "continuous"),
        ([np.nan, 1, 3], None, "NaN"),
        (7, None, "y must hold the labels of 3 instances, got 7"),
        (np.ma.masked_equal(INDICATOR, 1), None, r"y is masked at \[0, 0\]: fill it"),
        (np.ma.masked_equal([2, 1, 2], 1), None, r"y is masked at \[1\]: fill it"),
        (sp.csr_array(-INDICATOR), None, "labels has the value -1"),
    ],
)
def test_refused(given, classes, message):
    with pytest.raises(ValueError, match=message):
        known_targets(given, 3, classes)
