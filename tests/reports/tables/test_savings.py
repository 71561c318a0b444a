"""Memory against the dense layer."""

from __future__ import annotations

from made_results import (
    GIB,
    memory,
    run,
    task,
)

from fanin.reports.summary import summarise
from fanin.reports.tables.savings import savings_table


def test_memory_saving_is_stated_measured_and_counted() -> None:
    little = memory(
        host_peak_rss_bytes=GIB + GIB // 4, parameter_bytes=1, optimizer_state_bytes=GIB // 8 - 1
    )
    table = savings_table(summarise([run(memory=little), run(for_task=task(architecture="dense"))]))
    assert table is not None
    assert [cell.text for cell in table.rows[0]] == ["torch", "FFI 32", "8.0 x", "6.0 x"]
    assert savings_table(summarise([run()])) is None
