"""Both backends side by side: the same batches from the same weights, compared after every step.

Each backend runs in a child process of its own and they take turns, so each has the machine to
itself while its step is timed. Orders go to a child's standard input and answers come back
through a pipe, a JSON object a line; arrays go through files in a temporary folder.
"""

from __future__ import annotations

import itertools
import json
import os
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from fanin.backends.arrays import Rewiring, copied, plan_rewiring
from fanin.backends.registry import BACKENDS
from fanin.backends.trainer import Trainer
from fanin.benchmarks.harness.child import (
    Request,
    build,
    dataset_info,
    make_batches,
    split,
    warm_up,
)
from fanin.benchmarks.harness.fit import evaluate, rewire_due, rewiring_seed
from fanin.benchmarks.harness.parent import Options, log_path, start_child
from fanin.benchmarks.measuring import measure
from fanin.benchmarks.records.compare import Difference, LockstepResult, LockstepSide, LockstepStep
from fanin.benchmarks.records.store import lockstep_path
from fanin.benchmarks.records.task import Task
from fanin.datasets import Batch, Batches, load

# Relative. Both backends compute in float32, where one rounding is 6e-8; what is allowed here is
# the growth of such roundings over a few hundred steps of Adam.
LOSS_TOLERANCE = 1e-5
WEIGHT_TOLERANCE = 1e-4
# ReLU's gradient jumps at 0. Where the sum that goes into it is that small against the sum of
# absolute values (rounding, times some ten), it is chance on which side a backend finds it.
KINK = 3e-6
# Units that differ by more than this after a step are looked at for such a kink.
KINK_SUSPICION = 0.05 * WEIGHT_TOLERANCE
_WARMUP_STEPS = 10

OnStep = Callable[[LockstepStep], None]


class LockstepError(RuntimeError):
    """One of the two processes failed; the message holds its error."""


def difference(a: np.ndarray, b: np.ndarray) -> Difference:
    """Largest |a - b|, and that over the largest |a|."""
    absolute = float(np.max(np.abs(a.astype(np.float64) - b), initial=0.0))
    scale = float(np.max(np.abs(a), initial=0.0))
    return Difference(absolute=absolute, relative=absolute / scale if scale else absolute)


# The parent -------------------------------------------------------------------------------------


class _Side:
    """The parent's end of one child."""

    def __init__(self, request: Request, folder: Path, log: Path) -> None:
        self.backend = request.backend
        self.folder = folder / request.backend
        self.folder.mkdir()
        self._log = log
        self._child, self._answers = start_child("fanin.benchmarks.harness.compare", log)
        self._write(request.model_dump(mode="json"))

    def _write(self, order: dict[str, Any]) -> None:
        assert self._child.stdin is not None
        with suppress(BrokenPipeError):  # it is dead already; `answer` finds out
            print(json.dumps(order), file=self._child.stdin, flush=True)

    def ask(self, do: str, **arguments: Any) -> Any:
        """Have the child do something; its answer."""
        self._write({"do": do, "folder": str(self.folder), **arguments})
        return self.answer()

    def answer(self) -> Any:
        line = self._answers.readline()
        whole = line.endswith("\n")
        answer = json.loads(line) if whole else {"error": f"its process ended: see {self._log}"}
        if "error" in answer:
            raise LockstepError(f"{self.backend}: {answer['error']}")
        return answer["value"]

    def read(self, name: str) -> np.ndarray:
        return np.load(self.folder / f"{name}.npy")

    def close(self) -> None:
        self._child.kill()
        self._child.wait()
        self._answers.close()


def compare(
    task: Task, options: Options, steps: int, on_step: OnStep | None = None
) -> LockstepResult:
    """Train `task` for `steps` steps in both backends and compare them after each.

    Raises LockstepError where a backend fails. The result is not written; see `results`.
    """
    started = datetime.now(UTC)
    path = lockstep_path(options.results, task)
    data = load(task.dataset, task.features, options.data_dir)
    setup = task.setup(data.inputs, data.labels)
    floats = [n for n in setup.array_shapes() if n.endswith(("weights", "bias"))]
    fixed = [n for n in setup.array_shapes() if n not in floats]
    batches = make_batches(task, split(data, task)[0], task.seed)
    stream = endless(batches)
    sides: list[_Side] = []
    done: list[LockstepStep] = []
    excused = kinks = 0
    with tempfile.TemporaryDirectory(prefix="fanin-lockstep-") as folder:
        try:
            for backend in BACKENDS:
                request = Request(
                    task=task,
                    backend=backend,
                    repeat=0,
                    path=path,
                    data_dir=options.data_dir,
                    device=options.device,
                    threads=options.threads,
                )
                log = log_path(path.with_name(f"{path.stem}-{backend}.json"))
                sides.append(_Side(request, Path(folder), log))
            for side in sides:
                side.answer()
            for step in range(1, steps + 1):
                if setup.is_rewired and rewire_due(step, task.rewire_interval, len(batches)):
                    excused += _rewire(sides, step)
                features = next(stream).features
                before = _intermediate(sides[0], "before") if setup.intermediate else None
                losses = {side.backend: side.ask("step") for side in sides}
                if before:
                    kinks += _excuse_kinks(sides, before, features)
                compared = {}
                for name in floats:
                    pair = [side.read(name) for side in sides]
                    if not all(np.isfinite(array).all() for array in pair):
                        raise LockstepError(
                            f"{name} is not finite after step {step}; lower the learning rate or "
                            "look at the features"
                        )
                    compared[name] = difference(*pair)
                for name in fixed:
                    first, second = (side.read(name) for side in sides)
                    if not np.array_equal(first, second):
                        raise LockstepError(f"{name} differs after step {step}")
                loss = difference(*(np.array(value) for value in losses.values()))
                done.append(
                    LockstepStep(
                        step=step,
                        losses=losses,
                        loss=loss,
                        arrays=compared,
                        excused=excused,
                        kinks=kinks,
                    )
                )
                if on_step:
                    on_step(done[-1])
            ends = {s.backend: LockstepSide.model_validate(s.ask("finish")) for s in sides}
        finally:
            for side in sides:
                side.close()
    agreed = all(
        s.loss.relative <= LOSS_TOLERANCE
        and all(d.relative <= WEIGHT_TOLERANCE for d in s.arrays.values())
        for s in done
    )
    return LockstepResult(
        task=task,
        dataset=dataset_info(data),
        started=started,
        finished=datetime.now(UTC),
        loss_tolerance=LOSS_TOLERANCE,
        weight_tolerance=WEIGHT_TOLERANCE,
        agreed=agreed,
        steps=done,
        sides=ends,
    )


def _rewire(sides: list[_Side], step: int) -> int:
    """Rewire both as the first one decides; how many connections the second decided otherwise.

    The backends' weights agree to rounding only, so a |weight| beside the threshold may fall on
    either side of it. Those connections are excused, and counted; any other is an error.
    """
    thresholds = [side.ask("plan", step=step) for side in sides]
    slots = [side.read("slots") for side in sides]
    weights = [side.read("planned").reshape(-1) for side in sides]
    differing = np.setxor1d(slots[0], slots[1])
    allowed = WEIGHT_TOLERANCE * float(np.abs(weights[0]).max(initial=0.0))
    for values, threshold in zip(weights, thresholds, strict=True):
        distance = np.abs(np.abs(values[differing]) - threshold)
        if (distance > allowed).any():
            raise LockstepError(
                f"before step {step} the backends rewire different connections: |weight| "
                f"{distance.max():.3g} away from the threshold, {allowed:.3g} allowed"
            )
    for side in sides:
        side.ask("rewire", plan=str(sides[0].folder), threshold=thresholds[0])
    return len(differing)


def _intermediate(side: _Side, when: str) -> tuple[np.ndarray, np.ndarray]:
    """Weights [inputs, units] and bias [units] of the intermediate layer; `before` the next step
    asks the child for them, `after` reads what the step left."""
    if when == "before":
        side.ask("save", names=["intermediate.weights", "intermediate.bias"])
    return side.read("intermediate.weights"), side.read("intermediate.bias")


def _excuse_kinks(
    sides: list[_Side], before: tuple[np.ndarray, np.ndarray], features: np.ndarray
) -> int:
    """Find intermediate units that differ because of ReLU's kink, and take them over from the
    first backend into the second, Adam's moments included; how many there were.

    before: weights and bias ahead of the step; features [batch, inputs] of its batch. A unit that
    differs without such a reason is left alone, for the tolerance to judge.
    """
    after = [_intermediate(side, "after") for side in sides]
    differing = np.zeros(before[1].shape, bool)
    for first, second in zip(*after, strict=True):
        apart = np.abs(first - second).max(axis=0) if first.ndim == 2 else np.abs(first - second)
        differing |= apart > KINK_SUSPICION * np.abs(first).max()
    units = np.flatnonzero(differing)
    x = features.astype(np.float64)
    weights, bias = before[0][:, units].astype(np.float64), before[1][units].astype(np.float64)
    at_kink = np.abs(x @ weights + bias) <= KINK * (np.abs(x) @ np.abs(weights) + np.abs(bias))
    units = units[at_kink.any(axis=0)]
    if units.size:
        for side, do in zip(sides, ("give", "take"), strict=True):
            np.save(side.folder / "units.npy", units)
            side.ask(do, of=str(sides[0].folder))
    return len(units)


# The child --------------------------------------------------------------------------------------


def serve(request: Request, orders: Iterator[str], send: Callable[[Any], None]) -> None:
    """Carry out the parent's orders until it goes away."""
    task = request.task
    data = load(task.dataset, task.features, request.data_dir)
    seed = task.seed + request.repeat
    stream = endless(make_batches(task, split(data, task)[0], seed))
    machine = warm_up(request)
    with measure.MemoryWatch() as memory:
        trainer = build(request, task.setup(data.inputs, data.labels))
        seconds: list[float] = []
        send(None)
        for line in orders:
            order = json.loads(line)
            folder = Path(order["folder"])
            match order["do"]:
                case "step":
                    batch = next(stream)
                    start = time.perf_counter()
                    (loss,) = trainer.train([batch], task.learning_rate)
                    trainer.device.synchronize()
                    seconds.append(time.perf_counter() - start)
                    _save(trainer, folder, trainer.setup.array_shapes())
                    send(float(loss))
                case "save":
                    _save(trainer, folder, order["names"])
                    send(None)
                case "plan":
                    weights = trainer.array("output.weights")
                    drawn = rewiring_seed(seed, order["step"])
                    plan = plan_rewiring(
                        weights, task.rewire_fraction, trainer.setup.output_inputs, drawn
                    )
                    np.save(folder / "positions.npy", plan.positions)
                    np.save(folder / "sources.npy", plan.sources)
                    np.save(folder / "planned.npy", weights)
                    send(plan.threshold)
                case "rewire":
                    plan_folder = Path(order["plan"])
                    positions = np.load(plan_folder / "positions.npy")
                    sources = np.load(plan_folder / "sources.npy")
                    trainer.apply_rewiring(Rewiring(positions, sources, order["threshold"]))
                    send(None)
                case "give":
                    for name, array in _unit_arrays(trainer).items():
                        np.save(folder / f"given.{name}.npy", array)
                    send(None)
                case "take":
                    _take_units(trainer, Path(order["of"]))
                    _save(trainer, folder, trainer.setup.array_shapes())
                    send(None)
                case "finish":
                    steady = seconds[_WARMUP_STEPS:] or seconds
                    side = LockstepSide(
                        machine=machine,
                        test=evaluate(trainer, data.test_x, data.test_y),
                        median_step_seconds=statistics.median(steady),
                        memory=memory.result(trainer),
                    )
                    send(side.model_dump(mode="json"))


def endless(batches: Batches) -> Iterator[Batch]:
    """Epoch after epoch."""
    return (batch for epoch in itertools.count() for batch in batches.epoch(epoch))


def _save(trainer: Trainer, folder: Path, names: Iterable[str]) -> None:
    for name in names:
        np.save(folder / f"{name}.npy", trainer.array(name))


def _unit_arrays(trainer: Trainer) -> dict[str, np.ndarray]:
    """Everything that belongs to the intermediate units: the last axis counts them."""
    state = itertools.chain(trainer.arrays(), trainer.optimizer_arrays())
    return copied(item for item in state if item[0].startswith("intermediate."))


def _take_units(trainer: Trainer, folder: Path) -> None:
    """Overwrite some intermediate units with what the other backend gave."""
    units = np.load(folder / "units.npy")
    weights, moments = trainer.weights(), copied(trainer.optimizer_arrays())
    for name in _unit_arrays(trainer):
        target = weights if name in weights else moments
        target[name][..., units] = np.load(folder / f"given.{name}.npy")[..., units]
    trainer.load_weights(weights)
    trainer.load_optimizer_arrays(moments)


def main(channel: int) -> None:
    with os.fdopen(channel, "w", encoding="utf-8") as stream:

        def reply(**answer: Any) -> None:
            print(json.dumps(answer), file=stream, flush=True)

        try:
            request = Request.model_validate_json(sys.stdin.readline())
            serve(request, iter(sys.stdin.readline, ""), lambda value: reply(value=value))
        except Exception as error:
            traceback.print_exc()
            reply(error=f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main(int(sys.argv[1]))
