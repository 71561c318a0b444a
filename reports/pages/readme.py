"""Writes what the READMEs show of the committed results: `python -m fanin.reports.pages.readme`.

Run in the root of a checkout (`nox -s readme` does). A README marks what is written here:

    <!-- op: written by `nox -s readme` from benchmarks/results/cpu -->
    ...
    <!-- op end -->

Any README of the root or of a folder below it may have any of the sections in `SECTIONS`, each
section once; moving one is moving its two marks. Besides, the page of all devices,
`benchmarks/results/README.md`, and the picture of memory against precision are written.
"""

from __future__ import annotations

import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from fanin.benchmarks.records.base import Machine
from fanin.benchmarks.records.files import write_atomically
from fanin.benchmarks.records.published import as_published
from fanin.benchmarks.records.run import RunResult
from fanin.benchmarks.records.store import (
    read_floor_times,
    read_predict_times,
    read_rank_times,
    read_results,
    read_words_times,
)
from fanin.reports.format import number
from fanin.reports.machines import number_hardware
from fanin.reports.pages.devices import devices_page, read_device
from fanin.reports.pages.report import write_report
from fanin.reports.paper import PaperRow, paper_rows, profiled
from fanin.reports.summary import by_dataset, is_finished, several_machines, summarise
from fanin.reports.table import Column, Table, make_table, text_column
from fanin.reports.tables.floor import floor_introduction, floor_table
from fanin.reports.tables.grouped import grouped_tables
from fanin.reports.tables.op import op_introduction, op_table
from fanin.reports.tables.predict import predict_introduction, predict_table
from fanin.reports.tables.profiles import expected_gib
from fanin.reports.tables.ranks import ranks_introduction, ranks_table
from fanin.reports.tables.recipes import recipes_table
from fanin.reports.tables.scaling import (
    limits_table,
    links_introduction,
    links_table,
    scaling_introduction,
    scaling_table,
)
from fanin.reports.tables.step import step_introduction, step_table
from fanin.reports.tables.terminal import profiles_text, runs_text
from fanin.reports.tables.words import words_introduction, words_table

T = TypeVar("T")

# The folder of the results below the root, and the one that most sections are made from.
RESULTS = Path("benchmarks", "results")
_CPU = "cpu"
_MARKED = re.compile(
    r"(?P<head><!-- (?P<name>\w+): written by .*? -->\n).*?(?P<end><!-- (?P=name) end -->)",
    re.DOTALL,
)


def runs_section(folder: Path, data: str) -> str:
    """The machine and the table of the runs in a folder of results."""
    runs = list(read_results(folder))
    return f"{data} (real data), {_hardware(runs)}:\n\n{runs_text(runs).strip()}\n"


def recipes_section(folder: Path) -> str:
    """What recipes gain and cost: a table for each data set."""
    runs = list(read_results(folder))
    all_rows = summarise(runs)
    parts = [
        f"Real data, {_machine(runs).framework}, validation set = test set. Departures are from "
        "the recipe. Other work shared\nthe cores, so times tell little.\n",
        f"{_processors(runs)}.\n",
    ]
    for title, rows in by_dataset(all_rows):
        table = recipes_table(rows)
        if table is not None:
            if several_machines(all_rows) and not several_machines(rows):
                title += f", machine {rows[0].machine}"
            parts.append(f"{title}\n\n{table.markdown(padded=False)}\n")
    return "\n".join(parts)


def op_section(folder: Path) -> str:
    """The op's times beside those of torch's own layers."""
    results = _some(read_device(folder).ops, folder / "op", "timing.op --json")
    return f"{op_introduction(results)}\n\n{op_table(results).markdown()}\n"


def step_section(folder: Path) -> str:
    """The measurements of a training step: one row per process."""
    results = _some(read_device(folder).steps, folder / "step", "timing.step --json")
    return f"{step_introduction(results)}\n\n{step_table(results).markdown(padded=False)}\n"


def grouped_section(folder: Path) -> str:
    """Layers with label groups or a head beside plain ones: a table for each data set, without
    groupings that are not the recipe's."""
    runs = list(read_results(folder))
    usual = [run for run in runs if not any(d.startswith("grouping=") for d in run.task.departures)]
    parts = [f"Real data. {_processors(runs)}.\n"]
    for title, rows in by_dataset(summarise(usual)):
        for table in grouped_tables(rows):
            parts.append(f"{title}. {table.caption}:\n\n{table.markdown(padded=False)}\n")
    return "\n".join(parts)


def floor_section(folder: Path) -> str:
    """Fused steps beside what the machine could do at best."""
    times = read_floor_times(folder / "floor.json")
    return f"{floor_introduction(times)}\n\n{floor_table(times).markdown()}\n"


def scaling_section(folder: Path) -> str:
    """What steps on several ranks take, computed from fused steps here."""
    times = read_floor_times(folder / "floor.json")
    return f"{scaling_introduction(times)}\n\n{scaling_table(times).markdown(padded=False)}\n"


def limits_section(folder: Path) -> str:
    """What a rank sends, and where that takes over."""
    return f"{limits_table(read_floor_times(folder / 'floor.json')).markdown()}\n"


def links_section(folder: Path) -> str:
    """What was measured of steps of ranks with a limited link between them."""
    results = [read_rank_times(file) for file in sorted((folder / "links").glob("*.json"))]
    results = _some(results, folder / "links", "timing.ranks --rate GBIT --json")
    return f"{links_introduction(results)}\n\n{links_table(results).markdown()}\n"


def predict_section(folder: Path) -> str:
    """The times of predictions for one instance and for a few."""
    times = read_predict_times(folder / "predict.json")
    return f"{predict_introduction(times)}\n\n{predict_table(times).markdown()}\n"


def ranks_section(folder: Path) -> str:
    """Fused steps of several processes that share the labels, beside one process."""
    times = read_rank_times(folder / "ranks.json")
    return f"{ranks_introduction(times)}\n\n{ranks_table(times).markdown()}\n"


def text_section(folder: Path) -> str:
    """Trainings on words beside Omikuji's."""
    results = [read_words_times(file) for file in sorted(folder.glob("*.json"))]
    results = _some(results, folder, "timing.text --dataset NAME --out")
    return f"{words_introduction(results)}\n\n{words_table(results).markdown(padded=False)}\n"


def _some(results: list[T], folder: Path, command: str) -> list[T]:
    if not results:
        raise SystemExit(f"no results in {folder}: python -m fanin.benchmarks.{command} FILE")
    return results


def shapes_section(folder: Path) -> str:
    """The shape profiles of one published table beside its figures."""
    runs = list(read_results(folder, "shapes"))
    machine = _machine(runs)
    table = _shapes_table(paper_rows("amazon-670k", "cascade", profiled(runs)), runs)
    return (
        f"Amazon-670K's sizes with 768 inputs, random data (synthetic), {machine.framework} fused, "
        f"{machine.processor},\n{machine.cores} cores; time extrapolated from a few steps, "
        "validation included. Published: TensorFlow's allocator on a V100;\nours: resident set "
        f"above the baseline.\n\n{table.markdown(padded=False)}\n"
    )


def sparse_section(folder: Path) -> str:
    """The shape profiles of a published data set's bag of words."""
    runs = list(read_results(folder, "shapes"))
    return (
        f"{_hardware(runs)}. Other work shared the cores, so times tell little.\n\n"
        f"{profiles_text(runs).strip()}\n"
    )


def _machine(runs: list[RunResult]) -> Machine:
    return next(run.machine for run in runs if run.machine)


def _hardware(runs: list[RunResult]) -> str:
    machine = _machine(runs)
    return f"{machine.processor}, {machine.cores} cores, {machine.gpu or 'no GPU'}"


def _processors(runs: list[RunResult]) -> str:
    """The processor of each machine; where there are several, with its number in the tables."""
    kinds = number_hardware(run.machine for run in runs if is_finished(run))
    names = [f"{processor}, {cores} cores" for processor, cores, _, _ in kinds]
    if len(names) == 1:
        return f"Machine: {names[0]}"
    return "; ".join(f"machine {place}: {name}" for place, name in enumerate(names, start=1))


def _shapes_table(rows: list[PaperRow], runs: list[RunResult]) -> Table:
    """Memory and time of each published row: the paper's, ours, and what the plan expected."""
    expected = {as_published(run.task): expected_gib(run) for run in runs}

    def ours(row: PaperRow, key: str) -> float | None:
        return row.ours.value(key) if row.ours else None

    def published(row: PaperRow, key: str, decimals: int) -> str:
        return f"{row.published.values[key]:.{decimals}f}"

    return make_table(
        "",
        [
            (text_column("setup"), lambda row: row.setup.label),
            (Column("published GiB"), lambda row: published(row, "memory_gib", 2)),
            (Column("GiB"), lambda row: number(ours(row, "memory_gib"), 2)),
            (Column("expected GiB"), lambda row: number(expected.get(row.published.task), 2)),
            (Column("published s/epoch"), lambda row: published(row, "seconds_per_epoch", 0)),
            (Column("s/epoch"), lambda row: number(ours(row, "seconds_per_epoch"), 0)),
        ],
        rows,
    )


# Name in the marks -> what stands between them, from the folder of all results.
SECTIONS: dict[str, Callable[[Path], str]] = {
    "results": lambda results: runs_section(results / _CPU, "Small cut of WordNet"),
    "whole": lambda results: runs_section(results / "whole", "The whole of WordNet"),
    "recipes": lambda results: recipes_section(results / "recipes"),
    "op": lambda results: op_section(results / _CPU),
    "step": lambda results: step_section(results / _CPU),
    "grouped": lambda results: grouped_section(results / "grouped"),
    "floor": lambda results: floor_section(results / _CPU),
    "scaling": lambda results: scaling_section(results / _CPU),
    "limits": lambda results: limits_section(results / _CPU),
    "links": lambda results: links_section(results / _CPU),
    "predict": lambda results: predict_section(results / _CPU),
    "ranks": lambda results: ranks_section(results / _CPU),
    "shapes": lambda results: shapes_section(results / _CPU),
    "sparse": lambda results: sparse_section(results / "sparse"),
    "text": lambda results: text_section(results / "text"),
}


def readmes(root: Path) -> list[Path]:
    """The READMEs that may have marked sections, of the root and of its folders, and the pages
    beside these."""
    return sorted(path for path in (*root.glob("README.md"), *root.glob("[!.]*/*.md")))


def marked_sections(text: str) -> Iterator[tuple[str, str]]:
    """Name and content of each marked section of a README."""
    for match in _MARKED.finditer(text):
        yield match["name"], text[match.end("head") : match.start("end")]


def with_sections(text: str, results: Path) -> str:
    """A README's text with its marked sections made anew."""
    return _MARKED.sub(
        lambda match: match["head"] + SECTIONS[match["name"]](results) + match["end"], text
    )


def write_readmes(root: Path) -> None:
    """Write all of it below the root of a checkout. Raises SystemExit saying what is wrong with
    the marks or missing among the results."""
    results = root / RESULTS
    texts = {path: path.read_text(encoding="utf-8") for path in readmes(root)}
    names = sorted(name for text in texts.values() for name, _ in marked_sections(text))
    if names != sorted(SECTIONS):
        raise SystemExit(
            f"the READMEs below {root.resolve()} have the marked sections "
            f"{', '.join(names) or '(none)'}; each of {', '.join(sorted(SECTIONS))} has to be in "
            "one of them, once"
        )
    for path, text in texts.items():
        made = with_sections(text, results)
        if made != text:
            write_atomically(path, made)
    write_atomically(results / "README.md", devices_page(results))
    with tempfile.TemporaryDirectory() as folder:
        write_report(results / _CPU, Path(folder))
        (plot,) = Path(folder).glob("wordnet-small/*/memory.png")
        shutil.copy(plot, results / _CPU / "memory.png")


if __name__ == "__main__":
    write_readmes(Path(sys.argv[1]) if len(sys.argv) > 1 else Path.cwd())
