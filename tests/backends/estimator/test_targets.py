"""Labels in all their forms become the same positives; what is no labels is refused by name."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from sklearn.exceptions import DataConversionWarning

from fanin.backends.estimator.targets import known_targets

INDICATOR = np.array([[1, 0, 1], [0, 0, 0], [0, 1, 0]])
NAMES = ["ant", "bee", "cat"]
SETS = [["cat", "ant"], [], ["bee"]]


def check(targets, classes, is_single=False):
    np.testing.assert_array_equal(targets.positives.toarray(), INDICATOR)
    assert targets.positives.has_canonical_format
    assert targets.classes.tolist() == classes
    assert targets.is_single == is_single


@pytest.mark.parametrize(
    "given",
    [
        sp.csr_array(INDICATOR),
        sp.coo_matrix(INDICATOR),
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
        ([["a"], [1], []], None, "all names .* or all ids"),
        ([[0.5], [1], []], None, "all names .* or all ids .*, got 0.5"),
        ([[-1], [1], []], None, "has the label id -1"),
        ([[], [], []], None, "no instance has a label"),
        (SETS, ["ant", "bee"], r"y\[0\] has the label 'cat', which is none of the classes"),
        (SETS, ["ant", "bee", "cat", "bee"], "classes has the label 'bee' twice"),
        (SETS, [], "classes must be the names"),
        (SETS, [["ant"]], "classes must be the names"),
        (SETS, ["ant", 1], "names of labels"),
        ([["a\nb"], [], []], None, r"one line each, got 'a\\nb'"),
        (["a", 1, "b"], None, "Unknown label type|got both"),
        ([0.5, 1.25, 3], None, "continuous"),
        ([np.nan, 1, 3], None, "NaN"),
        (7, None, "y must hold the labels of 3 instances, got 7"),
        (sp.csr_array(-INDICATOR), None, "labels has the value -1"),
    ],
)
def test_refused(given, classes, message):
    with pytest.raises(ValueError, match=message):
        known_targets(given, 3, classes)
