"""The op alone: fanin's times beside those of torch's own layers, from `timing.op`."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from fanin.benchmarks.records.statistics import ratio
from fanin.benchmarks.records.timing import OpTimes
from fanin.reports.format import GAP, milliseconds_with_quartiles, number, times
from fanin.reports.table import Table, text_table

_OTHERS = ("CSR int64", "CSR int32", "torch dense")


def op_introduction(results: Sequence[OpTimes]) -> str:
    """What the table's figures were made on and what they mean."""
    first = results[0]
    count = len(first.seconds["forward"]["fanin"])
    return (
        f"Random (synthetic) data, {first.machine.processor}, {first.machine.cores} cores, torch, "
        f"float32, {first.labels:,} labels,\nfan-in {first.fan_in}, batch {first.batch}: medians "
        f"of {count} rounds (with the quartiles) in which all took turns; behind\ntorch's times: "
        "how many times fanin's, the median over the rounds. Memory: malloc may give what was "
        "freed back\nto the system and take it anew page by page, as it usually does, or keeps it."
    )


def op_table(results: Sequence[OpTimes]) -> Table:
    """One row per shape and work."""
    heads = ("inputs", "work", "memory", "fanin, ms", *(f"{name}, ms" for name in _OTHERS))
    rows = [
        (
            f"{result.inputs:,}",
            work,
            "kept" if result.keeps_memory else "as usual",
            milliseconds_with_quartiles(seconds["fanin"], 1),
            *(_beside_fanin(seconds.get(name), seconds["fanin"]) for name in _OTHERS),
        )
        for result in results
        for work, seconds in result.seconds.items()
    ]
    return text_table(heads, rows)


def _beside_fanin(seconds: Sequence[float] | None, fanin: Sequence[float]) -> str:
    if seconds is None:
        return GAP
    return f"{milliseconds_with_quartiles(seconds, 1)} {times(ratio(seconds, fanin), 1)}"


def op_text(results: Sequence[OpTimes]) -> str:
    """For a terminal: one line per shape, work and layer."""
    first = results[0]
    count = len(first.seconds["forward"]["fanin"])
    title = (
        f"{first.labels} labels, fan-in {first.fan_in}, batch {first.batch}, float32; medians of "
        f"{count} rounds"
    )
    rows = [
        (
            str(result.inputs),
            work,
            layer,
            number(1e3 * statistics.median(seconds), 2),
            number(1e3 * min(seconds), 2),
            number(ratio(seconds, by_layer["fanin"]), 2),
        )
        for result in results
        for work, by_layer in result.seconds.items()
        for layer, seconds in by_layer.items()
    ]
    table = text_table(("inputs", "work", "layer", "ms", "min", "x fanin"), rows)
    return f"{title}\n{table.terminal()}"
