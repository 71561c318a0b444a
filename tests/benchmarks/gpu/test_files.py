"""The result files of the GPU parts: what is read, what is refused, and where they lie."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from fanin.benchmarks.records.base import Machine
from fanin.benchmarks.records.gpu import (
    Check,
    CorrectFile,
    CorrectRow,
    Cuda,
    part_path,
    read_part,
    write_part,
)
from fanin.benchmarks.records.store import ResultError
from fanin.reports.pages.devices import devices_page

MACHINE = Machine(
    system="Linux 6.1 x86_64",
    processor="AMD EPYC",
    cores=16,
    memory_bytes=2**37,
    gpu="NVIDIA H200",
    python="3.12.3",
    packages={"torch": "2.11.0"},
    framework="torch 2.11.0",
    device="cuda (NVIDIA H200)",
    kernels="fanin 0.1.0 avx512",
    threads=16,
    code="0123456789ab",
)
CHECK = Check(
    op="top_k",
    output="ids",
    shape={"batch": 1, "k": 1},
    dtype="float32",
    index="uint16",
    error=0.0,
    tolerance=0.0,
    passed=True,
    seconds=0.01,
    reason=None,
)


@pytest.fixture
def path(tmp_path):
    part_file = CorrectFile(
        dry_run=False,
        started=datetime(2026, 1, 1, 10, tzinfo=UTC),
        finished=datetime(2026, 1, 1, 10, 5, tzinfo=UTC),
        minutes=9.0,
        device="NVIDIA H200",
        machine=MACHINE,
        cuda=Cuda(
            capability="9.0",
            memory_bytes=140 * 2**30,
            driver="570.1",
            runtime="13.0",
            compiler="13.0.48",
            architectures=[90],
        ),
        commit="0" * 40,
        modified=False,
        compile_report=None,
        compile_report_reason="not asked",
        rows=[CorrectRow(key="top_k", state="done", seconds=0.1, seed=7, checks=[CHECK])],
    )
    path = tmp_path / "correct.json"
    write_part(path, part_file)
    return path


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda c: c["cuda"].pop("driver"), "cuda.driver: Field required"),
        (lambda c: c["machine"].pop("processor"), "machine.processor: Field required"),
        (lambda c: c.pop("dry_run"), "dry_run: Field required"),
        (lambda c: c["rows"][0].pop("seed"), r"rows\.0: missing key seed"),
        (lambda c: c["rows"][0]["checks"][0].pop("passed"), r"rows\.0\.checks\.0\.passed: Field"),
        (lambda c: c.update(more=1), "more: Extra inputs are not permitted"),
        (lambda c: c.update(schema_version=9), "schema_version must be 2, got 9"),
        (lambda c: c.update(minutes="9"), "minutes: Input should be a valid number"),
        (lambda c: c.update(dry_run=1), "dry_run: Input should be a valid boolean"),
        (lambda c: c["rows"][0].update(state="ok"), "state: Input should be 'done', 'gap' or"),
        (lambda c: c.update(part="speed"), "part: Input should be 'correct', 'shapes', 'kernels'"),
    ],
)
def test_refuses_what_is_not_of_the_schema(path, change, message):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(ResultError, match=message) as error:
        read_part(path)
    assert str(path) in str(error.value)


def test_refuses_what_is_no_json(path):
    path.write_text(path.read_text()[:50])
    with pytest.raises(ResultError, match=r"correct\.json: not a result file"):
        read_part(path)


def test_gives_back_what_was_written(path):
    part_file = read_part(path)
    write_part(path, part_file)
    assert read_part(path) == part_file


def schema_1(content):
    """The same file as the last version wrote it: the machine was a record of another form."""
    machine, cuda = content.pop("machine"), content.pop("cuda")
    content["schema_version"] = 1
    content["machine"] = {
        "device": content.pop("device"),
        "capability": cuda["capability"],
        "device_memory_bytes": cuda["memory_bytes"],
        "driver": cuda["driver"],
        "cuda": cuda["runtime"],
        "nvcc": cuda["compiler"],
        **{key: machine[key] for key in ("system", "processor", "cores", "python")},
        "torch": "2.11.0",
        "library": "fanin 0.1.0",
        "architectures": cuda["architectures"],
        "instruction_set": "avx512",
        "code": machine["code"],
        "commit": content.pop("commit"),
        "modified": content.pop("modified"),
    }
    return content


def test_reads_files_of_the_last_version(path):
    today = read_part(path)
    path.write_text(json.dumps(schema_1(json.loads(path.read_text()))))
    before = read_part(path)
    # They did not say these two.
    unknown = {"memory_bytes": None, "threads": None}
    assert before == today.model_copy(update={"machine": MACHINE.model_copy(update=unknown)})


def test_a_file_of_the_last_version_that_is_damaged_is_refused(path):
    content = schema_1(json.loads(path.read_text()))
    del content["machine"]["driver"]
    path.write_text(json.dumps(content))
    with pytest.raises(ResultError, match="machine of schema 1: 'driver'"):
        read_part(path)


def test_a_devices_folder():
    path = part_path(Path("r"), "NVIDIA H200", "kernels")
    assert path == Path("r/nvidia-h200/gpu/kernels.json")


def test_the_page_of_a_folder_without_a_gpu_says_so(tmp_path):
    page = devices_page(tmp_path)
    assert page.count("not run: no GPU was at hand so far") == 4
