"""The training loop: learning rate, early stopping, the best epoch, when to rewire."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import scipy.sparse as sp
from fakes import make_task

from fanin.backends.kinds import Dense
from fanin.backends.setup import LayerSetup
from fanin.benchmarks.harness import fit
from fanin.benchmarks.harness.checkpoint import Checkpoint
from fanin.benchmarks.records.base import Precision
from fanin.datasets import Batches


class FakeTrainer:
    """Notes what the loop asks of it."""

    def __init__(self):
        self.setup = LayerSetup(1, 5, Dense())
        self.epoch = 0
        self.rates = []
        self.steps = 0
        self.loaded = None
        self.device = SimpleNamespace(synchronize=lambda: None)

    def train(self, batches, learning_rate, on_step=None):
        self.epoch += 1
        steps = sum(1 for _ in batches)
        rates = [learning_rate(self.steps + 1 + step) for step in range(steps)]
        self.rates.append(rates[0])
        self.steps += steps
        return np.ones(steps)

    def arrays(self):
        return ((name, np.full(1, self.epoch)) for name in self.setup.array_shapes())

    def load_weights(self, arrays):
        self.loaded = {k: int(v[0]) for k, v in arrays.items()}


@pytest.fixture
def run_fit(monkeypatch, tmp_path):
    """Train with a validation P@3 per epoch that is given."""

    def run(values):
        trainer = FakeTrainer()

        def evaluate(trainer, x, y):
            value = values[trainer.epoch - 1]
            return Precision(at_1=value, at_3=value, at_5=value)

        monkeypatch.setattr(fit, "evaluate", evaluate)
        y = sp.csr_array(np.ones((70, 5), bool))
        x = np.zeros((70, 1), np.float32)
        checkpoint = Checkpoint(tmp_path / "run.checkpoint", {}, 60)
        chosen = make_task(epochs=len(values))
        done = fit.fit(trainer, Batches(x, y), (x, y), chosen, 0, checkpoint)
        return trainer, done

    return run


class TestFit:
    def test_halves_the_rate_after_two_epochs_without_a_rise_of_a_thousandth(self, run_fit):
        trainer, _ = run_fit([0.1, 0.1009, 0.1009, 0.2, 0.3, 0.3, 0.3, 0.4])
        assert trainer.rates == [1e-3, 1e-3, 1e-3, 5e-4, 5e-4, 5e-4, 5e-4, 2.5e-4]

    def test_the_rate_has_a_floor(self, run_fit):
        # Rises by more than 5e-5 an epoch, so training goes on; by less than 1e-3 in twelve.
        trainer, done = run_fit([0.1 + 6e-5 * i for i in range(12)])
        assert len(done.history) == 12
        assert trainer.rates[-1] == 1e-4
        assert sorted(trainer.rates, reverse=True) == trainer.rates

    def test_stops_after_four_epochs_without_a_rise_and_restores_the_best(self, run_fit):
        trainer, done = run_fit([0.1, 0.2, 0.3, 0.3, 0.29, 0.3, 0.28, 0.33, 0.33])
        assert len(done.history) == 7
        assert done.best_epoch == 3
        assert trainer.loaded == {"output.weights": 3, "output.bias": 3}

    def test_last_epoch_best_needs_no_restoring(self, run_fit):
        trainer, done = run_fit([0.1, 0.2])
        assert (trainer.loaded, done.best_epoch) == (None, 2)
