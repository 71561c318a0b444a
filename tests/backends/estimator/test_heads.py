"""The estimator with a layer of its own for frequent labels, in both backends."""

from __future__ import annotations

import numpy as np
import pytest
from frameworks import EACH_BACKEND
from planted import FAN_IN, LABELS, planted_data
from sklearn.base import clone

from fanin.backends.arrays import initial_arrays
from fanin.backends.estimator.classifier import FanInClassifier
from fanin.backends.estimator.fitting import new_trainer
from fanin.backends.estimator.loading import load
from fanin.backends.estimator.settings import Settings
from fanin.backends.head_and_tail import HeadAndTail
from fanin.backends.kinds import ORDER, Dense, FixedFanIn, GroupedFanIn

X, Y = planted_data(600)


@pytest.mark.parametrize("backend", EACH_BACKEND)
@pytest.mark.parametrize(
    ("more", "output"),
    [
        ({}, HeadAndTail(Dense(), FixedFanIn(FAN_IN), 20)),
        (
            {"head_fan_in": 12, "group_size": 8},
            HeadAndTail(FixedFanIn(12), GroupedFanIn(FAN_IN, 8), 20),
        ),
        (
            {"head_fan_in": 1000, "fan_in": None, "intermediate": 64},
            HeadAndTail(FixedFanIn(64), Dense(), 20),
        ),
    ],
)
def test_frequent_labels_have_a_layer_of_their_own(backend, more, output, tmp_path):
    ways = {"fan_in": FAN_IN, "head_fraction": 0.2, "early_stopping": True, "epochs": 20} | more
    model = FanInClassifier(backend=backend, random_state=0, threads=1, **ways)
    fitted = clone(model).fit(X, Y)
    assert fitted.setup_.output == output and fitted.score(X, Y) > 0.4
    assert 1 <= fitted.best_epoch_ <= 20
    order = fitted._model.predictor.arrays()[ORDER]
    assert sorted(order) == [*range(LABELS)]
    counts = Y[:, order].sum(0)  # of the instances that were not held out, nearly
    assert counts[:20].mean() > counts[20:].mean() + 3
    top, scores = fitted.predict_top_k(X, 5), fitted.decision_function(X)
    expected = np.argsort(-scores, axis=1, kind="stable")[:, :5]
    np.testing.assert_array_equal(top.ids, expected)
    fitted.save(tmp_path / "model")
    np.testing.assert_array_equal(load(tmp_path / "model").predict_top_k(X, 5).ids, top.ids)
    again = load(tmp_path / "model", backend=backend)
    assert again.get_params()["head_fraction"] == 0.2
    again.set_params(random_state=0, threads=1).partial_fit(X, Y)
    assert again.score(X, Y) > 0.4
    planned = model.plan(X, Y)
    trainer = new_trainer(Settings.of(fitted), planned.setup, initial_arrays(planned.setup, 0))
    assert trainer.state_bytes()[0] == planned.expected.parameter_bytes
