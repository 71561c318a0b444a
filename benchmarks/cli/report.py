"""`fanin report`: the report, from result files alone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fanin.benchmarks.cli.options import DEFAULTS, AsJson, Results
from fanin.benchmarks.cli.output import make_console, print_json, print_report
from fanin.reports.pages.report import write_report


def report(
    results: Results = DEFAULTS.results,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of the report; default RESULTS/report.", file_okay=False),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make tables, plots and the HTML page from result files alone."""
    page = write_report(results, out)
    if as_json:
        print_json({"report": str(page.resolve())})
    else:
        print_report(make_console(), page)
