"""Fused steps beside their floor: the command, its file, its table."""

from __future__ import annotations

from statistics import median

import pytest

from fanin.benchmarks.records.store import read_floor_times
from fanin.benchmarks.timing import floor
from fanin.reports.tables.floor import floor_introduction, floor_table, floors

# Bytes and multiply-adds a second: the real measurements take half a second each.
BANDWIDTH, RATE = 2e10, 5e10


@pytest.fixture
def measured(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(floor, "measured_bandwidth", lambda threads: BANDWIDTH)
    monkeypatch.setattr(floor, "measured_flops", lambda threads: 2 * RATE)
    out = tmp_path / "results" / "floor.json"
    floor.main(labels=2000, inputs=[64], fan_in=8, batch=32, count=3, threads=1, out=out)
    return read_floor_times(out), capsys.readouterr().out


def test_each_step_is_timed_with_the_rates_of_its_rounds(measured):
    times, printed = measured
    names = [(s.dtype, s.optimizer, s.group_size) for s in times.steps]
    dtypes, optimizers = ("float32", "bfloat16"), ("adam", "sgd")
    assert names == [(d, o, g) for d in dtypes for o in optimizers for g in (0, 16, 32, 64)]
    for step in times.steps:
        assert len(step.seconds) == 3
        assert step.bandwidths == [BANDWIDTH] * 3
        assert step.multiply_add_rates == [RATE] * 3
        assert step.multiply_adds == 3 * 32 * 2000 * 8
    assert times.synthetic and "synthetic" in floor_introduction(times)
    assert floor_table(times).terminal() in printed


def test_the_bytes_are_those_of_the_arrays(measured):
    times, _ = measured
    moved = {(s.dtype, s.optimizer, s.group_size): s.bytes_moved for s in times.steps}
    weights, labels, features = 2000 * 8, 2000, 32 * 64 * 4
    # Weights and biases with both moments, read and written; indices; features and their gradient.
    expected = 2 * 3 * (4 * weights + 4 * labels) + 2 * weights + 2 * features
    assert moved["float32", "adam", 0] == expected
    assert moved["float32", "adam", 16] == expected - 2 * weights + 2 * 125 * 8
    assert moved["bfloat16", "sgd", 64] == 2 * (2 * weights + 4 * labels + features) + 2 * 32 * 8


def test_the_larger_time_is_the_floor(measured):
    times, _ = measured
    step = times.steps[0]
    assert floors(step) == {
        "memory": step.bytes_moved / BANDWIDTH,
        "arithmetic": step.multiply_adds / RATE,
    }
    share = max(floors(step).values()) / median(step.seconds)
    cells = [cell.strip() for cell in floor_table(times).markdown().split("\n")[2].split("|")]
    assert cells[1:5] == ["64", "float32", "adam", "none"]
    assert cells[7] == ("memory" if step.bytes_moved / BANDWIDTH > 3e-5 else "arithmetic")
    assert cells[8] == f"{share:.0%}".replace("%", " %")
    assert cells[9] == "1.00"
