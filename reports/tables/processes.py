"""What runs of several processes took: memory of each process, and how a step's time is spent."""

from __future__ import annotations

from collections.abc import Iterable

from fanin.benchmarks.records.base import Memory
from fanin.benchmarks.records.run import RunResult
from fanin.reports.format import memory_scale, number
from fanin.reports.memory import counted_gib, memory_gib, memory_kind
from fanin.reports.setups import Setup, backend_order
from fanin.reports.table import Column, Table, make_table
from fanin.reports.tables.cells import BACKEND, SETUP, setup_cell


def processes_table(runs: Iterable[RunResult]) -> Table | None:
    """One line per finished run of several processes; None without any."""
    several = [run for run in runs if run.memory_of_ranks and run.status == "finished"]
    if not several:
        return None
    several.sort(key=lambda run: (*backend_order(run.backend), _setup(run).order))
    scale = memory_scale(
        gib
        for run in several
        for each in run.memory_of_ranks
        for gib in (memory_gib(each, memory_kind(run.machine)), counted_gib(each))
    )

    def peak(run: RunResult, memory: Memory | None) -> str:
        return scale.text(memory_gib(memory, memory_kind(run.machine)))

    def milliseconds(seconds: float | None) -> str:
        return number(None if seconds is None else 1000 * seconds, 2)

    def step(run: RunResult) -> float | None:
        return run.timing.median_step_seconds if run.timing else None

    def communication(run: RunResult) -> float | None:
        return run.timing.median_communication_seconds if run.timing else None

    def kernels(run: RunResult) -> str:
        whole, waited = step(run), communication(run)
        return milliseconds(None if whole is None or waited is None else whole - waited)

    unit = scale.unit
    return make_table(
        "Runs of several processes: memory of each, and medians over the steps of rank 0",
        [
            (BACKEND, lambda run: run.backend),
            (SETUP, lambda run: setup_cell(_setup(run))),
            (Column("processes"), lambda run: str(len(run.memory_of_ranks))),
            (
                Column(f"each ({unit})", meaning="peak memory of the processes, by rank"),
                lambda run: ", ".join(peak(run, each) for each in run.memory_of_ranks),
            ),
            (Column(f"in all ({unit})"), lambda run: peak(run, run.memory)),
            (
                Column(f"counted, each ({unit})", meaning="parameters and optimiser state"),
                lambda run: ", ".join(map(scale.text, map(counted_gib, run.memory_of_ranks))),
            ),
            (Column("step (ms)"), lambda run: milliseconds(step(run))),
            (Column("kernels (ms)", meaning="the step without communication"), kernels),
            (
                Column("communication (ms)", meaning="waiting for other ranks included"),
                lambda run: milliseconds(communication(run)),
            ),
        ],
        several,
    )


def _setup(run: RunResult) -> Setup:
    return Setup.from_task(run.task, run.dataset.inputs if run.dataset else None)
