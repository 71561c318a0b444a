"""Both backends step by step."""

from __future__ import annotations

from made_results import (
    lockstep,
    task,
)

from fanin.reports.tables.lockstep import lockstep_table


def test_lockstep_table_has_the_largest_differences_of_all_steps() -> None:
    table = lockstep_table(
        [lockstep(), lockstep(for_task=task(architecture="dense"), agreed=False)]
    )
    dense, ffi = ([cell.text for cell in row] for row in table.rows)
    assert ffi == [
        "FFI 32", "3", "2e-8", "1e-5", "6e-9", "4e-7", "output.bias", "1e-4", "3e-9", "1", "6",
        "yes",
    ]  # fmt: skip
    assert dense[0] == "Dense"
    assert dense[-1] == "NO"
