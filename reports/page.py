"""One self-contained HTML page, and the same tables and plots as files beside it.

`write_report` reads a results folder, makes a section per data set and features, and writes
`index.html`, `comparison.csv` and `comparison.md` over everything, `paper.csv` with all published
rows beside ours, and a folder `<data set>/<features>` per section with its own tables and plots.
The page's text is in `page.html.jinja`, with autoescaping on: names and error messages come from
files and are never trusted.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from fanin.benchmarks.records.base import Machine
from fanin.benchmarks.records.compare import LockstepResult
from fanin.benchmarks.records.files import write_atomically
from fanin.benchmarks.records.published import is_published, published_tables
from fanin.benchmarks.records.run import RunResult
from fanin.benchmarks.records.statistics import GIB
from fanin.benchmarks.records.store import read_lockstep, read_results
from fanin.reports import plots
from fanin.reports.paper import (
    Ours,
    PaperRow,
    measured,
    paper_frame,
    paper_note,
    paper_rows,
    paper_table,
    profiled,
)
from fanin.reports.setups import COLOURS, dataset_label
from fanin.reports.shapes import shape_table
from fanin.reports.summary import (
    Row,
    frame_of,
    hardware,
    is_finished,
    known_datasets,
    number_hardware,
    on_gpu,
    summarise,
)
from fanin.reports.tables import (
    Table,
    against,
    comparison,
    counts,
    failures,
    heading,
    lockstep,
    lockstep_sides,
    protocols,
    rankings,
    savings,
    section_markdown,
    shared_variant,
)


class ReportError(ValueError):
    """Nothing to report on; the message names the folder and what to run."""


@dataclass(frozen=True)
class MachineSummary:
    """One machine as the page describes it: pairs of a term and its text."""

    number: int
    facts: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Paper:
    """The published table of a section beside ours. departing: finished runs of other tasks."""

    rows: tuple[PaperRow, ...]
    table: Table
    note: str
    departing: int


@dataclass(frozen=True)
class Section:
    """One data set with its features: everything the page shows of it."""

    title: str
    folder: str
    protocols: tuple[str, ...]
    shared: tuple[str, ...]
    counts: Table
    rows: tuple[Row, ...]
    comparison: Table | None
    rankings: Table | None
    paper: Paper | None
    shapes: Table | None
    savings: Table | None
    against: Table | None
    lockstep: Table | None
    lockstep_sides: Table | None
    failures: Table | None
    plots: dict[str, plots.Plot]


def write_report(results: Path, out: Path | None = None) -> Path:
    """Write the report of a results folder; returns the path of its `index.html`.

    out: the report's folder, `<results>/report` by default; files of an earlier report in it are
    replaced. Raises ReportError when there is no result, and
    `fanin.benchmarks.records.store.ResultError` when a file cannot be read.
    """
    runs = list(read_results(results))
    locksteps = list(read_lockstep(results))
    shapes = list(read_results(results, "shapes"))
    if not runs and not locksteps and not shapes:
        raise ReportError(
            f"{results}: no results to report on; make some with `fanin reproduce --results "
            f"{results}` (or `fanin compare` for a comparison step by step)"
        )
    out = results / "report" if out is None else out
    ours = [*measured(runs), *profiled(shapes)]
    sections = make_sections(runs, locksteps, shapes, ours)
    rows = [row for section in sections for row in section.rows]

    out.mkdir(parents=True, exist_ok=True)
    _write_tables(out, rows, "\n".join(section_text(section) for section in sections))
    published = [row for table in published_tables() for row in paper_rows(*table, ours)]
    write_atomically(out / "paper.csv", paper_frame(published).to_csv(index=False))
    for section in sections:
        folder = out / section.folder
        folder.mkdir(parents=True, exist_ok=True)
        # A plot that this report cannot make must not lie there from an earlier one.
        for old in folder.glob("*.png"):
            old.unlink()
        _write_tables(folder, section.rows, section_text(section))
        if section.paper:
            text = paper_frame(section.paper.rows).to_csv(index=False)
            write_atomically(folder / "paper.csv", text)
        for plot in section.plots.values():
            (folder / f"{plot.name}.png").write_bytes(plot.png)
    page = out / "index.html"
    write_atomically(page, render(runs, locksteps, shapes, sections))
    return page


def _write_tables(folder: Path, rows: Sequence[Row], markdown: str) -> None:
    write_atomically(folder / "comparison.csv", frame_of(rows).to_csv(index=False))
    write_atomically(folder / "comparison.md", markdown)


def section_text(section: Section) -> str:
    """A section's comparison as Markdown, and the paper beside it where there are its rows."""
    profile = ""
    if section.shapes:
        title = f"{section.title}: shape profile"
        profile = f"\n{heading(title)}{section.shapes.markdown()}\n\n{section.shapes.caption}.\n"
    if not section.paper:
        return section_markdown(section.title, section.rows) + profile
    paper, title = section.paper, f"{section.title}: the paper beside ours"
    # Where only comparisons step by step are there, the published rows still show their gaps.
    text = f"{section_markdown(section.title, section.rows)}\n" if section.rows else ""
    return (
        f"{text}{heading(title)}{paper.table.markdown()}\n\n{paper.table.caption}. {paper.note}\n"
        f"{profile}"
    )


def make_sections(
    runs: Sequence[RunResult],
    locksteps: Sequence[LockstepResult],
    shapes: Sequence[RunResult],
    ours: Sequence[Ours],
) -> list[Section]:
    """One section per data set and features, in alphabetical order; `ours` is what stands beside
    the published rows."""
    known = known_datasets(runs)
    for each in locksteps:
        known.setdefault((each.task.dataset, each.task.features), each.dataset)
    rows = summarise(runs)
    tasks = [*(run.task for run in (*runs, *shapes)), *(each.task for each in locksteps)]
    sections = []
    for name, features in sorted({(task.dataset, task.features) for task in tasks}):
        info = known.get((name, features))
        label = dataset_label(name, bool(info and info.synthetic))
        sections.append(
            _section(
                f"{label}, {features} features",
                # Two folders rather than one joined name: joined names can collide.
                f"{name}/{features}",
                [run for run in runs if (run.task.dataset, run.task.features) == (name, features)],
                [
                    each
                    for each in locksteps
                    if (each.task.dataset, each.task.features) == (name, features)
                ],
                [
                    each
                    for each in shapes
                    if (each.task.dataset, each.task.features) == (name, features)
                ],
                [row for row in rows if (row.dataset, row.features) == (label, features)],
                _paper(name, features, runs, ours),
            )
        )
    return sections


def _section(
    title: str,
    folder: str,
    runs: list[RunResult],
    locksteps: list[LockstepResult],
    shapes: list[RunResult],
    rows: list[Row],
    paper: Paper | None,
) -> Section:
    shared = shared_variant(rows)
    drawn = (
        plots.memory_against_precision(rows, title),
        plots.time_per_epoch(rows, title),
        plots.learning_curves(runs, title, shared),
        plots.backends_compared(rows, title),
        plots.lockstep_differences(locksteps, title),
    )
    return Section(
        title=title,
        folder=folder,
        protocols=protocols(rows),
        shared=tuple(shared),
        counts=counts(runs or shapes, locksteps),
        rows=tuple(rows),
        comparison=comparison(rows) if rows else None,
        rankings=rankings(rows),
        paper=paper,
        shapes=shape_table(shapes) if shapes else None,
        savings=savings(rows),
        against=against(rows) if rows else None,
        lockstep=lockstep(locksteps) if locksteps else None,
        lockstep_sides=lockstep_sides(locksteps) if locksteps else None,
        failures=failures(runs),
        plots={plot.name: plot for plot in drawn if plot is not None},
    )


def _paper(
    dataset: str, features: str, runs: Sequence[RunResult], ours: Sequence[Ours]
) -> Paper | None:
    rows = paper_rows(dataset, features, ours)
    if not rows:
        return None
    here = [run for run in runs if (run.task.dataset, run.task.features) == (dataset, features)]
    departing = sum(is_finished(run) and not is_published(run.task) for run in here)
    return Paper(tuple(rows), paper_table(rows), paper_note(dataset, features), departing)


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
    def distinct(values: Sequence[object]) -> str:
        return "; ".join(dict.fromkeys(str(value) for value in values))

    one = machines[0]
    gpu = one.gpu or "no GPU"
    if one.gpu and not on_gpu(one):
        gpu = f"{one.gpu}, not used"
    return MachineSummary(
        number,
        (
            ("Processor", f"{one.processor}, {one.cores} cores"),
            ("Memory", distinct([f"{each.memory_bytes / GIB:,.1f} GiB" for each in machines])),
            ("GPU", gpu),
            ("System", distinct([each.system for each in machines])),
            ("Frameworks", distinct(sorted(f"{m.framework} on {m.device}" for m in machines))),
            ("Kernels", distinct([each.kernels for each in machines])),
            ("Threads", distinct([each.threads for each in machines])),
            ("Python", distinct([each.python for each in machines])),
            ("Code", distinct([each.code or "unknown" for each in machines])),
            (
                "Packages",
                ", ".join(
                    sorted(
                        {
                            f"{name} {version}"
                            for each in machines
                            for name, version in each.packages.items()
                        }
                    )
                )
                or "not recorded",
            ),
        ),
    )


def period(results: Sequence[RunResult | LockstepResult]) -> str:
    """First start to last end, in UTC: `2026-01-31 10:00 to 2026-02-01 12:30 UTC`."""
    started = min(_utc(result.started) for result in results)
    finished = max(_utc(result.finished) for result in results)
    return f"{started:%Y-%m-%d %H:%M} to {finished:%Y-%m-%d %H:%M} UTC"


def _utc(moment: datetime) -> datetime:
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


def render(
    runs: Sequence[RunResult],
    locksteps: Sequence[LockstepResult],
    shapes: Sequence[RunResult],
    sections: Sequence[Section],
) -> str:
    """The page as one string; pictures are inside it."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["base64"] = lambda png: base64.b64encode(png).decode("ascii")
    finished = sum(is_finished(run) for run in runs)
    shown = {section.folder for section in sections}
    waiting = [table for table in published_tables() if "/".join(table) not in shown]
    return environment.get_template("page.html.jinja").render(
        sections=sections,
        waiting=waiting,
        machines=describe_machines([*runs, *shapes], locksteps),
        period=period([*runs, *locksteps, *shapes]),
        finished=finished,
        failed=len(runs) - finished,
        compared=len(locksteps),
        profiled=sum(map(is_finished, shapes)),
        colours=COLOURS,
    )
