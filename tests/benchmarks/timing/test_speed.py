"""Guards the speed of op and fused step against torch's own layers, as ratios within one run.

The bounds are far below what an idle machine shows (`python -m fanin.benchmarks.timing.op` and
`fanin.benchmarks.timing.step`), so that they fail for a slow kernel and not for a busy neighbour.
"""

from __future__ import annotations

import pytest

from fanin.benchmarks.records.statistics import ratio
from fanin.benchmarks.records.timing import Contender
from fanin.benchmarks.timing.op import time_layers
from fanin.benchmarks.timing.step import in_a_process


@pytest.mark.torch
@pytest.mark.slow
def test_op_beside_torch_sparse_and_dense():
    timed = time_layers(768, count=9)
    forward, both = timed["forward"], timed["forward + backward"]
    assert ratio(forward["CSR int32"], forward["fanin"]) > 0.75
    assert ratio(forward["torch dense"], forward["fanin"]) > 5.0
    assert ratio(both["torch dense"], both["fanin"]) > 8.0


@pytest.mark.slow
@pytest.mark.parametrize("intermediate, most", [(None, 3.0), (32768, 6.0)])
def test_fused_step_beside_the_csr_product(intermediate, most):
    """The whole step against the forward product alone, at a fifth of Amazon-670K's labels."""
    result = in_a_process(
        Contender(
            backend="torch",
            execution="fused",
            dtype="float32",
            labels=131_072,
            inputs=768 if intermediate is None else 64,
            intermediate=intermediate,
            fan_in=32,
            batch=32,
            steps=9,
        )
    )
    seconds = result.csr_seconds
    assert ratio(seconds["fused step"], seconds["CSR product, int64"]) < most
    memory = result.memory
    counted = memory.parameter_bytes + memory.optimizer_state_bytes
    above = memory.host_peak_rss_bytes - memory.host_baseline_rss_bytes
    assert above < counted + (64 << 20)
