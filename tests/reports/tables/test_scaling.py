"""Steps over ranks: what is computed, and what was measured beside it."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from made_results import machine

from fanin.benchmarks.records.timing import FloorStep, FloorTimes, RankTimes
from fanin.reports.format import GAP
from fanin.reports.tables.ranks import ranks_table
from fanin.reports.tables.scaling import (
    Network,
    communication_seconds,
    kernel_seconds,
    limits_table,
    links_introduction,
    links_table,
    reduced_bytes,
    scaling_introduction,
    scaling_table,
)

NOW = datetime(2026, 1, 2, tzinfo=UTC)
FAST = Network(1e9, message_seconds=1e-3)


def _floor(*steps: FloorStep) -> FloorTimes:
    return FloorTimes(
        started=NOW, machine=machine(), labels=1_000_000, fan_in=32, batch=32, steps=[*steps]
    )


def _step(**values: Any) -> FloorStep:
    usual = {
        "inputs": 1000,
        "dtype": "float32",
        "optimizer": "adam",
        "group_size": 0,
        "bytes_moved": 1,
        "multiply_adds": 1,
        "seconds": [0.05, 0.06, 0.07],
        "bandwidths": [1e9],
        "multiply_add_rates": [1e9],
    }
    return FloorStep.model_validate({**usual, **values})


def test_a_ring_sends_nearly_twice_the_gradient() -> None:
    gradient = 32 * 1000 * 4
    assert reduced_bytes(32, 1000, 1) == 0
    assert reduced_bytes(32, 1000, 2) == gradient
    assert reduced_bytes(32, 1000, 64) == pytest.approx(2 * gradient * 63 / 64)


def test_communication_is_bytes_over_the_rate_and_messages() -> None:
    assert communication_seconds(32, 1000, 1, FAST) == 0
    bits = 8 * 32 * 1000 * 4
    seconds = bits / 1e9 * 1538 / 1448  # of frames on an Ethernet
    assert communication_seconds(32, 1000, 2, FAST) == pytest.approx(seconds + 3e-3)
    assert communication_seconds(32, 1000, 4, FAST) == pytest.approx(1.5 * seconds + 9e-3)


def test_kernels_take_as_long_for_each_label() -> None:
    step = _step()
    assert kernel_seconds(_floor(step), step, 1_000_000, 1) == pytest.approx(0.06)
    assert kernel_seconds(_floor(step), step, 4_000_000, 8) == pytest.approx(0.03)


def test_the_table_has_the_paper_s_layer_and_the_smallest_one() -> None:
    smallest = _step(dtype="bfloat16", optimizer="sgd", group_size=32)
    times = _floor(_step(), smallest, _step(group_size=32), _step(optimizer="sgd"))
    rows = [[cell.text for cell in row] for row in scaling_table(times).rows]
    assert len(rows) == 3 * 2 * 3  # labels, layers, networks
    first = rows[0]
    assert first[:6] == ["2,812,281", "1,000", "float32", "adam", "none", "10 Gbit/s"]
    # 60 ms * 2.812281; half of it, and 1 megabit at 10 Gbit/s with three messages of 20 us.
    assert first[6:8] == ["169", "84.5 (0 %)"]
    assert rows[3][2:5] == ["bfloat16", "sgd", "32"]
    assert "not measured" in scaling_introduction(times)
    assert "synthetic" in scaling_introduction(times)


def test_where_communication_takes_over() -> None:
    times = _floor(_step(inputs=100_000))
    row = [cell.text for cell in limits_table(times).rows[0]]
    assert row[:5] == ["100,000", "float32", "adam", "none", "10 Gbit/s"]
    assert row[5:7] == ["12.21", "24.41"]
    ranks, network = int(row[7]), Network(10e9)
    kernels = [kernel_seconds(times, times.steps[0], 2_812_281, n) for n in (ranks - 1, ranks)]
    sent = [communication_seconds(32, 100_000, n, network) for n in (ranks - 1, ranks)]
    assert sent[0] <= kernels[0] and sent[1] > kernels[1]


def test_measured_links_stand_beside_what_is_computed() -> None:
    def measured(bits: float | None, **more: list[float]) -> RankTimes:
        return RankTimes(
            started=NOW, machine=machine(), labels=1000, fan_in=32, batch=32, ranks=2, inputs=1000,
            seconds={"one": [0.09] * 3, "several": [0.1] * 3, **more},
            cpu_seconds={"one": [0.1], "several": [0.1], "within": [0.2]}, bits_per_second=bits,
        )  # fmt: skip

    results = [measured(1e9), measured(None), measured(1e9, within=[0.095] * 3)]
    older, row = ([cell.text for cell in row] for row in links_table(results).rows)
    assert row[:3] == older[:3] == ["1 Gbit/s", "2", "1,000"]
    # A gradient of 32 * 1000 * 4 bytes in frames, and three messages.
    assert row[6:] == ["1.15", "91.1", "1.10", "1.04"]
    assert (older[4], older[9]) == (GAP, GAP) and older[6:9] == row[6:9]
    lines = [[cell.text for cell in line] for line in ranks_table(results[2]).rows]
    assert [line[0].partition(", ")[2] for line in lines] == [
        "2 threads",
        "1 thread each, within the machine",
        "1 thread each, over the link",
    ]
    assert [line[2] for line in lines] == ["100.0", "200.0", "100.0"]
    assert "synthetic" in links_introduction(results)
