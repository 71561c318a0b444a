"""Ranking metrics beside precision."""

from __future__ import annotations

import pytest
from made_results import (
    run,
)

from fanin.benchmarks.records.base import AtK
from fanin.benchmarks.records.run import Ranking
from fanin.reports.frames import comparison_frame
from fanin.reports.summary import summarise
from fanin.reports.tables.rankings import rankings_table


def test_other_ranking_metrics_have_a_table_and_csv_columns() -> None:
    at = AtK(at_1=0.1, at_3=0.2, at_5=0.3)
    ranked = run(
        test_ranking=Ranking(ndcg=at, psp=at, psndcg=at, propensity_a=0.6, propensity_b=2.6)
    )
    table = rankings_table(summarise([ranked, run(backend="tensorflow")]))
    assert table is not None
    assert [column.head for column in table.columns[4:8]] == [
        *("P@5 (%)", "nDCG@1 (%)", "nDCG@3 (%)", "nDCG@5 (%)"),
    ]
    # A backend without them has no row; nothing is made up.
    (row,) = table.rows
    assert [cell.text for cell in row[2:]] == [
        *("50.00", "25.00", "16.67"),
        *(["10.00", "20.00", "30.00"] * 3),
        "1",
    ]
    assert comparison_frame([ranked])["test_psndcg5"].tolist() == [pytest.approx(30.0)]
    assert rankings_table(summarise([run()])) is None
