"""What a task will need before it runs: bytes of the model, peak memory, hours.

`backends/estimate.py` has the bytes. Hours are a rough guide: the bytes that a step has to move
over the machine's bandwidth, and its arithmetic over the rate of a dense product.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace

from fanin.backends import estimate as estimates
from fanin.backends.auxiliary import cluster_count
from fanin.backends.estimate import (
    Estimate,
    Sizes,
    TrainingOptions,
    bytes_of_instances,
    with_choosing,
)
from fanin.backends.head_and_tail import HeadAndTail
from fanin.backends.setup import LayerSetup
from fanin.benchmarks.harness.speed import Speed
from fanin.benchmarks.records.task import Task


def hours_per_epoch(expected: Estimate, task: Task, sizes: Sizes, speed: Speed) -> float:
    """Training and validation of one epoch; right within a factor of about two."""

    def seconds(steps: float, moved: float, flops: float) -> float:
        return steps * (moved / speed.bandwidth + flops / speed.flops)

    training = seconds(
        math.ceil(sizes.train_instances / task.batch_size), expected.moved_bytes, expected.flops
    )
    # The forward pass has a third of a step's arithmetic, and reads the parameters.
    groups = sizes.test_instances / task.batch_size
    validation = seconds(groups, expected.parameter_bytes, expected.flops / 3)
    return (training + validation) / 3600


def share_of(setup: LayerSetup, processes: int) -> LayerSetup:
    """The model of one of several processes, the one with the most labels; unstructured connections
    as if each label had its average."""
    if processes == 1:
        return setup
    shares = [-(-part.labels // processes) for part in setup.parts]
    output = setup.output
    if isinstance(output, HeadAndTail):
        output = replace(output, head_labels=shares[0])
    return replace(setup, labels=sum(shares), output=output)


@dataclass(frozen=True)
class Plan:
    """What one task needs in one backend, on a machine with so many bytes of free memory. epochs:
    at most. Bytes are of each process, of which the one with the most labels counts; the time is
    that of one process, without what several tell each other."""

    task: Task
    backend: str
    parameters: int
    expected: Estimate
    data_bytes: int
    available_bytes: int
    hours_per_epoch: float
    epochs: int
    processes: int

    @classmethod
    def of(
        cls,
        task: Task,
        backend: str,
        sizes: Sizes,
        speed: Speed,
        available: int,
        threads: int,
        processes: int = 1,
    ) -> Plan:
        setup = task.setup(sizes.inputs, sizes.labels, sizes.is_sparse)
        recipe = task.recipe_values.for_steps(math.ceil(sizes.train_instances / task.batch_size))

        def needed(own: LayerSetup, threads: int) -> Estimate:
            expected = estimate(
                task,
                own,
                backend,
                threads,
                words=sizes.words,
                other_bytes=bytes_of_instances(sizes),
            )
            # Every process looks at all labels of the data.
            return with_choosing(expected, recipe, setup, sizes, task.batch_size, threads)

        whole = needed(setup, threads)
        expected = whole
        if processes > 1:
            expected = needed(share_of(setup, processes), max(1, threads // processes))
        trained = (
            math.prod(shape)
            for name, shape in setup.array_shapes().items()
            if name.endswith(("weights", "bias"))
        )
        # What they share is the machine.
        hours = hours_per_epoch(whole, task, sizes, speed)
        # Validation instances are taken out of the others, as a copy of both.
        data = sizes.data_bytes + (sizes.train_bytes if task.protocol == "holdout" else 0)
        return cls(
            task,
            backend,
            sum(trained),
            expected,
            data,
            available,
            hours,
            recipe.epochs,
            processes,
        )

    @property
    def fits(self) -> bool:
        return self.processes * (self.expected.peak_bytes + self.data_bytes) <= self.available_bytes

    @property
    def hours(self) -> float:
        """For all epochs that the task allows, and all its repeats."""
        return self.hours_per_epoch * self.epochs * self.task.repeat

    def as_json(self) -> dict[str, object]:
        """For a program; bytes and hours."""
        return {
            "task": self.task.model_dump(mode="json"),
            "backend": self.backend,
            "parameters": self.parameters,
            **asdict(self.expected),
            "peak_bytes": self.expected.peak_bytes,
            "processes": self.processes,
            "data_bytes": self.data_bytes,
            "fits": self.fits,
            "epochs": self.epochs,
            "hours_per_epoch": self.hours_per_epoch,
            "hours": self.hours,
        }


def estimate(
    task: Task,
    setup: LayerSetup,
    backend: str,
    threads: int,
    cpu: str | None = None,
    *,
    words: float | None = None,
    other_bytes: int = 0,
) -> Estimate:
    """What training `setup` as the task says needs in this backend on a CPU: the one of that name,
    or this machine's. words, other_bytes: as `TrainingOptions` has them."""
    options = TrainingOptions(
        task.execution,
        task.storage,
        task.optimizer_values,
        task.batch_size,
        threads,
        words,
        other_bytes,
        cluster_count(task.recipe_values, setup.labels),
    )
    return estimates.estimate(setup, backend, options, cpu)
