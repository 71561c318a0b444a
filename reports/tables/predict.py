"""Predictions for one instance and for a few, from `timing.predict`."""

from __future__ import annotations

from statistics import median

from fanin.benchmarks.records.timing import PredictTimes
from fanin.reports.format import milliseconds_with_quartiles, number
from fanin.reports.table import Table, text_table


def predict_introduction(times: PredictTimes) -> str:
    """What the table's figures were made on and what they mean."""
    count = len(next(iter(times.seconds.values())))
    return (
        f"Random (synthetic) data, {times.machine.processor}, {times.machine.cores} cores, "
        f"{times.labels:,} labels, {times.inputs:,} inputs,\nfan-in {times.fan_in}, float32, the "
        f"{times.k} best labels: medians of {count} rounds (with the quartiles), in which all "
        "sizes took\nturns."
    )


def predict_table(times: PredictTimes) -> Table:
    """One row per size of a batch."""
    rows = [
        (
            str(batch),
            milliseconds_with_quartiles(seconds, 1),
            number(1e3 * median(seconds) / batch, 2),
        )
        for batch, seconds in times.seconds.items()
    ]
    return text_table(("instances", "ms", "ms an instance"), rows)
