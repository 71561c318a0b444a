"""Failed runs: gaps in the comparison, and a table of their errors."""

from __future__ import annotations

import numpy as np
from made_results import (
    failed,
    run,
    task,
)

from fanin.reports.frames import comparison_frame
from fanin.reports.tables.failures import failures_table


def test_failed_runs_are_a_row_of_gaps_and_an_entry_with_the_error() -> None:
    runs = [run(), failed(for_task=task(architecture="dense"), message="a | b")]
    (dense,) = (r for r in comparison_frame(runs).to_dict("records") if r["setup"] == "Dense")
    assert dense["n"] == 0
    assert np.isnan(dense["test_p1"])
    assert dense["connectivity"] == 512  # known from the other run of this data set
    table = failures_table(runs)
    assert table is not None
    assert [cell.text for cell in table.rows[0]] == ["Dense", "torch", "0", "MemoryError: a | b"]
    assert "a \\| b" in table.markdown()
    assert failures_table([run()]) is None
