"""The estimator with weights in float8: it learns, and a file has the numbers that they are."""

from __future__ import annotations

import numpy as np
import pytest
from frameworks import EACH_BACKEND
from planted import FAN_IN, planted_data

from fanin.backends.estimator.classifier import FanInClassifier
from fanin.backends.estimator.loading import load
from fanin.kernels import from_float8, to_float8

X, Y = planted_data(600)


@pytest.mark.parametrize("group_size", [None, 8])
@pytest.mark.parametrize("backend", EACH_BACKEND)
def test_learns_and_is_saved(backend, group_size, tmp_path):
    options = {"fan_in": FAN_IN, "group_size": group_size, "epochs": 4, "threads": 1}
    plain = FanInClassifier(backend=backend, random_state=0, **options)
    model = FanInClassifier(backend=backend, random_state=0, weights_dtype="float8", **options)
    kept = [each.plan(X, Y).expected.parameter_bytes for each in (plain, model)]
    assert kept[0] - kept[1] == Y.shape[1] * (4 * FAN_IN - (FAN_IN + 1))
    reached = [each.fit(X, Y).score(X, Y) for each in (plain, model)]
    assert reached[0] > 0.4 and reached[1] > reached[0] - 0.05
    model.save(tmp_path / "model")
    again = load(tmp_path / "model")
    weights = again.predictor.arrays()["output.weights"]
    assert weights.dtype == np.float32
    np.testing.assert_array_equal(from_float8(to_float8(weights)), weights)
    for one, other in zip(model.predict_top_k(X), again.predict_top_k(X), strict=True):
        np.testing.assert_array_equal(one, other)
