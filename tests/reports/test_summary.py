"""From runs to rows: means and spreads over repeats, memory and time, and the order of the rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from made_results import (
    GIB,
    dataset,
    failed,
    machine,
    memory,
    run,
    task,
)

from fanin.benchmarks.records.base import Memory
from fanin.reports.frames import comparison_frame
from fanin.reports.summary import summarise
from fanin.reports.table import Table
from fanin.reports.tables.comparison import comparison_markdown, comparison_table


def test_mean_and_sample_spread_over_repeats() -> None:
    runs = [run(repeat=i, p1=p1, epochs=e) for i, (p1, e) in enumerate([(0.4, 2), (0.5, 4)])]
    (row,) = comparison_frame(runs).to_dict("records")
    assert row["n"] == 2
    assert row["test_p1"] == pytest.approx(45.0)
    assert row["test_p1_std"] == pytest.approx(10 / np.sqrt(2))
    assert row["test_p5"] == pytest.approx(15.0)
    assert row["train_p3"] == pytest.approx(80.0)
    assert row["epochs"] == pytest.approx(3.0)
    assert "**45.00** ±7.07" in comparison_markdown(runs)


def test_one_run_has_no_spread() -> None:
    (row,) = comparison_frame([run()]).to_dict("records")
    assert row["n"] == 1
    assert np.isnan(row["test_p1_std"])
    assert "±" not in comparison_markdown([run()]).partition("One row")[0]


def test_time_per_epoch_includes_validation_and_stands_without_it_too() -> None:
    (row,) = comparison_frame([run(epochs=5)]).to_dict("records")
    assert row["seconds_per_epoch"] == pytest.approx(12.0)
    assert row["train_seconds_per_epoch"] == pytest.approx(10.0)


def test_memory_is_rss_above_baseline_on_a_cpu_and_allocator_peak_on_a_gpu() -> None:
    gpu = machine(gpu="Some GPU", device="cuda:0")
    used = memory(allocator_peak_bytes=GIB // 2)
    frame = comparison_frame([run(), run("tensorflow", machine=gpu, memory=used)])
    assert frame["memory_gib"].tolist() == [2.0, 0.5]
    assert frame["memory_kind"].tolist() == ["RSS above baseline", "allocator peak"]
    assert frame["counted_gib"].tolist() == [0.75, 0.75]


def _cells(table: Table) -> tuple[list[str], list[str]]:
    return [column.head for column in table.columns], [cell.text for cell in table.rows[0]]


@pytest.mark.parametrize(
    "used",
    [None, memory(host_peak_rss_bytes=None), memory(host_baseline_rss_bytes=None)],
    ids=["nothing", "no peak", "no baseline"],
)
def test_memory_that_was_not_measured_is_a_gap(used: Memory | None) -> None:
    runs = [run(memory=used)]
    frame = comparison_frame(runs)
    assert frame["memory_gib"].isna().all()
    cells = dict(zip(*_cells(comparison_table(summarise(runs))), strict=True))
    assert cells["memory (GiB)"] == "—"
    line = frame.to_csv(index=False).splitlines()[1].split(",")
    assert line[list(frame.columns).index("memory_gib")] == ""


def test_a_gpu_run_without_allocator_figures_does_not_fall_back_to_another_memory() -> None:
    frame = comparison_frame([run(machine=machine(gpu="Some GPU", device="cuda:0"))])
    assert frame["memory_gib"].isna().all()
    assert frame["memory_kind"].tolist() == ["allocator peak"]


def test_measured_and_unmeasured_repeats_are_not_mixed_as_zero() -> None:
    (row,) = comparison_frame([run(), run(repeat=1, memory=None)]).to_dict("records")
    assert row["memory_gib"] == pytest.approx(2.0)
    assert row["n"] == 2


def test_repeats_on_different_hardware_are_not_averaged() -> None:
    frame = comparison_frame([run(p1=0.4), run(repeat=1, p1=0.6, machine=machine(cores=64))])
    assert frame["test_p1"].tolist() == pytest.approx([40.0, 60.0])
    assert frame["machine"].tolist() == [1, 2]


def test_order_of_rows() -> None:
    entries: list[dict[str, Any]] = [
        {"architecture": "bottleneck"},
        {"architecture": "dense-stratified", "connectivity": 64, "intermediate": 16384},
        {"architecture": "dense-stratified", "connectivity": 32, "intermediate": 100_000},
        {"architecture": "dense-stratified", "connectivity": 32, "intermediate": 32768},
        {"architecture": "stratified", "connectivity": 64},
        {"architecture": "stratified", "connectivity": 8},
        {"architecture": "dense-sparse", "connectivity": 32, "intermediate": 32768},
        {"architecture": "sparse", "connectivity": 32},
        {"architecture": "dense"},
    ]
    runs = [run(b, for_task=task(**values)) for b in ("tensorflow", "torch") for values in entries]
    runs += [run(for_task=task(dataset="another"), dataset=dataset(name="another"))]
    frame = comparison_frame(runs)
    assert frame["dataset"].tolist() == ["another", *["words"] * 18]
    assert frame["backend"].tolist()[1:] == ["torch"] * 9 + ["tensorflow"] * 9
    columns = frame[["setup", "connectivity", "intermediate"]].astype(object)
    rows = columns.where(columns.notna(), None).values.tolist()
    expected = [
        ["Dense", 512, None],
        ["Unstructured", 32, None],
        ["Unstructured", 32, "32k"],
        ["FFI", 8, None],
        ["FFI", 64, None],
        ["FFI", 32, "32k"],
        ["FFI", 32, "100k"],
        ["FFI", 64, "16k"],
        ["Bottleneck", 64, "64"],
    ]
    assert rows[1:10] == expected
    assert rows[10:] == expected


def test_a_failed_repeat_does_not_touch_the_mean_of_the_others() -> None:
    (row,) = comparison_frame([run(p1=0.4), failed(repeat=1)]).to_dict("records")
    assert row["n"] == 1
    assert row["test_p1"] == pytest.approx(40.0)
