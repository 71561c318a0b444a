"""Part `kernels`: the floor, and that contestants compute the same."""

from __future__ import annotations

import pytest
import torch

from fanin.backends.kinds import FixedFanIn
from fanin.backends.setup import LayerSetup
from fanin.benchmarks.gpu_parts.contestants import (
    Csr,
    Dense,
    DoesNotFitError,
    Fanin,
    Gather,
    InputSets,
    Workload,
)
from fanin.benchmarks.records.gpu import Contestant, KernelRow
from fanin.reports.tables.gpu import floor_seconds, kernels_table

pytestmark = pytest.mark.torch


def workload(dataset, labels, inputs, batch=32):
    return Workload(dataset, LayerSetup(inputs, labels, FixedFanIn(32)), batch)


def test_the_floor_counts_the_bytes_that_must_move():
    layer = workload("amazon-3m", 2_812_281, 131_072)
    assert layer.least_bytes("forward") == pytest.approx(1.108e9, rel=1e-3)


def test_floor_and_ratios_follow_from_the_raw_figures():
    row = KernelRow(
        key="a", op="forward", dataset="amazon-3m", labels=2_812_281, inputs=131_072, fan_in=32,
        batch=32, index="uint32", bytes=1_000, copy_bytes=2_000, state="done",
        contestants=[
            Contestant(name="copy", seconds=[0.002, 0.004, 0.003]),
            Contestant(name="fanin", seconds=[0.003, 0.006, 0.004]),
            Contestant(name="CSR", seconds=[0.006, 0.006, 0.006]),
            Contestant(
                name="dense fp32", reason="does not fit: needs 1,373 GiB, and 139 are free"
            ),
        ],
    )  # fmt: skip
    assert floor_seconds(row) == pytest.approx(0.0015)
    table = kernels_table([row])
    heads = [column.head for column in table.columns]
    cells = dict(zip(heads, (cell.text for cell in table.rows[0]), strict=True))
    assert cells["ms"] == "4.000 (3.500–5.000)"
    assert (cells["floor ms"], cells["share"]) == ("1.500", "38 %")
    assert (cells["CSR / ours"], cells["dense fp32 / ours"]) == ("1.50", "—")


def test_groups_compute_what_labels_that_repeat_their_sources_do():
    inputs = InputSets(workload("wiki-500k", 100, 200), torch.device("cpu"), 1, 0)
    grouped, plain = Fanin(inputs, "forward", 16), Fanin(inputs)
    repeated = inputs.indices[0][:7].int().repeat_interleave(16, dim=0)[:100]
    plain._indices = [repeated.to(torch.uint16)]
    torch.testing.assert_close(grouped.forward(0), plain.forward(0), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(grouped.best(0)[0], plain.best(0)[0], atol=1e-4, rtol=1e-4)
    for ours, wanted in zip(grouped.backward(0), plain.backward(0), strict=True):
        torch.testing.assert_close(ours, wanted, atol=1e-3, rtol=1e-4)
    with pytest.raises(DoesNotFitError, match="no bfloat16"):
        Fanin(inputs, "forward", 16, half=True)
    half = Fanin(inputs, "fused step", 16, half=True)
    before = half._weights[0].clone()
    half.step(0)
    assert (half._weights[0] != before).any()


def test_peers_compute_the_same():
    """What is compared for its speed has to give the same numbers."""
    inputs = InputSets(workload("wiki-500k", 300, 200), torch.device("cpu"), 2, 0)
    # A source that is named twice would be two entries of one place to a sparse matrix.
    inputs.indices = [
        torch.rand(300, 200).argsort(1)[:, :32].sort(1).values.to(torch.uint16) for _ in range(2)
    ]
    ours = Fanin(inputs)
    csr, gather = Csr(inputs), Gather(inputs)
    gather._piece = 77
    dense = Dense(inputs, "forward", "fp32")
    ((matrix, bias),) = dense.trained  # larger than the stand-in for a cache: one for all sets
    for i in (0, 1):
        matrix.zero_().scatter_(1, inputs.indices[i].long(), inputs.weights[i])
        bias.copy_(inputs.bias[i])
        for peer in (csr, gather, dense):
            torch.testing.assert_close(peer.forward(i), ours.forward(i), atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(peer.best(i)[0], ours.best(i)[0], atol=1e-4, rtol=1e-4)
            grad_features, grad_weights, grad_bias = peer.backward(i)
            if peer is dense:
                grad_weights = grad_weights.gather(1, inputs.indices[i].long())
            wanted = ours.backward(i)
            torch.testing.assert_close(grad_features, wanted[0], atol=1e-3, rtol=1e-4)
            torch.testing.assert_close(grad_weights.view(300, 32), wanted[1], atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(grad_bias, wanted[2], atol=1e-4, rtol=1e-4)
    with torch.no_grad():
        csr.step(0)
        gather.step(0)
    ours.step(0)
    for peer in (csr, gather):
        values, bias = peer.trained[0]
        # A step is of 1e-3. torch's epsilon is after the bias correction, which shows where a
        # gradient is as small.
        pairs = ((values.view(300, 32), inputs.weights[0]), (bias, inputs.bias[0]))
        for result, wanted in pairs:
            assert (result - wanted).abs().quantile(0.99) < 1e-4
