"""The tables as CSV."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from fanin.benchmarks.records.store import read_results
from fanin.reports.frames import comparison_frame


def test_csv_round_trips(report: Path) -> None:
    runs = list(read_results(report.parent.parent))
    expected = comparison_frame(runs)
    assert "torch,Dense,512,," in (report.parent / "comparison.csv").read_text()  # not 512.0
    back = pd.read_csv(report.parent / "comparison.csv", dtype={"intermediate": "str"})
    assert list(back.columns) == list(expected.columns)
    for column in expected.columns:
        gaps = expected[column].isna().tolist()
        assert back[column].isna().tolist() == gaps, column
        pairs = zip(back[column], expected[column], gaps, strict=True)
        known = [(a, b) for a, b, gap in pairs if not gap]
        if column in expected.select_dtypes("number"):
            assert [a for a, _ in known] == pytest.approx([b for _, b in known]), column
        else:
            assert [a for a, _ in known] == [b for _, b in known], column
    part = pd.read_csv(report.parent / "words" / "lsa" / "comparison.csv")
    assert len(part) == (expected["dataset"] == "words").sum()
