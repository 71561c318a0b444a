"""Result files: their schema, where they lie, and how they are written and read.

One run is one JSON file, `<results>/runs/<dataset>/<features>/<task slug>/<backend>-<repeat>.json`,
a few steps on random data of the real sizes another, `<results>/shapes/...`, and so is a comparison
of the backends step by step, `<results>/lockstep/.../<task slug>.json`: the paths are readable
functions of the task. Only raw figures stand in them; what can be derived is derived by the
reports. Bytes are bytes, times are wall-clock seconds, precisions are fractions, and a figure that
could not be measured is null, never 0.
"""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Iterator
from datetime import datetime
from pathlib import Path
from typing import Final, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from fanin.backends.interface import Execution
from fanin.backends.setup import FixedFanIn, LayerSetup
from fanin.benchmarks.records.files import write_atomically
from fanin.benchmarks.records.task import Task

SCHEMA_VERSION: Final = 1

# train: a whole run; shapes: a few steps on random data of the real sizes.
Profile = Literal["train", "shapes"]
FOLDERS: dict[Profile, str] = {"train": "runs", "shapes": "shapes"}


class _Model(BaseModel):
    # JSON has no word for inf or nan: what is written with one could not be read back.
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class AtK(_Model):
    """A ranking metric at 1, 3, 5, as fractions."""

    at_1: float
    at_3: float
    at_5: float


class Precision(AtK):
    """Precision at 1, 3, 5 as fractions of k (P@k divides by k even for shorter label sets)."""


class Ranking(_Model):
    """What `metrics` has beside precision, and the constants of the propensity model."""

    ndcg: AtK
    psp: AtK
    psndcg: AtK
    propensity_a: float
    propensity_b: float


class Epoch(_Model):
    """One epoch of the history."""

    epoch: int = Field(description="counted from 1")
    steps: int
    loss: float = Field(description="mean over the epoch's steps")
    learning_rate: float
    validation: Precision
    train_seconds: float
    evaluate_seconds: float
    rewired: int = Field(description="connections that got a new source in this epoch")


class Memory(_Model):
    """Kept apart because they answer different questions; sizes in bytes."""

    nvml_device_delta_bytes: int | None = Field(description="peak of the device above its start")
    nvml_process_bytes: int | None = Field(description="peak of this process, as NVML sees it")
    nvml_error: str | None = Field(
        default=None, description="why a figure of NVML's is null on a machine that has NVML"
    )
    allocator_peak_bytes: int | None = Field(description="peak in use, the framework's allocator")
    allocator_reserved_bytes: int | None = Field(description="peak held by that allocator")
    host_peak_rss_bytes: int | None = Field(description="peak resident set of the process")
    host_baseline_rss_bytes: int | None = Field(description="resident set after imports and data")
    parameter_bytes: int = Field(description="counted from the arrays, indices included")
    optimizer_state_bytes: int = Field(description="counted from the arrays")


class Timing(_Model):
    """Whole run, synchronised with the device at each border."""

    train_seconds: float
    evaluate_seconds: float = Field(description="validation during training")
    final_evaluate_seconds: float = Field(description="train and test P@k with the best weights")
    median_step_seconds: float | None = Field(description="over all steps after the first ten")


class Extrapolation(_Model):
    """Raw times of a shape profile (random data, see `fanin.datasets.shapes`), from which an epoch
    is extrapolated: steps_per_epoch steps, rewires_per_epoch rewirings, and evaluation_blocks
    blocks of test instances."""

    step_seconds: list[float] = Field(description="each step after the first ones")
    steps_per_epoch: int
    rewire_seconds: float | None = Field(description="one rewiring; null where nothing is rewired")
    rewires_per_epoch: float
    block_seconds: list[float] = Field(description="prediction for each block of instances")
    evaluation_blocks: float = Field(description="blocks in the real test set")
    expected_peak_bytes: int = Field(description="what `fanin plan` expected, before it was built")


class DatasetInfo(_Model):
    name: str
    features: str
    source: str
    synthetic: bool
    identity: str = Field(description="sha256 over labels and features")
    inputs: int
    labels: int
    train_instances: int
    test_instances: int
    train_positives: int


class Machine(_Model):
    """What the numbers were made on."""

    system: str
    processor: str
    cores: int
    memory_bytes: int
    gpu: str | None
    python: str
    packages: dict[str, str] = Field(description="distribution -> version")
    framework: str
    device: str
    kernels: str = Field(description="version and instruction set of the fanin library")
    threads: int
    code: str | None = Field(description="identity of the installed fanin code")


class Failure(_Model):
    kind: str = Field(description="name of the exception, or ProcessDied")
    message: str
    traceback: str

    @property
    def is_of_data(self) -> bool:
        """Another run on the same data would end so, too."""
        return self.kind == "DataError"

    @property
    def is_of_input(self) -> bool:
        """What was given cannot be used: data, or a task that does not fit them."""
        return self.is_of_data or self.kind == "TaskError"

    @property
    def is_too_large(self) -> bool:
        """The model needs more memory than the machine, or its GPU, has."""
        return self.kind in ("TooLargeError", "OutOfMemoryError", "ResourceExhaustedError")


class RunResult(_Model):
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
    history: list[Epoch] = []
    train: Precision | None = None
    test: Precision | None = None
    train_ranking: Ranking | None = None
    test_ranking: Ranking | None = None
    memory: Memory | None = None
    timing: Timing | None = None
    extrapolation: Extrapolation | None = None
    failure: Failure | None = None


class Difference(_Model):
    """Largest |a - b| over an array, and the same divided by the largest |a|."""

    absolute: float
    relative: float


class LockstepStep(_Model):
    step: int = Field(description="counted from 1")
    losses: dict[str, float] = Field(description="backend -> loss of this step")
    loss: Difference
    arrays: dict[str, Difference] = Field(description="array name -> difference after this step")
    excused: int = Field(
        description="rewired connections so far on which the backends decided differently because "
        "|weight| lay within rounding of the threshold; the second follows the first there"
    )
    kinks: int = Field(
        description="intermediate units so far for which the backends disagreed whether ReLU is "
        "active, the input to it being within rounding of 0; the second takes them over from the "
        "first"
    )


class OpTimes(_Model):
    """Seconds of fanin's op and of torch's layers on random data, as `kernels` measures them."""

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


class Contender(_Model):
    """A training step on random data, as `step` measures it in a process of its own."""

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


class StepResult(_Model):
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


class LockstepSide(_Model):
    """One backend's half of a lockstep comparison."""

    machine: Machine
    test: Precision = Field(description="P@k after the last step")
    median_step_seconds: float
    memory: Memory


class LockstepResult(_Model):
    """Both backends trained on the same batches from the same weights, compared at every step."""

    schema_version: Literal[1] = SCHEMA_VERSION
    task: Task
    dataset: DatasetInfo
    started: datetime
    finished: datetime
    loss_tolerance: float = Field(description="relative")
    weight_tolerance: float = Field(description="relative")
    agreed: bool
    steps: list[LockstepStep]
    sides: dict[str, LockstepSide]


_T = TypeVar("_T")


class ResultError(ValueError):
    """A result file that cannot be read; the message names the file."""


def result_path(
    folder: Path, task: Task, backend: str, repeat: int, profile: Profile = "train"
) -> Path:
    below = folder / FOLDERS[profile] / task.dataset / task.features
    return below / task.slug / f"{backend}-{repeat}.json"


def lockstep_path(folder: Path, task: Task) -> Path:
    return folder / "lockstep" / task.dataset / task.features / f"{task.slug}.json"


def write_result(path: Path, result: RunResult | LockstepResult) -> None:
    write_atomically(path, result.model_dump_json(indent=1) + "\n")


def _read(path: Path, schema: type[_T]) -> _T:
    try:
        return TypeAdapter(schema).validate_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ResultError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ResultError(
            f"{path}: not UTF-8 text; delete it or move it elsewhere, and run its task again"
        ) from error
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise ResultError(
            f"{path}: not a result file of schema {SCHEMA_VERSION}: {key or 'file'}: "
            f"{first['msg']}; delete it or move it elsewhere, and run its task again"
        ) from error


def read_op_times(path: Path) -> list[OpTimes]:
    """What `kernels` wrote."""
    return _read(path, list[OpTimes])


def read_steps(path: Path) -> list[StepResult]:
    """What `step` wrote."""
    return _read(path, list[StepResult])


def read_result(path: Path) -> RunResult:
    return _read(path, RunResult)


def _check_place(path: Path, expected: Path) -> None:
    # A copy beside the original would count as another repeat.
    if path != expected:
        raise ResultError(
            f"{path}: its contents belong to {expected}; move it there, and keep copies elsewhere"
        )


def read_results(
    folder: Path, profile: Profile = "train", without: Collection[Path] = ()
) -> Iterator[RunResult]:
    """All runs of a profile below the results folder, in the order of their paths, but for the
    files `without`."""
    for path in sorted((folder / FOLDERS[profile]).glob("*/*/*/[!.]*.json")):
        if path in without:
            continue
        run = read_result(path)
        _check_place(path, result_path(folder, run.task, run.backend, run.repeat, profile))
        yield run


def read_lockstep(folder: Path, without: Collection[Path] = ()) -> Iterator[LockstepResult]:
    """All comparisons step by step below the results folder, in the order of their paths, but for
    the files `without`."""
    for path in sorted((folder / "lockstep").glob("*/*/[!.]*.json")):
        if path in without:
            continue
        comparison = _read(path, LockstepResult)
        _check_place(path, lockstep_path(folder, comparison.task))
        yield comparison


def check_folder(folder: Path, replaced: Collection[Path] = ()) -> None:
    """ResultError where a file of the results folder cannot be read, those aside that will be
    `replaced`, and OSError where none can be written: the report needs all of them, and should not
    find out after hours of training."""
    for profile in FOLDERS:
        for _ in read_results(folder, profile, replaced):
            pass
    for _ in read_lockstep(folder, replaced):
        pass
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
        pass
