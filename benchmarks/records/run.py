"""One run's result file: a whole training, or a shape profile of one."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal, Self

from pydantic import Field, ValidationInfo, model_validator

from fanin.backends.registry import BACKENDS
from fanin.benchmarks.records.base import (
    SCHEMA_VERSION,
    AtK,
    DatasetInfo,
    Failure,
    Machine,
    Memory,
    Precision,
    Record,
    SchemaVersion,
)
from fanin.benchmarks.records.ranges import (
    Count,
    LearningRate,
    Magnitude,
    Moment,
    Rate,
    Seconds,
    Size,
)
from fanin.benchmarks.records.task import Task

# train: a whole run; shapes: a few steps on random data of the real sizes.
Profile = Literal["train", "shapes"]


class Ranking(Record):
    """What `metrics` has beside precision, and the constants of the propensity model."""

    ndcg: AtK
    psp: AtK
    psndcg: AtK
    propensity_a: Magnitude
    propensity_b: Magnitude


class Epoch(Record):
    """One epoch of the history."""

    epoch: Size = Field(description="counted from 1")
    steps: Size
    loss: Magnitude = Field(description="mean over the epoch's steps")
    learning_rate: LearningRate
    validation: Precision
    train_seconds: Seconds
    evaluate_seconds: Seconds
    rewired: Count = Field(description="connections that got a new source in this epoch")


class Timing(Record):
    """Whole run, synchronised with the device at each border."""

    train_seconds: Seconds
    evaluate_seconds: Seconds = Field(description="validation during training")
    final_evaluate_seconds: Seconds = Field(description="train and test P@k with the best weights")
    median_step_seconds: Seconds | None = Field(description="over all steps after the first ten")
    median_communication_seconds: Seconds | None = Field(
        default=None,
        description="of a step, over the same steps: what rank 0 waits for other ranks, and for "
        "what these sent; null in a run of one process, and on a GPU",
    )
    choose_seconds: Seconds | None = Field(
        default=None,
        description="choosing connections, scale and biases by the data, before the training; null "
        "where nothing was to choose, or a run that was resumed had done it",
    )


class Extrapolation(Record):
    """Raw times of a shape profile (random data, see `fanin.datasets.shape_twins`).

    An epoch is extrapolated from them: steps_per_epoch steps, rewires_per_epoch rewirings, and
    evaluation_blocks blocks of test instances.
    """

    step_seconds: list[Seconds] = Field(min_length=1, description="each step after the first ones")
    steps_per_epoch: Size
    rewire_seconds: Seconds | None = Field(
        description="one rewiring; null where nothing is rewired, and towards gradients, for which "
        "all training instances are read"
    )
    rewires_per_epoch: Rate
    block_seconds: list[Seconds] = Field(
        min_length=1, description="prediction for each block of instances"
    )
    evaluation_blocks: Rate = Field(description="blocks in the real test set")
    expected_peak_bytes: Size = Field(description="what `fanin plan` expected, before it was built")


class RunResult(Record):
    """One run; a failed one has `failure` and whatever was known before it."""

    schema_version: SchemaVersion = SCHEMA_VERSION
    status: Literal["finished", "failed"]
    task: Task
    backend: str
    repeat: Count = Field(description="number of the repeat, from 0; its seed is seed + repeat")
    started: Moment
    finished: Moment
    resumed: Count = Field(
        default=0,
        description="how often another process went on from a checkpoint; start, memory and median "
        "step are those of the last one, the history is of all",
    )
    machine: Machine | None = None
    dataset: DatasetInfo | None = None
    history: list[Epoch] = Field(default_factory=list)
    train: Precision | None = None
    test: Precision | None = None
    train_ranking: Ranking | None = None
    test_ranking: Ranking | None = None
    memory: Memory | None = Field(default=None, description="of all processes of the run together")
    memory_of_ranks: list[Memory] = Field(
        default_factory=list,
        description="of each process of a run of several, in the order of their ranks",
    )
    timing: Timing | None = None
    extrapolation: Extrapolation | None = None
    weights_checksum: str | None = Field(
        default=None, description="SHA-256 of the weights file beside it; null where none was saved"
    )
    failure: Failure | None = None

    @model_validator(mode="after")
    def _fits_itself(self, info: ValidationInfo) -> Self:
        """What a file says in one place has to fit what it says in another. The result of a run
        that goes on is not complete yet, so only a file is checked."""
        if info.mode == "json":
            for complaint in self._complaints():
                raise ValueError(complaint)
        return self

    def _complaints(self) -> Iterator[str]:
        if self.backend not in BACKENDS:
            yield f"backend {self.backend!r} is none of {', '.join(BACKENDS)}"
        if self.finished < self.started:
            yield f"finished {self.finished} is before started, {self.started}"
        if self.repeat >= self.task.repeat:
            yield f"repeat {self.repeat} of a task with {self.task.repeat}, counted from 0"
        if [epoch.epoch for epoch in self.history] != list(range(1, len(self.history) + 1)):
            yield "history does not count its epochs from 1"
        if "schema_version" not in self.model_fields_set:
            yield f"schema_version is missing; it is {SCHEMA_VERSION}"
        steps = max((epoch.steps for epoch in self.history), default=1)
        epochs = self.task.recipe_values.for_steps(steps).epochs
        # Only a plateau ends early. With fewer epochs, the run was of another recipe than its task.
        needs_all = self.status == "finished" and self.task.schedule != "plateau" and self.history
        if len(self.history) > epochs or (needs_all and len(self.history) < epochs):
            yield f"history has {len(self.history)} epochs, and the task {epochs}"
        if self.dataset:
            named = (self.dataset.name, self.dataset.features)
            if named != (self.task.dataset, self.task.features):
                yield f"dataset is {' with '.join(named)}, and not the task's"
            most = -(-self.dataset.train_instances // self.task.batch_size)
            for number, epoch in enumerate(self.history):
                if epoch.steps > most:
                    yield f"history.{number}.steps {epoch.steps}, and all instances make {most}"
        if self.timing and self.history:
            for key in ("train_seconds", "evaluate_seconds"):
                total, whole = sum(getattr(e, key) for e in self.history), getattr(self.timing, key)
                if not math.isclose(whole, total, rel_tol=1e-6):
                    yield f"timing.{key} {whole}, and history adds up to {total}"
        if (self.status == "failed") != (self.failure is not None):
            yield f"status {self.status!r}, and failure is {'set' if self.failure else 'null'}"
        if self.status == "finished":
            lacking = [key for key in self._needed() if not getattr(self, key)]
            if lacking:
                yield f"status 'finished', but nothing stands in {', '.join(lacking)}"

    def _needed(self) -> tuple[str, ...]:
        """What a finished run has, or a finished shape profile."""
        if self.extrapolation:
            return ("machine", "dataset")
        return ("machine", "dataset", "history", "train", "test", "timing")
