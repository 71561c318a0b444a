"""One run, in a process of its own: data set, trainer, training, measuring, result file.

`runner` starts it as `python -m fanin.benchmarks.harness.child`, hands the request over as a line of standard
input and reads events, one JSON object a line, from the pipe whose number is the only argument.
Standard input stays open as long as the parent lives: when it ends, so does this process, without a
result.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, SupportsFloat, TextIO

import numpy as np
import scipy.sparse as sp
from pydantic import BaseModel, ConfigDict

from fanin.backends.arrays import InitialArrays
from fanin.backends.registry import make_trainer
from fanin.backends.setup import LayerSetup
from fanin.backends.trainer import Trainer
from fanin.benchmarks.harness.checkpoint import Checkpoint, checkpoint_folder, remove_checkpoint
from fanin.benchmarks.harness.fit import evaluate, fit, predict
from fanin.benchmarks.harness.plan import TooLargeError, check_counted, estimate
from fanin.benchmarks.measuring import measure
from fanin.benchmarks.measuring.metrics import precision, ranking
from fanin.benchmarks.records.base import DatasetInfo, Failure, Machine
from fanin.benchmarks.records.run import Epoch, Profile, RunResult, Timing
from fanin.benchmarks.records.store import write_result
from fanin.benchmarks.records.task import Task
from fanin.datasets import Batches, DataError, Dataset, propensity
from fanin.datasets import load as load_dataset
from fanin.datasets.memory import available_bytes
from fanin.kernels import build_info, processor

_EVENT_SECONDS = 0.2
# Of the training instances, in protocol "holdout".
HOLDOUT_FRACTION = 0.1
# Exit code of a process whose parent is gone; nobody is there to read it.
_ORPHANED = 3


class Request(BaseModel):
    """All that a run needs to know."""

    model_config = ConfigDict(allow_inf_nan=False)

    task: Task
    backend: str
    repeat: int
    path: Path
    data_dir: Path | None = None
    device: str = "auto"
    threads: int = 0
    weights: Path | None = None
    profile: Profile = "train"
    steps: int = 20
    checkpoint_minutes: float = 1.0
    force: bool = False


class Events:
    """Tells the parent how far the run is, a few times a second."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._last = 0.0

    def send(self, **event: Any) -> None:
        try:
            print(json.dumps(event), file=self._stream, flush=True)
        except BrokenPipeError:
            os._exit(_ORPHANED)

    def step(self, done: int, total: int, loss: SupportsFloat) -> None:
        now = time.monotonic()
        if now - self._last >= _EVENT_SECONDS or done == total:
            self._last = now
            self.send(event="step", done=done, total=total, loss=float(loss))


def dataset_info(data: Dataset) -> DatasetInfo:
    return DatasetInfo(
        name=data.name,
        features=data.features,
        source=data.source,
        synthetic=data.synthetic,
        identity=data.identity,
        inputs=data.inputs,
        labels=data.labels,
        train_instances=data.train_instances,
        test_instances=data.test_instances,
        train_positives=int(data.train_y.nnz),
    )


Split = tuple[np.ndarray, sp.csr_array]


def split(data: Dataset, task: Task) -> tuple[Split, Split]:
    """Training and validation instances. Protocol "paper" validates on the test set, as the
    original did; "holdout" takes a tenth of the training instances out, the same for all repeats
    of a task. Raises DataError where it would leave none to train on."""
    train = (data.train_x, data.train_y)
    if task.protocol == "paper":
        return train, (data.test_x, data.test_y)
    if data.train_instances < 2:
        raise DataError(
            f"{data.name} ({data.source}): {data.train_instances} training instance, but protocol "
            "holdout takes one out and needs another: give more, or use protocol paper"
        )
    order = np.random.default_rng([task.seed, 2]).permutation(data.train_instances)
    count = max(1, int(HOLDOUT_FRACTION * data.train_instances))
    held, kept = np.sort(order[:count]), np.sort(order[count:])
    return tuple((data.train_x[rows], data.train_y[rows]) for rows in (kept, held))  # type: ignore[return-value]


def make_batches(task: Task, train: Split, seed: int) -> Batches:
    """The training stream of a run."""
    return Batches(*train, task.batch_size, task.dropout, seed)


def build(request: Request, setup: LayerSetup) -> Trainer:
    return trainer_of(request, setup, request.task.seed + request.repeat)


def trainer_of(request: Request, setup: LayerSetup, seed: int) -> Trainer:
    """A trainer as the request wants it, but of any setup."""
    return make_trainer(
        request.backend,
        setup,
        InitialArrays(setup, seed),
        execution=request.task.execution,
        storage=request.task.storage,
        device=request.device,
        threads=measure.threads(request.threads),
    )


def begun(request: Request) -> RunResult:
    """The result of a run that starts now; what it finds is filled in on the way."""
    now = datetime.now(UTC)
    return RunResult(
        status="finished",
        task=request.task,
        backend=request.backend,
        repeat=request.repeat,
        started=now,
        finished=now,
    )


def failed(result: RunResult, kind: str, message: str, output: str) -> RunResult:
    """The result of a run that began so and ended in an error."""
    result.status, result.finished = "failed", datetime.now(UTC)
    result.failure = Failure(kind=kind, message=message, traceback=output)
    return result


def warm_up(request: Request) -> Machine:
    """Import the framework, let a tiny model of the same kind train, rewire and predict, and
    describe the machine.

    A framework is hundreds of megabytes of code that becomes resident as it is first used, and
    looking up versions takes tens; after this they are part of the baseline and not of the
    model's memory.
    """
    task = request.task
    small = {"connectivity": task.connectivity and 1, "intermediate": task.intermediate and 8}
    setup = task.model_copy(update=small).setup(inputs=8, labels=8)
    trainer = trainer_of(request, setup, 0)
    x = np.ones((2, 8), np.float32)
    y = sp.csr_array(np.eye(2, 8, dtype=bool))
    trainer.train(Batches(x, y).epoch(0), task.learning_rate)
    if setup.is_rewired:
        trainer.rewire(0.5, 0)
    evaluate(trainer, x, y)
    return measure.machine(trainer.device, measure.threads(request.threads))


def identity(request: Request, data: Dataset) -> dict[str, str]:
    """What must be equal for a run to continue what another process began."""
    return {
        "task": request.task.model_dump_json(exclude={"repeat"}),
        "seed": str(request.task.seed + request.repeat),
        "backend": request.backend,
        "data": data.identity,
        "code": measure.code_identity(),
        "package version": json.dumps(measure.packages()),
        "device": request.device,
        "number of threads": str(measure.threads(request.threads)),
        "processor": processor(),
        "instruction set": build_info()["instruction_set"],
    }


def run(request: Request, events: Events, result: RunResult) -> None:
    """Train and measure, and fill the result in. Exceptions pass; `main` records them."""
    task = request.task
    events.send(event="phase", name="loading data")
    data = load_dataset(task.dataset, task.features, request.data_dir)
    result.dataset = dataset_info(data)
    seed = task.seed + request.repeat
    setup = task.setup(data.inputs, data.labels)
    if measure.runs_on_cpu(request.device):
        threads = measure.threads(request.threads)
        check_counted(estimate(task, setup, request.backend, threads), available_bytes())
    train, validation = split(data, task)
    batches = make_batches(task, train, seed)
    events.send(event="phase", name="importing the backend")
    result.machine = warm_up(request)
    total = task.epochs * len(batches)
    if request.force:
        remove_checkpoint(checkpoint_folder(request.path))
    checkpoint = Checkpoint(
        checkpoint_folder(request.path), identity(request, data), 60 * request.checkpoint_minutes
    )
    result.resumed = checkpoint.resumed
    if checkpoint.note:
        print(checkpoint.note, flush=True)
        events.send(event="note", text=checkpoint.note)
    if checkpoint.history:
        events.send(event="resumed", epoch=len(checkpoint.history))
    before = len(checkpoint.history) * len(batches)
    with measure.MemoryWatch() as memory:
        events.send(event="phase", name="building the model")
        trainer = build(request, setup)
        clock = measure.StepClock(trainer)
        events.send(event="phase", name="training")

        def on_step(loss: SupportsFloat) -> None:
            clock(loss)
            events.step(before + clock.steps, total, loss)

        def on_epoch(epoch: Epoch) -> None:
            clock.pause()
            events.send(event="epoch", **epoch.model_dump())

        done = fit(trainer, batches, validation, task, seed, checkpoint, on_step, on_epoch)
        result.history = done.history
        events.send(event="phase", name="final evaluation")
        start = time.perf_counter()
        constants = propensity(data.name)
        top = predict(trainer, data.test_x)
        result.test = precision(data.test_y, top)
        result.test_ranking = ranking(data.test_y, top, data.train_y, constants)
        top = predict(trainer, train[0])
        result.train = precision(train[1], top)
        result.train_ranking = ranking(train[1], top, data.train_y, constants)
        result.timing = Timing(
            train_seconds=sum(e.train_seconds for e in result.history),
            evaluate_seconds=sum(e.evaluate_seconds for e in result.history),
            final_evaluate_seconds=time.perf_counter() - start,
            median_step_seconds=clock.median(),
        )
        result.memory = memory.result(trainer)
    if request.weights:
        save_weights(trainer, request.weights)
    result.finished = datetime.now(UTC)


def save_weights(trainer: Trainer, path: Path) -> None:
    """Write all arrays as a safetensors file, which either backend loads."""
    from safetensors.numpy import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.part")
    save_file(trainer.weights(), temporary)
    os.replace(temporary, path)


def end_with(descriptor: int) -> None:
    """End this process at once when nobody holds the other end of that pipe any more: an orphan
    must not go on beside a run that was started anew."""

    def wait() -> None:
        # Past Python's buffers, whose lock would be in the way when this process ends by itself.
        while os.read(descriptor, 1):
            pass
        os._exit(_ORPHANED)

    threading.Thread(target=wait, name="fanin-lifeline", daemon=True).start()


def main(channel: int, work: Callable[[Request, Events, RunResult], None] = run) -> int:
    """Read the request, do the work and write its result or its failure; the exit code."""
    line = sys.stdin.readline()
    if not line.endswith("\n"):
        return _ORPHANED
    end_with(sys.stdin.fileno())
    request = Request.model_validate_json(line)
    with os.fdopen(channel, "w", encoding="utf-8") as stream:
        events, result = Events(stream), begun(request)
        try:
            work(request, events, result)
        except Exception as error:
            traceback.print_exc()
            # Where it was found that a model is too large tells nobody anything.
            trace = "" if isinstance(error, TooLargeError) else traceback.format_exc()
            failed(result, type(error).__name__, str(error), trace)
        write_result(request.path, result)
    if result.status == "failed":
        return 1
    remove_checkpoint(checkpoint_folder(request.path))
    return 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
