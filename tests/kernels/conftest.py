"""For all tests of the kernels: each leaves the instruction set as it was. For tests of the CUDA
kernels: the emulated GPU."""

import ctypes

import pytest
from emulated import build_emulated

from fanin import kernels
from fanin.kernels import library, numpy_ops


@pytest.fixture(autouse=True)
def _restore():
    yield
    kernels.set_instruction_set("auto")


@pytest.fixture(scope="session")
def emulated() -> ctypes.CDLL:
    # Local, so that nothing else in this process takes its symbols for those of the real library.
    return library.open_library(build_emulated() / "libfanin.so", ctypes.RTLD_LOCAL)


@pytest.fixture(params=[0, 1], ids=["first warps first", "last warps first"])
def on_the_gpu(emulated, monkeypatch, request):
    monkeypatch.setattr(library, "load", lambda: emulated)
    monkeypatch.setattr(numpy_ops, "_DEVICE", "cuda")
    monkeypatch.setenv("FANIN_EMULATOR_ORDER", str(request.param))
