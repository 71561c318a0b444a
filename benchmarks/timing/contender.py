"""One contender of `step`: a training step, timed and weighed in the process that this runs in.

`step` starts it as a child process, one framework each, and sends it a `Contender`; the answer is
`{"result": ...}`, or `{"error": ...}` where it has failed.
"""

from __future__ import annotations

import sys
import time
import traceback
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import numpy as np

from fanin import kernels
from fanin.backends.arrays import InitialArrays
from fanin.backends.interface import Storage
from fanin.backends.registry import make_trainer
from fanin.backends.setup import LayerSetup
from fanin.backends.trainer import Trainer
from fanin.benchmarks.measuring import memory
from fanin.benchmarks.measuring.machine import describe_machine
from fanin.benchmarks.measuring.process import Parent
from fanin.benchmarks.records.timing import Contender, StepResult
from fanin.benchmarks.timing.rounds import rounds
from fanin.datasets import Batch
from fanin.kernels.threads import thread_count

POSITIVES = 5.45  # labels an instance, as Amazon-670K has them


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
        threads=thread_count(0),
    )


def measure_step(contender: Contender) -> StepResult:
    """Train, rewire once, measure; in the process that this is called in."""
    setup, started = contender.setup(), datetime.now(UTC)
    if contender.keeps_memory:
        memory.keep_memory()
    # What the framework loads at first use belongs to the baseline.
    tiny = LayerSetup(8, 8, contender.kind(2), 8 if setup.intermediate else None)
    warm = build(contender, tiny)
    warm.train(batches(tiny, 4, 2), 1e-3)
    warm.rewire(0.5, 0)
    stream = list(batches(setup, contender.batch, 4))
    with memory.MemoryWatch() as watch:
        trainer = build(contender, setup)
        seconds = []
        for number in range(contender.steps + 2):
            start = time.perf_counter()
            trainer.train([stream[number % len(stream)]], 1e-3)
            seconds.append(time.perf_counter() - start)
        start = time.perf_counter()
        trainer.rewire(0.1, 1)
        rewired = time.perf_counter() - start
        weighed = watch.result(trainer)
    products = None
    # NumPy has no bfloat16, so float32 only. In groups, labels have no rows in a CSR matrix.
    is_plain = contender.dtype == "float32" and not contender.group_size
    if contender.execution == "fused" and is_plain:
        time_products = PRODUCTS.get(contender.backend)
        products = time_products and time_products(trainer, stream[0], contender)
    return StepResult(
        contender=contender,
        started=started,
        machine=describe_machine(trainer.device, thread_count(0)),
        memory=weighed,
        step_seconds=seconds[2:],
        rewire_seconds=rewired,
        csr_seconds=products,
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

    def copied(name: str) -> np.ndarray:
        array: np.ndarray = torch.from_numpy(arrays[name]).clone().numpy()
        return array

    def trained(values: np.ndarray) -> kernels.Trained:
        return kernels.Trained(values, *(torch.zeros(values.shape).numpy() for _ in "mv"))

    weights, bias = trained(copied("output.weights")), trained(copied("output.bias"))
    indices, tile_labels = copied("output.indices"), None
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
        kernels.OptimizerStep(1),
        indices=indices,
        tile_labels=tile_labels,
    )


# By backend: how its framework's own sparse product of the same layer is timed.
PRODUCTS = {"torch": beside_csr}


def main(parent: Parent) -> None:
    contender = Contender.model_validate(parent.receive())
    try:
        parent.send({"result": measure_step(contender).model_dump(mode="json")})
    except Exception:
        parent.send({"error": traceback.format_exc()})


if __name__ == "__main__":
    main(Parent(int(sys.argv[1])))
