"""For all tests of the kernels: each leaves the instruction set as it was. For tests of the CUDA
kernels: the emulated GPU."""

import ctypes
import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fanin import kernels
from fanin.kernels import library, numpy_ops

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _restore():
    yield
    kernels.set_instruction_set("auto")


@pytest.fixture(scope="session")
def emulated() -> ctypes.CDLL:
    build = ROOT / "build" / "emulated"
    build.mkdir(parents=True, exist_ok=True)
    # Beside this Python, where the test dependencies put it, whether or not that is on the PATH.
    folders = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    cmake = shutil.which("cmake", path=folders)
    assert cmake, "cmake was not found; it is one of the test dependencies (pyproject.toml)"
    with (build / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # of several workers one builds, and the others wait
        for command in (
            ["-S", str(ROOT / "kernels"), "-B", str(build), "-G", "Ninja", "-DFANIN_CUDA=EMULATED"],
            ["--build", str(build), "--parallel", "2"],
        ):
            done = subprocess.run(
                [cmake, *command],
                capture_output=True,
                text=True,
                env={**os.environ, "PATH": folders},
            )
            assert done.returncode == 0, done.stdout + done.stderr
    # Local, so that nothing else in this process takes its symbols for those of the real library.
    return library.open_library(build / "libfanin.so", ctypes.RTLD_LOCAL)


@pytest.fixture(params=[0, 1], ids=["first warps first", "last warps first"])
def on_the_gpu(emulated, monkeypatch, request):
    monkeypatch.setattr(library, "load", lambda: emulated)
    monkeypatch.setattr(numpy_ops, "_DEVICE", "cuda")
    monkeypatch.setenv("FANIN_EMULATOR_ORDER", str(request.param))
