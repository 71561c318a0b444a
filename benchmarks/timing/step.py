"""Times and weighs a training step in both executions: `python -m fanin.benchmarks.timing.step`.

For each backend and execution a process of its own trains a layer of the given shape on random
features and labels (synthetic: nothing here tells anything about precision), and measures its
steps and its memory. Where torch is fused, the same process then lets the output layer's fused
step, with the gradient of its inputs, and torch's CSR product of the same layer take turns: the
forward pass alone, as a measure of the machine.

A framework's own way makes scores and gradients anew in each step. From torch they go back to the
system each time, which takes much of the step; "memory kept" is the same without that, and with
more memory (`measure.keep_memory`).
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from fanin import kernels
from fanin.backends.arrays import InitialArrays
from fanin.backends.interface import Storage
from fanin.backends.registry import BACKENDS, make_trainer
from fanin.backends.setup import FixedFanIn, LayerSetup
from fanin.backends.trainer import Trainer
from fanin.benchmarks.cli.options import one_of
from fanin.benchmarks.harness.parent import child_environment
from fanin.benchmarks.measuring import measure
from fanin.benchmarks.records.files import write_atomically
from fanin.benchmarks.records.statistics import ratio
from fanin.benchmarks.records.timing import Contender, StepResult
from fanin.benchmarks.timing.op import rounds
from fanin.datasets import Batch

POSITIVES = 5.45  # labels an instance, as Amazon-670K has them


# What `--execution` may be here.
WAYS: dict[str, dict[str, Any]] = {
    "autograd": {"execution": "autograd"},
    "kept": {"execution": "autograd", "keeps_memory": True},
    "fused": {"execution": "fused"},
    "bfloat16": {"execution": "fused", "dtype": "bfloat16"},
}


def batches(setup: LayerSetup, size: int, count: int) -> Iterator[Batch]:
    """Random instances with uniformly random positives."""
    rng = np.random.default_rng(0)
    for _ in range(count):
        drawn = (int(size * POSITIVES),)
        pairs = [rng.integers(0, size, drawn), rng.integers(0, setup.labels, drawn)]
        rows, labels = np.unique(np.stack(pairs), axis=1)
        x = rng.standard_normal((size, setup.inputs), np.float32)
        yield Batch(x, rows.astype(np.int32), labels.copy())


def build(contender: Contender, setup: LayerSetup) -> Trainer:
    dtype: Any = contender.dtype
    return make_trainer(
        contender.backend,
        setup,
        InitialArrays(setup, 0),
        execution=contender.execution,
        storage=Storage(dtype, dtype),
        device="cpu",
        threads=measure.threads(0),
    )


def measure_step(contender: Contender) -> StepResult:
    """Train, rewire once, measure; in the process that this is called in."""
    setup, started = contender.setup(), datetime.now(UTC)
    if contender.keeps_memory:
        measure.keep_memory()
    # What the framework loads at first use belongs to the baseline.
    tiny = LayerSetup(8, 8, FixedFanIn(2), 8 if setup.intermediate else None)
    warm = build(contender, tiny)
    warm.train(batches(tiny, 4, 2), 1e-3)
    warm.rewire(0.5, 0)
    stream = list(batches(setup, contender.batch, 4))
    with measure.MemoryWatch() as watch:
        trainer = build(contender, setup)
        seconds = []
        for number in range(contender.steps + 2):
            start = time.perf_counter()
            trainer.train([stream[number % len(stream)]], 1e-3)
            seconds.append(time.perf_counter() - start)
        start = time.perf_counter()
        trainer.rewire(0.1, 1)
        rewired = time.perf_counter() - start
        memory = watch.result(trainer)
    csr = None
    # NumPy has no bfloat16, so float32 only.
    fused = contender.execution == "fused" and contender.dtype == "float32"
    if contender.backend == "torch" and fused:
        csr = beside_csr(trainer, stream[0], contender)
    return StepResult(
        contender=contender,
        started=started,
        machine=measure.machine(trainer.device, measure.threads(0)),
        memory=memory,
        step_seconds=seconds[2:],
        rewire_seconds=rewired,
        csr_seconds=csr,
    )


def beside_csr(trainer: Trainer, batch: Batch, contender: Contender) -> dict[str, list[float]]:
    """torch's CSR product of the output layer (with torch's usual int64 indices, and with int32)
    and its fused step with the gradient of its inputs, taking turns."""
    import torch

    setup = trainer.setup
    step = output_step(trainer, batch, contender)
    starts = torch.arange(0, setup.labels * contender.fan_in + 1, contender.fan_in)
    columns = torch.from_numpy(trainer.array("output.indices").reshape(-1).astype(np.int64))
    weights = torch.from_numpy(np.array(trainer.array("output.weights")).reshape(-1))
    shape = (setup.labels, setup.output_inputs)
    wide = torch.sparse_csr_tensor(starts, columns, weights, shape, check_invariants=False)
    narrow = torch.sparse_csr_tensor(
        starts.int(), columns.int(), weights, shape, check_invariants=False
    )
    x = torch.randn(setup.output_inputs, contender.batch)
    return rounds(
        {
            "fused step": step,
            "CSR product, int64": lambda: torch.sparse.mm(wide, x),
            "CSR product, int32": lambda: torch.sparse.mm(narrow, x),
        },
        contender.steps,
    )


def output_step(trainer: Trainer, batch: Batch, contender: Contender) -> Callable[[], Any]:
    """The fused step of the trainer's output layer alone, on random inputs of it. Arrays lie in
    torch's memory, as in training: it begins at whole cache lines, NumPy's does not."""
    import torch

    arrays, setup = trainer.weights(), trainer.setup

    def held(name: str) -> np.ndarray:
        array: np.ndarray = torch.from_numpy(arrays[name]).clone().numpy()
        return array

    def trained(values: np.ndarray) -> kernels.Trained:
        return kernels.Trained(values, *(torch.zeros(values.shape).numpy() for _ in "mv"))

    weights, bias = trained(held("output.weights")), trained(held("output.bias"))
    indices, tile_labels = held("output.indices"), None
    if kernels.sorting_pays(setup.output_inputs):
        tile_labels = np.empty(indices.shape, np.uint16)
        slots = np.empty(indices.shape, np.uint8 if contender.fan_in <= 256 else np.uint32)
        kernels.sort_connections(indices, tile_labels, slots, weights, setup.output_inputs)
    x = np.random.default_rng(1).standard_normal((contender.batch, setup.output_inputs), np.float32)
    return lambda: kernels.step(
        x,
        weights,
        bias,
        batch.positive_instances,
        batch.positive_labels,
        kernels.Adam(1),
        indices=indices,
        tile_labels=tile_labels,
    )


def in_a_process(contender: Contender) -> StepResult:
    """Measure in a new process: one framework each, and memory that is this contender's alone."""
    command = [sys.executable, "-P", "-m", "fanin.benchmarks.timing.step", "--child"]
    done = subprocess.run(
        [*command, contender.model_dump_json()],
        env=child_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{contender.name} failed:\n{done.stderr}")
    return StepResult.model_validate_json(done.stdout.splitlines()[-1])


def lines(results: list[StepResult]) -> Iterator[str]:
    """The table as text: one line per contender, then the CSR product beside the fused step."""
    shape = results[0].contender
    inner = f", {shape.intermediate} intermediate" if shape.intermediate else ""
    yield (
        f"{shape.labels} labels, fan-in {shape.fan_in}, {shape.inputs} inputs{inner}, batch "
        f"{shape.batch} (synthetic); medians of {shape.steps} steps"
    )
    heads = f"{'ms a step':>10}{'min':>8}{'GiB above baseline':>20}{'counted':>9}{'rewire s':>10}"
    yield f"{'':28}{heads}"
    for result in results:
        memory = result.memory
        counted = (memory.parameter_bytes + memory.optimizer_state_bytes) / 2**30
        above = "-"
        if memory.host_peak_rss_bytes and memory.host_baseline_rss_bytes:
            above = f"{(memory.host_peak_rss_bytes - memory.host_baseline_rss_bytes) / 2**30:.2f}"
        yield (
            f"{result.contender.name:28}{1e3 * statistics.median(result.step_seconds):10.1f}"
            f"{1e3 * min(result.step_seconds):8.1f}{above:>20}{counted:9.2f}"
            f"{result.rewire_seconds:10.2f}"
        )
    for result in results:
        if result.csr_seconds:
            fused = result.csr_seconds["fused step"]
            for name, seconds in result.csr_seconds.items():
                if name != "fused step":
                    yield (
                        f"{result.contender.name}: {ratio(fused, seconds):.2f} times torch's "
                        f"{name} (forward alone, {1e3 * statistics.median(seconds):.1f} ms)"
                    )


def main(
    labels: Annotated[int, typer.Option(min=1)] = 670_091,
    inputs: Annotated[int, typer.Option(min=1)] = 768,
    intermediate: Annotated[
        int | None, typer.Option(min=1, help="Units of a hidden layer.")
    ] = None,
    fan_in: Annotated[int, typer.Option(min=1)] = 32,
    batch: Annotated[int, typer.Option(min=1)] = 32,
    steps: Annotated[int, typer.Option(min=1)] = 15,
    backend: Annotated[list[str] | None, one_of(BACKENDS, "Repeatable; default both.")] = None,
    execution: Annotated[
        list[str] | None,
        one_of(
            tuple(WAYS),
            "kept: autograd from memory that is kept; bfloat16: fused. Repeatable; default all.",
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option("--json", help="Write the results here.")] = None,
    child: Annotated[str | None, typer.Option(hidden=True)] = None,
) -> None:
    """Measure a training step: milliseconds, peak memory above the baseline, and the fused step
    against torch's CSR product. Random data."""
    if child:
        print(measure_step(Contender.model_validate_json(child)).model_dump_json())
        return
    results = []
    for name in backend or BACKENDS:
        for way in execution or WAYS:
            contender = Contender.model_validate(
                {
                    "backend": name,
                    **WAYS[way],
                    "labels": labels,
                    "inputs": inputs,
                    "intermediate": intermediate,
                    "fan_in": fan_in,
                    "batch": batch,
                    "steps": steps,
                }
            )
            results.append(in_a_process(contender))
    print("\n".join(lines(results)))
    if out:
        write_atomically(
            out, json.dumps([r.model_dump(mode="json") for r in results], indent=1) + "\n"
        )


if __name__ == "__main__":
    typer.run(main)
