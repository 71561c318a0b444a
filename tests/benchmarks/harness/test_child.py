"""A run in its process: its data, and whether it can be begun."""

from __future__ import annotations

import errno
import io
import os
import sys
from types import SimpleNamespace

import pytest
import safetensors.numpy
from fakes import make_task, write_dataset

from fanin.backends.estimate import TooLargeError
from fanin.benchmarks.harness import child
from fanin.benchmarks.harness.child import Events
from fanin.benchmarks.harness.prepare import split
from fanin.benchmarks.harness.request import Options, Request, begun
from fanin.benchmarks.records.store import read_result
from fanin.datasets import DataError, load


def test_a_model_that_cannot_be_held_is_not_begun(tmp_path, monkeypatch):
    """Else the system would kill the process, or others."""
    monkeypatch.setattr(child, "available_bytes", lambda: 1000)
    chosen = make_task(dataset="tiny", features="dense40")
    options = Options(results=tmp_path / "results", data_dir=write_dataset(tmp_path))
    request = Request(task=chosen, backend="torch", repeat=0, options=options)
    result = begun(request)
    with pytest.raises(
        TooLargeError, match=r"state alone are 24\.\d KiB, and 1\.0 KiB are available"
    ):
        child.run(request, Events(lambda event: None), result)
    assert result.dataset.labels == 50 and result.memory is None


class Asking:
    """The parent's end of a child that has nothing to tell."""

    def __init__(self, request):
        self._request = request

    def receive(self):
        return self._request.model_dump(mode="json")

    def send(self, message): ...


def full_disk(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_failure_is_kept_whatever_it_says_and_wherever_the_log_is(tmp_path, monkeypatch):
    def work(*_):
        raise DataError(os.fsdecode(b"data\xff/") + "\x1b[31m: missing")

    class Log(io.StringIO):
        write = full_disk

    monkeypatch.setattr(sys, "stderr", Log())
    request = Request(
        task=make_task(), backend="torch", repeat=0, options=Options(results=tmp_path)
    )
    request.path.parent.mkdir(parents=True)
    assert child.main(Asking(request), work) == 1
    failure = read_result(request.path).failure
    assert failure.kind == "DataError"
    assert failure.message == r"data\udcff/\x1b[31m: missing"


def test_a_result_has_its_place_on_a_disk_that_is_full_by_now(tmp_path, monkeypatch):
    """The file system lets a run have as much as it has reserved, and no more."""
    reserved = []

    def work(request, events, result):
        reserved.extend(path.stat().st_size for path in request.path.parent.iterdir())

    def write_result(path, result):
        assert not list(path.parent.iterdir())
        assert len(result.model_dump_json()) < reserved[0]

    monkeypatch.setattr(child, "write_result", write_result)
    request = Request(
        task=make_task(), backend="torch", repeat=0, options=Options(results=tmp_path)
    )
    request.path.parent.mkdir(parents=True)
    assert child.main(Asking(request), work) == 0
    assert len(reserved) == 1


def test_weights_that_cannot_be_written_are_named_and_take_no_place(tmp_path, monkeypatch):
    def save_file(arrays, path):
        path.write_bytes(b"half")
        raise safetensors.SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(safetensors.numpy, "save_file", save_file)
    path = tmp_path / "torch-0.safetensors"
    with pytest.raises(OSError, match=rf"No space left on device .*'{path}'"):
        child.save_weights(SimpleNamespace(weights=dict), path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("instances", "kept"), [(1, None), (2, 1), (40, 36)])
def test_holdout_leaves_some_to_train_on(tmp_path, instances, kept):
    data = load("tiny", None, write_dataset(tmp_path, instances=instances))
    chosen = make_task(protocol="holdout")
    if kept is None:
        with pytest.raises(DataError, match="1 training instance, but protocol holdout"):
            split(data, chosen)
    else:
        (x, *_), (validation, *_) = split(data, chosen)
        assert (len(x), len(validation)) == (kept, instances - kept)
