"""The table of runs of several processes."""

from __future__ import annotations

from made_results import GIB, machine, memory, run

from fanin.benchmarks.measuring.memory import total
from fanin.benchmarks.records.run import Timing
from fanin.reports.tables.processes import processes_table
from fanin.reports.tables.terminal import runs_text


def several():
    of_ranks = [
        memory(host_peak_rss_bytes=(2 + rank) * GIB, host_baseline_rss_bytes=GIB)
        for rank in range(2)
    ]
    made = run()
    made.machine = machine(processes=2)
    made.memory, made.memory_of_ranks = total(of_ranks), of_ranks
    made.timing = Timing(
        train_seconds=sum(epoch.train_seconds for epoch in made.history),
        evaluate_seconds=sum(epoch.evaluate_seconds for epoch in made.history),
        final_evaluate_seconds=1.0,
        median_step_seconds=0.005,
        median_communication_seconds=0.002,
    )
    return made


def test_memory_of_each_process_and_the_parts_of_a_step_stand_in_a_line():
    line = processes_table([run(), several()]).markdown().splitlines()[-1]
    cells = [cell.strip() for cell in line.split("|")]
    assert cells[3] == "2"
    assert cells[4:6] == ["1.00, 2.00", "3.00"]
    assert cells[7:10] == ["5.00", "3.00", "2.00"]


def test_runs_of_one_process_have_no_such_table():
    assert processes_table([run()]) is None
    assert "several processes" not in runs_text([run()])
    assert "Runs of several processes" in runs_text([several()])


def test_what_one_process_cannot_tell_is_not_known_of_all():
    known, unknown = memory(host_peak_rss_bytes=3 * GIB), memory(host_peak_rss_bytes=None)
    assert total([known, unknown]).host_peak_rss_bytes is None
    assert total([known, known]).host_peak_rss_bytes == 6 * GIB
    assert total([known]) is known
