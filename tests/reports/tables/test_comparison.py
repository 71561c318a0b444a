"""The comparison: what is marked as best, and what is marked as too small to be measured."""

from __future__ import annotations

from made_results import (
    GIB,
    memory,
    run,
    task,
)

from fanin.reports.summary import summarise
from fanin.reports.tables.against import against_table
from fanin.reports.tables.comparison import comparison_table
from fanin.reports.tables.savings import savings_table
from fanin.reports.tables.terminal import runs_text


def test_best_values_are_marked_and_gaps_never_are() -> None:
    low = memory(host_peak_rss_bytes=2 * GIB)
    runs = [
        run(p1=0.4, memory=low),
        run(p1=0.6, for_task=task(architecture="dense")),
        run(for_task=task(architecture="bottleneck"), test=None, memory=None),
    ]
    table = comparison_table(summarise(runs))
    heads = [column.head for column in table.columns]
    best = {
        (row[heads.index("setup")].text, head)
        for row in table.rows
        for head, cell in zip(heads, row, strict=True)
        if cell.best
    }
    assert {("Dense", "test P@1 (%)"), ("FFI", "memory (GiB)")} <= best
    assert not any(setup == "Bottleneck" for setup, _ in best)
    assert ("Dense", "memory (GiB)") not in best


def test_a_peak_below_what_the_arrays_hold_is_marked_and_never_best() -> None:
    """The process had room left from before; 0.5 GiB are counted, 0.25 above the baseline."""
    small = memory(host_peak_rss_bytes=GIB + GIB // 4, parameter_bytes=GIB // 2)
    runs = [run(memory=small), run(for_task=task(architecture="dense")), run("tensorflow")]
    rows = summarise(runs)
    table = comparison_table(rows)
    at = [column.head for column in table.columns].index("memory (GiB)")
    cells = {row[1].text + row[0].text: row[at] for row in table.rows}
    assert (cells["FFItorch"].text, cells["FFItorch"].best) == ("0.25†", False)
    assert cells["Densetorch"].best
    assert "† less than the arrays alone hold" in table.caption
    assert "0.25†" in runs_text(runs)
    assert "† less" in runs_text(runs)
    savings = savings_table(rows)
    assert savings is not None
    assert [cell.text for cell in savings.rows[0][2:]] == ["—", "0.8 x"]
    against = against_table(rows)
    heads = [column.head for column in against.columns]
    last = {row[0].text: row[len(heads) - 1].text for row in against.rows}
    assert last["FFI 32"] == "—"
    assert "†" not in comparison_table(summarise([run()])).markdown() + runs_text([run()])
