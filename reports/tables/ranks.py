"""Fused steps of several processes that share the labels, and of one, from `timing.ranks`."""

from __future__ import annotations

from statistics import median

from fanin.benchmarks.records.statistics import ratio
from fanin.benchmarks.records.timing import RankSet, RankTimes
from fanin.reports.format import milliseconds_with_quartiles, number
from fanin.reports.table import Table, text_table


def ranks_introduction(times: RankTimes) -> str:
    """What the table's figures were made on and what they mean."""
    return (
        f"Random (synthetic) data, {times.machine.processor}, {times.machine.cores} cores, "
        f"{times.labels:,} labels, {times.inputs:,} inputs,\nfan-in {times.fan_in}, float32, Adam, "
        f"batch {times.batch}: medians of {len(times.seconds['one'])} rounds (with the quartiles), "
        "in which they took turns. CPU: of\nall threads and processes together. Over one process: "
        "the median over the rounds."
    )


def ranks_table(times: RankTimes) -> Table:
    """One row for one process, and one for several."""
    named: dict[RankSet, str] = {
        "one": f"1, {times.machine.threads} threads",
        "within": f"{times.ranks}, 1 thread each, within the machine",
        "several": f"{times.ranks}, 1 thread each"
        + ", over the link" * bool(times.bits_per_second),
    }
    one, one_cpu = times.seconds["one"], times.cpu_seconds["one"]
    rows = [
        (
            name,
            milliseconds_with_quartiles(times.seconds[which], 1),
            number(1e3 * median(times.cpu_seconds[which]), 1),
            number(ratio(times.seconds[which], one), 2),
            number(ratio(times.cpu_seconds[which], one_cpu), 2),
        )
        for which, name in named.items()
        if which in times.seconds
    ]
    titles = ("processes", "ms a step", "CPU ms", "over one process", "CPU over one")
    return text_table(titles, rows)
