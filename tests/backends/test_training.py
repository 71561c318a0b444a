"""How a recipe trains: the learning rate of each step, when and how much is rewired."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fanin.backends.recipes import Recipe
from fanin.backends.training import (
    Schedule,
    has_rewiring,
    rewire_due,
    rewire_fraction,
    rewire_threshold,
)


@pytest.mark.parametrize(
    ("rate", "then"), [(1e-3, 5e-4), (1.5e-4, 1e-4), (1e-4, 1e-4), (1e-6, 1e-6)]
)
def test_the_schedule_never_raises_the_learning_rate(rate, then):
    schedule = Schedule(Recipe(learning_rate=rate), steps=100)
    for _ in range(3):
        schedule.observe(1, 0.5)
    assert schedule.rate == schedule.rate_at(77) == then


def test_a_linear_schedule_falls_to_its_end_and_never_ends_early():
    recipe = Recipe(learning_rate=1e-2, schedule="linear")
    schedule = Schedule(recipe, steps=500)
    rates = [schedule.rate_at(step) for step in range(1, 501)]
    assert rates[:50] == [1e-2] * 50 and rates[50:100] == [pytest.approx(9e-3)] * 50
    assert rates[499] == pytest.approx(1e-3)
    assert Schedule(recipe, steps=5_000_000).rate_at(5_000_000) == pytest.approx(2e-4)
    for _ in range(20):
        schedule.observe(1, 0.5)
    assert not schedule.is_over and schedule.rate_at(1) == 1e-2


def test_a_cosine_falls_to_0_with_each_step_and_never_ends_early():
    schedule = Schedule(Recipe(learning_rate=1e-2, schedule="cosine"), steps=200)
    rates = np.array([schedule.rate_at(step) for step in range(1, 202)])
    expected = 5e-3 * (1 + np.cos(np.pi * np.arange(201) / 200))
    np.testing.assert_allclose(rates, expected, rtol=1e-12, atol=1e-17)
    assert rates[0] == 1e-2 and (np.diff(rates) < 0).all() and 0 < rates[199] < 1e-6
    assert schedule.rate_at(900) == 0
    for _ in range(20):
        schedule.observe(1, 0.5)
    assert not schedule.is_over and schedule.rate_at(1) == 1e-2


@pytest.mark.parametrize("kind", ["plateau", "linear", "cosine"])
def test_in_a_warm_up_the_rate_rises_in_equal_parts(kind):
    whole = Recipe(learning_rate=1e-2, schedule=kind)
    warmed = Schedule(replace(whole, warm_up=0.2), steps=500)
    rates = [warmed.rate_at(step) for step in range(1, 501)]
    np.testing.assert_allclose(rates[:100], 1e-4 * np.arange(1, 101), rtol=1e-12)
    # What follows is a schedule of the steps that are left.
    rest = Schedule(whole, steps=400)
    np.testing.assert_allclose(
        rates[100:], [rest.rate_at(step) for step in range(1, 401)], rtol=1e-12
    )


def test_a_warm_up_of_less_than_a_step_changes_nothing():
    recipe = Recipe(schedule="cosine", warm_up=1e-6)
    rates = [Schedule(recipe, steps=100).rate_at(step) for step in range(1, 101)]
    plain = Schedule(replace(recipe, warm_up=0), steps=100)
    np.testing.assert_allclose(rates, [plain.rate_at(step) for step in range(1, 101)], rtol=1e-4)


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


def test_the_threshold_of_rewiring_falls_as_the_fraction_does():
    def thresholds(**more):
        recipe = Recipe(epochs=3, rewire_until=2 / 3, **more)
        return [rewire_threshold(s, recipe, steps_per_epoch=4) for s in (1, 5, 9)]

    assert thresholds(rewire_decay="cosine") == [np.inf] * 3
    assert thresholds(rewire_threshold=0.04) == [0.04] * 3
    falling = thresholds(rewire_threshold=0.04, rewire_decay="cosine")
    np.testing.assert_allclose(falling, [0.04, 0.02, 0], atol=1e-12)
