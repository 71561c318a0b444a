"""The op in torch beside what both frameworks have: schema, gradients, compilation, devices."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import reference
import torch

from fanin.backends.torch import FixedFanInLinear, fan_in_linear, ops

pytestmark = pytest.mark.torch

OP = torch.ops.fanin.fan_in_linear.default
BACKWARD = torch.ops.fanin.fan_in_linear_backward.default


def layer(
    batch=5, inputs=40, labels=70, fan_in=7, dtype=torch.float32, index=torch.uint16, group_size=1
):
    generator = torch.Generator().manual_seed(0)
    return (
        torch.randn(batch, inputs, generator=generator, dtype=dtype),
        torch.randint(inputs, (-(-labels // group_size), fan_in), generator=generator).to(index),
        torch.randn(labels, fan_in, generator=generator, dtype=dtype),
        torch.randn(labels, generator=generator, dtype=dtype),
    )


@pytest.mark.parametrize("index", [torch.uint16, torch.uint32])
@pytest.mark.parametrize("with_bias", [True, False])
def test_opcheck(index, with_bias):
    x, indices, weights, bias = layer(index=index)
    arguments = (
        x.requires_grad_(), indices, weights.requires_grad_(),
        bias.requires_grad_() if with_bias else None, 1,
    )  # fmt: skip
    torch.library.opcheck(OP, arguments)
    for wanted in ([True, True, True], [False, True, False], [True, False, False]):
        torch.library.opcheck(
            BACKWARD, (torch.randn(5, 70), x.detach(), indices, weights.detach(), wanted, 1)
        )


@pytest.mark.parametrize("index", [torch.uint16, torch.uint32])
def test_gradcheck(index):
    x, indices, weights, bias = layer(dtype=torch.float64, index=index)
    for tensor in (x, weights, bias):
        tensor.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x, w, b: fan_in_linear(x, indices, w, b), (x, weights, bias)
    )


@pytest.mark.slow
def test_labels_that_share_their_sources():
    """By the checks of torch, with a last group that is smaller."""
    x, indices, weights, bias = layer(dtype=torch.float64, group_size=16)
    assert len(indices) == 5
    arguments = (torch.randn(5, 70).double(), x, indices, weights, [True] * 3, 1, 16)
    torch.library.opcheck(BACKWARD, arguments)
    for tensor in (x, weights, bias):
        tensor.requires_grad_()
    torch.library.opcheck(OP, (x, indices, weights, bias, 1, 16))

    def scores(x, weights, bias):
        return fan_in_linear(x, indices, weights, bias, group_size=16)

    assert torch.autograd.gradcheck(scores, (x, weights, bias))
    assert torch.autograd.gradgradcheck(scores, (x, weights, bias))
    compiled = torch.compile(scores, fullgraph=True)
    assert torch.equal(compiled(x, weights, bias), scores(x, weights, bias))
    with pytest.raises(ValueError, match="group"):
        fan_in_linear(x, indices, weights, bias, group_size=8)


def test_only_the_wanted_gradients_are_made():
    x, indices, weights, _ = layer()
    weights.requires_grad_()
    fan_in_linear(x, indices, weights).sum().backward()
    assert x.grad is None
    expected = reference.gradients(np.ones((5, 70)), x.numpy(), indices.numpy(),
                                   weights.detach().numpy())[1]  # fmt: skip
    assert np.abs(weights.grad.numpy() - expected).max() < 1e-4


@pytest.mark.slow
def test_compiled_whole_with_any_batch():
    module = FixedFanInLinear(40, 70, 7)
    compiled = torch.compile(torch.nn.Sequential(torch.nn.ReLU(), module), fullgraph=True)
    for batch in (3, 17, 64):
        x = torch.randn(batch, 40)
        assert torch.equal(compiled(x), module(x.relu()))
    compiled(torch.randn(6, 40)).square().sum().backward()
    assert module.weights.grad.abs().sum() > 0


@pytest.mark.parametrize(("change", "message"), [
    (lambda x, i, w, b: (x.to("meta"), i, w, b), "indices is on cpu but features is on meta"),
    (lambda x, i, w, b: (x, i.to("meta"), w, b), "indices is on meta but features is on cpu"),
    (lambda x, i, w, b: (x.t().contiguous().t(), i, w, b), "features .* is not contiguous"),
    (lambda x, i, w, b: (x, i, w[:, :3], b), "fan_in is 3 here but 7 in indices"),
    (lambda x, i, w, b: (x[:, :6].contiguous(), i, w, b), "fan_in 7 is larger than the 6 inputs"),
    (lambda x, i, w, b: (x, torch.full((70, 7), 40).to(torch.uint16), w, b), "out of range for 40"),
])  # fmt: skip
def test_bad_arguments_are_named(change, message):
    arguments = layer()
    with pytest.raises(ValueError, match=message):
        fan_in_linear(*change(*arguments))
    assert fan_in_linear(*arguments).shape == (5, 70)


def test_scratch_memory_is_kept_by_the_thread_that_calls():
    """Otherwise steps that need many megabytes make a process grow (see `ops`)."""
    where = torch.empty(0)
    one = ops._scratch(1000, where)
    assert ops._scratch(500, where) is one
    larger = ops._scratch(one.numel() + 1, where)
    assert larger.numel() > one.numel() and ops._scratch(1000, where) is larger
    with ThreadPoolExecutor(1) as threads:
        assert threads.submit(ops._scratch, 1000, where).result() is not larger
    huge = ops._scratch(ops._KEPT_BYTES + 1, where)
    assert huge.numel() > ops._KEPT_BYTES and ops._scratch(1000, where) is larger


def test_sparse_features_are_refused():
    layer = FixedFanInLinear(20, 70, 7)
    with pytest.raises(ValueError, match=r"a tensor of \[4, 20\] is torch\.sparse_coo"):
        fan_in_linear(torch.randn(4, 20).to_sparse(), layer.indices, layer.weights)
