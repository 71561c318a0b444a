"""One run's result file: a whole training, or a shape profile of one."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import Field

from fanin.benchmarks.records.base import (
    SCHEMA_VERSION,
    AtK,
    DatasetInfo,
    Failure,
    Machine,
    Memory,
    Precision,
    Record,
)
from fanin.benchmarks.records.task import Task

# train: a whole run; shapes: a few steps on random data of the real sizes.
Profile = Literal["train", "shapes"]


class Ranking(Record):
    """What `metrics` has beside precision, and the constants of the propensity model."""

    ndcg: AtK
    psp: AtK
    psndcg: AtK
    propensity_a: float
    propensity_b: float


class Epoch(Record):
    """One epoch of the history."""

    epoch: int = Field(description="counted from 1")
    steps: int
    loss: float = Field(description="mean over the epoch's steps")
    learning_rate: float
    validation: Precision
    train_seconds: float
    evaluate_seconds: float
    rewired: int = Field(description="connections that got a new source in this epoch")


class Timing(Record):
    """Whole run, synchronised with the device at each border."""

    train_seconds: float
    evaluate_seconds: float = Field(description="validation during training")
    final_evaluate_seconds: float = Field(description="train and test P@k with the best weights")
    median_step_seconds: float | None = Field(description="over all steps after the first ten")
    choose_seconds: float | None = Field(
        default=None,
        description="choosing connections, scale and biases by the data, before the training; null "
        "where nothing was to choose, or a run that was resumed had done it",
    )


class Extrapolation(Record):
    """Raw times of a shape profile (random data, see `fanin.datasets.shape_twins`).

    An epoch is extrapolated from them: steps_per_epoch steps, rewires_per_epoch rewirings, and
    evaluation_blocks blocks of test instances.
    """

    step_seconds: list[float] = Field(description="each step after the first ones")
    steps_per_epoch: int
    rewire_seconds: float | None = Field(
        description="one rewiring; null where nothing is rewired, and towards gradients, for which "
        "all training instances are read"
    )
    rewires_per_epoch: float
    block_seconds: list[float] = Field(description="prediction for each block of instances")
    evaluation_blocks: float = Field(description="blocks in the real test set")
    expected_peak_bytes: int = Field(description="what `fanin plan` expected, before it was built")


class RunResult(Record):
    """One run; a failed one has `failure` and whatever was known before it."""

    schema_version: Literal[1] = SCHEMA_VERSION
    status: Literal["finished", "failed"]
    task: Task
    backend: str
    repeat: int = Field(ge=0, description="number of the repeat, from 0; its seed is seed + repeat")
    started: datetime
    finished: datetime
    resumed: int = Field(
        default=0,
        ge=0,
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
    memory: Memory | None = None
    timing: Timing | None = None
    extrapolation: Extrapolation | None = None
    weights_checksum: str | None = Field(
        default=None, description="SHA-256 of the weights file beside it; null where none was saved"
    )
    failure: Failure | None = None
