"""Writes the README's table and plot from the result files in benchmarks/results/cpu."""

from __future__ import annotations

import re
import shutil
import tempfile
from pathlib import Path

from fanin.benchmarks.results import read_results
from fanin.reports import terminal_table, write_report

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "cpu"
SECTION = re.compile(r"(<!-- results: .*? -->\n).*?(<!-- results end -->)", re.DOTALL)


def section() -> str:
    """What stands between the README's markers: the machine and the table."""
    runs = list(read_results(RESULTS))
    machine = next(run.machine for run in runs if run.machine)
    return (
        f"Small cut of WordNet (real data), {machine.processor}, {machine.cores} cores, "
        f"{machine.gpu or 'no GPU'}:\n\n{terminal_table(runs).strip()}\n"
    )


def main() -> None:
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    readme.write_text(
        SECTION.sub(lambda match: f"{match[1]}{section()}{match[2]}", text), encoding="utf-8"
    )
    with tempfile.TemporaryDirectory() as folder:
        write_report(RESULTS, Path(folder))
        (plot,) = Path(folder).glob("*/*/memory.png")
        shutil.copy(plot, RESULTS / "memory.png")


if __name__ == "__main__":
    main()
