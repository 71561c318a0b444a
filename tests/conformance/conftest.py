"""One body for both frameworks: each test is run in the process of either, on each device.

What the tests know of a framework is its adapter (`tests/support/<framework>_adapter.py`).
"""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
from frameworks import EACH_BACKEND

from fanin.kernels import build_info

# A GPU's cases are there where the kernels were built for it and it can be seen.
HAS_GPU = bool(build_info()["cuda"]) and Path("/dev/nvidia0").exists()


@pytest.fixture(scope="session", params=EACH_BACKEND)
def framework(request):
    return request.param


@pytest.fixture(scope="session", params=["cpu", *(["cuda"] if HAS_GPU else [])])
def device(request):
    return request.param


@pytest.fixture(scope="session")
def on_device(framework, device):
    """The framework's adapter, on each device."""
    return importlib.import_module(f"{framework}_adapter").Adapter(device)


@pytest.fixture(scope="session")
def on_cpu(framework):
    """The framework's adapter on the CPU: for errors that name what is wrong in the data, which a
    GPU would have to be waited for."""
    return importlib.import_module(f"{framework}_adapter").Adapter("cpu")
