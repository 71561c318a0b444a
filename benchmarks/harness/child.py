"""One run, in a process of its own: data set, trainer, training, measuring, result file.

`parent` starts it, sends it the request, and gets events back; see `measuring.process`.
"""

from __future__ import annotations

import errno
import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any, SupportsFloat

import numpy as np

from fanin.backends.auxiliary import Auxiliary
from fanin.backends.estimate import TooLargeError, check_counted
from fanin.backends.starting import looks_at_data
from fanin.benchmarks.harness.checkpoint import Checkpoint, checkpoint_folder, remove_checkpoint
from fanin.benchmarks.harness.fit import Split, fit, predict
from fanin.benchmarks.harness.plan import estimate, share_of
from fanin.benchmarks.harness.prepare import (
    auxiliary_of,
    build,
    chosen_arrays,
    dataset_info,
    kind_for,
    make_batches,
    setup_for,
    split,
    warm_up,
)
from fanin.benchmarks.harness.request import Request, begun, end_moment, failed
from fanin.benchmarks.harness.together import ALONE, Together, processes_here
from fanin.benchmarks.measuring import machine
from fanin.benchmarks.measuring.clock import StepClock
from fanin.benchmarks.measuring.memory import MemoryWatch
from fanin.benchmarks.measuring.memory import total as total_memory
from fanin.benchmarks.measuring.metrics import precision, ranking
from fanin.benchmarks.measuring.process import Parent
from fanin.benchmarks.records.files import checksum, flush, reserving
from fanin.benchmarks.records.printing import log
from fanin.benchmarks.records.run import Epoch, RunResult, Timing
from fanin.benchmarks.records.store import write_result
from fanin.datasets import Dataset, propensity
from fanin.datasets import load as load_dataset
from fanin.datasets.folder import LEFT_OUT
from fanin.datasets.memory import available_bytes
from fanin.kernels import build_info, processor
from fanin.kernels.threads import thread_count

_EVENT_SECONDS = 0.2


class Events:
    """Tells the parent how far the run is, a few times a second. send: what takes an event."""

    def __init__(self, send: Callable[[dict[str, Any]], None]) -> None:
        self._send = send
        self._last = 0.0

    def send(self, **event: Any) -> None:
        self._send(event)

    def step(self, done: int, total: int, loss: SupportsFloat) -> None:
        now = time.monotonic()
        if now - self._last >= _EVENT_SECONDS or done == total:
            self._last = now
            self.send(event="step", done=done, total=total, loss=float(loss))


def identity(request: Request, data: Dataset) -> dict[str, str]:
    """What must be equal for a run to continue what another process began."""
    return {
        "task": request.task.model_dump_json(exclude={"repeat"}),
        "seed": str(request.seed),
        "backend": request.backend,
        "data": data.identity,
        "code": machine.code_identity(),
        "package version": json.dumps(machine.packages()),
        "device": request.options.device,
        "number of threads": str(thread_count(request.options.threads)),
        "processor": processor(),
        "instruction set": build_info()["instruction_set"],
    }


def open_checkpoint(
    request: Request, data: Dataset, events: Events, together: Together = ALONE
) -> Checkpoint:
    """The run's checkpoint: what another process left, if it fits and is wanted."""
    folder, options = checkpoint_folder(request.path), request.options
    if options.force and together.rank == 0:
        remove_checkpoint(folder)
    own = identity(request, data)
    for what, value in own.items():
        together.check_equal(what, value)
    checkpoint = Checkpoint(folder, own, 60 * options.checkpoint_minutes, together)
    if checkpoint.note:
        log(checkpoint.note)
        events.send(event="note", text=checkpoint.note)
    if checkpoint.history:
        events.send(event="resumed", epoch=len(checkpoint.history))
    return checkpoint


def choose(
    request: Request, train: Split, events: Events, steps_per_epoch: int, are_known: bool
) -> tuple[dict[str, np.ndarray], Auxiliary | None, float | None]:
    """The arrays that the task wants chosen by its training instances, its auxiliary loss, and the
    seconds that this took; None where nothing was to choose. are_known: whether a checkpoint has
    all these arrays."""
    if are_known:
        return {}, auxiliary_of(request, train, steps_per_epoch, are_known=True), None
    start = time.perf_counter()

    def on_labels(done: int) -> None:
        events.send(event="phase", name=f"choosing connections, {done} labels")

    reads = looks_at_data(request.task.recipe_values, kind_for(request.task, train))
    if reads:
        events.send(event="phase", name="looking at the data")
    given = chosen_arrays(request, train, on_labels)
    auxiliary = auxiliary_of(request, train, steps_per_epoch)
    return given, auxiliary, time.perf_counter() - start if reads else None


def run(request: Request, events: Events, result: RunResult, together: Together = ALONE) -> None:
    """Train and measure, and fill the result in. Exceptions pass; `main` records them. together:
    the processes that do so."""
    task, options = request.task, request.options
    events.send(event="phase", name="loading data")
    data = load_dataset(task.dataset, task.features, options.data_dir)
    result.dataset = dataset_info(data)
    if pairs := result.dataset.left_out_pairs:
        log(f"scores of {pairs} pairs in {LEFT_OUT.format(split='test')} are left out")
    setup = setup_for(task, data)
    if machine.runs_on_cpu(options.device):
        own = share_of(setup, together.size)
        expected = estimate(task, own, request.backend, request.threads)
        check_counted(expected, available_bytes() // processes_here())
    train, validation = split(data, task)
    batches = make_batches(task, train, request.seed)
    events.send(event="phase", name="importing the backend")
    result.machine = warm_up(request, data.sparse_features)
    total = task.recipe_values.for_steps(len(batches)).epochs * len(batches)
    checkpoint = open_checkpoint(request, data, events, together)
    result.resumed = checkpoint.resumed
    before = len(checkpoint.history) * len(batches)
    with MemoryWatch() as memory:
        given, auxiliary, choose_seconds = choose(
            request, train, events, len(batches), are_known=bool(checkpoint.history)
        )
        events.send(event="phase", name="building the model")
        over_ranks = together.size > 1
        trainer = build(request, setup, given=given, auxiliary=auxiliary, over_ranks=over_ranks)
        del given
        clock = StepClock(trainer)
        events.send(event="phase", name="training")

        def on_step(loss: SupportsFloat) -> None:
            clock(loss)
            events.step(before + clock.steps, total, loss)

        def on_epoch(epoch: Epoch) -> None:
            clock.pause()
            events.send(event="epoch", **epoch.model_dump())

        done = fit(trainer, batches, validation, task, request.seed, checkpoint, on_step, on_epoch)
        result.history = done.history
        events.send(event="phase", name="final evaluation")
        start = time.perf_counter()
        constants = propensity(data.name)
        top = predict(trainer, data.test_x, data.test_left_out)
        result.test = precision(data.test_y, top)
        result.test_ranking = ranking(data.test_y, top, data.train_y, constants)
        top = predict(trainer, train.x, train.left_out)
        result.train = precision(train.y, top)
        result.train_ranking = ranking(train.y, top, data.train_y, constants)
        result.timing = Timing(
            train_seconds=sum(e.train_seconds for e in result.history),
            evaluate_seconds=sum(e.evaluate_seconds for e in result.history),
            final_evaluate_seconds=time.perf_counter() - start,
            median_step_seconds=clock.median(),
            median_communication_seconds=clock.median_communication(),
            choose_seconds=choose_seconds,
        )
        of_ranks = together.gather_objects(memory.result(trainer))
        result.memory = total_memory(of_ranks)
        result.memory_of_ranks = of_ranks if over_ranks else []
    if request.weights_path:
        weights = trainer.weights()
        if together.rank == 0:
            save_weights(weights, request.weights_path)
            result.weights_checksum = checksum(request.weights_path)
    result.finished = end_moment(result.started)


def save_weights(weights: dict[str, np.ndarray], path: Path) -> None:
    """Write all arrays of a model as a safetensors file, which either backend loads."""
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.part")
    try:
        save_file(weights, temporary)
        flush(temporary)
        os.replace(temporary, path)
    except SafetensorError as error:
        raise OSError(errno.EIO, str(error), str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)  # on a full disk the result needs its place
    flush(path.parent)


def main(
    parent: Parent, work: Callable[[Request, Events, RunResult], None] = run, rank: int = 0
) -> int:
    """Do the work that the parent requests, and write its result or its failure; the exit code.
    rank: of this process among those of the run; only the first one writes what went well."""
    request = Request.model_validate(parent.receive())
    result = begun(request)
    try:
        with nullcontext() if rank else reserving(request.path):
            work(request, Events(parent.send), result)
    except Exception as error:
        log(traceback.format_exc())
        # Where it was noticed that a model is too large tells nobody anything.
        trace = "" if isinstance(error, TooLargeError) else traceback.format_exc()
        failed(result, type(error).__name__, str(error), trace)
    if result.status == "failed":
        write_result(request.path, result)
        return 1
    if rank:
        return 0
    write_result(request.path, result)
    remove_checkpoint(checkpoint_folder(request.path))
    return 0


if __name__ == "__main__":
    sys.exit(main(Parent(int(sys.argv[1]))))
