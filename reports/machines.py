"""The machines behind the figures: which of them are alike, their numbers, and their description.

Two runs are compared in time and memory only where their hardware is alike.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from fanin.benchmarks.records.base import Machine
from fanin.benchmarks.records.compare import LockstepResult
from fanin.benchmarks.records.run import RunResult
from fanin.benchmarks.records.statistics import GIB
from fanin.reports.format import number

# Processor, cores, GPU, and whether the run was on the GPU.
Hardware = tuple[str, int, str | None, bool]


@dataclass(frozen=True)
class MachineSummary:
    """One machine as the page describes it: pairs of a term and its text."""

    number: int
    facts: tuple[tuple[str, str], ...]


def on_gpu(machine: Machine) -> bool:
    """Whether the run's own device was a GPU; a machine can have one that a run left alone."""
    return "cpu" not in machine.device.lower()


def hardware(machine: Machine) -> Hardware:
    """What makes two runs comparable in time and memory."""
    return machine.processor, machine.cores, machine.gpu, on_gpu(machine)


def number_hardware(machines: Iterable[Machine | None]) -> dict[Hardware, int]:
    """Hardware -> its number from 1, in the order of appearance."""
    seen = dict.fromkeys(hardware(machine) for machine in machines if machine is not None)
    return {kind: number for number, kind in enumerate(seen, start=1)}


def device_name(machine: Machine) -> str:
    """The device that a run was on, in words: its GPU, or the processor with its cores."""
    if on_gpu(machine):
        return machine.gpu or "a GPU"
    return f"{machine.processor}, {machine.cores} cores"


def describe_machines(
    runs: Sequence[RunResult], locksteps: Sequence[LockstepResult]
) -> list[MachineSummary]:
    """The hardware behind the figures, numbered as in the tables, with what ran on it."""
    # Finished runs first: their numbers are the ones in the tables.
    first = sorted(runs, key=lambda run: run.status != "finished")
    machines = [run.machine for run in first if run.machine is not None]
    machines += [side.machine for each in locksteps for side in each.sides.values()]
    return [
        _describe(number, [machine for machine in machines if hardware(machine) == kind])
        for kind, number in number_hardware(machines).items()
    ]


def _describe(number: int, machines: Sequence[Machine]) -> MachineSummary:
    """machines: what each run says of the same hardware."""
    one = machines[0]
    gpu = one.gpu or "no GPU"
    if one.gpu and not on_gpu(one):
        gpu = f"{one.gpu}, not used"
    packages = {
        f"{name} {version}" for machine in machines for name, version in machine.packages.items()
    }
    return MachineSummary(
        number,
        (
            ("Processor", f"{one.processor}, {one.cores} cores"),
            ("Memory", _distinct(_memory(each) for each in machines)),
            ("GPU", gpu),
            ("System", _distinct(each.system for each in machines)),
            ("Frameworks", _distinct(sorted(f"{m.framework} on {m.device}" for m in machines))),
            ("Kernels", _distinct(each.kernels for each in machines)),
            ("Threads", _distinct(each.threads or "unknown" for each in machines)),
            ("Processes", _distinct(each.processes for each in machines)),
            ("Python", _distinct(each.python for each in machines)),
            ("Code", _distinct(each.code or "unknown" for each in machines)),
            ("Packages", ", ".join(sorted(packages)) or "not recorded"),
        ),
    )


def _memory(machine: Machine) -> str:
    if machine.memory_bytes is None:
        return "unknown"
    return f"{number(machine.memory_bytes / GIB, 1)} GiB"


def _distinct(values: Iterable[object]) -> str:
    return "; ".join(dict.fromkeys(str(value) for value in values))
