"""Fused steps beside their floor, what the machine could do at best, from `timing.floor`."""

from __future__ import annotations

from statistics import median

from fanin.benchmarks.records.statistics import ratio
from fanin.benchmarks.records.timing import FloorStep, FloorTimes
from fanin.reports.format import milliseconds_with_quartiles, number, percent
from fanin.reports.table import Table, text_table


def floor_introduction(times: FloorTimes) -> str:
    """What the table's figures were made on and what they mean."""
    bandwidth = median(rate for step in times.steps for rate in step.bandwidths)
    rate = median(rate for step in times.steps for rate in step.multiply_add_rates)
    machine, first = times.machine, times.steps[0]
    return (
        f"Random (synthetic) data, {machine.processor}, {machine.threads} of {machine.cores} "
        f"cores, {machine.kernels}, {times.labels:,} labels,\nfan-in {times.fan_in}, batch "
        f"{times.batch}: medians of {len(first.seconds)} rounds (with the quartiles), in which the "
        "steps of one layer took\nturns with a copy of memory and a dense product. The floor of a "
        "step is the larger of two times: to move the\nbytes of its arrays (memory: "
        f"{number(bandwidth / 1e9, 1)} GB/s, read and written), and to do its multiply-adds\n"
        f"(arithmetic: {number(rate / 1e9, 1)} billion a second). That features and their "
        "gradients are read at random places is\nnot counted."
    )


def floor_table(times: FloorTimes) -> Table:
    """One row per step."""
    alone = {_layer(step): step.seconds for step in times.steps if not step.group_size}
    heads = ("inputs", "weights", "optimizer", "group", "ms", "floor, ms", "set by", "floor / time")
    rows = [
        (
            f"{step.inputs:,}",
            step.dtype,
            step.optimizer,
            str(step.group_size or "none"),
            milliseconds_with_quartiles(step.seconds, 1),
            number(1e3 * max(floors(step).values()), 1),
            max(floors(step), key=floors(step).__getitem__),
            percent(max(floors(step).values()) / median(step.seconds)),
            number(ratio(step.seconds, alone[_layer(step)]), 2),
        )
        for step in times.steps
    ]
    return text_table((*heads, "of ungrouped"), rows)


def floors(step: FloorStep) -> dict[str, float]:
    """Seconds that a step takes at least, by what takes them."""
    return {
        "memory": step.bytes_moved / median(step.bandwidths),
        "arithmetic": step.multiply_adds / median(step.multiply_add_rates),
    }


def _layer(step: FloorStep) -> tuple[int, str, str]:
    return step.inputs, step.dtype, step.optimizer
