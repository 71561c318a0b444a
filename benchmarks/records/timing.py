"""The result files of the two timings: of an op, and of a training step."""

from __future__ import annotations

from datetime import datetime

from pydantic import Field

from fanin.backends.interface import Execution
from fanin.backends.setup import FixedFanIn, LayerSetup
from fanin.benchmarks.records.base import Machine, Memory, Record


class OpTimes(Record):
    """Seconds of fanin's op and of torch's layers on random data, as `timing.op` measures them."""

    started: datetime
    machine: Machine
    inputs: int
    labels: int
    fan_in: int
    batch: int
    keeps_memory: bool = Field(description="whether malloc kept what was freed")
    seconds: dict[str, dict[str, list[float]]] = Field(
        description="work -> layer -> seconds of each round"
    )


class Contender(Record):
    """A training step on random data, as `timing.step` measures it in a process of its own."""

    backend: str
    execution: Execution
    dtype: str = "float32"
    labels: int
    inputs: int
    intermediate: int | None
    fan_in: int
    batch: int
    steps: int
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
    started: datetime
    machine: Machine
    memory: Memory
    step_seconds: list[float]
    rewire_seconds: float
    csr_seconds: dict[str, list[float]] | None = None
