"""Checkpoints on file systems that are full, or cannot do everything."""

from __future__ import annotations

import errno
import mmap
import os

import numpy as np
import pytest

from fanin.benchmarks.harness.checkpoint import Checkpoint


class Model:
    """As much of a trainer as keeping its weights needs."""

    def __init__(self):
        self.loaded = {}

    def arrays(self):
        yield "first", np.arange(3.0)
        yield "second", np.arange(4.0)

    def load_weights(self, arrays):
        self.loaded = {name: np.array(array) for name, array in arrays.items()}


@pytest.fixture
def checkpoint(tmp_path):
    return Checkpoint(tmp_path / "torch-0.checkpoint", {}, 0.0)


def test_what_is_half_written_on_a_full_disk_is_removed(checkpoint, tmp_path, monkeypatch):
    """And the weights before are kept."""
    checkpoint.keep_best(Model(), 1)
    save = np.save

    def save_some(path, array):
        if path.name == "second.npy":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        save(path, array)

    monkeypatch.setattr(np, "save", save_some)
    with pytest.raises(OSError, match=r"No space left on device: '.*weights-2/second\.npy'"):
        checkpoint.keep_best(Model(), 2)
    assert [path.name for path in (tmp_path / "torch-0.checkpoint").iterdir()] == ["weights-1"]
    model = Model()
    checkpoint.restore_best(model)
    assert model.loaded["second"].tolist() == [0, 1, 2, 3]


def test_arrays_are_read_where_they_cannot_be_mapped(checkpoint, monkeypatch):
    checkpoint.keep_best(Model(), 1)

    class Refused:
        def __init__(self, *_, **__):
            raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))

    monkeypatch.setattr(mmap, "mmap", Refused)
    model = Model()
    checkpoint.restore_best(model)
    assert {name: array.tolist() for name, array in model.loaded.items()} == {
        "first": [0, 1, 2],
        "second": [0, 1, 2, 3],
    }
