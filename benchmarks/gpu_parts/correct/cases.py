"""All cases in order, and the jobs that run them.

Sizes are those of the published tables' tasks; a dry run takes the same sources and fan-ins with
few labels.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence

import torch

from fanin.backends.kinds import FixedFanIn
from fanin.backends.setup import LayerSetup
from fanin.backends.torch.tools.index_buffer import index_type
from fanin.benchmarks.gpu_parts import part
from fanin.benchmarks.gpu_parts.correct import (
    choose,
    dense,
    graph,
    linear,
    rewire,
    sparse,
    step,
    top_k,
    words,
)
from fanin.benchmarks.gpu_parts.correct.bench import (
    FEW_LABELS,
    SOME_LABELS,
    Bench,
    Case,
    NeedsGpuError,
    fixed,
)
from fanin.benchmarks.records.gpu import Check, CorrectRow, Row
from fanin.benchmarks.records.task import Task
from fanin.benchmarks.records.task_files import files_of, read_tasks
from fanin.datasets.catalogue import FEATURES, PUBLISHED


def published_tasks() -> Iterator[tuple[Task, LayerSetup]]:
    """Every published fixed fan-in row, in the order of the task files, and its setup."""
    for name in sorted(PUBLISHED):
        for path in files_of(name):
            for task in read_tasks(path):
                setup = task.setup(FEATURES[task.features], PUBLISHED[name].labels)
                if isinstance(setup.output, FixedFanIn):
                    yield task, setup


def cases(dry_run: bool) -> list[Case]:
    """All that is checked, what is most likely wrong first."""
    made = [
        *(*linear.cases(), *step.cases(), *dense.cases(), *sparse.cases(), *words.cases()),
        *(*top_k.cases(), *rewire.cases(), *choose.cases(), *graph.cases()),
        *published_cases(dry_run),
    ]
    return list({case.key: case for case in made}.values())


def published_cases(dry_run: bool) -> Iterator[Case]:
    """The sizes of the published tables."""
    some, batch = (FEW_LABELS, 3) if dry_run else (SOME_LABELS, 33)
    published = [(task.dataset, setup) for task, setup in published_tasks()]
    # Every fan-in and number of sources, both index types where uint16 can name all sources.
    for inputs, fan_in in sorted({_size(setup) for _, setup in published}):
        setup = fixed(inputs, some, fan_in)
        for index in dict.fromkeys((index_type(inputs), torch.uint32)):
            for dtype in (torch.float32, torch.float64):
                call = linear.Linear(setup, batch, dtype, index)
                yield Case(call.key, call)
            fused = step.Step(setup, batch, index, steps=1)
            yield Case(fused.key, fused)
    # Every intermediate layer.
    for width in sorted({setup.intermediate for _, setup in published if setup.intermediate}):
        for inputs in sorted(FEATURES.values()):
            units = min(width, some) if dry_run else width
            key = f"dense_relu {units}x{inputs} below {width} batch 32"
            yield Case(key, dense.DenseLayer(32, inputs, units))
    # The real numbers of labels, with the widest layer of each data set.
    for name in dict.fromkeys(name for name, _ in published):
        inputs, fan_in = max(_size(setup) for each, setup in published if each == name)
        labels = PUBLISHED[name].labels
        setup = fixed(inputs, labels // 1_000 if dry_run else labels, fan_in)
        call = linear.Linear(setup, 32, index=index_type(inputs))
        yield Case(call.key, call)
        fused = step.Step(setup, 32, index_type(inputs), steps=1)
        yield Case(fused.key, fused)


def _size(setup: LayerSetup) -> tuple[int, int]:
    """Inputs and fan-in of a fixed fan-in output layer."""
    assert isinstance(setup.output, FixedFanIn)
    return setup.output_inputs, setup.output.fan_in


def jobs(device: torch.device, seed: int, chosen: Sequence[Case]) -> list[part.Job]:
    made = []
    for case in chosen:
        row = CorrectRow(key=case.key)
        made.append(part.Job(row, _run(case, row, device, seed)))
    return made


def _run(case: Case, row: CorrectRow, device: torch.device, seed: int) -> Callable[[], None]:
    def run() -> None:
        # A case's inputs do not depend on which others ran.
        row.seed = zlib.crc32(f"{seed} {case.key}".encode())
        bench = Bench(device, row.seed)
        try:
            case.run(bench)
        except NeedsGpuError:
            raise
        except Exception as error:  # a call that fails is a check that fails
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            bench.record(case.key, "call", {}, "", None, float("inf"), 0.0, None, reason)
        row.checks = bench.checks
        if wrong := [check for check in row.checks if not check.passed]:
            row.reason = "; ".join(_words(check) for check in wrong[:3])

    return run


def _words(check: Check) -> str:
    what = f"{check.op} {check.output}"
    if check.error is None:
        return f"{what}: {check.reason}"
    return f"{what}: error {check.error:.1e}, tolerance {check.tolerance:.1e}"


def failed(row: Row) -> bool:
    return isinstance(row, CorrectRow) and not all(check.passed for check in row.checks)


def small_run(device: torch.device, seed: int) -> int:
    """The small cases alone, for the sanitizer; what fails is printed. The exit code."""
    wrong = 0
    for job in jobs(device, seed, [case for case in cases(True) if case.small]):
        job.run()
        wrong += failed(job.row)
        print(f"{'FAILED' if failed(job.row) else 'ok'} {job.row.key} {job.row.reason or ''}")
    return part.FAILED if wrong else 0
