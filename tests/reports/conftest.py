"""A report over everything, which several test files look at."""

from __future__ import annotations

from pathlib import Path

import pytest
from made_results import (
    HOSTILE,
    SIX,
    dataset,
    failed,
    lockstep,
    run,
    save,
    task,
)

from fanin.reports.pages.report import write_report


@pytest.fixture(scope="session")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page over everything: six setups, two backends, a failure, a gap, lockstep, synthetic."""
    folder = tmp_path_factory.mktemp("results")
    for number, values in enumerate(SIX):
        for backend in ("torch", "tensorflow"):
            if (backend, number) == ("tensorflow", 1):
                save(folder, failed(for_task=task(**values), backend=backend, message=HOSTILE))
            elif (backend, number) != ("tensorflow", 2):
                save(folder, run(backend, p1=0.3 + number / 50, for_task=task(**values)))
    twin = {"dataset": "twin"}
    save(
        folder,
        run(for_task=task(**twin), dataset=dataset(name="twin", synthetic=True), memory=None),
        lockstep(),
        lockstep(for_task=task(architecture="dense"), agreed=False),
    )
    return write_report(folder)


@pytest.fixture(scope="session")
def html(report: Path) -> str:
    return report.read_text(encoding="utf-8")
