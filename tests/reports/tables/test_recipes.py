"""What recipes gain and cost, as a table."""

from __future__ import annotations

from typing import Any

import pytest
from made_results import failed, run, task

from fanin.benchmarks.records.base import AtK, Precision
from fanin.benchmarks.records.run import Epoch, Ranking, RunResult, Timing
from fanin.reports.frames import comparison_frame
from fanin.reports.summary import summarise
from fanin.reports.tables.recipes import recipes_table
from fanin.reports.tables.terminal import runs_text

BEST = task(recipe="best")


def _timing(train: float, choose: float | None) -> Timing:
    return Timing(
        train_seconds=train, evaluate_seconds=1.0, final_evaluate_seconds=1.0,
        median_step_seconds=0.1, choose_seconds=choose,
    )  # fmt: skip


def _chosen(seconds: float = 7.0, **values: Any) -> RunResult:
    at = AtK(at_1=0.1, at_3=0.2, at_5=0.3)
    ranked = Ranking(ndcg=at, psp=at, psndcg=at, propensity_a=0.6, propensity_b=2.6)
    usual: dict[str, Any] = {
        "for_task": BEST,
        "timing": _timing(40.0, seconds),
        "test_ranking": ranked,
    }
    return run(**{**usual, **values})


def _history(*validation: float) -> list[Epoch]:
    """Epochs of 10 s each."""
    return [
        Epoch(
            epoch=number, steps=60, loss=1.0, learning_rate=1e-3, train_seconds=10.0,
            validation=Precision(at_1=p1, at_3=p1 / 3, at_5=p1 / 5),
            evaluate_seconds=2.0, rewired=0,
        )
        for number, p1 in enumerate(validation, start=1)
    ]  # fmt: skip


def _lines(*runs: RunResult) -> list[dict[str, str]]:
    table = recipes_table(summarise(runs))
    assert table is not None
    heads = [column.head for column in table.columns]
    return [
        dict(zip(heads, (f"{cell.text} {cell.spread}".strip() for cell in row), strict=True))
        for row in table.rows
    ]


def test_a_line_for_each_recipe_with_what_it_gains_and_costs() -> None:
    paper, best = _lines(run(), _chosen(seconds=7.0), _chosen(seconds=9.0, repeat=1))
    assert (best["setup"], best["recipe"], best["n"]) == ("FFI 32", "best", "2")
    assert (best["P@1 (%)"], best["P@3 (%)"], best["P@5 (%)"]) == (
        *("50.00 ±0.00", "25.00 ±0.00", "16.67 ±0.00"),
    )
    assert (best["PSP@1 (%)"], best["PSP@5 (%)"]) == ("10.00 ±0.00", "30.00 ±0.00")
    assert best["parameters + optimiser state (GiB)"] == "0.75 ±0.00"
    assert best["choosing (s)"] == "8.0 ±1.4"
    assert best["training (s)"] == "48.0 ±1.4"
    # Nothing was to choose, which costs nothing; rankings were not measured.
    assert (paper["choosing (s)"], paper["training (s)"]) == ("—", "40.0")
    assert (paper["setup"], paper["recipe"], paper["PSP@1 (%)"]) == ("FFI 32", "paper", "—")
    assert "departures" not in paper


def test_departures_stand_beside_the_recipe() -> None:
    odd = run(for_task=task(recipe="best", dropout=0.2), timing=_timing(40.0, 7.0))
    best, departing = _lines(odd, _chosen())
    assert (best["departures"], departing["departures"]) == ("—", "dropout=0.2")
    assert recipes_table(summarise([run()])) is None


@pytest.mark.parametrize(
    ("validation", "seconds"),
    [
        ((0.2, 0.4, 0.494, 0.5), 47.0),
        ((0.2, 0.495, 0.5, 0.496), 27.0),
        ((0.5, 0.4, 0.3), 17.0),
        ((0.0, 0.0), None),
    ],
    ids=["just below", "just there", "falls", "nothing learnt"],
)
def test_time_to_99_percent_of_the_best_epoch(
    validation: tuple[float, ...], seconds: float | None
) -> None:
    """With the 7 s of choosing, without validation, in whole epochs."""
    (row,) = summarise([_chosen(history=_history(*validation))])
    assert row.values["seconds_to_99"] == (None if seconds is None else pytest.approx(seconds))


def test_what_a_resumed_run_took_to_choose_is_not_taken_for_nothing() -> None:
    (line,) = _lines(_chosen(resumed=1, timing=_timing(40.0, None)))
    assert [line[f"{name} (s)"] for name in ("choosing", "training", "time to 99 %")] == ["—"] * 3
    frame = comparison_frame([run(timing=None, for_task=BEST)])
    assert frame["training_seconds"].isna().all()


def test_a_failed_setup_is_a_line_of_gaps() -> None:
    _, line = _lines(_chosen(for_task=task(architecture="dense", recipe="best")), failed(BEST))
    names = ("setup", "recipe", "P@1 (%)", "training (s)", "n")
    assert [line[name] for name in names] == ["FFI 32", "best", "—", "—", "0"]


def test_a_terminal_shows_the_costs_of_recipes_where_one_is_best() -> None:
    text = runs_text([run(), _chosen()])
    assert max(map(len, text.splitlines())) <= 100
    cells = [line.strip("| ").split() for line in text.splitlines() if "recipe best" in line]
    assert cells[-1][-13::2] == ["10.00", "20.00", "30.00", "0.75", "7.0", "47.0", "47.0"]
    assert "PSP" not in runs_text([run()])
