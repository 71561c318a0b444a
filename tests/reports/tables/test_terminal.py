"""What a command prints at its end."""

from __future__ import annotations

from pathlib import Path

from made_results import (
    run,
    save,
    task,
)

from fanin.benchmarks.records.store import read_results
from fanin.reports.pages.report import write_report
from fanin.reports.tables.comparison import comparison_markdown
from fanin.reports.tables.terminal import runs_text


def test_terminal_table_fits_a_terminal(report: Path) -> None:
    text = runs_text(read_results(report.parent.parent))
    assert max(map(len, text.splitlines())) <= 100
    assert "Unstructured 32-4096" in text
    assert "—" in text


def test_every_table_states_the_protocol(report: Path, tmp_path: Path) -> None:
    text = (report.parent / "comparison.md").read_text()
    assert text.count("Protocol: validation set = test set, as in the paper") == 2
    assert runs_text([run()]).count("validation set = test set (protocol paper)") == 1
    holdout = run(for_task=task(protocol="holdout"))
    assert "test set" not in runs_text([holdout])
    assert "held out (protocol holdout)" in runs_text([holdout])
    page = write_report(save(tmp_path, holdout)).read_text()
    assert "Protocol: validation set split off the training set" in page
    assert "Protocol: validation set = test set" not in page
    both = comparison_markdown([holdout, run()])
    assert both.count("Protocol: ") == 2
