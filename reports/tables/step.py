"""A training step in both executions: time, memory, and torch's sparse product beside it, from
`timing.step`."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence

from fanin.benchmarks.records.statistics import ratio
from fanin.benchmarks.records.timing import StepResult
from fanin.reports.format import milliseconds_with_quartiles, number
from fanin.reports.memory import counted_gib, rss_above_baseline_gib
from fanin.reports.table import Column, Table, make_table, text_column

# Where torch was fused, its result has the seconds of these, turn by turn.
_FUSED_STEP = "fused step"
_PRODUCTS = ("CSR product, int64", "CSR product, int32")


def step_introduction(results: Sequence[StepResult]) -> str:
    """What the table's figures were made on and what they mean."""
    machine = results[0].machine
    return (
        f"Random (synthetic) data, {machine.processor}, {machine.cores} cores: medians of "
        f"{len(results[0].step_seconds)} steps (with the quartiles); memory is the peak resident\n"
        "set above that before the model was made, and what arrays and moments add up to; of "
        "autograd: time\nand memory above the baseline over those of the same backend's autograd; "
        "the last column is the output\nlayer's step alone, with the gradient of its inputs, over "
        "torch's CSR product of it (forward only;\nint64 / int32 indices), turn by turn in one "
        "process."
    )


def step_table(results: Sequence[StepResult]) -> Table:
    """One row per process."""
    autograd = {
        _layer(result): result
        for result in results
        if result.contender.execution == "autograd" and not result.contender.keeps_memory
    }
    return make_table(
        "",
        [
            (text_column("inputs of the layer"), _inputs),
            (text_column("execution"), lambda result: result.contender.name),
            (
                Column("ms a step"),
                lambda result: milliseconds_with_quartiles(result.step_seconds, 0),
            ),
            (
                Column("GiB above baseline"),
                lambda result: number(rss_above_baseline_gib(result.memory), 2),
            ),
            (Column("GiB counted"), lambda result: number(counted_gib(result.memory), 2)),
            (Column("of autograd: ms / GiB"), lambda result: _of_autograd(result, autograd)),
            (Column("output step / CSR product"), _over_products),
        ],
        results,
    )


def _inputs(result: StepResult) -> str:
    contender = result.contender
    if contender.intermediate:
        return f"{contender.intermediate:,} (intermediate, of {contender.inputs})"
    return f"{contender.inputs:,}"


def _layer(result: StepResult) -> tuple[object, ...]:
    """Backend and shape: what a step has in common with the autograd that it is compared with."""
    one = result.contender
    return one.backend, one.inputs, one.labels, one.fan_in, one.group_size, one.intermediate


def _of_autograd(result: StepResult, autograd: Mapping[tuple[object, ...], StepResult]) -> str:
    """Time and memory over those of the same backend's autograd; empty for that one itself."""
    base = autograd.get(_layer(result))
    if base is None or base is result:
        return ""
    time = statistics.median(result.step_seconds) / statistics.median(base.step_seconds)
    memory, base_memory = (rss_above_baseline_gib(each.memory) for each in (result, base))
    share = memory / base_memory if memory is not None and base_memory else None
    return f"{number(time, 2)} / {number(share, 2)}"


def _over_products(result: StepResult) -> str:
    """The output layer's step over torch's products; empty where they were not measured."""
    seconds = result.csr_seconds
    if not seconds:
        return ""
    return " / ".join(number(ratio(seconds[_FUSED_STEP], seconds[name]), 2) for name in _PRODUCTS)


def step_text(results: Sequence[StepResult]) -> str:
    """For a terminal: one line per process, then the fused step beside the CSR products."""
    shape = results[0].contender
    inner = f", {shape.intermediate} intermediate" if shape.intermediate else ""
    title = (
        f"{shape.labels} labels, fan-in {shape.fan_in}, {shape.inputs} inputs{inner}, batch "
        f"{shape.batch} (synthetic); medians of {shape.steps} steps"
    )
    table = make_table(
        title,
        [
            (text_column(""), lambda result: result.contender.name),
            (
                Column("ms a step"),
                lambda result: number(1e3 * statistics.median(result.step_seconds), 1),
            ),
            (Column("min"), lambda result: number(1e3 * min(result.step_seconds), 1)),
            (
                Column("GiB above baseline"),
                lambda result: number(rss_above_baseline_gib(result.memory), 2),
            ),
            (Column("counted"), lambda result: number(counted_gib(result.memory), 2)),
            (Column("rewire s"), lambda result: number(result.rewire_seconds, 2)),
        ],
        results,
    )
    return "\n".join([title, table.terminal(), *_product_lines(results)])


def _product_lines(results: Sequence[StepResult]) -> Iterator[str]:
    for result in results:
        seconds = result.csr_seconds or {}
        for name in seconds:
            if name != _FUSED_STEP:
                yield (
                    f"{result.contender.name}: "
                    f"{number(ratio(seconds[_FUSED_STEP], seconds[name]), 2)} times torch's "
                    f"{name} (forward alone, "
                    f"{number(1e3 * statistics.median(seconds[name]), 1)} ms)"
                )
