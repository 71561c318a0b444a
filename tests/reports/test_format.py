"""How figures are written."""

from __future__ import annotations

import pytest

from fanin.reports import format as written


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (written.number(1234.5, 1), "1,234.5"),
        (written.spread(0.125, 2), "±0.12"),
        (written.difference(-0.001, 2), "+0.00"),
        (written.difference(1.5, 1), "+1.5"),
        (written.times(8.06, 1), "8.1 x"),
        (written.percent(0.384), "38 %"),
        (written.scientific(1.23e-7), "1.2e-7"),
        (written.scientific(1e-5), "1e-5"),
        (written.scientific(0.0), "0"),
        (written.aligned_scientific(1e-5), "1.0e-05"),
        (written.milliseconds_with_quartiles([0.003, 0.006, 0.004], 3), "4.000 (3.500–5.000)"),
    ],
)
def test_figures(text: str, expected: str) -> None:
    assert text == expected


def test_what_was_not_measured_is_a_dash() -> None:
    for form in (written.number, written.difference, written.times):
        assert form(None, 2) == "—"
    for form in (written.percent, written.scientific, written.aligned_scientific):
        assert form(None) == "—"
    assert written.spread(None, 2) == ""  # it stands behind a figure


def test_units_and_decimals_suit_the_smallest_figure_of_a_column() -> None:
    assert written.memory_scale([0.5, None, 3.0]).text(0.5) == "0.50"
    small = written.memory_scale([0.05, 3.0])
    assert (small.unit, small.text(0.05), small.spread(0.001)) == ("MiB", "51.2", "±1.0")
    tiny = written.memory_scale([3e-6, 0.0, None])
    assert (tiny.unit, tiny.text(3e-6)) == ("KiB", "3.1")
    # 0 is 0 in any unit.
    assert (
        written.memory_scale([0.0, 3.0])
        == written.memory_scale([0.0])
        == (written.memory_scale([]))
    )
    assert [written.time_scale(s).decimals for s in ([120.0], [1.5, 200.0], [0.5], [None], [])] == [
        *(0, 1, 2, 2, 2),
    ]
    assert written.count_scale([3.0, None]).text(3.0) == "3"
    assert written.count_scale([3.5]).text(3.5) == "3.5"
    assert written.count_scale([3.5]).text(None) == "—"


@pytest.mark.parametrize(
    ("hours", "expected"),
    [
        ([2.0, 1234.5], ["2.0 h", "1,234.5 h"]),
        ([0.5, 2.0], ["30.0 min", "120.0 min"]),
        ([0.01], ["36.0 s"]),
        ([1e-6, 0.0], ["3.6 ms", "0 ms"]),
        ([1e-9, 0.01], ["under 0.1 ms", "36,000.0 ms"]),
    ],
)
def test_durations_have_the_unit_that_fits(hours: list[float], expected: list[str]) -> None:
    scale = written.duration_scale(hours)
    assert [f"{scale.bounded(value)} {scale.unit}" for value in hours] == expected


def test_large_counts_have_the_unit_that_fits() -> None:
    for counts, text in (([343_800_000, 2e6], "343.8 M"), ([2400], "2.4 k"), ([212, 0], "212 ")):
        scale = written.large_count_scale(counts)
        assert f"{scale.bounded(counts[0])} {scale.unit}" == text
