"""The estimator passes scikit-learn's own checks, in both backends."""

from __future__ import annotations

import pytest
from frameworks import EACH_BACKEND
from sklearn.utils.estimator_checks import check_estimator

from fanin.backends.estimator.classifier import FanInClassifier

# What is not done as the checks want it, and why.
EXCEPTIONS = {
    "check_classifiers_multilabel_output_format_predict": "predictions are CSR: a dense array of "
    "all labels is never made",
    "check_classifiers_multilabel_representation_invariance": "a list holds the labels of an "
    "instance, and is no row of an indicator",
}


@pytest.mark.slow
@pytest.mark.parametrize("backend", EACH_BACKEND)
@pytest.mark.filterwarnings("ignore")
def test_scikit_learns_checks(backend):
    results = check_estimator(
        FanInClassifier(epochs=20, random_state=0, backend=backend),
        expected_failed_checks=EXCEPTIONS,
        on_fail=None,
    )
    failed = {
        each["check_name"]: each["exception"] for each in results if each["status"] == "failed"
    }
    assert failed == {}
    expected = {each["check_name"] for each in results if each["status"] == "xfail"}
    assert expected == set(EXCEPTIONS)
    assert sum(each["status"] == "passed" for each in results) > 50
