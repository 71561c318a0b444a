"""Results for the tests of the reports: every number is made up, nothing is trained."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fanin.benchmarks.records.base import DatasetInfo, Failure, Machine, Memory, Precision
from fanin.benchmarks.records.compare import Difference, LockstepResult, LockstepSide, LockstepStep
from fanin.benchmarks.records.run import Epoch, RunResult, Timing
from fanin.benchmarks.records.store import lockstep_path, result_path, write_result
from fanin.benchmarks.records.task import Task

GIB = 2**30
SIX: tuple[dict[str, Any], ...] = (
    {"architecture": "dense"},
    {"architecture": "sparse", "connectivity": 32},
    {"architecture": "dense-sparse", "connectivity": 32, "intermediate": 4096},
    {"architecture": "stratified", "connectivity": 32},
    {"architecture": "dense-stratified", "connectivity": 32, "intermediate": 16384},
    {"architecture": "bottleneck"},
)

# The error of a failed run: nothing of it may become markup, or reach a terminal as it is.
HOSTILE = "shape <b>[3]</b> & \"quoted\" | piped\n<script>alert('x')</script> \x1b[31m"


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
    for_task: Task | None = None,
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
        "status": "finished", "task": for_task or task(), "backend": backend, "repeat": repeat,
        "started": datetime(2026, 1, 2, 3, 4, tzinfo=UTC),
        "finished": datetime(2026, 1, 2, 5, 6, tzinfo=UTC),
        "machine": machine(), "dataset": dataset(), "history": history,
        "train": Precision(at_1=0.9, at_3=0.8, at_5=0.7),
        "test": Precision(at_1=p1, at_3=p1 / 2, at_5=p1 / 3), "memory": memory(),
        "timing": Timing(train_seconds=10.0 * epochs, evaluate_seconds=2.0 * epochs,
                      final_evaluate_seconds=1.0, median_step_seconds=0.1),
    }  # fmt: skip
    return RunResult.model_validate({**usual, **values})


def failed(
    for_task: Task | None = None, message: str = "out of memory", **values: Any
) -> RunResult:
    nothing: dict[str, Any] = {
        "history": [],
        "train": None,
        "test": None,
        "memory": None,
        "timing": None,
        "machine": None,
    }
    failure = Failure(kind="MemoryError", message=message, traceback="...")
    return run(for_task=for_task, status="failed", failure=failure, **{**nothing, **values})


def lockstep(for_task: Task | None = None, agreed: bool = True) -> LockstepResult:
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
        machine=machine(), test=Precision(at_1=0.25, at_3=0.2, at_5=0.12),
        median_step_seconds=0.0123, memory=memory(),
    )  # fmt: skip
    return LockstepResult(
        task=for_task or task(), dataset=dataset(), started=datetime(2026, 1, 3, tzinfo=UTC),
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
