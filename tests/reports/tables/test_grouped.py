"""Layers with label groups beside those of nearest memory and of nearest training time."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
from made_results import GIB, memory, run, task

from fanin.benchmarks.records.run import RunResult, Timing
from fanin.reports.summary import summarise
from fanin.reports.tables.grouped import difference_interval, grouped_tables

BEST = {"recipe": "best", "execution": "fused"}
GROUPED, PLAIN = (0.40, 0.42, 0.47, 0.41, 0.45), (0.50, 0.44, 0.49, 0.46, 0.47)


def _runs(
    precisions: tuple[float, ...], gib: float, seconds: tuple[float, ...] = (), **values: object
) -> list[RunResult]:
    """Repeats of a task. seconds: of their trainings; by default unlike each other."""
    counted = memory(parameter_bytes=int(gib * GIB), optimizer_state_bytes=0)
    of_task = task(**BEST | values)
    seconds = seconds or tuple(10.0 * (1 + number) for number in range(len(precisions)))
    return [
        run(repeat=number, p1=p1, for_task=of_task, memory=counted, timing=_timing(trained))
        for number, (p1, trained) in enumerate(zip(precisions, seconds, strict=True))
    ]


def _timing(seconds: float) -> Timing:
    return Timing(
        train_seconds=seconds - 1, choose_seconds=1, evaluate_seconds=2, final_evaluate_seconds=1,
        median_step_seconds=1,
    )  # fmt: skip


def _lines(*runs: RunResult, at_equal: str = "memory") -> list[list[str]]:
    tables = grouped_tables(summarise(runs))
    (table,) = (each for each in tables if f"nearest {at_equal}:" in each.caption)
    return [[f"{cell.text} {cell.spread}".strip() for cell in row] for row in table.rows]


def test_each_stands_beside_the_layer_of_nearest_memory() -> None:
    (line,) = _lines(
        *_runs(GROUPED, 0.9, group_size=16, grouping="meaning"),
        *_runs(PLAIN, 1.0, connectivity=32),
        *_runs(PLAIN, 0.5, connectivity=16),
        *_runs(PLAIN, 2.0, connectivity=64),
        *_runs(PLAIN, 0.9, connectivity=30, dropout=0.2),  # trained in another way
    )
    assert line == [
        *("torch", "FFI 32/g16", "meaning", "FFI 32", "0.90", "—"),
        *("-4.20 ±3.91", "-2.10 ±1.96", "-1.40 ±1.30", "—", "5"),
    ]


def test_a_head_stands_beside_a_plain_layer_too() -> None:
    (line, other) = _lines(
        *_runs(GROUPED, 1.9, head_fraction=0.1),
        *_runs(GROUPED, 2.0, head_fraction=0.1, group_size=16),
        *_runs(PLAIN, 1.0, connectivity=32),
        *_runs(PLAIN, 2.0, connectivity=64),
    )
    assert line[:5] == ["torch", "Dense 10 % + FFI 32", "—", "FFI 64", "0.95"]
    assert other[:5] == ["torch", "Dense 10 % + FFI 32/g16", "the recipe's", "FFI 64", "1.00"]


def test_at_equal_time_it_stands_beside_another_layer() -> None:
    """Times that are not steady are not compared."""
    (line,) = _lines(
        *_runs(GROUPED, 0.9, (51, 52, 53, 49, 50), group_size=16, grouping="meaning"),
        *_runs(GROUPED, 0.9, group_size=32, grouping="meaning"),
        *_runs(PLAIN, 1.0, (101, 99, 100, 101, 99), connectivity=32),
        *_runs(PLAIN, 0.5, (60, 61, 59, 60, 60), connectivity=16),
        *_runs(PLAIN, 0.8, (51, 52, 60, 43, 51), connectivity=24),
        at_equal="training time",
    )
    assert line[1:6] == ["FFI 32/g16", "meaning", "FFI 16", "1.80", "0.85"]


def test_the_grouping_of_the_recipe_and_no_spread() -> None:
    (line,) = _lines(*_runs((0.4,), 1, group_size=8), *_runs((0.5,), 1))
    assert line[2] == "the recipe's"
    assert line[6] == "-10.00"


def test_no_table_where_nothing_stands_beside() -> None:
    grouped = _runs(GROUPED, 1, group_size=8)
    assert grouped_tables(summarise(grouped)) == ()
    assert grouped_tables(summarise(_runs(PLAIN, 1))) == ()
    assert grouped_tables(summarise([*grouped, *_runs(PLAIN, 1, architecture="dense")])) == ()


def test_interval_is_welchs() -> None:
    grouped, plain = summarise([*_runs(GROUPED, 1, group_size=8), *_runs(PLAIN[:4], 1)])[::-1]
    if not grouped.setup.group_size:
        grouped, plain = plain, grouped
    interval = difference_interval(grouped, plain, "test_p1")
    known = scipy.stats.ttest_ind(
        100 * np.array(GROUPED), 100 * np.array(PLAIN[:4]), equal_var=False
    ).confidence_interval(0.95)
    assert interval.difference == pytest.approx((known.low + known.high) / 2)
    assert interval.half == pytest.approx((known.high - known.low) / 2)
