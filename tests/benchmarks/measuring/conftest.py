"""A stand-in for NVML, and samplers that use it."""

from __future__ import annotations

import ctypes
import mmap
import os

import pytest
from nvml_stand_in import MIB, State, compile_library

from fanin.benchmarks.measuring import nvml


@pytest.fixture(scope="session")
def nvml_library(tmp_path_factory):
    """The folder of the stand-in."""
    folder = tmp_path_factory.mktemp("nvml")
    compile_library(folder)
    return folder


@pytest.fixture
def state(nvml_library, tmp_path, monkeypatch):
    """The stand-in's figures; processes started from now on load it."""
    path = tmp_path / "state"
    path.write_bytes(bytes(ctypes.sizeof(State)))
    monkeypatch.setenv("NVML_STATE", str(path))
    monkeypatch.setenv("LD_LIBRARY_PATH", f"{nvml_library}:{os.environ.get('LD_LIBRARY_PATH', '')}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with path.open("r+b") as file:
        figures = State.from_buffer(mmap.mmap(file.fileno(), 0))
    figures.used[0], figures.used[1] = 1000 * MIB, 5000 * MIB
    return figures


@pytest.fixture
def sampler(state):
    """A function that starts a sampler, which is closed at the end."""
    started = []

    def start() -> nvml.Sampler:
        started.append(nvml.Sampler())
        return started[-1]

    yield start
    for each in started:
        each.close()
