"""Times the fused step beside what this machine could do at best: `python -m
fanin.benchmarks.timing.floor`.

The floor of a step is the larger of two times: to move the bytes of its arrays, at the rate at
which memory is copied, and to do its multiply-adds, at the rate of NumPy's dense product. Both
rates are measured in the same run, turn by turn with the steps. Random data (synthetic: a time does
not depend on them). A learning rate of 0 keeps the layer as it is: all rounds do the same work.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from functools import partial
from itertools import product
from typing import Annotated, Any

import ml_dtypes
import numpy as np
import typer

from fanin import kernels
from fanin.backends.kinds import index_dtype
from fanin.backends.optimizer import Optimizer, OptimizerKind
from fanin.benchmarks.harness.speed import measured_bandwidth, measured_flops
from fanin.benchmarks.measuring.machine import describe_machine
from fanin.benchmarks.records.files import try_writing, write_atomically
from fanin.benchmarks.records.printing import prepare_streams
from fanin.benchmarks.records.timing import FloorStep, FloorTimes
from fanin.benchmarks.timing.options import (
    USUAL_INPUTS,
    ResultFile,
    Rounds,
    SeveralInputs,
    SizeOption,
)
from fanin.benchmarks.timing.rounds import rounds
from fanin.benchmarks.timing.text_trainer import NoFramework
from fanin.kernels.threads import thread_count
from fanin.reports.tables.floor import floor_introduction, floor_table

_GROUP_SIZES = (0, 16, 32, 64)
_REST_SECONDS = 0.3
_DTYPES: dict[str, Any] = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16}
_OPTIMIZERS: tuple[OptimizerKind, ...] = ("adam", "sgd")


class Layer:
    """Weights and biases with their moments, and a batch: what steps of all group sizes share."""

    def __init__(
        self, inputs: int, labels: int, fan_in: int, batch: int, dtype: str, kind: OptimizerKind
    ) -> None:
        self.rng = np.random.default_rng(0)
        self.inputs, self.labels, self.fan_in = inputs, labels, fan_in
        self.batch, self.dtype, self.optimizer = batch, dtype, Optimizer(kind)
        self.features = self.rng.standard_normal((batch, inputs), np.float32)
        weights = self.rng.standard_normal((labels, fan_in), np.float32) / np.float32(fan_in)
        self.weights = self._trained(weights.astype(_DTYPES[dtype]))
        self.bias = self._trained(np.full(labels, -0.5, np.float32))
        count = 5 * batch
        self.positives = (
            self.rng.integers(0, batch, count).astype(np.int32),
            self.rng.integers(0, labels, count),
        )

    def _trained(self, values: np.ndarray) -> kernels.Trained:
        moments = {name: np.zeros_like(values) for name in self.optimizer.keeps}
        return kernels.Trained(values, **moments)

    @property
    def multiply_adds(self) -> int:
        """Of a step: for scores, for gradients of weights and for those of features."""
        return 3 * self.batch * self.weights.values.size

    def step_of(self, group_size: int) -> tuple[Callable[..., Any], int]:
        """A step, and how many bytes it has to move. group_size 0: without groups."""
        rows = -(-self.labels // group_size) if group_size else self.labels
        shape = (rows, self.fan_in)
        indices = self.rng.integers(0, self.inputs, shape, index_dtype(self.inputs))
        updated = [
            array
            for part in (self.weights, self.bias)
            for array in (part.values, part.m, part.v)
            if array is not None
        ]
        # Updated arrays are read and written; features are read, and their gradient is written.
        moved = 2 * sum(array.nbytes for array in updated) + indices.nbytes
        moved += 2 * self.features.nbytes
        step = partial(
            kernels.step,
            *(self.features, self.weights, self.bias, *self.positives),
            kernels.OptimizerStep(1, learning_rate=0.0, kind=self.optimizer.kind),
            indices=indices,
            group_size=group_size,
        )
        return step, moved


def _measure(rates: list[float], measure: Callable[[int], float], threads: int) -> None:
    rates.append(measure(threads))
    # The threads of a dense product stay busy for a while after it, on cores that the next
    # contestant needs.
    time.sleep(_REST_SECONDS)


def time_steps(
    inputs: Sequence[int], labels: int, fan_in: int, batch: int, count: int, threads: int
) -> Iterator[FloorStep]:
    """Each step with its seconds, and the machine's rates in the same rounds."""
    for width, dtype, kind in product(inputs, _DTYPES, _OPTIMIZERS):
        layer = Layer(width, labels, fan_in, batch, dtype, kind)
        steps = {size: layer.step_of(size) for size in _GROUP_SIZES}
        bandwidths: list[float] = []
        operations: list[float] = []  # a multiply-add is two of them
        contestants: dict[str, Callable[[], Any]] = {
            "copy": partial(_measure, bandwidths, measured_bandwidth, threads),
            "product": partial(_measure, operations, measured_flops, threads),
            **{str(size): partial(step, threads=threads) for size, (step, _) in steps.items()},
        }
        seconds = rounds(contestants, count)
        for size, (_, moved) in steps.items():
            yield FloorStep(
                inputs=width,
                dtype=dtype,
                optimizer=kind,
                group_size=size,
                bytes_moved=moved,
                multiply_adds=layer.multiply_adds,
                seconds=seconds[str(size)],
                bandwidths=bandwidths[-count:],
                multiply_add_rates=[rate / 2 for rate in operations[-count:]],
            )


def main(
    labels: SizeOption = 670_091,
    inputs: SeveralInputs = None,
    fan_in: SizeOption = 32,
    batch: SizeOption = 32,
    count: Rounds = 15,
    threads: Annotated[int, typer.Option(min=0, help="CPU threads; 0: all.")] = 0,
    out: ResultFile = None,
) -> None:
    """Time fused steps, with and without groups of labels, beside the machine's own rates."""
    if out:
        try_writing(out.parent)
    threads, started = thread_count(threads), datetime.now(UTC)
    times = FloorTimes(
        started=started,
        machine=describe_machine(NoFramework(), threads),
        labels=labels,
        fan_in=fan_in,
        batch=batch,
        steps=list(time_steps(inputs or USUAL_INPUTS, labels, fan_in, batch, count, threads)),
    )
    print(f"{floor_introduction(times)}\n\n{floor_table(times).terminal()}")
    if out:
        write_atomically(out, times.model_dump_json(indent=1) + "\n")


if __name__ == "__main__":
    prepare_streams()
    typer.run(main)
