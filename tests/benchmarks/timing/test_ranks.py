"""Times of several processes that share the labels: the command, its file, its table."""

from __future__ import annotations

from statistics import median

import pytest
from fakes import command

from fanin.benchmarks.records.store import read_rank_times
from fanin.reports.tables.ranks import ranks_introduction, ranks_table


@pytest.mark.slow
def test_the_command_writes_a_result_file(tmp_path):
    out = tmp_path / "results" / "ranks.json"
    given = "--labels 2000 --inputs 64 --fan-in 8 --batch 4 --steps 2 --count 3 --json"
    module = "fanin.benchmarks.timing.ranks"
    done = command(*given.split(), out, module=module, check=True)
    times = read_rank_times(out)
    assert (times.ranks, times.machine.threads, times.labels, times.batch) == (2, 2, 2000, 4)
    assert {which: len(rounds) for which, rounds in times.seconds.items()} == {
        "one": 3,
        "several": 3,
    }
    assert times.synthetic and "synthetic" in ranks_introduction(times)
    several, one = times.cpu_seconds["several"], times.cpu_seconds["one"]
    ratio = median(a / b for a, b in zip(several, one, strict=True))
    assert f"{ratio:.2f}" in ranks_table(times).markdown().split("\n")[-1]
    assert ranks_introduction(times) in done.stdout
    assert ranks_table(times).terminal() in done.stdout
