"""The result files of the two timings: of an op, and of a training step."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from fanin.backends.interface import Execution
from fanin.backends.setup import FixedFanIn, LayerSetup
from fanin.benchmarks.records.base import Machine, Memory, Record
from fanin.benchmarks.records.ranges import Moment, Seconds, Size

# One measurement each.
Rounds = Annotated[list[Seconds], Field(min_length=1)]


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

    def setup(self) -> LayerSetup:
        output = FixedFanIn(self.fan_in)
        return LayerSetup(self.inputs, self.labels, output, self.intermediate)

    @property
    def name(self) -> str:
        dtype = "" if self.dtype == "float32" else f", {self.dtype}"
        return f"{self.backend} {self.execution}{dtype}{', memory kept' * self.keeps_memory}"


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
