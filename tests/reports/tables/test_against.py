"""One backend against the other."""

from __future__ import annotations

from made_results import (
    failed,
    machine,
    memory,
    run,
    task,
)

from fanin.reports.pairs import Pair
from fanin.reports.summary import summarise
from fanin.reports.tables.against import against_table


def test_a_setup_missing_in_one_backend_is_a_gap_in_the_table_of_both() -> None:
    dense = task(architecture="dense")
    runs = [
        run(),
        run("tensorflow", p1=0.6),
        run(for_task=dense),
        failed(backend="tensorflow", for_task=dense),
    ]
    table = against_table(summarise(runs))
    rows = [[cell.text for cell in row] for row in table.rows]
    assert rows == [
        ["Dense", "50.00", *"——", "12.0", *"——", "10.0", *"——", "2.00", *"——"],
        [
            *("FFI 32", "50.00", "60.00", "+10.00", "12.0", "12.0", "1.00"),
            *("10.0", "10.0", "1.00", "2.00", "2.00", "1.00"),
        ],
    ]


def test_a_setup_that_failed_in_both_backends_is_a_row_of_gaps() -> None:
    dense = task(architecture="dense")
    runs = [run(), failed(for_task=dense), failed(backend="tensorflow", for_task=dense)]
    rows = [[cell.text for cell in row] for row in against_table(summarise(runs)).rows]
    assert rows[0] == ["Dense", *["—"] * 12]


def test_different_kinds_of_memory_are_not_compared() -> None:
    gpu = machine(device="cuda:0", gpu="Some GPU")
    row, other = (
        summarise([result])[0]
        for result in (run(), run("tensorflow", machine=gpu, memory=memory(allocator_peak_bytes=1)))
    )
    assert Pair(row.setup, row, other).both("memory_gib") == (None, None)
    assert Pair(row.setup, row, other).both("test_p1") == (50.0, 50.0)
