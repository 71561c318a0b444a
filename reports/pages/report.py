"""One self-contained HTML page, and the same tables and plots as files beside it.

`write_report` reads a results folder, makes a section per data set and features, and writes
`index.html`, `comparison.csv` and `comparison.md` over everything, `paper.csv` with all published
rows beside ours, and a folder `<data set>/<features>` per section with its own tables and plots.
The page's text is in `report.html.jinja`, with autoescaping on: names and error messages come from
files and are never trusted.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from fanin.benchmarks.records.compare import LockstepResult
from fanin.benchmarks.records.files import write_atomically
from fanin.benchmarks.records.printing import printable
from fanin.benchmarks.records.published import published_tables
from fanin.benchmarks.records.run import RunResult
from fanin.benchmarks.records.store import read_lockstep, read_results, report_folder
from fanin.reports.frames import frame_of, paper_frame
from fanin.reports.machines import describe_machines
from fanin.reports.pages.sections import Section, make_sections, section_markdown
from fanin.reports.paper import measured, paper_rows, profiled
from fanin.reports.setups import COLOURS
from fanin.reports.summary import Row, is_finished


class ReportError(ValueError):
    """Nothing to report on; the message names the folder and what to run."""


def write_report(results: Path, out: Path | None = None) -> Path:
    """Write the report of a results folder; returns the path of its `index.html`.

    out: the report's folder, `<results>/report` by default; files of an earlier report in it are
    replaced. Raises ReportError when there is no result, and
    `fanin.benchmarks.records.store.ResultError` when a file cannot be read.
    """
    runs = list(read_results(results))
    locksteps = list(read_lockstep(results))
    profiles = list(read_results(results, "shapes"))
    if not runs and not locksteps and not profiles:
        raise ReportError(
            f"{results}: no results to report on; make some with `fanin reproduce --results "
            f"{results}` (or `fanin compare` for a comparison step by step)"
        )
    out = report_folder(results) if out is None else out
    ours = [*measured(runs), *profiled(profiles)]
    sections = make_sections(runs, locksteps, profiles, ours)
    texts = [section_markdown(section) for section in sections]
    rows = [row for section in sections for row in section.rows]

    out.mkdir(parents=True, exist_ok=True)
    _write_tables(out, rows, "\n".join(texts))
    published = [row for table in published_tables() for row in paper_rows(*table, ours)]
    _write_text(out / "paper.csv", paper_frame(published).to_csv(index=False))
    for section, text in zip(sections, texts, strict=True):
        _write_section(out / section.folder, section, text)
    page = out / "index.html"
    _write_text(page, render(runs, locksteps, profiles, sections))
    return page


def _write_text(path: Path, text: str) -> None:
    """Control characters of a result file must not reach whoever reads the report."""
    write_atomically(path, printable(text))


def _write_tables(folder: Path, rows: Sequence[Row], markdown: str) -> None:
    _write_text(folder / "comparison.csv", frame_of(rows).to_csv(index=False))
    _write_text(folder / "comparison.md", markdown)


def _write_section(folder: Path, section: Section, markdown: str) -> None:
    """The section's own tables and plots."""
    folder.mkdir(parents=True, exist_ok=True)
    # A plot that this report cannot make must not lie there from an earlier one.
    for old in folder.glob("*.png"):
        old.unlink()
    _write_tables(folder, section.rows, markdown)
    if section.paper:
        text = paper_frame(section.paper.rows).to_csv(index=False)
        _write_text(folder / "paper.csv", text)
    for plot in section.plots.values():
        write_atomically(folder / f"{plot.name}.png", plot.png)


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
    profiles: Sequence[RunResult],
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
    return environment.get_template("report.html.jinja").render(
        sections=sections,
        waiting=waiting,
        machines=describe_machines([*runs, *profiles], locksteps),
        period=period([*runs, *locksteps, *profiles]),
        finished=finished,
        failed=len(runs) - finished,
        compared=len(locksteps),
        profiled=sum(map(is_finished, profiles)),
        colours=COLOURS,
    )
