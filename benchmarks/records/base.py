"""What several kinds of result files hold: precision, data set, machine, memory, failure.

Only raw figures stand in a result file; the reports derive what can be derived. Bytes are bytes,
times are wall-clock seconds, precisions are fractions, and a figure that could not be measured is
null, never 0.
"""

from __future__ import annotations

from typing import Annotated, Final, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from fanin.benchmarks.records.ranges import Count, Fraction, Size

SCHEMA_VERSION: Final = 1
SchemaVersion = Annotated[int, Field(ge=SCHEMA_VERSION, le=SCHEMA_VERSION)]


class Record(BaseModel):
    """Any part of a result file: a key that the schema does not know is an error, and so is a
    number in quotes."""

    # JSON has no word for inf or nan: what is written with one could not be read back.
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class AtK(Record):
    """A ranking metric at 1, 3, 5, as fractions."""

    at_1: Fraction
    at_3: Fraction
    at_5: Fraction


class Precision(AtK):
    """Precision at 1, 3, 5 as fractions of k (P@k divides by k even for shorter label sets)."""

    @model_validator(mode="after")
    def _counts_grow(self) -> Self:
        """What is right among the first is right among more, and each place adds 1 at most."""
        for few, many in ((1, 3), (3, 5)):
            less, more = (k * getattr(self, f"at_{k}") for k in (few, many))
            if not less - 1e-6 <= more <= less + many - few + 1e-6:
                raise ValueError(
                    f"at_{many} {more / many:g} cannot be beside at_{few} {less / few:g}"
                )
        return self


class DatasetInfo(Record):
    name: str
    features: str
    source: str
    synthetic: bool
    identity: str = Field(description="sha256 over labels and features")
    inputs: Size
    labels: Size
    train_instances: Size
    test_instances: Size
    train_positives: Size
    train_stored: Size | None = Field(
        default=None, description="values that sparse training features store; null for dense ones"
    )
    left_out_pairs: Count = Field(
        default=0, description="pairs (instance, label) that evaluation on the test set leaves out"
    )

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if (self.train_stored or 0) > self.train_instances * self.inputs:
            raise ValueError(
                f"train_stored is {self.train_stored}, with {self.train_instances} instances and "
                f"{self.inputs} inputs"
            )
        for key, instances in (
            ("train_positives", self.train_instances),
            ("left_out_pairs", self.test_instances),
        ):
            if getattr(self, key) > instances * self.labels:
                raise ValueError(
                    f"{key} is {getattr(self, key)}, with {instances} instances and "
                    f"{self.labels} labels"
                )
        return self


class Machine(Record):
    """What the numbers were made on."""

    system: str
    processor: str
    cores: Size
    memory_bytes: Size | None = Field(description="null in files of GPU parts of schema 1")
    gpu: str | None
    python: str
    packages: dict[str, str] = Field(description="distribution -> version")
    framework: str
    device: str
    kernels: str = Field(description="version and instruction set of the fanin library")
    threads: Count | None = Field(
        description="null in files of GPU parts of schema 1; 0 in some old files: all"
    )
    processes: Size = Field(default=1, description="that train together and share the threads")
    code: str | None = Field(description="identity of the installed fanin code")


class Memory(Record):
    """Kept apart because they answer different questions; sizes in bytes."""

    nvml_device_delta_bytes: Count | None = Field(description="peak of the device above its start")
    nvml_process_bytes: Count | None = Field(description="peak of this process, as NVML sees it")
    nvml_error: str | None = Field(
        default=None, description="why a figure of NVML's is null on a machine that has NVML"
    )
    allocator_peak_bytes: Count | None = Field(description="peak in use, the framework's allocator")
    allocator_reserved_bytes: Count | None = Field(description="peak held by that allocator")
    host_peak_rss_bytes: Count | None = Field(description="peak resident set of the process")
    host_baseline_rss_bytes: Count | None = Field(description="resident set after imports and data")
    parameter_bytes: Size = Field(description="counted from the arrays, indices included")
    optimizer_state_bytes: Count = Field(description="counted from the arrays")

    @model_validator(mode="after")
    def _peaks(self) -> Self:
        peak, baseline = self.host_peak_rss_bytes, self.host_baseline_rss_bytes
        if peak is not None and baseline is not None and peak < baseline:
            raise ValueError(f"host_peak_rss_bytes {peak} is below the baseline, {baseline}")
        return self


class Failure(Record):
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
