"""What the report shows of one data set with its features: all its tables and plots."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from fanin.benchmarks.records.base import DatasetInfo
from fanin.benchmarks.records.compare import LockstepResult
from fanin.benchmarks.records.published import PublishedRow, is_published, published_rows
from fanin.benchmarks.records.run import RunResult
from fanin.reports.paper import Ours, PaperRow, has_published_sizes, paper_note, paper_rows
from fanin.reports.plots import load_matplotlib
from fanin.reports.plots.plot import Plot
from fanin.reports.setups import dataset_label
from fanin.reports.summary import Row, is_finished, known_datasets, shared_variant, summarise
from fanin.reports.table import Table, heading
from fanin.reports.tables.against import against_table
from fanin.reports.tables.comparison import comparison_section, comparison_table
from fanin.reports.tables.counts import counts_table
from fanin.reports.tables.failures import failures_table
from fanin.reports.tables.grouped import grouped_tables
from fanin.reports.tables.lockstep import lockstep_table, sides_table
from fanin.reports.tables.paper import paper_table
from fanin.reports.tables.processes import processes_table
from fanin.reports.tables.profiles import profile_table
from fanin.reports.tables.protocols import protocols
from fanin.reports.tables.rankings import rankings_table
from fanin.reports.tables.recipes import recipes_table
from fanin.reports.tables.savings import savings_table

Result = TypeVar("Result", RunResult, LockstepResult)


@dataclass(frozen=True)
class Paper:
    """The published table of a section beside ours. departing: finished runs of other tasks."""

    rows: tuple[PaperRow, ...]
    table: Table
    note: str
    departing: int


@dataclass(frozen=True)
class Section:
    """One data set with its features: everything the page shows of it.

    folder: where its own files lie below the report. A table is None where nothing belongs into it.
    plots: file stem -> picture, of those that could be drawn.
    """

    title: str
    folder: str
    protocols: tuple[str, ...]
    shared: tuple[str, ...]
    counts: Table
    rows: tuple[Row, ...]
    comparison: Table | None
    rankings: Table | None
    recipes: Table | None
    grouped: tuple[Table, ...]
    paper: Paper | None
    profiles: Table | None
    savings: Table | None
    processes: Table | None
    against: Table | None
    lockstep: Table | None
    lockstep_sides: Table | None
    failures: Table | None
    plots: dict[str, Plot]


def make_sections(
    runs: Sequence[RunResult],
    locksteps: Sequence[LockstepResult],
    profiles: Sequence[RunResult],
    ours: Sequence[Ours],
) -> list[Section]:
    """One section per data set and features, in alphabetical order; `ours` is what stands beside
    the published rows."""
    known = known_datasets(runs, locksteps)
    rows = summarise(runs)
    tasks = [*(run.task for run in (*runs, *profiles)), *(each.task for each in locksteps)]
    sections = []
    for name, features in sorted({(task.dataset, task.features) for task in tasks}):
        info = known.get((name, features))
        label = dataset_label(name, bool(info and info.synthetic))
        own_runs = _of_dataset(runs, name, features)
        sections.append(
            _section(
                f"{label}, {features} features",
                # Two folders rather than one joined name: joined names can collide.
                f"{name}/{features}",
                own_runs,
                _of_dataset(locksteps, name, features),
                _of_dataset(profiles, name, features),
                [row for row in rows if (row.dataset, row.features) == (label, features)],
                _paper(name, features, own_runs, ours),
                _published_of_same_data(own_runs, info),
            )
        )
    return sections


def _of_dataset(results: Iterable[Result], name: str, features: str) -> list[Result]:
    return [each for each in results if (each.task.dataset, each.task.features) == (name, features)]


def _section(
    title: str,
    folder: str,
    runs: list[RunResult],
    locksteps: list[LockstepResult],
    profiles: list[RunResult],
    rows: list[Row],
    paper: Paper | None,
    published: Sequence[PublishedRow],
) -> Section:
    shared = shared_variant(rows)
    return Section(
        title=title,
        folder=folder,
        protocols=protocols(rows),
        shared=tuple(shared),
        counts=counts_table(runs or profiles, locksteps),
        rows=tuple(rows),
        comparison=comparison_table(rows) if rows else None,
        rankings=rankings_table(rows),
        recipes=recipes_table(rows),
        grouped=grouped_tables(rows),
        paper=paper,
        profiles=profile_table(profiles) if profiles else None,
        savings=savings_table(rows),
        processes=processes_table(runs),
        against=against_table(rows) if rows else None,
        lockstep=lockstep_table(locksteps) if locksteps else None,
        lockstep_sides=sides_table(locksteps) if locksteps else None,
        failures=failures_table(runs),
        plots=_draw(title, runs, locksteps, rows, published),
    )


def _draw(
    title: str,
    runs: Sequence[RunResult],
    locksteps: Sequence[LockstepResult],
    rows: Sequence[Row],
    published: Sequence[PublishedRow],
) -> dict[str, Plot]:
    """All plots of which something was measured."""
    # Not at the top: they import matplotlib, which takes long, and most commands draw nothing.
    load_matplotlib()
    from fanin.reports.plots.backends_compared import backends_compared
    from fanin.reports.plots.learning_curves import learning_curves
    from fanin.reports.plots.lockstep_differences import lockstep_differences
    from fanin.reports.plots.memory_against_precision import memory_against_precision
    from fanin.reports.plots.precision_against_cost import precision_against_cost
    from fanin.reports.plots.time_per_epoch import time_per_epoch

    drawn = (
        memory_against_precision(rows, title),
        precision_against_cost(rows, published, title),
        time_per_epoch(rows, title),
        learning_curves(runs, title, shared_variant(rows)),
        backends_compared(rows, title),
        lockstep_differences(locksteps, title),
    )
    return {plot.name: plot for plot in drawn if plot is not None}


def _published_of_same_data(
    runs: Sequence[RunResult], info: DatasetInfo | None
) -> tuple[PublishedRow, ...]:
    """The published rows of the runs' data set; none where the data are not the published ones, on
    which precision says something else."""
    if not runs or info is None or info.synthetic or not has_published_sizes(runs[0].task, info):
        return ()
    return published_rows(info.name, info.features)


def _paper(
    dataset: str, features: str, runs: Sequence[RunResult], ours: Sequence[Ours]
) -> Paper | None:
    """runs: those of this data set; None where the paper has no such table."""
    rows = paper_rows(dataset, features, ours)
    if not rows:
        return None
    departing = sum(is_finished(run) and not is_published(run.task) for run in runs)
    return Paper(tuple(rows), paper_table(rows), paper_note(dataset, features), departing)


def section_markdown(section: Section) -> str:
    """A section's comparison as Markdown, and the paper beside it where there are its rows; then
    what recipes and shape profiles give."""
    # Where only shape profiles or comparisons step by step were made, the published rows still show
    # their gaps.
    parts = []
    if section.rows or not section.paper:
        parts.append(comparison_section(section.title, section.rows))
    if section.paper:
        title, table = f"{section.title}: the paper beside ours", section.paper.table
        parts.append(
            f"{heading(title)}{table.markdown()}\n\n{table.caption}. {section.paper.note}\n"
        )
    if section.recipes:
        title, table = f"{section.title}: recipes", section.recipes
        parts.append(f"{heading(title)}{table.markdown()}\n\n{table.caption}.\n")
    for table in section.grouped:
        title = f"{section.title}: label groups and heads"
        parts.append(f"{heading(title)}{table.markdown()}\n\n{table.caption}.\n")
    if section.profiles:
        title, table = f"{section.title}: shape profile", section.profiles
        parts.append(f"{heading(title)}{table.markdown()}\n\n{table.caption}.\n")
    return "\n".join(parts)
