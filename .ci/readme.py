"""Writes the README's tables and plot from the result files in benchmarks/results/cpu and whole,
and the page of all devices from benchmarks/results."""

from __future__ import annotations

import re
import shutil
import tempfile
from pathlib import Path
from typing import TypeVar

from fanin.benchmarks.harness.plan import estimate
from fanin.benchmarks.records.base import Machine
from fanin.benchmarks.records.statistics import GIB
from fanin.benchmarks.records.store import read_results
from fanin.datasets.catalogue import FEATURES, PUBLISHED
from fanin.reports import terminal_table, write_report
from fanin.reports.devices import (
    devices_page,
    op_introduction,
    op_results,
    op_table,
    step_introduction,
    step_results,
    step_table,
)
from fanin.reports.paper import PaperRow, paper_rows, profiled, setup_of
from fanin.reports.tables import number

T = TypeVar("T")
ROOT = Path(__file__).parent.parent
DEVICES = ROOT / "benchmarks" / "results" / "README.md"
RESULTS = DEVICES.parent / "cpu"
WHOLE = DEVICES.parent / "whole"
SECTION = re.compile(r"(<!-- results: .*? -->\n).*?(<!-- results end -->)", re.DOTALL)
WHOLE_SECTION = re.compile(r"(<!-- whole: .*? -->\n).*?(<!-- whole end -->)", re.DOTALL)
SHAPES_SECTION = re.compile(r"(<!-- shapes: .*? -->\n).*?(<!-- shapes end -->)", re.DOTALL)
OP_SECTION = re.compile(r"(<!-- op: .*? -->\n).*?(<!-- op end -->)", re.DOTALL)
STEP_SECTION = re.compile(r"(<!-- step: .*? -->\n).*?(<!-- step end -->)", re.DOTALL)


def section(results: Path, data: str) -> str:
    """What stands between markers of the README: the machine and the table of the runs."""
    runs = list(read_results(results))
    machine = next(run.machine for run in runs if run.machine)
    return (
        f"{data} (real data), {machine.processor}, {machine.cores} cores, "
        f"{machine.gpu or 'no GPU'}:\n\n{terminal_table(runs).strip()}\n"
    )


def op_section() -> str:
    """The op's times beside those of torch's own layers."""
    results = _some(op_results(RESULTS), "op", "kernels")
    return f"{op_introduction(results)}\n\n{op_table(results)}\n"


def step_section() -> str:
    """The measurements of a training step: one row per process."""
    results = _some(step_results(RESULTS), "step", "step")
    return f"{step_introduction(results)}\n\n{step_table(results)}\n"


def _some(results: list[T], folder: str, module: str) -> list[T]:
    if not results:
        raise SystemExit(
            f"no results in {RESULTS / folder}: python -m fanin.benchmarks.{module} --json FILE"
        )
    return results


def shapes_section() -> str:
    """The shape profiles of one published table beside its figures."""
    runs = list(read_results(RESULTS, "shapes"))
    machine = next(run.machine for run in runs if run.machine)
    rows = paper_rows("amazon-670k", "cascade", profiled(runs))
    lines = "\n".join(_shape_line(row, machine) for row in rows)
    return (
        f"Amazon-670K's sizes with 768 inputs, random data (synthetic), {machine.framework} fused, "
        f"{machine.processor},\n{machine.cores} cores; time extrapolated from a few steps, "
        "validation included. Published: TensorFlow's allocator on a V100;\nours: resident set "
        "above the baseline.\n\n"
        "| setup | published GiB | GiB | expected GiB | published s/epoch | s/epoch |\n"
        f"|---|---:|---:|---:|---:|---:|\n{lines}\n"
    )


def _shape_line(row: PaperRow, machine: Machine) -> str:
    def of(key: str, digits: int) -> str:
        return number(row.ours.value(key) if row.ours else None, digits)

    published = row.published.values
    expected = number(_expected_gib(row, machine), 2)
    return (
        f"| {setup_of(row.published).label} | {published['memory_gib']:.2f} | "
        f"{of('memory_gib', 2)} | "
        f"{expected} | {published['seconds_per_epoch']:.0f} | {of('seconds_per_epoch', 0)} |"
    )


def _expected_gib(row: PaperRow, machine: Machine) -> float:
    """What `fanin plan` says of the row on such a machine, fused in torch."""
    task = row.published.task.model_copy(update={"execution": "fused"})
    setup = task.setup(FEATURES[task.features], PUBLISHED[task.dataset].labels)
    return estimate(task, setup, "torch", machine.threads, machine.processor).peak_bytes / GIB


SECTIONS = {
    SECTION: lambda: section(RESULTS, "Small cut of WordNet"),
    WHOLE_SECTION: lambda: section(WHOLE, "The whole of WordNet"),
    OP_SECTION: op_section,
    STEP_SECTION: step_section,
    SHAPES_SECTION: shapes_section,
}


def main() -> None:
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    for pattern, write in SECTIONS.items():
        made = write()
        text = pattern.sub(lambda match, made=made: f"{match[1]}{made}{match[2]}", text)
    readme.write_text(text, encoding="utf-8")
    DEVICES.write_text(devices_page(DEVICES.parent), encoding="utf-8")
    with tempfile.TemporaryDirectory() as folder:
        write_report(RESULTS, Path(folder))
        (plot,) = Path(folder).glob("wordnet-small/*/memory.png")
        shutil.copy(plot, RESULTS / "memory.png")


if __name__ == "__main__":
    main()
