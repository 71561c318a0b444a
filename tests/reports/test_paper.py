"""The paper beside ours: what we have of the published rows, and how the report shows it.

Nothing is trained here; the figures of "ours" are made up.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from fanin.benchmarks.records import published
from fanin.benchmarks.records.base import DatasetInfo, Failure, Machine, Memory, Precision
from fanin.benchmarks.records.run import Epoch, RunResult, Timing
from fanin.benchmarks.records.statistics import GIB
from fanin.benchmarks.records.store import result_path, write_result
from fanin.benchmarks.records.task import Task
from fanin.benchmarks.records.task_files import read_tasks, task_files
from fanin.datasets import PUBLISHED
from fanin.reports import paper
from fanin.reports.frames import paper_frame
from fanin.reports.pages.report import write_report
from fanin.reports.table import Table
from fanin.reports.tables.paper import paper_table

ROWS = pd.read_csv(published.PUBLISHED_FILE)
TABLES = sorted(set(zip(ROWS["dataset"], ROWS["features"], strict=True)))
DATASET, KIND = "amazon-670k", "slice"
TASKS = {task.slug: task for task in read_tasks(task_files()[f"{DATASET}/{KIND}"])}


def changed(slug: str = "ffi-32-16384", **values: Any) -> Task:
    return Task.model_validate({**TASKS[slug].model_dump(), **values})


def data(**values: Any) -> DatasetInfo:
    real = PUBLISHED[DATASET]
    usual = {
        "name": DATASET, "features": KIND, "source": "files", "synthetic": False,
        "identity": "ab" * 32, "inputs": 512, "labels": real.labels,
        "train_instances": real.train_instances, "test_instances": real.test_instances,
        "train_positives": 1,
    }  # fmt: skip
    return DatasetInfo.model_validate({**usual, **values})


def run(
    task: Task, backend: str = "torch", repeat: int = 0, p1: float = 0.32, **values: Any
) -> RunResult:
    """Two epochs of 100 s and 18 s validation on a GPU, 0.56 GiB: half of what FFI 32-16k took."""
    at = Precision(at_1=p1, at_3=p1 / 2, at_5=p1 / 3)
    epochs = [
        Epoch(epoch=e, steps=1, loss=1.0, learning_rate=1e-3, validation=at, train_seconds=100.0,
              evaluate_seconds=18.0, rewired=0)
        for e in (1, 2)
    ]  # fmt: skip
    machine = Machine(
        system="Linux", processor="Some CPU", cores=2, memory_bytes=GIB, gpu="Some GPU",
        python="3.12", packages={}, framework="torch 2.9", device="cuda:0", kernels="0.1",
        threads=2, code="c0de",
    )  # fmt: skip
    memory = Memory(
        nvml_device_delta_bytes=None, nvml_process_bytes=None, allocator_reserved_bytes=None,
        allocator_peak_bytes=int(0.56 * GIB), host_peak_rss_bytes=None,
        host_baseline_rss_bytes=None, parameter_bytes=1, optimizer_state_bytes=1,
    )  # fmt: skip
    usual: dict[str, Any] = {
        "status": "finished", "task": task, "backend": backend, "repeat": repeat,
        "started": datetime(2026, 1, 2, tzinfo=UTC), "finished": datetime(2026, 1, 3, tzinfo=UTC),
        "machine": machine, "dataset": data(), "history": epochs, "train": at, "test": at,
        "memory": memory,
        "timing": Timing(train_seconds=200.0, evaluate_seconds=36.0, final_evaluate_seconds=1.0,
                         median_step_seconds=None),
    }  # fmt: skip
    return RunResult.model_validate({**usual, **values})


def failed(task: Task) -> RunResult:
    nothing = dict.fromkeys(("train", "test", "memory", "timing", "machine"))
    failure = Failure(kind="MemoryError", message="too little", traceback="...")
    return run(task, status="failed", failure=failure, history=[], **nothing)


def compared(*runs: RunResult) -> list[paper.PaperRow]:
    return paper.paper_rows(DATASET, KIND, paper.measured(runs))


def lines(table: Table, setup: str) -> list[dict[str, str]]:
    """The lines of one published row: head -> text with its spread and difference."""
    heads = [column.head for column in table.columns]
    texts = [
        [" ".join(filter(None, (cell.text, cell.spread, cell.against))) for cell in row]
        for row in table.rows
    ]
    return [dict(zip(heads, row, strict=True)) for row in texts if row[0] == setup]


def test_ours_is_the_mean_beside_the_published_row() -> None:
    rows = compared(run(changed(), p1=0.31), run(changed(), repeat=1, p1=0.33))
    theirs, ours = lines(paper_table(rows), "FFI 32-16k")
    assert (theirs["result of"], theirs["test P@1 (%)"], theirs["machine"]) == (
        "paper", "31.73", "NVIDIA V100",
    )  # fmt: skip
    assert (ours["result of"], ours["execution"], ours["n"]) == ("torch", "autograd", "2")
    assert ours["test P@1 (%)"] == "32.00 ±1.41 +0.27"
    assert ours["memory (GiB)"] == "0.56 ±0.00 0.50 x"
    assert ours["epochs"] == "2.0 ±0.0 -40.0"
    assert ours["time per epoch (s)"] == "118 ±0 0.46 x"
    assert ours["training per epoch (s)"] == "100 ±0"
    assert (ours["machine"], ours["remarks"]) == ("Some GPU", "—")


def test_the_saving_is_against_the_published_dense_layer_and_a_well_made_one() -> None:
    """Against 8.96 GiB, and against 4 x 512 x 670,091 x 4 bytes = 5.11 GiB."""
    theirs, ours = lines(paper_table(compared(run(changed()))), "FFI 32-16k")
    heads = ("published Dense / memory", "4 x dense weights / memory")
    assert [theirs[head] for head in heads] == ["8.1 x", "4.6 x"]
    assert [ours[head] for head in heads] == ["16.0 x", "9.1 x"]
    note = paper.paper_note(DATASET, KIND)
    assert "took 8.96 GiB, 7.0 x the 1.28 GiB" in note
    assert "needs 4 x, 5.11 GiB" in note


@pytest.mark.parametrize(("dataset", "features"), TABLES)
def test_published_dense_layers_take_seven_times_their_weights(dataset: str, features: str) -> None:
    assert "7.0 x the" in paper.paper_note(dataset, features)


def test_what_was_not_run_is_a_gap_in_its_place() -> None:
    rows = compared(run(changed()), failed(changed("ffi-32")))
    assert [row.published for row in rows] == list(published.published_rows(DATASET, KIND))
    table = paper_table(rows)
    for setup, name, remark in (("Dense", "not run", "—"), ("FFI 32", "torch", "failed")):
        theirs, ours = lines(table, setup)
        assert theirs["test P@1 (%)"] != "—"
        assert (ours["result of"], ours["n"], ours["remarks"]) == (name, "0", remark)
        given = {ours[h] for h in ours if h not in ("setup", "result of", "execution", "n")}
        assert given <= {"—", remark}
    frame = paper_frame(rows)
    dense = frame[frame["setup"] == "Dense"].iloc[0]
    own = [c for c in frame.columns if c.endswith(("_ours", "_std", "_difference", "_ratio"))]
    assert dense[own].isna().all()
    assert (dense["n"], dense["test_p1_paper"]) == (0, 33.76)


def test_each_backend_execution_and_machine_has_a_line() -> None:
    fused = changed(execution="fused")
    machine = run(changed()).machine
    assert machine is not None
    cpu = machine.model_copy(update={"device": "cpu", "gpu": None})
    rows = compared(
        run(fused, "tensorflow"), run(fused), run(changed()), run(changed(), machine=cpu)
    )
    _, *ours = lines(paper_table(rows), "FFI 32-16k")
    assert [(o["result of"], o["execution"], o["machine"]) for o in ours] == [
        ("torch", "autograd", "Some CPU, 2 cores"),
        ("torch", "autograd", "Some GPU"),
        ("torch", "fused", "Some GPU"),
        ("tensorflow", "fused", "Some GPU"),
    ]
    assert ours[0]["memory (GiB)"] == "—"  # no resident set was measured


@pytest.mark.parametrize(
    "departure",
    [
        {"dropout": 0.2}, {"epochs": 3}, {"protocol": "holdout"}, {"loss_fn": "bce"},
        {"execution": "fused", "weights_dtype": "bfloat16"}, {"features": "other"},
    ],
)  # fmt: skip
def test_another_task_does_not_count(departure: dict[str, Any]) -> None:
    assert paper.measured([run(changed(**departure))]) == []


def test_repeats_seeds_and_executions_do_not_make_another_task() -> None:
    once, again = run(changed(repeat=3, seed=7)), run(changed(seed=6), repeat=1)
    (ours,) = paper.measured([run(changed()), once])
    assert ours.n == 2
    (ours,) = paper.measured([once, again])
    assert ours.n == 1  # seed 7 both times


def test_synthetic_data_never_shows_precision() -> None:
    rows = compared(run(changed(), dataset=data(synthetic=True)))
    _, ours = lines(paper_table(rows), "FFI 32-16k")
    assert ours["remarks"] == "synthetic"
    assert {ours[h] for h in ours if "P@" in h or h == "epochs"} == {"—"}
    assert ours["memory (GiB)"] == "0.56 0.50 x"
    own = paper_frame(rows).filter(regex="_p[135]_(ours|std|difference)$")
    assert own.shape[1] == 18
    assert own.isna().all(axis=None)
    # Nor does one from elsewhere, whatever it claims to have.
    claimed = paper.Ours(
        published.as_published(changed()), "torch", "fused", 1,
        {"test_p1": 99.0, "memory_gib": 1.0},
        {"test_p1": 1.0}, marks=("extrapolated", "synthetic"),
    )  # fmt: skip
    table = paper_table(paper.paper_rows(DATASET, KIND, [claimed]))
    _, ours = lines(table, "FFI 32-16k")
    assert (ours["test P@1 (%)"], ours["memory (GiB)"]) == ("—", "1.00 0.90 x")
    assert ours["remarks"] == "extrapolated; synthetic"


@pytest.mark.parametrize("size", ["labels", "train_instances", "test_instances", "inputs"])
def test_data_of_other_sizes_are_named_and_not_compared(size: str) -> None:
    rows = compared(run(changed(), dataset=data(**{size: 4321})))
    _, ours = lines(paper_table(rows), "FFI 32-16k")
    assert ours["remarks"].startswith("other data: ")
    assert "4,321" in ours["remarks"]
    assert ours["test P@1 (%)"] == "32.00"
    assert ours["memory (GiB)"] == "0.56"
    assert {ours[head] for head in ours if "/ memory" in head} == {"—"}
    own = paper_frame(rows).filter(regex="_difference$|_ratio$|saving.*_ours$")
    assert own.isna().all(axis=None)


def test_the_report_has_the_section_on_the_page_and_beside_it(tmp_path: Path) -> None:
    departing = run(changed(dropout=0.2))
    for result in (run(changed()), departing):
        path = result_path(tmp_path, result.task, result.backend, result.repeat)
        write_result(path, result)
    page = write_report(tmp_path)
    html = page.read_text()
    assert html.count("<h3>The paper beside ours</h3>") == 1
    assert "(+0.27)" in html
    words = " ".join(html.split())
    assert "and are not here: 1." in words
    assert "amazon-3m with cascade features" in words
    assert "amazon-670k with slice features" not in words
    text = (page.parent / DATASET / KIND / "comparison.md").read_text()
    assert "the paper beside ours" in text
    assert "32.00 (+0.27)" in text
    every = pd.read_csv(page.parent / "paper.csv")
    assert len(every) == len(ROWS)
    assert every["test_p1_paper"].tolist() == ROWS["test_p1"].tolist()
    assert every["test_p1_ours"].count() == 1
    part = pd.read_csv(page.parent / DATASET / KIND / "paper.csv")
    assert len(part) == len(TASKS)
