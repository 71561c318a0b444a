"""Reports: from result files written here to tables, plots and the page, and what they must not do.

Every number below is made up by `run` and `lockstep`; nothing is trained.
"""

from __future__ import annotations

import base64
import io
import json
import re
import subprocess
import sys
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from PIL import Image

from fanin.benchmarks.records.base import AtK, DatasetInfo, Failure, Machine, Memory, Precision
from fanin.benchmarks.records.compare import Difference, LockstepResult, LockstepSide, LockstepStep
from fanin.benchmarks.records.published import intermediate_label
from fanin.benchmarks.records.run import Epoch, Ranking, RunResult, Timing
from fanin.benchmarks.records.store import (
    ResultError,
    lockstep_path,
    read_results,
    result_path,
    write_result,
)
from fanin.benchmarks.records.task import Task
from fanin.reports import (
    ReportError,
    comparison_markdown,
    comparison_table,
    plots,
    tables,
    terminal_table,
    write_report,
)
from fanin.reports.setups import COLOURS, Setup, variant
from fanin.reports.summary import summarise

GIB = 2**30
SIX: tuple[dict[str, Any], ...] = (
    {"architecture": "dense"},
    {"architecture": "sparse", "connectivity": 32},
    {"architecture": "dense-sparse", "connectivity": 32, "intermediate": 4096},
    {"architecture": "stratified", "connectivity": 32},
    {"architecture": "dense-stratified", "connectivity": 32, "intermediate": 16384},
    {"architecture": "bottleneck"},
)


def task(**values: Any) -> Task:
    usual: dict[str, Any] = {"dataset": "words", "features": "lsa", "architecture": "stratified"}
    if values.get("architecture", "stratified") == "stratified":
        usual["connectivity"] = 32
    return Task.model_validate({**usual, **values})


def machine(**values: Any) -> Machine:
    usual = {
        "system": "Linux",
        "processor": "Some CPU",
        "cores": 2,
        "memory_bytes": 24 * GIB,
        "gpu": None,
        "python": "3.12.1",
        "packages": {"numpy": "2.0"},
        "framework": "torch 2.9",
        "device": "cpu",
        "kernels": "0.1 avx2",
        "threads": 2,
        "code": "c0de",
    }
    return Machine.model_validate({**usual, **values})


def memory(**values: Any) -> Memory:
    usual = {
        "nvml_device_delta_bytes": None,
        "nvml_process_bytes": None,
        "allocator_peak_bytes": None,
        "allocator_reserved_bytes": None,
        "host_peak_rss_bytes": 3 * GIB,
        "host_baseline_rss_bytes": GIB,
        "parameter_bytes": GIB // 4,
        "optimizer_state_bytes": GIB // 2,
    }
    return Memory.model_validate({**usual, **values})


def dataset(**values: Any) -> DatasetInfo:
    usual = {
        "name": "words",
        "features": "lsa",
        "source": "a dictionary",
        "synthetic": False,
        "identity": "ab" * 32,
        "inputs": 512,
        "labels": 1000,
        "train_instances": 2000,
        "test_instances": 300,
        "train_positives": 5000,
    }
    return DatasetInfo.model_validate({**usual, **values})


def run(
    backend: str = "torch",
    repeat: int = 0,
    p1: float = 0.5,
    epochs: int = 4,
    of: Task | None = None,
    **values: Any,
) -> RunResult:
    """A finished run: 10 s of training and 2 s of validation an epoch, 2 GiB above the baseline."""
    history = [
        Epoch(
            epoch=number, steps=60, loss=1 / number, learning_rate=1e-3, train_seconds=10.0,
            validation=Precision(at_1=p1 * number / epochs, at_3=p1 / 2, at_5=p1 / 3),
            evaluate_seconds=2.0, rewired=3,
        )
        for number in range(1, epochs + 1)
    ]  # fmt: skip
    usual = {
        "status": "finished", "task": of or task(), "backend": backend, "repeat": repeat,
        "started": datetime(2026, 1, 2, 3, 4, tzinfo=UTC),
        "finished": datetime(2026, 1, 2, 5, 6, tzinfo=UTC),
        "machine": machine(), "dataset": dataset(), "history": history,
        "train": Precision(at_1=0.9, at_3=0.8, at_5=0.7),
        "test": Precision(at_1=p1, at_3=p1 / 2, at_5=p1 / 4), "memory": memory(),
        "timing": Timing(train_seconds=10.0 * epochs, evaluate_seconds=2.0 * epochs,
                      final_evaluate_seconds=1.0, median_step_seconds=0.1),
    }  # fmt: skip
    return RunResult.model_validate({**usual, **values})


def failed(of: Task | None = None, message: str = "out of memory", **values: Any) -> RunResult:
    nothing: dict[str, Any] = {
        "history": [],
        "train": None,
        "test": None,
        "memory": None,
        "timing": None,
        "machine": None,
    }
    failure = Failure(kind="MemoryError", message=message, traceback="...")
    return run(of=of, status="failed", failure=failure, **{**nothing, **values})


def lockstep(of: Task | None = None, agreed: bool = True) -> LockstepResult:
    steps = [
        LockstepStep(
            step=number, losses={"torch": 1.0, "tensorflow": 1.0},
            loss=Difference(absolute=2e-9 * number, relative=1e-8 * (number - 1)),
            arrays={"output.weights": Difference(absolute=1e-9, relative=1e-7 * number),
                    "output.bias": Difference(absolute=3e-9, relative=4e-7 if number == 2 else 0)},
            excused=number // 2,
            kinks=2 * number,
        )
        for number in (1, 2, 3)
    ]  # fmt: skip
    side = LockstepSide(
        machine=machine(), test=Precision(at_1=0.25, at_3=0.2, at_5=0.1),
        median_step_seconds=0.0123, memory=memory(),
    )  # fmt: skip
    return LockstepResult(
        task=of or task(), dataset=dataset(), started=datetime(2026, 1, 3, tzinfo=UTC),
        finished=datetime(2026, 1, 4, tzinfo=UTC), loss_tolerance=1e-5, weight_tolerance=1e-4,
        agreed=agreed, steps=steps, sides={"torch": side, "tensorflow": side},
    )  # fmt: skip


def save(folder: Path, *results: RunResult | LockstepResult) -> Path:
    for result in results:
        if isinstance(result, RunResult):
            path = result_path(folder, result.task, result.backend, result.repeat)
        else:
            path = lockstep_path(folder, result.task)
        write_result(path, result)
    return folder


HOSTILE = "shape <b>[3]</b> & \"quoted\" | piped\n<script>alert('x')</script>"


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page over everything: six setups, two backends, a failure, a gap, lockstep, synthetic."""
    folder = tmp_path_factory.mktemp("results")
    for number, values in enumerate(SIX):
        for backend in ("torch", "tensorflow"):
            if (backend, number) == ("tensorflow", 1):
                save(folder, failed(of=task(**values), backend=backend, message=HOSTILE))
            elif (backend, number) != ("tensorflow", 2):
                save(folder, run(backend, p1=0.3 + number / 50, of=task(**values)))
    twin = {"dataset": "twin"}
    save(
        folder,
        run(of=task(**twin), dataset=dataset(name="twin", synthetic=True), memory=None),
        lockstep(),
        lockstep(of=task(architecture="dense"), agreed=False),
    )
    return write_report(folder)


@pytest.fixture(scope="module")
def html(report: Path) -> str:
    return report.read_text(encoding="utf-8")


# ---- rows


def test_mean_and_sample_spread_over_repeats() -> None:
    runs = [run(repeat=i, p1=p1, epochs=e) for i, (p1, e) in enumerate([(0.4, 2), (0.5, 4)])]
    (row,) = comparison_table(runs).to_dict("records")
    assert row["n"] == 2
    assert row["test_p1"] == pytest.approx(45.0)
    assert row["test_p1_std"] == pytest.approx(10 / np.sqrt(2))
    assert row["test_p5"] == pytest.approx(11.25)
    assert row["train_p3"] == pytest.approx(80.0)
    assert row["epochs"] == pytest.approx(3.0)
    assert "**45.00** ±7.07" in comparison_markdown(runs)


def test_one_run_has_no_spread() -> None:
    (row,) = comparison_table([run()]).to_dict("records")
    assert row["n"] == 1
    assert np.isnan(row["test_p1_std"])
    assert "±" not in comparison_markdown([run()]).partition("One row")[0]


def test_time_per_epoch_includes_validation_and_stands_without_it_too() -> None:
    (row,) = comparison_table([run(epochs=5)]).to_dict("records")
    assert row["seconds_per_epoch"] == pytest.approx(12.0)
    assert row["train_seconds_per_epoch"] == pytest.approx(10.0)


def test_memory_is_rss_above_baseline_on_a_cpu_and_allocator_peak_on_a_gpu() -> None:
    gpu = machine(gpu="Some GPU", device="cuda:0")
    used = memory(allocator_peak_bytes=GIB // 2)
    frame = comparison_table([run(), run("tensorflow", machine=gpu, memory=used)])
    assert frame["memory_gib"].tolist() == [2.0, 0.5]
    assert frame["memory_kind"].tolist() == ["RSS above baseline", "allocator peak"]
    assert frame["counted_gib"].tolist() == [0.75, 0.75]


@pytest.mark.parametrize(
    "used",
    [None, memory(host_peak_rss_bytes=None), memory(host_baseline_rss_bytes=None)],
    ids=["nothing", "no peak", "no baseline"],
)
def test_memory_that_was_not_measured_is_a_gap(used: Memory | None) -> None:
    runs = [run(memory=used)]
    frame = comparison_table(runs)
    assert frame["memory_gib"].isna().all()
    cells = dict(zip(*_cells(tables.comparison(summarise(runs))), strict=True))
    assert cells["memory (GiB)"] == "—"
    line = frame.to_csv(index=False).splitlines()[1].split(",")
    assert line[list(frame.columns).index("memory_gib")] == ""


def test_a_gpu_run_without_allocator_figures_does_not_fall_back_to_another_memory() -> None:
    frame = comparison_table([run(machine=machine(gpu="Some GPU", device="cuda:0"))])
    assert frame["memory_gib"].isna().all()
    assert frame["memory_kind"].tolist() == ["allocator peak"]


def test_measured_and_unmeasured_repeats_are_not_mixed_as_zero() -> None:
    (row,) = comparison_table([run(), run(repeat=1, memory=None)]).to_dict("records")
    assert row["memory_gib"] == pytest.approx(2.0)
    assert row["n"] == 2


def test_repeats_on_different_hardware_are_not_averaged() -> None:
    frame = comparison_table([run(p1=0.4), run(repeat=1, p1=0.6, machine=machine(cores=64))])
    assert frame["test_p1"].tolist() == pytest.approx([40.0, 60.0])
    assert frame["machine"].tolist() == [1, 2]


def test_order_of_rows() -> None:
    entries: list[dict[str, Any]] = [
        {"architecture": "bottleneck"},
        {"architecture": "dense-stratified", "connectivity": 64, "intermediate": 16384},
        {"architecture": "dense-stratified", "connectivity": 32, "intermediate": 100_000},
        {"architecture": "dense-stratified", "connectivity": 32, "intermediate": 32768},
        {"architecture": "stratified", "connectivity": 64},
        {"architecture": "stratified", "connectivity": 8},
        {"architecture": "dense-sparse", "connectivity": 32, "intermediate": 32768},
        {"architecture": "sparse", "connectivity": 32},
        {"architecture": "dense"},
    ]
    runs = [run(b, of=task(**values)) for b in ("tensorflow", "torch") for values in entries]
    runs += [run(of=task(dataset="another"), dataset=dataset(name="another"))]
    frame = comparison_table(runs)
    assert frame["dataset"].tolist() == ["another", *["words"] * 18]
    assert frame["backend"].tolist()[1:] == ["torch"] * 9 + ["tensorflow"] * 9
    columns = frame[["setup", "connectivity", "intermediate"]].astype(object)
    rows = columns.where(columns.notna(), None).values.tolist()
    expected = [
        ["Dense", 512, None],
        ["Unstructured", 32, None],
        ["Unstructured", 32, "32k"],
        ["FFI", 8, None],
        ["FFI", 64, None],
        ["FFI", 32, "32k"],
        ["FFI", 32, "100k"],
        ["FFI", 64, "16k"],
        ["Bottleneck", 64, "64"],
    ]
    assert rows[1:10] == expected
    assert rows[10:] == expected


@pytest.mark.parametrize(
    ("units", "text"),
    [
        (16384, "16k"), (32768, "32k"), (65536, "65k"), (100_000, "100k"), (131_072, "131k"),
        (64, "64"), (4096, "4096"), (16000, "16000"),
    ],
)  # fmt: skip
def test_intermediate_sizes_as_the_paper_writes_them(units: int, text: str) -> None:
    assert intermediate_label(units) == text


def test_departures_from_the_defaults_are_shown() -> None:
    odd = task(dropout=0.2, loss_fn="bce")
    assert variant(odd) == ("dropout=0.2", "loss_fn=bce")
    assert variant(task()) == ()
    text = comparison_markdown([run(), run(of=odd)])
    assert text.count("dropout=0.2, loss_fn=bce") == 1
    # What all rows share is said once and takes no column.
    shared = comparison_markdown([run(of=odd), run("tensorflow", of=odd)])
    assert "All runs: dropout=0.2, loss_fn=bce." in shared
    assert "variant" not in shared


def test_best_values_are_marked_and_gaps_never_are() -> None:
    low = memory(host_peak_rss_bytes=2 * GIB)
    runs = [
        run(p1=0.4, memory=low),
        run(p1=0.6, of=task(architecture="dense")),
        run(of=task(architecture="bottleneck"), test=None, memory=None),
    ]
    table = tables.comparison(summarise(runs))
    heads = [column.head for column in table.columns]
    best = {
        (row[heads.index("setup")].text, head)
        for row in table.rows
        for head, cell in zip(heads, row, strict=True)
        if cell.best
    }
    assert {("Dense", "test P@1 (%)"), ("FFI", "memory (GiB)")} <= best
    assert not any(setup == "Bottleneck" for setup, _ in best)
    assert ("Dense", "memory (GiB)") not in best


def test_a_peak_below_what_the_arrays_hold_is_marked_and_never_best() -> None:
    """The process had room left from before; 0.5 GiB are counted, 0.25 above the baseline."""
    small = memory(host_peak_rss_bytes=GIB + GIB // 4, parameter_bytes=GIB // 2)
    runs = [run(memory=small), run(of=task(architecture="dense")), run("tensorflow")]
    rows = summarise(runs)
    table = tables.comparison(rows)
    at = [column.head for column in table.columns].index("memory (GiB)")
    cells = {row[1].text + row[0].text: row[at] for row in table.rows}
    assert (cells["FFItorch"].text, cells["FFItorch"].best) == ("0.25†", False)
    assert cells["Densetorch"].best
    assert "† less than the arrays alone hold" in table.caption
    assert "0.25†" in terminal_table(runs)
    assert "† less" in terminal_table(runs)
    savings = tables.savings(rows)
    assert savings is not None
    assert [cell.text for cell in savings.rows[0][2:]] == ["—", "0.8 x"]
    against = tables.against(rows)
    heads = [column.head for column in against.columns]
    last = {row[0].text: row[len(heads) - 1].text for row in against.rows}
    assert last["FFI 32"] == "—"
    assert "†" not in tables.comparison(summarise([run()])).markdown() + terminal_table([run()])


# ---- failures, synthetic data, both backends


def test_failed_runs_are_a_row_of_gaps_and_an_entry_with_the_error() -> None:
    runs = [run(), failed(of=task(architecture="dense"), message="a | b")]
    (dense,) = (r for r in comparison_table(runs).to_dict("records") if r["setup"] == "Dense")
    assert dense["n"] == 0
    assert np.isnan(dense["test_p1"])
    assert dense["connectivity"] == 512  # known from the other run of this data set
    table = tables.failures(runs)
    assert table is not None
    assert [cell.text for cell in table.rows[0]] == ["Dense", "torch", "0", "MemoryError: a | b"]
    assert "a \\| b" in table.markdown()
    assert tables.failures([run()]) is None


def test_a_failed_repeat_does_not_touch_the_mean_of_the_others() -> None:
    (row,) = comparison_table([run(p1=0.4), failed(repeat=1)]).to_dict("records")
    assert row["n"] == 1
    assert row["test_p1"] == pytest.approx(40.0)


def test_synthetic_data_is_named_so_everywhere(report: Path, html: str) -> None:
    name = "twin (synthetic)"
    assert f'<h2 id="section-1">{name}, lsa features</h2>' in html
    assert name in (report.parent / "comparison.md").read_text()
    assert name in set(pd.read_csv(report.parent / "comparison.csv")["dataset"])
    runs = list(read_results(report.parent.parent))
    assert f"{name}, lsa features" in terminal_table(runs)
    # Nowhere on the page without the word, apart from the folder's name.
    assert not re.search(r"\btwin(?! \(synthetic\)|/lsa)", _without_images(html))


def test_a_setup_missing_in_one_backend_is_a_gap_in_the_table_of_both() -> None:
    dense = task(architecture="dense")
    runs = [run(), run("tensorflow", p1=0.6), run(of=dense), failed(backend="tensorflow", of=dense)]
    table = tables.against(summarise(runs))
    rows = [[cell.text for cell in row] for row in table.rows]
    assert rows == [
        ["Dense", "50.00", *"——", "12.0", *"——", "10.0", *"——", "2.00", *"——"],
        [
            *("FFI 32", "50.00", "60.00", "+10.00", "12.0", "12.0", "1.00"),
            *("10.0", "10.0", "1.00", "2.00", "2.00", "1.00"),
        ],
    ]


def test_a_setup_that_failed_in_both_backends_is_a_row_of_gaps() -> None:
    dense = task(architecture="dense")
    runs = [run(), failed(of=dense), failed(backend="tensorflow", of=dense)]
    rows = [[cell.text for cell in row] for row in tables.against(summarise(runs)).rows]
    assert rows[0] == ["Dense", *["—"] * 12]


def test_different_kinds_of_memory_are_not_compared() -> None:
    gpu = machine(device="cuda:0", gpu="Some GPU")
    row, other = (
        summarise([result])[0]
        for result in (run(), run("tensorflow", machine=gpu, memory=memory(allocator_peak_bytes=1)))
    )
    assert tables.Pair(row.setup, row, other).both("memory_gib") == (None, None)
    assert tables.Pair(row.setup, row, other).both("test_p1") == (50.0, 50.0)


def test_memory_saving_is_stated_measured_and_counted() -> None:
    little = memory(
        host_peak_rss_bytes=GIB + GIB // 4, parameter_bytes=0, optimizer_state_bytes=GIB // 8
    )
    table = tables.savings(summarise([run(memory=little), run(of=task(architecture="dense"))]))
    assert table is not None
    assert [cell.text for cell in table.rows[0]] == ["torch", "FFI 32", "8.0 x", "6.0 x"]
    assert tables.savings(summarise([run()])) is None


def test_other_ranking_metrics_have_a_table_and_csv_columns() -> None:
    at = AtK(at_1=0.1, at_3=0.2, at_5=0.3)
    ranked = run(
        test_ranking=Ranking(ndcg=at, psp=at, psndcg=at, propensity_a=0.6, propensity_b=2.6)
    )
    table = tables.rankings(summarise([ranked, run(backend="tensorflow")]))
    assert table is not None
    assert [column.head for column in table.columns[4:8]] == [
        *("P@5 (%)", "nDCG@1 (%)", "nDCG@3 (%)", "nDCG@5 (%)"),
    ]
    # A backend without them has no row; nothing is made up.
    (row,) = table.rows
    assert [cell.text for cell in row[2:]] == [
        *("50.00", "25.00", "12.50"),
        *(["10.00", "20.00", "30.00"] * 3),
        "1",
    ]
    assert comparison_table([ranked])["test_psndcg5"].tolist() == [pytest.approx(30.0)]
    assert tables.rankings(summarise([run()])) is None


def test_lockstep_table_has_the_largest_differences_of_all_steps() -> None:
    table = tables.lockstep([lockstep(), lockstep(of=task(architecture="dense"), agreed=False)])
    dense, ffi = ([cell.text for cell in row] for row in table.rows)
    assert ffi == [
        "FFI 32", "3", "2e-8", "1e-5", "6e-9", "4e-7", "output.bias", "1e-4", "3e-9", "1", "6",
        "yes",
    ]  # fmt: skip
    assert dense[0] == "Dense"
    assert dense[-1] == "NO"


def test_a_folder_with_lockstep_results_alone_has_a_report(tmp_path: Path) -> None:
    page = write_report(save(tmp_path, lockstep())).read_text()
    assert "compared at every step" in page
    assert (tmp_path / "report" / "words" / "lsa" / "lockstep.png").exists()


# ---- the page


class _Checker(HTMLParser):
    """Every opened element is closed in order; collects attributes by element."""

    VOID = frozenset({"meta", "img", "br", "link", "hr", "input"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def page(html: str) -> _Checker:
    checker = _Checker()
    checker.feed(html)
    checker.close()
    return checker


def _without_images(html: str) -> str:
    return re.sub(r"data:image/png;base64,[^\"]*", "", html)


def _cells(table: tables.Table) -> tuple[list[str], list[str]]:
    return [column.head for column in table.columns], [cell.text for cell in table.rows[0]]


def test_html_is_well_formed_and_accessible(html: str, page: _Checker) -> None:
    assert html.lstrip().lower().startswith("<!doctype html>")
    assert page.open == []
    names = [tag for tag, _ in page.seen]
    assert names.count("h1") == 1
    assert names.count("table") == names.count("caption") > 5
    ids = [attributes["id"] for _, attributes in page.seen if "id" in attributes]
    assert len(ids) == len(set(ids))
    for tag, attributes in page.seen:
        if tag == "img":
            assert len(attributes["alt"] or "") > 30
        if tag == "html":
            assert attributes["lang"] == "en"
        if tag == "a":
            assert (attributes["href"] or "").removeprefix("#") in ids


def test_page_is_self_contained(html: str, page: _Checker) -> None:
    bare = _without_images(html)
    assert not re.search(r"https?:|@import|url\(|//[a-z]+\.", bare)
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in page.seen}
    for _, attributes in page.seen:
        assert (attributes.get("src") or "data:image/png;base64,").startswith("data:image/png")


def test_text_from_files_is_escaped(html: str, page: _Checker) -> None:
    assert "<script" not in html
    assert "<b>" not in html
    assert HOSTILE in page.text


def test_page_says_what_it_is_made_of(page: _Checker) -> None:
    words = " ".join(page.text.split())
    for expected in (
        "Some CPU, 2 cores",
        "24.0 GiB",
        "no GPU",
        "torch 2.9 on cpu",
        "c0de",
        "2026-01-02 03:04 to 2026-01-04 00:00 UTC",
        "validation set = test set, as in the paper",
        "wall-clock times of one machine and noisy",
        "11 finished and 1 failed runs, 2 comparisons step by step",
    ):
        assert expected in words


def test_plots_are_in_the_page_and_beside_it_and_not_blank(report: Path, page: _Checker) -> None:
    beside = sorted(report.parent.glob("words/lsa/*.png"))
    names = ["backends.png", "curves.png", "lockstep.png", "memory.png", "time.png"]
    assert [path.name for path in beside] == names
    embedded = {
        base64.b64decode((attributes["src"] or "").partition(",")[2])
        for tag, attributes in page.seen
        if tag == "img"
    }
    drawn = set(map(_rgb, COLOURS.values()))
    for path in beside:
        assert path.read_bytes() in embedded
        pixels = np.asarray(Image.open(io.BytesIO(path.read_bytes())).convert("RGB"))
        assert pixels.shape[1] > 1000
        assert 0.5 < (pixels == 255).all(axis=2).mean() < 0.995
        least = 3000 if path.name == "time.png" else 15  # bars are areas, the others lines, points
        found = {colour for colour in drawn if (pixels == colour).all(axis=2).sum() > least}
        assert found >= {_rgb(COLOURS["FFI"]), _rgb(COLOURS["Dense"])}, path.name
    # No memory was measured there, so there is nothing to draw.
    assert not (report.parent / "twin" / "lsa" / "memory.png").exists()
    assert (report.parent / "twin" / "lsa" / "time.png").exists()


def test_fused_is_told_from_autograd_where_both_are_shown(monkeypatch) -> None:
    """Colour is the setup and shape the backend, so it is the filling, or the line's dashes."""
    figures = []

    def finish(figure: Figure, *_: Any) -> Any:
        figures.append(figure)

    monkeypatch.setattr(plots, "_finish", finish)
    fused = task(execution="fused")
    both = [run(), run(of=fused), run("tensorflow"), run("tensorflow", of=fused)]
    shared = tables.shared_variant(summarise([run(of=fused)]))
    plots.memory_against_precision(summarise(both), "words")
    plots.memory_against_precision(summarise([run(of=fused)]), "words")
    plots.learning_curves(both, "words", [])
    plots.learning_curves([run(of=fused)], "words", shared)
    faces = []
    for figure in figures[:2]:
        (axes,) = figure.axes
        points = [line for line in axes.lines if line.get_marker() in ("o", "s")]
        faces.append(sorted(str(point.get_markerfacecolor()) for point in points))
    assert faces == [[COLOURS["FFI"]] * 2 + ["white"] * 2, [COLOURS["FFI"]]]
    legend = figures[0].axes[0].get_legend()
    assert [text.get_text() for text in legend.get_texts()][2:] == [
        "autograd: filled",
        "fused: hollow",
    ]
    dashes = [[line.get_linestyle() for line in figure.axes[0].lines] for figure in figures[2:]]
    assert dashes == [["-", "--"], ["-"]]


def _rgb(colour: str) -> tuple[int, ...]:
    return tuple(bytes.fromhex(colour.removeprefix("#")))


def test_colours_are_distinct_and_every_setup_has_one() -> None:
    assert len(set(COLOURS.values())) == 6
    names = [Setup.of(task(**values), inputs=512).name for values in SIX]
    assert names == list(COLOURS)


def test_csv_round_trips(report: Path) -> None:
    runs = list(read_results(report.parent.parent))
    expected = comparison_table(runs)
    assert "torch,Dense,512,," in (report.parent / "comparison.csv").read_text()  # not 512.0
    back = pd.read_csv(report.parent / "comparison.csv", dtype={"intermediate": "str"})
    assert list(back.columns) == list(expected.columns)
    for column in expected.columns:
        gaps = expected[column].isna().tolist()
        assert back[column].isna().tolist() == gaps, column
        pairs = zip(back[column], expected[column], gaps, strict=True)
        there = [(a, b) for a, b, gap in pairs if not gap]
        if column in expected.select_dtypes("number"):
            assert [a for a, _ in there] == pytest.approx([b for _, b in there]), column
        else:
            assert [a for a, _ in there] == [b for _, b in there], column
    part = pd.read_csv(report.parent / "words" / "lsa" / "comparison.csv")
    assert len(part) == (expected["dataset"] == "words").sum()


def test_terminal_table_fits_a_terminal(report: Path) -> None:
    text = terminal_table(read_results(report.parent.parent))
    assert max(map(len, text.splitlines())) <= 100
    assert "Unstructured 32-4096" in text
    assert "—" in text


def test_every_table_states_the_protocol(report: Path, tmp_path: Path) -> None:
    text = (report.parent / "comparison.md").read_text()
    assert text.count("Protocol: validation set = test set, as in the paper") == 2
    assert terminal_table([run()]).count("validation set = test set (protocol paper)") == 1
    held = run(of=task(protocol="holdout"))
    assert "test set" not in terminal_table([held])
    assert "held out (protocol holdout)" in terminal_table([held])
    page = write_report(save(tmp_path, held)).read_text()
    assert "Protocol: validation set split off the training set" in page
    assert "Protocol: validation set = test set" not in page
    both = comparison_markdown([held, run()])
    assert both.count("Protocol: ") == 2


# ---- placing names, errors, imports


@pytest.mark.parametrize(
    "wished",
    [[0.5, 0.51, 0.3, 0.52, 0.8, 0.98, 0.99, 1, 1], [0.07, 0.01, 0, 0.02, 0.2], [0.5] * 16],
    ids=["top", "bottom", "full"],
)
def test_names_of_lines_are_kept_apart_in_their_order(wished: list[float]) -> None:
    placed = np.array(plots._spread_apart(wished, gap=0.06, low=0.0, high=1.0))
    assert (np.diff(np.sort(placed)) >= 0.06 - 1e-9).all()
    assert (np.argsort(placed, kind="stable") == np.argsort(wished, kind="stable")).all()
    assert placed.min() >= 0
    assert placed.max() <= 1
    if 0.3 in wished:  # no neighbour, so it stays
        assert placed[wished.index(0.3)] == pytest.approx(0.3)


def test_poor_results_have_a_report_too(tmp_path: Path) -> None:
    """Only failures that never loaded their data; one epoch that learnt nothing."""
    nothing = Precision(at_1=0, at_3=0, at_5=0)
    failures = [failed(dataset=None), failed(of=task(architecture="dense"), dataset=None)]
    assert "Runs that ended in an error" in write_report(save(tmp_path, *failures)).read_text()
    save(tmp_path, run("tensorflow", p1=0, epochs=1, test=nothing), run(history=[], timing=None))
    assert "12.0" in write_report(tmp_path).read_text()


def test_a_setup_that_did_not_fit_its_data_is_reported(tmp_path: Path) -> None:
    wide = task(connectivity=dataset().inputs + 1)
    page = write_report(save(tmp_path, run(), failed(of=wide))).read_text()
    assert "FFI 513" in page


def test_an_empty_folder_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(ReportError, match="fanin reproduce") as caught:
        write_report(tmp_path / "nothing")
    assert str(tmp_path / "nothing") in str(caught.value)
    assert not (tmp_path / "nothing").exists()


def test_a_broken_result_file_is_named(tmp_path: Path) -> None:
    save(tmp_path, run())
    path = result_path(tmp_path, task(), "torch", 0)
    content = json.loads(path.read_text())
    content["memory"]["parameter_bytes"] = "many"
    path.write_text(json.dumps(content))
    with pytest.raises(ResultError, match=re.escape(f"{path}: ")):
        write_report(tmp_path)
    assert not (tmp_path / "report").exists()


@pytest.mark.parametrize("name", ["mine.json", "torch-1.json", "../ffi-32.bak/torch-0.json"])
def test_a_copy_of_a_result_file_is_no_repeat(tmp_path: Path, name: str) -> None:
    save(tmp_path, run())
    path = result_path(tmp_path, task(), "torch", 0)
    copy = path.parent / name
    copy.parent.mkdir(exist_ok=True)
    copy.write_bytes(path.read_bytes())
    with pytest.raises(ResultError, match=re.escape(f"its contents belong to {path}")):
        write_report(tmp_path)


def test_a_copy_of_a_comparison_is_refused(tmp_path: Path) -> None:
    save(tmp_path, run(), lockstep())
    path = lockstep_path(tmp_path, task())
    (path.parent / "mine.json").write_bytes(path.read_bytes())
    with pytest.raises(ResultError, match=re.escape(f"its contents belong to {path}")):
        write_report(tmp_path)


def test_a_report_goes_where_it_is_told_and_replaces_an_earlier_one(tmp_path: Path) -> None:
    out = tmp_path / "elsewhere"
    stale = out / "words" / "lsa" / "memory.png"
    stale.parent.mkdir(parents=True)
    stale.write_bytes(b"from before")
    page = write_report(save(tmp_path / "results", run(memory=None)), out)
    assert page == out / "index.html"
    assert not stale.exists()
    assert not (tmp_path / "results" / "report").exists()


@pytest.mark.slow
def test_a_report_imports_no_framework_and_no_backend() -> None:
    code = (
        "import sys, fanin.benchmarks.records.task; before = set(sys.modules)\n"
        "import fanin.reports\n"
        "names = {name.partition('.')[0] for name in sys.modules}\n"
        "assert not names & {'torch', 'tensorflow', 'keras', 'jax'}, names\n"
        "new = {name for name in set(sys.modules) - before if name.startswith('fanin.backends')}\n"
        "assert not new, new\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
