"""One side of a comparison: a child that trains one backend and does what `compare` asks.

A request is `{"do": ..., "folder": ..., ...}`, with the side's own folder for arrays; the answer is
`{"value": ...}`, or `{"error": ...}` from a side that has failed.
"""

from __future__ import annotations

import itertools
import statistics
import sys
import time
import traceback
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from fanin.backends.arrays import Rewiring, copied
from fanin.backends.trainer import Trainer
from fanin.backends.training import plan_rewiring
from fanin.benchmarks.harness.fit import evaluate
from fanin.benchmarks.harness.prepare import (
    auxiliary_of,
    build,
    chosen_arrays,
    endless,
    make_batches,
    setup_for,
    split,
    warm_up,
)
from fanin.benchmarks.harness.request import Request
from fanin.benchmarks.measuring.memory import MemoryWatch
from fanin.benchmarks.measuring.process import Parent
from fanin.benchmarks.records.base import Machine
from fanin.benchmarks.records.compare import LockstepSide
from fanin.benchmarks.records.files import save_array
from fanin.benchmarks.records.printing import log
from fanin.datasets import Batch, Batches, Dataset, load

_WARMUP_STEPS = 10


@dataclass
class Side:
    """What is trained here. The methods are what `compare` may ask for, by name; each returns the
    answer's value. folder: the side's own."""

    request: Request
    data: Dataset
    batches: Batches
    stream: Iterator[Batch]
    trainer: Trainer
    memory: MemoryWatch
    machine: Machine
    seconds: list[float] = field(default_factory=list)
    planned: Sequence[Rewiring] = ()

    def step(self, folder: Path, learning_rate: float) -> float:
        """Train one step and write all arrays; the loss."""
        batch, trainer = next(self.stream), self.trainer
        start = time.perf_counter()
        (loss,) = trainer.train([batch], learning_rate)
        trainer.device.synchronize()
        self.seconds.append(time.perf_counter() - start)
        self.save(folder, trainer.setup.array_shapes())
        return float(loss)

    def save(self, folder: Path, names: Iterable[str]) -> None:
        """Write arrays as they are now."""
        for name in names:
            save_array(folder / f"{name}.npy", self.trainer.array(name))

    def plan(self, folder: Path, step: int) -> dict[str, float | None]:
        """Write which connections this side would move before that step, and where to; for each
        output layer the threshold, where all its labels share one."""
        recipe = self.request.task.recipe_values.for_steps(len(self.batches))
        self.planned = plan_rewiring(self.trainer, self.batches, recipe, self.request.seed, step)
        parts = {part.name: part for part in self.trainer.setup.parts}
        for each in self.planned:
            save_array(folder / f"{each.layer}.positions.npy", each.positions)
            save_array(folder / f"{each.layer}.sources.npy", each.sources)
            compared = self.trainer.magnitudes(parts[each.layer])
            save_array(folder / f"{each.layer}.planned.npy", compared)
        return {each.layer: each.threshold for each in self.planned}

    def rewire(self, folder: Path, plan: str) -> None:
        """Move the connections that the plan in a side's folder names."""
        for each in self.planned:
            positions, sources = (
                np.load(Path(plan) / f"{each.layer}.{name}.npy")
                for name in ("positions", "sources")
            )
            self.trainer.apply_rewiring(replace(each, positions=positions, sources=sources))

    def give(self, folder: Path) -> None:
        """Write all that belongs to the intermediate units."""
        for name, array in unit_arrays(self.trainer).items():
            save_array(folder / f"given.{name}.npy", array)

    def take(self, folder: Path, giver: str) -> None:
        """Overwrite the units that are named in the giver's folder with what it gave."""
        take_units(self.trainer, Path(giver))
        self.save(folder, self.trainer.setup.array_shapes())

    def finish(self, folder: Path) -> dict[str, Any]:
        """What this side has measured, as JSON."""
        steady = self.seconds[_WARMUP_STEPS:] or self.seconds
        side = LockstepSide(
            machine=self.machine,
            test=evaluate(
                self.trainer, self.data.test_x, self.data.test_y, self.data.test_left_out
            ),
            median_step_seconds=statistics.median(steady),
            memory=self.memory.result(self.trainer),
        )
        return side.model_dump(mode="json")


# Holds row moments, one for each word, with `Storage.row_moments`.
_ROW_MOMENTS = "intermediate.weights.v"


def unit_arrays(trainer: Trainer) -> dict[str, np.ndarray]:
    """Everything that belongs to the intermediate units: the last axis counts them, but for row
    moments, to which every unit adds."""
    state = itertools.chain(trainer.arrays(), trainer.optimizer_arrays())
    return copied(item for item in state if item[0].startswith("intermediate."))


def take_units(trainer: Trainer, folder: Path) -> None:
    """Overwrite some intermediate units with what the other backend gave."""
    units = np.load(folder / "units.npy")
    weights, moments = trainer.weights(), copied(trainer.optimizer_arrays())
    for name in unit_arrays(trainer):
        target = weights if name in weights else moments
        is_row_moments = name == _ROW_MOMENTS and target[name].ndim == 1
        taken = slice(None) if is_row_moments else units
        target[name][..., taken] = np.load(folder / f"given.{name}.npy")[..., taken]
    trainer.load_weights(weights)
    trainer.load_optimizer_arrays(moments)


def serve(request: Request, parent: Parent) -> None:
    """Build the model and answer the parent until it has no more use for this process."""
    task = request.task
    data = load(task.dataset, task.features, request.options.data_dir)
    train = split(data, task)[0]
    batches = make_batches(task, train, request.seed)
    machine = warm_up(request, data.sparse_features)
    with MemoryWatch() as memory:
        given = chosen_arrays(request, train)
        auxiliary = auxiliary_of(request, train, len(batches))
        trainer = build(request, setup_for(task, data), given=given, auxiliary=auxiliary)
        del given
        side = Side(request, data, batches, endless(batches), trainer, memory, machine)
        parent.send({"value": None})
        while True:
            asked = parent.receive()
            method, folder = getattr(side, asked.pop("do")), Path(asked.pop("folder"))
            parent.send({"value": method(folder, **asked)})


def main(parent: Parent) -> None:
    try:
        serve(Request.model_validate(parent.receive()), parent)
    except Exception as error:
        log(traceback.format_exc())
        parent.send({"error": f"{type(error).__name__}: {error}"})


if __name__ == "__main__":
    main(Parent(int(sys.argv[1])))
