"""The result files of the timings: of an op, of a training step, of fused steps beside their floor,
of ranks, of predictions, and of trainings on words."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from fanin.backends.interface import Execution
from fanin.backends.kinds import ConnectionKind, FixedFanIn, GroupedFanIn
from fanin.backends.optimizer import OptimizerKind
from fanin.backends.setup import LayerSetup
from fanin.benchmarks.records.base import DatasetInfo, Machine, Memory, Precision, Record
from fanin.benchmarks.records.ranges import Count, Moment, Seconds, Size

# One measurement each.
Rounds = Annotated[list[Seconds], Field(min_length=1)]
# At least one event a second: times are divided by them.
Rates = Annotated[list[Annotated[float, Field(ge=1, le=1e18)]], Field(min_length=1)]


class OpTimes(Record):
    """Seconds of fanin's op and of torch's layers on random data, as `timing.op` measures them."""

    started: Moment
    machine: Machine
    inputs: Size
    labels: Size
    fan_in: Size
    batch: Size
    keeps_memory: bool = Field(description="whether malloc kept what was freed")
    seconds: dict[str, dict[str, Rounds]] = Field(
        description="work -> layer -> seconds of each round"
    )


class Contender(Record):
    """A training step on random data, as `timing.step` measures it in a process of its own."""

    backend: str
    execution: Execution
    dtype: str = "float32"
    labels: Size
    inputs: Size
    intermediate: Size | None
    fan_in: Size
    batch: Size
    steps: Size
    keeps_memory: bool = False
    group_size: Count = 0  # labels that share their sources; 0: each has its own

    def kind(self, fan_in: int) -> ConnectionKind:
        """With so many sources."""
        return GroupedFanIn(fan_in, self.group_size) if self.group_size else FixedFanIn(fan_in)

    def setup(self) -> LayerSetup:
        return LayerSetup(self.inputs, self.labels, self.kind(self.fan_in), self.intermediate)

    @property
    def name(self) -> str:
        dtype = "" if self.dtype == "float32" else f", {self.dtype}"
        kept = ", memory kept" * self.keeps_memory
        groups = f", groups of {self.group_size}" if self.group_size else ""
        return f"{self.backend} {self.execution}{dtype}{kept}{groups}"


class StepResult(Record):
    """Seconds of each step after the first two; csr: seconds of the CSR product and of the fused
    step beside it, turn by turn."""

    contender: Contender
    synthetic: bool = True
    started: Moment
    machine: Machine
    memory: Memory
    step_seconds: Rounds
    rewire_seconds: Seconds
    csr_seconds: dict[str, Rounds] | None = None


class FloorStep(Record):
    """A fused step of an output layer, and the machine's rates in the same rounds."""

    inputs: Size
    dtype: str
    optimizer: OptimizerKind
    group_size: Count = Field(description="labels that share their sources; 0: each has its own")
    bytes_moved: Size = Field(description="of arrays: once for reading, once for writing")
    multiply_adds: Size
    seconds: Rounds
    bandwidths: Rates = Field(description="bytes read and written a second, while memory is copied")
    multiply_add_rates: Rates = Field(description="multiply-adds a second of a dense product")


class FloorTimes(Record):
    """Seconds of fused steps on random data, as `timing.floor` measures them."""

    synthetic: bool = True
    started: Moment
    machine: Machine
    labels: Size
    fan_in: Size
    batch: Size
    steps: Annotated[list[FloorStep], Field(min_length=1)]


class PredictTimes(Record):
    """Seconds of predictions on random data, as `timing.predict` measures them."""

    synthetic: bool = True
    started: Moment
    machine: Machine
    inputs: Size
    labels: Size
    fan_in: Size
    k: Size = Field(description="how many labels were asked for")
    seconds: dict[Size, Rounds] = Field(description="instances -> seconds of each round")


class RankContender(Record):
    """One process of `timing.ranks`: `rank` of `ranks`, or one that has all labels."""

    rank: Count
    ranks: Size
    threads: Size
    inputs: Size
    labels: Size
    fan_in: Size
    batch: Size


RankSet = Literal["one", "several", "within"]


class RankTimes(Record):
    """Fused steps on random data, by one process and by several that share the labels, turn by
    turn, as `timing.ranks` measures them. "within": several processes without the limit of a link
    between them."""

    synthetic: bool = True
    started: Moment
    machine: Machine = Field(description="with the threads of one process")
    ranks: Size
    inputs: Size
    labels: Size
    fan_in: Size
    batch: Size
    seconds: dict[RankSet, Rounds] = Field(
        description="a step's wall clock; of several processes, that of the slowest"
    )
    cpu_seconds: dict[RankSet, Rounds] = Field(
        description="of all threads and processes, in a step"
    )
    bits_per_second: Annotated[float, Field(gt=0)] | None = Field(
        default=None, description="of a limited link between two processes"
    )


TrainerName = Literal["fanin", "omikuji"]


class WordsTraining(Record):
    """One training on sparse features, in a process of its own, as `timing.text` measures it."""

    trainer: TrainerName
    version: str
    started: Moment
    seconds: Seconds = Field(description="wall clock of the training")
    cpu_seconds: Seconds = Field(description="of all threads, while it trained")
    peak_bytes: Count | None = Field(description="peak resident set while it trained")
    baseline_bytes: Count = Field(description="resident set before; fanin's data are in it")
    precision: Precision = Field(description="on the test set")


class WordsTimes(Record):
    """Trainings on one data set, turn by turn."""

    dataset: DatasetInfo
    machine: Machine
    threads: Size
    trees: Size = Field(description="of Omikuji")
    trainings: Annotated[list[WordsTraining], Field(min_length=1)]
