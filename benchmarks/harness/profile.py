"""One shape profile, in a process of its own: a few steps of a task on random data of its real
sizes, for memory and for times from which an epoch is extrapolated. No precision.

`parent` starts it as it starts `child`, for a request whose profile is "shapes".
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import SupportsFloat

from fanin.backends.estimate import check_fits
from fanin.backends.interface import evaluation_block
from fanin.benchmarks.harness.checkpoint import Checkpoint
from fanin.benchmarks.harness.child import Events, main
from fanin.benchmarks.harness.fit import Split
from fanin.benchmarks.harness.plan import estimate
from fanin.benchmarks.harness.prepare import auxiliary_of, build, make_batches, warm_up
from fanin.benchmarks.harness.request import Request, end_moment
from fanin.benchmarks.measuring.clock import StepClock
from fanin.benchmarks.measuring.machine import runs_on_cpu
from fanin.benchmarks.measuring.memory import MemoryWatch
from fanin.benchmarks.measuring.process import Parent
from fanin.benchmarks.records.base import DatasetInfo
from fanin.benchmarks.records.run import Extrapolation, RunResult
from fanin.datasets import evaluation_blocks
from fanin.datasets.memory import available_bytes
from fanin.datasets.shape_twins import ShapeTwin, shape_twin
from fanin.kernels.threads import thread_count

# The first steps touch memory for the first time, and so does the first block.
_WARM_STEPS, _BLOCKS = 5, 3


def twin_info(twin: ShapeTwin, seed: int) -> DatasetInfo:
    sizes = twin.published
    return DatasetInfo(
        name=sizes.name,
        features=twin.features,
        source=twin.source,
        synthetic=True,
        identity=f"shape twin, seed {seed}",
        inputs=twin.inputs,
        labels=sizes.labels,
        train_instances=sizes.train_instances,
        test_instances=sizes.test_instances,
        train_positives=round(sizes.train_instances * sizes.labels_per_instance),
        train_stored=round(sizes.train_instances * twin.words.per_instance) if twin.words else None,
    )


def profile(request: Request, events: Events, result: RunResult) -> None:
    """Build, train, rewire, predict and keep weights as a run does, a few steps of each.

    Raises TooLargeError before anything is built where this machine has too little memory.
    """
    task, options = request.task, request.options
    twin = shape_twin(task.dataset, task.features)
    sizes = twin.published
    result.dataset = twin_info(twin, task.seed)
    is_sparse = twin.words is not None
    setup = task.setup(twin.inputs, sizes.labels, is_sparse)
    expected = estimate(
        task,
        setup,
        request.backend,
        thread_count(options.threads),
        words=twin.words.per_instance if twin.words else None,
    )
    events.send(event="phase", name="importing the backend")
    result.machine = warm_up(request, is_sparse)
    if runs_on_cpu(options.device):
        check_fits(expected, available_bytes())
    x, y = twin.sample((options.steps + _WARM_STEPS) * task.batch_size, task.seed)
    split = Split(x, y)
    batches = make_batches(task, split, task.seed)
    per_epoch = -(-sizes.train_instances // task.batch_size)
    block = evaluation_block(setup.output_inputs)
    asked, _ = twin.sample(_BLOCKS * block, task.seed + 1)
    with MemoryWatch() as memory:
        events.send(event="phase", name="building the model")
        # Any clusters have the same memory and arithmetic, so none are looked for. It lasts longer
        # than the profile.
        auxiliary = auxiliary_of(request, split, per_epoch, are_known=True)
        trainer = build(request, setup, auxiliary=auxiliary)

        def timed(work: Callable[..., object], *arguments: object) -> float:
            trainer.device.synchronize()
            start = time.perf_counter()
            work(*arguments)
            trainer.device.synchronize()
            return time.perf_counter() - start

        rewire_seconds = None
        # Towards gradients it reads all training instances, which a profile does not have.
        is_blind = task.rewire_towards == "random"
        if setup.is_rewired and task.rewire_interval and is_blind:
            rewire_seconds = timed(trainer.rewire, task.rewire_fraction, 0)
        events.send(event="phase", name="training")
        clock = StepClock(trainer)

        def on_step(loss: SupportsFloat) -> None:
            clock(loss)
            events.send(event="phase", name=f"training, step {clock.steps} of {len(batches)}")

        trainer.train(batches.epoch(0), task.learning_rate, on_step)
        steps = clock.seconds()[_WARM_STEPS - 1 :]
        if not steps:  # the framework cannot tell without waiting
            once_more = [timed(trainer.train, [b], task.learning_rate) for b in batches.epoch(1)]
            steps = once_more[_WARM_STEPS:]
        events.send(event="phase", name="predicting")
        k = min(5, setup.labels)
        blocks = [timed(trainer.top_k, part, k) for part in evaluation_blocks(asked, block)]
        # A run keeps its best weights at the end of an epoch.
        with tempfile.TemporaryDirectory(prefix="fanin-shapes-") as folder:
            Checkpoint(Path(folder), {}, 0.0).keep_best(trainer, 1)
        result.memory = memory.result(trainer)
    interval = per_epoch if task.rewire_interval == -1 else task.rewire_interval
    result.extrapolation = Extrapolation(
        step_seconds=steps,
        steps_per_epoch=per_epoch,
        rewire_seconds=rewire_seconds,
        rewires_per_epoch=per_epoch / interval if rewire_seconds is not None else 0.0,
        block_seconds=blocks[1:],
        evaluation_blocks=sizes.test_instances / block,
        expected_peak_bytes=expected.peak_bytes,
    )
    result.finished = end_moment(result.started)


if __name__ == "__main__":
    sys.exit(main(Parent(int(sys.argv[1])), profile))
