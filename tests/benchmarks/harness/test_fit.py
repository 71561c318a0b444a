"""The training loop: learning rate, early stopping, the best epoch, when to rewire."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.sparse as sp
from fakes import make_task

from fanin.backends.setup import Dense, LayerSetup
from fanin.benchmarks.harness import fit
from fanin.benchmarks.harness.checkpoint import Checkpoint
from fanin.benchmarks.records.base import Precision
from fanin.benchmarks.records.run import Epoch
from fanin.datasets import Batches

FAN_IN = {"architecture": "stratified", "connectivity": 8}


class FakeTrainer:
    """Notes what the loop asks of it."""

    def __init__(self):
        self.setup = LayerSetup(1, 5, Dense())
        self.epoch = 0
        self.rates = []
        self.loaded = None
        self.device = SimpleNamespace(synchronize=lambda: None)

    def train(self, batches, learning_rate, on_step=None):
        self.epoch += 1
        self.rates.append(learning_rate)
        return np.ones(sum(1 for _ in batches))

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


@pytest.mark.parametrize(
    ("rate", "then"), [(1e-3, 5e-4), (1.5e-4, 1e-4), (1e-4, 1e-4), (1e-6, 1e-6)]
)
def test_the_schedule_never_raises_the_learning_rate(rate, then):
    schedule = fit.Schedule(make_task(learning_rate=rate), steps=100)
    epoch = Epoch(
        **{"epoch": 1, "steps": 1, "loss": 1, "learning_rate": rate, "rewired": 0},
        **{"train_seconds": 1, "evaluate_seconds": 1},
        validation=Precision(at_1=0.5, at_3=0.5, at_5=0.5),
    )
    for _ in range(3):
        schedule.observe(epoch)
    assert schedule.rate == schedule.rate_at(77) == then
    assert schedule.keeps_rate_until(1) == math.inf


def test_a_linear_schedule_falls_to_its_end_and_never_ends_early():
    task = make_task(learning_rate=1e-2, schedule="linear")
    schedule = fit.Schedule(task, steps=500)
    rates = [schedule.rate_at(step) for step in range(1, 501)]
    assert rates[:50] == [1e-2] * 50 and rates[50:100] == [pytest.approx(9e-3)] * 50
    assert rates[499] == pytest.approx(1e-3)
    assert schedule.keeps_rate_until(1) == schedule.keeps_rate_until(50) == 50
    assert schedule.keeps_rate_until(51) == 100
    assert fit.Schedule(task, steps=5_000_000).rate_at(5_000_000) == pytest.approx(2e-4)
    epoch = Epoch(
        **{"epoch": 1, "steps": 1, "loss": 1, "learning_rate": 1, "rewired": 0},
        **{"train_seconds": 1, "evaluate_seconds": 1},
        validation=Precision(at_1=0.5, at_3=0.5, at_5=0.5),
    )
    for _ in range(20):
        schedule.observe(epoch)
    assert not schedule.is_over and schedule.rate_at(1) == 1e-2


def test_when_rewiring_is_due():
    def steps(interval, **more):
        task = make_task(**FAN_IN, rewire_interval=interval, epochs=3, **more)
        return [s for s in range(1, 13) if fit.rewire_due(s, task, steps_per_epoch=4)]

    assert steps(3) == [1, 4, 7, 10]
    assert steps(-1) == [1, 5, 9]
    assert steps(0) == []
    assert steps(3, rewire_until=0.5) == [1, 4, 7]
    assert steps(-1, rewire_towards="gradient") == [5, 9]


def test_the_fraction_that_is_rewired():
    def fractions(**more):
        task = make_task(rewire_fraction=0.2, epochs=3, **more)
        return [fit.rewire_fraction(s, task, steps_per_epoch=4) for s in (1, 5, 9)]

    assert fractions() == [0.2, 0.2, 0.2]
    falling = fractions(rewire_decay="cosine", rewire_until=2 / 3)
    np.testing.assert_allclose(falling, [0.2, 0.1, 0], atol=1e-12)
