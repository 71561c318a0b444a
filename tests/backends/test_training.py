"""How a recipe trains: the learning rate of each step, when and how much is rewired."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fanin.backends.recipes import Recipe
from fanin.backends.training import Schedule, has_rewiring, rewire_due, rewire_fraction


@pytest.mark.parametrize(
    ("rate", "then"), [(1e-3, 5e-4), (1.5e-4, 1e-4), (1e-4, 1e-4), (1e-6, 1e-6)]
)
def test_the_schedule_never_raises_the_learning_rate(rate, then):
    schedule = Schedule(Recipe(learning_rate=rate), steps=100)
    for _ in range(3):
        schedule.observe(1, 0.5)
    assert schedule.rate == schedule.rate_at(77) == then
    assert schedule.keeps_rate_until(1) == math.inf


def test_a_linear_schedule_falls_to_its_end_and_never_ends_early():
    recipe = Recipe(learning_rate=1e-2, schedule="linear")
    schedule = Schedule(recipe, steps=500)
    rates = [schedule.rate_at(step) for step in range(1, 501)]
    assert rates[:50] == [1e-2] * 50 and rates[50:100] == [pytest.approx(9e-3)] * 50
    assert rates[499] == pytest.approx(1e-3)
    assert schedule.keeps_rate_until(1) == schedule.keeps_rate_until(50) == 50
    assert schedule.keeps_rate_until(51) == 100
    assert Schedule(recipe, steps=5_000_000).rate_at(5_000_000) == pytest.approx(2e-4)
    for _ in range(20):
        schedule.observe(1, 0.5)
    assert not schedule.is_over and schedule.rate_at(1) == 1e-2


def test_when_rewiring_is_due():
    def steps(interval, **more):
        recipe = Recipe(rewire_interval=interval, epochs=3, **more)
        return [s for s in range(1, 13) if rewire_due(s, recipe, steps_per_epoch=4)]

    assert steps(3) == [1, 4, 7, 10]
    assert steps(-1) == [1, 5, 9]
    assert steps(0) == []
    assert steps(3, rewire_until=0.5) == [1, 4, 7]
    assert steps(-1, rewire_towards="gradient") == [5, 9]


def test_whether_anything_has_rewiring():
    def ever(**given):
        return has_rewiring(Recipe(**given), steps_per_epoch=4)

    assert ever() and ever(epochs=1, rewire_interval=-1)
    assert not ever(rewire_interval=0)
    towards = {"rewire_towards": "gradient", "rewire_until": 0.8}
    assert ever(epochs=2, rewire_interval=-1, **towards)
    assert not ever(epochs=1, rewire_interval=-1, **towards)
    assert ever(epochs=2, rewire_interval=6, **towards)
    assert not ever(epochs=2, rewire_interval=7, **towards)


def test_the_fraction_that_has_rewiring():
    def fractions(**more):
        recipe = Recipe(rewire_fraction=0.2, epochs=3, **more)
        return [rewire_fraction(s, recipe, steps_per_epoch=4) for s in (1, 5, 9)]

    assert fractions() == [0.2, 0.2, 0.2]
    falling = fractions(rewire_decay="cosine", rewire_until=2 / 3)
    np.testing.assert_allclose(falling, [0.2, 0.1, 0], atol=1e-12)
