"""Result files of the GPU parts, `<results>/<device>/gpu/<part>.json`: schema, reading, writing.

Only raw figures stand in them; the reports derive what can be derived. A figure that was not
measured is null, and beside it stands the reason.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self, get_args

from pydantic import Field, ValidationInfo, model_validator

from fanin.benchmarks.records import json_text
from fanin.benchmarks.records.base import Machine, Record
from fanin.benchmarks.records.files import write_atomically
from fanin.benchmarks.records.ranges import MOST, Count, Magnitude, Moment, Seconds, Size
from fanin.benchmarks.records.store import ResultError

PART_SCHEMA: Final = 2

PartName = Literal["correct", "shapes", "kernels", "sanitize"]
PARTS: tuple[PartName, ...] = get_args(PartName)

# done: measured or checked, whatever came out; gap: cannot be had on this machine; not reached:
# the budget was used up, and the next call goes on here.
State = Literal["done", "gap", "not reached"]

# Rounded: short work takes 0.
RoundedSeconds = Annotated[float, Field(ge=0, le=1e9)]
# Negative where a signal ended the process.
ExitCode = Annotated[int, Field(ge=-MOST, le=MOST)]

# Two contestants of part `kernels`: fanin's own op, and the plain copy that the floor is made of.
OURS, COPY = "fanin", "copy"


class PartRecord(Record):
    """Any piece of a part's file. Whoever makes one may leave out what is not known yet; a file
    names every key."""

    @model_validator(mode="after")
    def _names_every_key(self, info: ValidationInfo) -> Self:
        missing = [key for key in type(self).model_fields if key not in self.model_fields_set]
        if info.mode == "json" and missing:
            raise ValueError(f"missing key {', '.join(missing)}")
        return self


class Cuda(PartRecord):
    """The GPU, and the code that was made for it."""

    capability: str | None = Field(description="compute capability, such as 9.0")
    memory_bytes: Size | None
    driver: str | None
    runtime: str | None = Field(description="version of CUDA that torch was built with")
    compiler: str | None = Field(description="version of nvcc")
    architectures: list[Count] = Field(description="of the GPU code in the fanin library")


class KernelReport(PartRecord):
    """What the compiler says of one kernel; see `kernels/compile_report.py`."""

    kernel: str
    architecture: str
    registers: Count
    spill_bytes: Count
    stack_bytes: Count
    shared_bytes: Count


class Row(PartRecord):
    """One unit of work."""

    key: str = Field(description="its name within the part")
    state: State = "not reached"
    reason: str | None = Field(default=None, description="why there is no figure")
    started: Moment | None = None
    seconds: RoundedSeconds | None = None


class Check(PartRecord):
    """One output of one call against its reference."""

    op: str
    output: str
    shape: dict[str, Count]
    dtype: str
    index: str | None
    error: Magnitude | None = Field(
        description="max |a - b| / max |reference|; null where that is no number"
    )
    tolerance: Magnitude
    passed: bool
    seconds: RoundedSeconds | None = Field(description="of the call, first uses included")
    reason: str | None


class CorrectRow(Row):
    """One case of part `correct`."""

    seed: Count | None = Field(default=None, description="of this row's inputs")
    checks: list[Check] = Field(default=[])


class Contestant(PartRecord):
    """One way to do the work of a `KernelRow`."""

    name: str
    seconds: list[Seconds] | None = Field(
        default=None, description="one call, in each round; null where it could not be run"
    )
    reason: str | None = None


class KernelRow(Row):
    """Contestants that took turns at one op of part `kernels`."""

    op: str
    dataset: str
    labels: Size
    inputs: Size
    fan_in: Size
    batch: Size
    index: str
    bytes: Size = Field(description="what fanin's op has to move at least")
    copy_bytes: Size | None = Field(default=None, description=f"read and written by `{COPY}`")
    rotated: Size | None = Field(
        default=None, description="input sets that each contestant went through"
    )
    contestants: list[Contestant] = Field(default=[])


class SanitizeRow(Row):
    """One check of compute-sanitizer."""

    check: str
    tool: str | None = Field(default=None, description="null where the calls ran without it")
    exit_code: ExitCode | None = None
    passed: bool | None = None
    summary: list[str] = Field(default=[], description="the lines that tell of errors")


class ShapeRow(Row):
    """One published row in one execution."""

    dataset: str
    features: str
    setup: str
    execution: str
    file: str = Field(description="its result file, below the device's folder")
    failure: str | None = None


class PartFile(PartRecord):
    """What every part's file says; `FILES` has the class of each part."""

    schema_version: Literal[2] = PART_SCHEMA
    part: PartName
    dry_run: bool
    started: Moment
    finished: Moment
    minutes: Magnitude = Field(description="budget of a call")
    device: str = Field(description='name of the GPU, or "cpu"')
    machine: Machine
    cuda: Cuda
    commit: str | None = Field(description="of the checkout; null for an installed fanin")
    modified: bool | None = Field(description="whether files of the checkout were changed")
    compile_report: list[KernelReport] | None = Field(description="of the kernels in use")
    compile_report_reason: str | None = Field(description="why the compiler was not asked")
    rows: Sequence[Row]


class CorrectFile(PartFile):
    part: Literal["correct"] = "correct"
    rows: list[CorrectRow]


class ShapesFile(PartFile):
    part: Literal["shapes"] = "shapes"
    rows: list[ShapeRow]


class KernelsFile(PartFile):
    part: Literal["kernels"] = "kernels"
    rows: list[KernelRow]


class SanitizeFile(PartFile):
    part: Literal["sanitize"] = "sanitize"
    rows: list[SanitizeRow]


FILES: dict[PartName, type[PartFile]] = {
    "correct": CorrectFile,
    "shapes": ShapesFile,
    "kernels": KernelsFile,
    "sanitize": SanitizeFile,
}


def slug(device: str) -> str:
    """A device's folder: `nvidia-h200` for "NVIDIA H200"."""
    return re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")


def part_path(results: Path, device: str, part: PartName) -> Path:
    return results / slug(device) / "gpu" / f"{part}.json"


def write_part(path: Path, part_file: PartFile) -> None:
    write_atomically(path, part_file.model_dump_json(indent=1) + "\n")


def read_part(path: Path) -> PartFile:
    """ResultError for a file that is not exactly of the schema. Files of schema 1 are read too."""
    try:
        content = json_text.parse(path.read_text(encoding="utf-8"))
        version = content.get("schema_version") if isinstance(content, dict) else None
        if version == 1:
            content = _of_schema_1(content)
        elif version != PART_SCHEMA:
            raise ValueError(f"schema_version must be {PART_SCHEMA}, got {version!r}")
        kind = FILES.get(content.get("part"), PartFile)
        return kind.model_validate_json(json.dumps(content))
    except ValueError as error:
        raise ResultError(
            f"{path}: not a result file of schema {PART_SCHEMA}: {json_text.explain(error)}; "
            "delete it or make it again with `python benchmarks/gpu.py`"
        ) from error


def read_parts(device_folder: Path) -> dict[PartName, PartFile]:
    """The parts that have a file in a device's folder."""
    paths = {part: device_folder / "gpu" / f"{part}.json" for part in PARTS}
    return {part: read_part(path) for part, path in paths.items() if path.exists()}


def _of_schema_1(content: dict[str, Any]) -> dict[str, Any]:
    """A file of schema 1 as one of today. Its machine was a record of another form, without the
    machine's memory and threads."""
    try:
        old = dict(content["machine"])
        gpu = None if old["device"] == "cpu" else old["device"]
        machine = {
            **{key: old[key] for key in ("system", "processor", "cores", "python", "code")},
            "memory_bytes": None,
            "gpu": gpu,
            "packages": {"torch": old["torch"]},
            "framework": f"torch {old['torch']}",
            "device": f"cuda ({gpu})" if gpu else "cpu",
            "kernels": f"{old['library']} {old['instruction_set']}",
            "threads": None,
        }
        cuda = {
            "capability": old["capability"],
            "memory_bytes": old["device_memory_bytes"],
            "driver": old["driver"],
            "runtime": old["cuda"],
            "compiler": old["nvcc"],
            "architectures": old["architectures"],
        }
        more = {key: old[key] for key in ("device", "commit", "modified")}
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"machine of schema 1: {error}") from error
    return {**content, **more, "schema_version": PART_SCHEMA, "machine": machine, "cuda": cuda}
