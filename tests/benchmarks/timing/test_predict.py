"""Times of predictions for one instance and for a few: the command, its file, its table."""

from __future__ import annotations

from statistics import median

from fakes import command

from fanin.benchmarks.records.store import read_predict_times
from fanin.reports.tables.predict import predict_introduction, predict_table


def test_the_command_writes_a_result_file(tmp_path):
    out = tmp_path / "results" / "predict.json"
    given = "--labels 2000 --inputs 64 --fan-in 8 --k 3 --count 5 --json"
    module = "fanin.benchmarks.timing.predict"
    done = command(*given.split(), out, module=module, check=True)
    times = read_predict_times(out)
    assert list(times.seconds) == [1, 2, 4, 8, 16, 32]
    assert all(len(seconds) == 5 for seconds in times.seconds.values())
    assert (times.labels, times.inputs, times.fan_in, times.k) == (2000, 64, 8, 3)
    assert times.synthetic and "synthetic" in predict_introduction(times)
    assert "2,000 labels, 64 inputs" in predict_introduction(times)
    line = predict_table(times).markdown().split("\n")[-1]
    assert f"{1e3 * median(times.seconds[32]) / 32:.2f}" in line
    assert predict_introduction(times) in done.stdout
    assert predict_table(times).terminal() in done.stdout
