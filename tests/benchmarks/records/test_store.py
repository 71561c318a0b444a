"""Result files: where they lie, and what is said of one that cannot be read."""

from __future__ import annotations

import re

import pytest
from fakes import make_task

from fanin.backends.estimate import TooLargeError
from fanin.benchmarks.records.base import Failure
from fanin.benchmarks.records.files import remove_leftovers
from fanin.benchmarks.records.store import ResultError, check_folder, result_path
from fanin.benchmarks.records.task import TaskError
from fanin.datasets import DataError


def test_a_results_folder_that_is_no_folder_of_files(tmp_path):
    path = result_path(tmp_path, make_task(), "torch", 0)
    path.mkdir(parents=True)
    with pytest.raises(ResultError, match=r"torch-0\.json: cannot be read: Is a directory"):
        check_folder(tmp_path, [])


def test_failures_are_known_by_the_names_of_exceptions():
    for error, asked in (
        (DataError, "is_of_data"),
        (DataError, "is_of_input"),
        (TaskError, "is_of_input"),
        (TooLargeError, "is_too_large"),
    ):
        assert getattr(Failure(kind=error.__name__, message="", traceback=""), asked)
    other = Failure(kind="ValueError", message="", traceback="")
    assert not (other.is_of_data or other.is_of_input or other.is_too_large)


def test_leftovers_of_writing_are_removed(tmp_path):
    path = tmp_path / "torch-1.json"
    others = [path, tmp_path / ".torch-10.json.x", tmp_path / ".torch-1.safetensors.part"]
    for file in (*others, tmp_path / ".torch-1.json.x"):
        file.touch()
    remove_leftovers(path)
    assert sorted(tmp_path.iterdir()) == sorted(others)


def test_every_folder_that_will_be_written_is_tried(tmp_path):
    """Long before it is needed: a file stands in the way of the second task's folder, or of the
    report's."""
    paths = [result_path(tmp_path, make_task(dataset=name), "torch", 0) for name in ("a", "b")]
    check_folder(tmp_path, paths)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    paths[1].parent.rmdir()
    paths[1].parent.touch()
    with pytest.raises(OSError, match=re.escape(str(paths[1].parent))):
        check_folder(tmp_path, paths)
    check_folder(tmp_path, paths[:1])
    (tmp_path / "report").touch()
    with pytest.raises(OSError, match="report"):
        check_folder(tmp_path, paths[:1])
