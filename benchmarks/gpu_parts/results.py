"""The schema of `<results>/<device>/gpu/<part>.json`, written down once; writing and reading.

Only raw figures stand in the files; what can be derived is derived by `tables`. A figure that was
not measured is null, and beside it stands the reason. Plain dataclasses: the machines that write
these files need not have pydantic.
"""

from __future__ import annotations

import dataclasses
import json
import re
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from fanin.benchmarks.records.files import write_atomically

SCHEMA_VERSION = 1

PartName = Literal["correct", "shapes", "kernels", "sanitize"]
PARTS: tuple[PartName, ...] = ("correct", "shapes", "kernels", "sanitize")

# done: measured or checked, whatever came out; gap: cannot be had on this machine; not reached:
# the budget was used up, and the next call goes on here.
State = Literal["done", "gap", "not reached"]


@dataclass
class Machine:
    """What the figures were made on. device: the GPU's name, or "cpu"; architectures: of the GPU
    code in the library; code: identity of library, Python and tasks; commit: of the checkout."""

    device: str
    capability: str | None
    device_memory_bytes: int | None
    driver: str | None
    cuda: str | None
    nvcc: str | None
    system: str
    processor: str
    cores: int
    python: str
    torch: str
    library: str
    architectures: list[int]
    instruction_set: str
    code: str
    commit: str | None
    modified: bool | None


@dataclass
class KernelReport:
    """What the compiler says of one kernel; see `kernels/compile_report.py`."""

    kernel: str
    architecture: str
    registers: int
    spill_bytes: int
    stack_bytes: int
    shared_bytes: int


@dataclass(kw_only=True)
class Row:
    """One unit of work. key: its name within the part; reason: why there is no figure, or None."""

    key: str
    state: State = "not reached"
    reason: str | None = None
    started: str | None = None
    seconds: float | None = None


@dataclass
class Check:
    """One output of one call against its reference: error is max |a - b| / max |reference|, None
    where it is no number. seconds: of the call, first uses included."""

    op: str
    output: str
    shape: dict[str, int]
    dtype: str
    index: str | None
    error: float | None
    tolerance: float
    passed: bool
    seconds: float | None
    reason: str | None = None


@dataclass(kw_only=True)
class CorrectRow(Row):
    """seed: of this row's inputs."""

    seed: int | None = None
    checks: list[Check] = field(default_factory=list)


@dataclass
class Contestant:
    """seconds: one call, in each round; None with the reason where it could not be run."""

    name: str
    seconds: list[float] | None
    reason: str | None = None


@dataclass(kw_only=True)
class KernelRow(Row):
    """Contestants that took turns. bytes: what fanin's op has to move at least; copy_bytes: what
    the contestant "copy" read and wrote; rotated: input sets that each contestant went through."""

    op: str
    dataset: str
    labels: int
    inputs: int
    fan_in: int
    batch: int
    index: str
    bytes: int
    copy_bytes: int | None = None
    rotated: int | None = None
    contestants: list[Contestant] = field(default_factory=list)


@dataclass(kw_only=True)
class SanitizeRow(Row):
    """tool: None where the child ran without it (dry run). summary: its lines of errors."""

    check: str
    tool: str | None = None
    exit_code: int | None = None
    passed: bool | None = None
    summary: list[str] = field(default_factory=list)


@dataclass(kw_only=True)
class ShapeRow(Row):
    """One published row in one execution. file: its result file below the device's folder."""

    dataset: str
    features: str
    setup: str
    execution: str
    file: str
    failure: str | None = None


@dataclass(kw_only=True)
class PartFile:
    """One result file. compile_report: of the kernels in use, None with the reason where the
    compiler was not asked. rows: of the part's own kind (`ROWS`)."""

    schema_version: int = SCHEMA_VERSION
    part: PartName
    dry_run: bool
    started: str
    finished: str
    minutes: float
    machine: Machine
    compile_report: list[KernelReport] | None
    compile_report_reason: str | None
    rows: list[Any]


ROWS: dict[PartName, type[Row]] = {
    "correct": CorrectRow,
    "shapes": ShapeRow,
    "kernels": KernelRow,
    "sanitize": SanitizeRow,
}


class PartFileError(ValueError):
    """A file of a part that cannot be used; the message names file and key."""


def slug(device: str) -> str:
    """A device's folder: `nvidia-h200` for "NVIDIA H200"."""
    return re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")


def part_path(results: Path, device: str, part: PartName) -> Path:
    return results / slug(device) / "gpu" / f"{part}.json"


def write(path: Path, result: PartFile) -> None:
    text = json.dumps(dataclasses.asdict(result), indent=1, allow_nan=False)
    write_atomically(path, text + "\n")


def read(path: Path) -> PartFile:
    """PartFileError for a file that is not exactly of the schema."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        version = found.get("schema_version") if isinstance(found, dict) else None
        if version != SCHEMA_VERSION:
            raise ValueError(f"schema_version must be {SCHEMA_VERSION}, got {version!r}")
        result: PartFile = _made(PartFile, found, "")
        kind = ROWS[result.part]
        result.rows = [_made(kind, row, f"rows[{i}].") for i, row in enumerate(result.rows)]
    except ValueError as error:
        raise PartFileError(
            f"{path}: not a result file of schema {SCHEMA_VERSION}: {error}; delete it or make it "
            "again with `python benchmarks/gpu.py`"
        ) from error
    return result


def read_all(device_folder: Path) -> dict[PartName, PartFile]:
    """The parts that have a file in a device's folder."""
    paths = {part: device_folder / "gpu" / f"{part}.json" for part in PARTS}
    return {part: read(path) for part, path in paths.items() if path.exists()}


def _made(kind: Any, value: Any, where: str) -> Any:
    """`value` (JSON) as the schema's `kind`; ValueError naming the key that does not fit. where:
    the keys above, each with its dot."""
    if dataclasses.is_dataclass(kind):
        kinds = typing.get_type_hints(kind)
        if not isinstance(value, dict):
            raise ValueError(f"{where.rstrip('.') or 'file'} must be an object")
        if missing := [name for name in kinds if name not in value]:
            raise ValueError(f"missing key {', '.join(where + name for name in missing)}")
        if unknown := [name for name in value if name not in kinds]:
            raise ValueError(f"unknown key {', '.join(where + name for name in unknown)}")
        made = {name: _made(of, value[name], f"{where}{name}.") for name, of in kinds.items()}
        return typing.cast(Any, kind)(**made)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is types.UnionType:
        (kind,) = (a for a in arguments if a is not types.NoneType)
        return None if value is None else _made(kind, value, where)
    if origin is list and isinstance(value, list):
        return [_made(arguments[0], one, f"{where[:-1]}[{i}].") for i, one in enumerate(value)]
    if origin is dict and isinstance(value, dict):
        return {name: _made(arguments[1], one, f"{where}{name}.") for name, one in value.items()}
    # A bool is an int to Python, and JSON may write a float without a point.
    allowed = (float, int) if kind is float else kind
    fits = value in arguments if origin is Literal else kind is Any or origin is None
    if fits and kind is not Any and origin is None:
        fits = isinstance(value, allowed) and (kind is bool or not isinstance(value, bool))
    if not fits:
        expected = " or ".join(map(repr, arguments)) if origin is Literal else kind
        name = getattr(expected, "__name__", expected)
        raise ValueError(f"{where.rstrip('.')} must be {name}, got {value!r}")
    return value
