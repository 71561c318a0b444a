"""The executions in torch beside what both frameworks have."""

from __future__ import annotations

import pytest
import torch
from setups import every_setup, trainer

pytestmark = pytest.mark.torch


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("execution", ["autograd", "fused"])
def test_asking_for_a_gpu_that_is_not_there(execution):
    with pytest.raises(RuntimeError, match="torch sees none here"):
        trainer("torch", every_setup(20, 30, 16)[0], device="cuda", execution=execution)
