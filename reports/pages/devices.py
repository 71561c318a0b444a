"""The page of all devices, `benchmarks/results/README.md`: what ran where, and what came out beside
the paper, torch's own ways and the floor. Gaps stay visible.

A device is a folder with any of `runs`, `shapes`, `op`, `step` and `gpu` in it; `notes.md` there, a
line for each tuning trial, is written by hand and only linked to.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from fanin.benchmarks.records.gpu import KernelsFile, PartFile, PartName, read_parts
from fanin.benchmarks.records.published import published_tables
from fanin.benchmarks.records.run import RunResult
from fanin.benchmarks.records.store import read_op_times, read_results, read_steps
from fanin.benchmarks.records.timing import OpTimes, StepResult
from fanin.reports.format import GAP, NOT_RUN
from fanin.reports.paper import measured, paper_rows, profiled
from fanin.reports.table import heading
from fanin.reports.tables.devices import what_ran_table
from fanin.reports.tables.gpu import (
    PART_MEANINGS,
    compiled_table,
    part_summary,
    part_table,
    parts_table,
)
from fanin.reports.tables.op import op_introduction, op_table
from fanin.reports.tables.paper import beside_paper_table
from fanin.reports.tables.step import step_introduction, step_table

_KINDS = ("runs", "shapes", "op", "step", "gpu")
_NO_GPU = f"{NOT_RUN}: no GPU was at hand so far"
_INTRODUCTION = """# Results by device

Written by `nox -s readme` from the files in these folders; no measured number here was typed by
hand, and what was not measured is a gap. `nox -s gpu` (or `python benchmarks/gpu.py`) makes a
GPU's folder.

A folder is a device, or runs of some kind on one: `cpu` is the README's, and newer than the others;
`whole` has the README's table of all of WordNet; `executions` and `whole-executions` have autograd
and fused beside each other, for several seeds; `float8` has weights in that type beside other
types; `recipes` has what a recipe gains; `sparse` has shape profiles of a bag of words; `text` has
the trainings on words, which stand in the README alone.

Beside the paper: its memory is the peak of TensorFlow's allocator on a V100, ours that of torch's
on a GPU, and on a CPU the resident set above the baseline. Ratios are ours / the paper's.
"""
_KERNELS_NOTE = (
    "Medians over rounds in which all took turns (with the quartiles), each through input "
    "sets larger than the cache; a training step where an op is `fused step` is scores, "
    "loss, gradients and torch's fused Adam. Floor: bytes that fanin's op has to move at "
    "the bandwidth of a copy beside it; share: floor / ours."
)


@dataclass(frozen=True)
class Device:
    """All results in a device's folder."""

    folder: Path
    runs: list[RunResult]
    profiles: list[RunResult]
    ops: list[OpTimes]
    steps: list[StepResult]
    parts: Mapping[PartName, PartFile]


def read_device(folder: Path) -> Device:
    """Raises ValueError naming a file that cannot be read."""
    return Device(
        folder,
        runs=list(read_results(folder)),
        profiles=list(read_results(folder, "shapes")),
        ops=[each for file in _files(folder / "op") for each in read_op_times(file)],
        steps=[each for file in _files(folder / "step") for each in read_steps(file)],
        parts=read_parts(folder),
    )


def _files(folder: Path) -> list[Path]:
    return sorted(folder.glob("[!.]*.json"))


def devices_page(results: Path) -> str:
    """The whole page. Raises ValueError naming a file that cannot be read."""
    folders = [p for p in sorted(results.iterdir()) if any((p / name).is_dir() for name in _KINDS)]
    parts = ["\n\n".join(_paragraphs(read_device(folder))) + "\n" for folder in folders]
    if not any((folder / "gpu").is_dir() for folder in folders):
        parts.append(f"{heading('GPU')}{parts_table({}, _NO_GPU).markdown()}\n")
    return "\n".join([_INTRODUCTION, *parts])


def _paragraphs(device: Device) -> Iterator[str]:
    """A device's part of the page; between its paragraphs stands an empty line."""
    folder = device.folder
    yield f"## {folder.name}"
    yield _description(device)
    if (folder / "notes.md").exists():
        yield f"Tuning, a line for each trial: [notes.md]({folder.name}/notes.md)."
    yield what_ran_table(device.runs, device.profiles, device.ops, device.steps).markdown()
    if (folder / "gpu").is_dir():
        yield parts_table(device.parts, NOT_RUN).markdown()
    yield from _beside_paper(device)
    if device.ops:
        yield f"### The op alone\n\n{op_introduction(device.ops)}"
        yield op_table(device.ops).markdown()
    if device.steps:
        yield f"### Training steps\n\n{step_introduction(device.steps)}"
        yield step_table(device.steps).markdown(padded=False)
    for part_file in device.parts.values():
        if part_file.part != "shapes":  # its rows stand beside the paper
            yield from _part(part_file)


def _description(device: Device) -> str:
    """The device in words, from whatever file there is."""
    for part_file in device.parts.values():
        machine = part_file.machine
        driver = f", driver {part_file.cuda.driver}" if part_file.cuda.driver else ""
        commit = f", commit {part_file.commit[:12]}" if part_file.commit else ""
        changed = " (modified)" if part_file.modified else ""
        library = machine.kernels.rpartition(" ")[0]
        return (
            f"{part_file.device}{driver}, {machine.framework}, {library}{commit}{changed}; "
            f"{machine.processor}, {machine.cores} cores."
        )
    machines = [run.machine for run in (*device.runs, *device.profiles) if run.machine]
    machines += [op.machine for op in device.ops] + [step.machine for step in device.steps]
    if not machines:
        return "Unknown machine."
    return " ".join(
        dict.fromkeys(
            f"{machine.gpu or 'No GPU'}; {machine.processor}, {machine.cores} cores."
            for machine in machines
        )
    )


def _beside_paper(device: Device) -> Iterator[str]:
    """Every published table beside what the device has of it, if it has any of them."""
    ours = [*measured(device.runs), *profiled(device.profiles)]
    if ours:
        for dataset, features in published_tables():
            table = beside_paper_table(paper_rows(dataset, features, ours))
            yield f"### {dataset}, {features} features\n\n{table.markdown()}"


def _part(part_file: PartFile) -> Iterator[str]:
    dry = ", a dry run on the CPU" if part_file.dry_run else ""
    yield f"### {part_file.part}: {PART_MEANINGS[part_file.part]}{dry}"
    yield f"{part_summary(part_file)}."
    if isinstance(part_file, KernelsFile):
        yield _KERNELS_NOTE
    yield part_table(part_file).markdown()
    if isinstance(part_file, KernelsFile):
        yield _compiled(part_file)


def _compiled(part_file: KernelsFile) -> str:
    """Registers and spills, once: with the kernels' times."""
    if part_file.compile_report is None:
        return f"Compile report: {part_file.compile_report_reason or GAP}."
    return compiled_table(part_file.compile_report).markdown()
