"""Guards the speed of the op against torch's own layers, as ratios within one run.

The bounds are far below what an idle machine shows (`python -m fanin.benchmarks.kernels`), so that
they fail for a slow kernel and not for a busy neighbour.
"""

from __future__ import annotations

import pytest

from fanin.benchmarks.kernels import ratio, time_layers


@pytest.mark.slow
def test_faster_than_torch_sparse_and_dense():
    timed = time_layers(768, count=9)
    forward, both = timed["forward"], timed["forward + backward"]
    assert ratio(forward["torch CSR"], forward["fanin"]) > 0.75
    assert ratio(forward["torch dense"], forward["fanin"]) > 5.0
    assert ratio(both["torch dense"], both["fanin"]) > 8.0
