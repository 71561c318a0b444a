"""Both backends side by side: the same batches from the same weights, compared after every step.

Each backend trains in a child process of its own (`side`) and they take turns, so each has the
machine to itself while its step is timed. Requests and answers are messages, see
`measuring.process`; arrays go through files in a temporary folder.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from fanin.backends.features import NAMES, FeatureTransform
from fanin.backends.registry import BACKENDS
from fanin.backends.setup import LayerSetup
from fanin.backends.training import Schedule, rewire_due
from fanin.benchmarks.harness.parent import log_path
from fanin.benchmarks.harness.prepare import dataset_info, endless, make_batches, setup_for, split
from fanin.benchmarks.harness.request import Options, Request, end_moment
from fanin.benchmarks.measuring.process import Child, EndedError
from fanin.benchmarks.records.compare import (
    Difference,
    LockstepResult,
    LockstepSide,
    LockstepStep,
)
from fanin.benchmarks.records.files import save_array
from fanin.benchmarks.records.store import lockstep_path
from fanin.benchmarks.records.task import Task
from fanin.datasets import Features, load

_SIDE = "fanin.benchmarks.harness.side"

# Relative. Both backends compute in float32, where one rounding is 6e-8; what is allowed here is
# the growth of such roundings over a few hundred steps of Adam.
LOSS_TOLERANCE = 1e-5
WEIGHT_TOLERANCE = 1e-4
# ReLU's gradient jumps at 0. Where the sum that goes into it is that small against the sum of
# absolute values (rounding, times some ten), it is chance on which side a backend finds it.
KINK = 3e-6
# Units that differ by more than this after a step are looked at for such a kink.
KINK_SUSPICION = 0.05 * WEIGHT_TOLERANCE

# The share of the connections that move towards gradients for which rounding may decide.
GRADIENT_EXCUSED = 1e-3

OnStep = Callable[[LockstepStep], None]
# Weights [inputs, units] and bias [units] of the intermediate layer.
Intermediate = tuple[np.ndarray, np.ndarray]


class LockstepError(RuntimeError):
    """One of the two processes failed; the message holds its error."""


def difference(a: np.ndarray, b: np.ndarray) -> Difference:
    """Largest |a - b|, and that over the largest |a|."""
    absolute = float(np.max(np.abs(a.astype(np.float64) - b), initial=0.0))
    scale = float(np.max(np.abs(a), initial=0.0))
    return Difference(absolute=absolute, relative=absolute / scale if scale else absolute)


class SideChild:
    """This process's end of one side."""

    def __init__(self, request: Request, folder: Path, log: Path) -> None:
        self.backend = request.backend
        self.folder = folder / request.backend
        self.folder.mkdir()
        self._child = Child(_SIDE, log=log)
        self._child.send(request.model_dump(mode="json"))

    def ask(self, do: str, **arguments: Any) -> Any:
        """Have the side do something; its answer."""
        self._child.send({"do": do, "folder": str(self.folder), **arguments})
        return self.answer()

    def answer(self) -> Any:
        """Wait for its answer. Raises LockstepError where the side has failed."""
        try:
            answer = self._child.receive()
        except EndedError as error:
            answer = {"error": str(error)}
        if "error" in answer:
            raise LockstepError(f"{self.backend}: {answer['error']}")
        return answer["value"]

    def read(self, name: str) -> np.ndarray:
        return np.load(self.folder / f"{name}.npy")

    def close(self) -> None:
        self._child.close()


def compare(
    task: Task, options: Options, steps: int, on_step: OnStep | None = None
) -> LockstepResult:
    """Train `task` for `steps` steps in both backends and compare them after each.

    Raises LockstepError where a backend fails. The result is not written; see `records.store`.
    """
    started = datetime.now(UTC)
    data = load(task.dataset, task.features, options.data_dir)
    setup = setup_for(task, data)
    names = list(setup.array_shapes())
    batches = make_batches(task, split(data, task)[0], task.seed)
    stream = endless(batches)
    recipe = task.recipe_values.for_steps(len(batches))
    schedule = Schedule(recipe, recipe.epochs * len(batches))
    done: list[LockstepStep] = []
    excused = kinks = 0
    with (
        tempfile.TemporaryDirectory(prefix="fanin-lockstep-") as folder,
        ExitStack() as closing,
    ):
        sides = []
        for backend in BACKENDS:
            sides.append(start_side(task, backend, options, Path(folder)))
            closing.callback(sides[-1].close)
        for side in sides:
            side.answer()
        transform = feature_transform(sides[0], setup)
        for step in range(1, steps + 1):
            if setup.is_rewired and rewire_due(step, recipe, len(batches)):
                excused += rewire_alike(sides, task, step)
            features = next(stream).features
            before = None
            if setup.intermediate:
                sides[0].ask("save", names=["intermediate.weights", "intermediate.bias"])
                before = intermediate_layer(sides[0])
            rate = schedule.rate_at(step)
            losses = {side.backend: side.ask("step", learning_rate=rate) for side in sides}
            if before:
                kinks += excuse_kinks(sides, before, transform.apply(features))
            arrays = compare_arrays(sides, names, step)
            loss = difference(*(np.array(value) for value in losses.values()))
            done.append(
                LockstepStep(
                    step=step,
                    losses=losses,
                    loss=loss,
                    arrays=arrays,
                    excused=excused,
                    kinks=kinks,
                )
            )
            if on_step:
                on_step(done[-1])
        ends = {s.backend: LockstepSide.model_validate(s.ask("finish")) for s in sides}
    result = LockstepResult(
        task=task,
        dataset=dataset_info(data),
        started=started,
        finished=end_moment(started),
        loss_tolerance=LOSS_TOLERANCE,
        weight_tolerance=WEIGHT_TOLERANCE,
        agreed=False,
        steps=done,
        sides=ends,
    )
    result.agreed = all(map(result.within, done))
    return result


def start_side(task: Task, backend: str, options: Options, folder: Path) -> SideChild:
    """Start one side, its arrays in a folder below `folder`."""
    path = lockstep_path(options.results, task)
    log = log_path(path.with_name(f"{path.stem}-{backend}.json"))
    request = Request(task=task, backend=backend, repeat=0, options=options)
    return SideChild(request, folder, log)


def intermediate_layer(side: SideChild) -> Intermediate:
    """The intermediate layer as the side wrote it last."""
    return side.read("intermediate.weights"), side.read("intermediate.bias")


def feature_transform(side: SideChild, setup: LayerSetup) -> FeatureTransform:
    """What the model does to its features; it is never trained."""
    names = [name for name in NAMES if name in setup.array_shapes()]
    if names:
        side.ask("save", names=names)
    return FeatureTransform.from_arrays({name: side.read(name) for name in names})


def compare_arrays(sides: list[SideChild], names: list[str], step: int) -> dict[str, Difference]:
    """The differences of all trained arrays after a step. Raises LockstepError where one is not
    finite, and where an array that is not trained differs at all."""
    compared = {}
    for name in names:
        first, second = (side.read(name) for side in sides)
        if name.endswith(("weights", "bias")):
            if not (np.isfinite(first).all() and np.isfinite(second).all()):
                raise LockstepError(
                    f"{name} is not finite after step {step}; lower the learning rate or look at "
                    "the features"
                )
            compared[name] = difference(first, second)
        elif not np.array_equal(first, second):
            raise LockstepError(f"{name} differs after step {step}")
    return compared


def rewire_alike(sides: list[SideChild], task: Task, step: int) -> int:
    """Rewire both as the first one decides; how many connections the second decided otherwise.

    The backends' weights agree to rounding only, so a |weight| beside the threshold may fall on
    either side of it. Those connections are excused, and counted; any other is an error. Towards
    gradients each label has a threshold of its own, which is not kept: there a small share of all
    that move is excused.
    """
    thresholds = [side.ask("plan", step=step) for side in sides]
    excused = 0
    for layer in thresholds[0]:
        positions = [side.read(f"{layer}.positions") for side in sides]
        weights = [side.read(f"{layer}.planned").reshape(-1) for side in sides]
        differing = np.setxor1d(positions[0], positions[1])
        excused += len(differing)
        if task.rewire_towards == "gradient":
            allowed = GRADIENT_EXCUSED * len(positions[0])
            if len(differing) > allowed:
                raise LockstepError(
                    f"before step {step} the backends rewire different connections: "
                    f"{len(differing)} of {len(positions[0])}, {allowed:.0f} allowed"
                )
            continue
        allowed = WEIGHT_TOLERANCE * float(np.abs(weights[0]).max(initial=0.0))
        for values, threshold in zip(weights, thresholds, strict=True):
            distance = np.abs(np.abs(values[differing]) - threshold[layer])
            if (distance > allowed).any():
                raise LockstepError(
                    f"before step {step} the backends rewire different connections: |weight| "
                    f"{distance.max():.3g} away from the threshold, {allowed:.3g} allowed"
                )
    for side in sides:
        side.ask("rewire", plan=str(sides[0].folder))
    return excused


def excuse_kinks(sides: list[SideChild], before: Intermediate, features: Features) -> int:
    """Take intermediate units that differ because of ReLU's kink over from the first backend into
    the second, Adam's moments included; how many there were.

    before: the layer ahead of the step; features [batch, inputs] of its batch. A unit that differs
    without such a reason is left alone, for the tolerance to judge.
    """
    after = [intermediate_layer(side) for side in sides]
    differing = np.zeros(before[1].shape, bool)
    for first, second in zip(*after, strict=True):
        apart = np.abs(first - second).max(axis=0) if first.ndim == 2 else np.abs(first - second)
        differing |= apart > KINK_SUSPICION * np.abs(first).max()
    units = np.flatnonzero(differing)
    x = features.astype(np.float64)
    weights, bias = before[0][:, units].astype(np.float64), before[1][units].astype(np.float64)
    at_kink = np.abs(x @ weights + bias) <= KINK * (abs(x) @ np.abs(weights) + np.abs(bias))
    units = units[at_kink.any(axis=0)]
    if units.size:
        giver, taker = sides
        for side in sides:
            save_array(side.folder / "units.npy", units)
        giver.ask("give")
        taker.ask("take", giver=str(giver.folder))
    return len(units)
