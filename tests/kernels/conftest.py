"""What holds for all tests of the kernels: each leaves the instruction set as it was."""

import pytest

from fanin import kernels


@pytest.fixture(autouse=True)
def _restore():
    yield
    kernels.set_instruction_set("auto")
