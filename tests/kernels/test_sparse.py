"""Dense layers over sparse features: forward pass, and the update of the rows of a batch's words."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_layers import INSTRUCTION_SETS, near, trained
from sparse_layers import check_steps, dense, make_features, make_layer

from fanin import kernels


@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_steps_follow_the_reference(instruction_set, data):
    kernels.set_instruction_set(instruction_set)
    check_steps(
        np.random.default_rng(data.draw(st.integers(0, 2**32), "seed")),
        data.draw(st.integers(1, 70), "batch"),
        data.draw(st.integers(1, 300), "inputs"),
        data.draw(st.sampled_from([1, 3, 16, 31, 33, 64, 100, 128, 129, 200, 300]), "units"),
        relu=data.draw(st.booleans(), "relu"),
        rows=data.draw(st.booleans(), "rows"),
        threads=data.draw(st.integers(0, 3), "threads"),
    )
