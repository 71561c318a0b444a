"""Result files whose numbers cannot be: the message names file and field, whatever the value."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import made_results
import pytest
from fakes import in_process

from fanin.benchmarks.records.compare import LockstepResult
from fanin.benchmarks.records.gpu import FILES
from fanin.benchmarks.records.run import Extrapolation, RunResult
from fanin.benchmarks.records.store import ResultError, read, read_result
from fanin.benchmarks.records.task import Task
from fanin.benchmarks.records.timing import OpTimes, StepResult
from fanin.reports.pages.report import write_report


@pytest.fixture(scope="module")
def good() -> dict[str, Any]:
    return json.loads(made_results.run().model_dump_json())


def change(content: Any, where: str, value: Any) -> str:
    """The content as JSON with the part `where`, as `history.0.loss`, replaced; a number too large
    for Python's own parser may be given as text behind `=`."""
    content = json.loads(json.dumps(content))
    part, keys = content, where.split(".")
    for key in keys[:-1]:
        part = part[int(key) if isinstance(part, list) else key]
    last = int(keys[-1]) if isinstance(part, list) else keys[-1]
    part[last] = "@" if isinstance(value, str) and value.startswith("=") else value
    text = json.dumps(content)
    return text.replace('"@"', value[1:]) if isinstance(value, str) else text


def complaint(tmp_path: Path, text: str) -> str:
    path = tmp_path / "torch-0.json"
    path.write_text(text)
    with pytest.raises(ResultError) as caught:
        read_result(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and len(message) < 600
    return message


@pytest.mark.parametrize(
    ("where", "value", "message"),
    [
        ("test.at_3", 0.0, "test: at_3 0 cannot be beside at_1 0."),
        ("test.at_5", 1.0, "test: at_5 1 cannot be beside at_3 0."),
        ("history.0.steps", 77, "history.0.steps 77, and all instances make 63"),
        ("timing.train_seconds", 1e9, "timing.train_seconds 1000000000.0, and history adds up to"),
        ("history.0.evaluate_seconds", 1e9, "timing.evaluate_seconds"),
        ("schema_version", True, "schema_version: Input should be a valid integer (got True)"),
        ("schema_version", 1.5, "schema_version: Input should be a valid integer"),
        ("schema_version", 2, "schema_version: Input should be less than or equal to 1"),
        ("memory.parameter_bytes", 0, "memory.parameter_bytes: Input should be greater"),
        ("test.at_1", 7, r"test.at_1: Input should be less than or equal to 1.0"),
        ("test.at_1", -0.1, "test.at_1: Input should be greater than or equal to 0"),
        ("test.at_1", "0.5", "test.at_1: Input should be a valid number (got '0.5')"),
        ("test.at_1", True, "test.at_1: Input should be a valid number (got True)"),
        ("test.at_1", "=NaN", "test.at_1: Input should be a finite number"),
        ("test.at_1", "=1e999", "test.at_1: Input should be a finite number"),
        ("memory.parameter_bytes", -5, "memory.parameter_bytes: Input should be greater"),
        ("memory.parameter_bytes", "7", "memory.parameter_bytes: Input should be a valid integer"),
        ("memory.parameter_bytes", 10**400, "memory.parameter_bytes: Input should be less than"),
        ("memory.parameter_bytes", 2**53 + 1, "memory.parameter_bytes: Input should be less than"),
        ("memory.parameter_bytes", "=" + "9" * 5000, "integer string conversion"),
        ("memory.host_peak_rss_bytes", 5, "memory: host_peak_rss_bytes 5 is below the baseline"),
        ("timing.train_seconds", -1, "timing.train_seconds: Input should be greater than or"),
        ("timing.train_seconds", 1e308, "timing.train_seconds: Input should be less than"),
        ("timing.train_seconds", 10**400, "timing.train_seconds: "),
        ("timing.median_step_seconds", 0, "timing.median_step_seconds: Input should be greater"),
        ("history.1.loss", 1e308, "history.1.loss: Input should be less than or equal to 1"),
        ("history.1.loss", -5, "history.1.loss: Input should be greater than or equal to 0"),
        ("history.1.epoch", 1, "history does not count its epochs from 1"),
        ("history.1.learning_rate", 1e308, "history.1.learning_rate: Input should be less than"),
        ("history.1.validation.at_3", 2, "history.1.validation.at_3: Input should be less than"),
        ("history.1.rewired", -1, "history.1.rewired: Input should be greater than"),
        ("history.1.steps", 0, "history.1.steps: Input should be greater than"),
        ("history", [], "status 'finished', but nothing stands in history"),
        ("test", None, "status 'finished', but nothing stands in test"),
        ("timing", None, "status 'finished', but nothing stands in timing"),
        ("failure", {"kind": "k", "message": "m", "traceback": ""}, "and failure is set"),
        ("status", "failed", "status 'failed', and failure is null"),
        ("started", "0001-01-01T00:00:00Z", "started: Input should be greater than or equal"),
        ("started", "0001-01-01T00:00:00+14:00", "started: Input should be "),
        ("finished", "9999-12-31T23:59:59-12:00", "finished: Input should be less than 3000"),
        ("started", "2026-01-02T03:04:05", "started: Input should have timezone info"),
        ("started", 1e300, "started: Input should be a valid datetime"),
        ("started", 5, "started: Input should be a valid datetime"),
        ("finished", "2020-01-01T00:00:00Z", "is before started"),
        ("repeat", 1, "repeat 1 of a task with 1"),
        ("repeat", -1, "repeat: Input should be greater than or equal to 0"),
        ("resumed", "0", "resumed: Input should be a valid integer"),
        ("backend", "jax", "backend 'jax' is none of torch, tensorflow"),
        ("dataset.labels", 0, "dataset.labels: Input should be greater than or equal to 1"),
        ("dataset.train_positives", 10**9, "dataset: train_positives is 1000000000, with 2000"),
        ("dataset.left_out_pairs", 10**9, "dataset: left_out_pairs is 1000000000, with 300"),
        ("dataset.name", "other", "dataset is other with lsa, and not the task's"),
        ("machine.cores", 0, "machine.cores: Input should be greater than or equal to 1"),
        ("machine.memory_bytes", 1e300, "machine.memory_bytes: Input should be a valid integer"),
        ("task.epochs", 3, "history has 4 epochs, and the task 3"),
        ("task.schedule", "linear", "history has 4 epochs, and the task 100"),
        ("task.schedule", "cosine", "history has 4 epochs, and the task 100"),
        ("task.learning_rate", 1e308, "task.learning_rate: Input should be less than"),
        ("task.seed", 10**400, "task.seed: Input should be less than"),
        ("task.architecture", [], "task.architecture: Input should be 'dense'"),
        ("more", 1, "more: Extra inputs are not permitted"),
    ],
)  # fmt: skip
def test_what_cannot_be_names_file_and_field(tmp_path, good, where, value, message):
    assert message in complaint(tmp_path, change(good, where, value))


def test_a_run_from_before_least_steps_is_not_of_the_recipe(tmp_path, good):
    keys = ("dataset", "features", "architecture", "connectivity")
    named = {key: good["task"][key] for key in keys}
    named |= {"recipe": "best", "epochs": 4}
    epochs = -(-1000 // good["history"][0]["steps"])
    message = f"history has 4 epochs, and the task {epochs}"
    assert message in complaint(tmp_path, change(good, "task", named))
    path = tmp_path / "torch-1.json"
    path.write_text(change(good, "task", named | {"least_steps": 0}))
    assert read_result(path).task.epochs == 4


def test_a_key_that_stands_twice(tmp_path, good):
    text = json.dumps(good).replace('"at_1": 0.5', '"at_1": 0.4, "at_1": 0.5')
    assert "key 'at_1' stands twice in an object" in complaint(tmp_path, text)


@pytest.mark.parametrize("text", ["", "[" * 100_000, "{}", "null", "[]", "\0" * 500, '"x"'])
def test_what_is_no_result_at_all(tmp_path, text):
    assert "not a result file of schema 1" in complaint(tmp_path, text)


def unbounded(schema: Any, where: str = "") -> Iterator[str]:
    """The numbers of a JSON schema that lack a least or a largest value."""
    if isinstance(schema, list):
        for number, part in enumerate(schema):
            yield from unbounded(part, f"{where}.{number}")
    elif isinstance(schema, dict):
        least = schema.keys() & {"minimum", "exclusiveMinimum", "const"}
        most = schema.keys() & {"maximum", "exclusiveMaximum", "const"}
        if schema.get("type") in ("integer", "number") and not (least and most):
            yield where
        for key, part in schema.items():
            yield from unbounded(part, f"{where}.{key}")


@pytest.mark.parametrize(
    "schema", [RunResult, LockstepResult, OpTimes, StepResult, Task, *FILES.values()]
)
def test_every_number_has_its_range(schema):
    assert list(unbounded(schema.model_json_schema())) == []


@pytest.mark.parametrize(
    ("where", "value", "message"),
    [
        ("agreed", True, "agreed is true, but a step differs by more than the tolerances"),
        ("steps", [], "steps: List should have at least 1 item"),
        ("steps.0.step", 2, "steps are not counted from 1"),
        ("steps.1.losses", {"torch": 1.0}, "steps.1.losses has other backends than sides"),
        ("steps.1.losses", {"torch": 1e300, "tensorflow": 1}, "steps.1.losses.torch: Input should"),
        ("steps.2.arrays", {}, "steps.2.arrays has other names than the first step"),
        ("steps.2.loss.relative", -1, "steps.2.loss.relative: Input should be greater"),
        ("sides", {}, "sides are , and not torch, tensorflow"),
        ("sides.torch.test.at_1", 7, "sides.torch.test.at_1: Input should be less"),
        ("finished", "2025-12-31T00:00:00Z", "is before started"),
    ],
)
def test_a_comparison_that_cannot_be(tmp_path, where, value, message):
    comparison = made_results.lockstep(agreed=False)
    comparison.steps[1].loss.relative = 0.5
    made_results.save(tmp_path, comparison)
    (path,) = tmp_path.rglob("*.json")
    assert read(path, LockstepResult) == comparison
    path.write_text(change(json.loads(path.read_text()), where, value))
    with pytest.raises(ResultError) as caught:
        read(path, LockstepResult)
    assert str(caught.value).startswith(f"{path}: ") and message in str(caught.value)


@pytest.mark.parametrize("profile", ["runs", "shapes"])
def test_a_result_among_those_of_the_other_profile(tmp_path, profile):
    result = made_results.run()
    if profile == "runs":
        result.history, result.train, result.test, result.timing = [], None, None, None
        result.extrapolation = Extrapolation(
            step_seconds=[1.0], steps_per_epoch=1, rewire_seconds=None, rewires_per_epoch=0,
            block_seconds=[1.0], evaluation_blocks=1, expected_peak_bytes=1,
        )  # fmt: skip
    (tmp_path / "elsewhere").mkdir()
    made_results.save(tmp_path / "elsewhere", result)
    (tmp_path / "elsewhere" / "runs").rename(tmp_path / profile)
    with pytest.raises(ResultError, match=r"torch-0\.json: is the result of a (run|shape profile)"):
        write_report(tmp_path)


def test_what_a_command_says_of_it(tmp_path, good):
    path = made_results.save(tmp_path, made_results.run())
    (path,) = tmp_path.rglob("*.json")
    path.write_text(change(good, "test.at_1", 7))
    done = in_process("report", "--results", tmp_path)
    assert done.exit_code == 2
    assert f"{path}: " in done.output.replace("\n", "") and "test.at_1" in done.output
