"""`FixedFanInLinear` beside what the layers of both frameworks have."""

from __future__ import annotations

import copy
import io
import pickle
import re

import pytest
import torch
from torch.optim.swa_utils import AveragedModel

from fanin.backends.torch import FixedFanInLinear, FusedFanIn

pytestmark = pytest.mark.torch


def test_state_dict_round_trip_and_copies():
    module = FixedFanInLinear(40, 70, 7)
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    other = FixedFanInLinear(40, 70, 7)
    x = torch.randn(5, 40)
    assert not torch.equal(other(x), module(x))
    other.load_state_dict(torch.load(file))
    assert torch.equal(other(x), module(x))
    assert torch.equal(copy.deepcopy(module)(x), module(x))
    assert set(module.state_dict()) == {"weights", "bias", "indices"}


@pytest.mark.parametrize("kind", [FixedFanInLinear, FusedFanIn])
def test_labels_that_share_their_sources(kind):
    """Their order survives what copies, saves and averages a module."""
    module = kind(40, 70, 7, group_size=16)
    assert "group_size=16" in repr(module)
    order = torch.randperm(70).int()
    module.load_state_dict({**module.state_dict(), "order": order})
    x = torch.randn(5, 40)
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(other.order, order) and torch.equal(other(x), module(x))
    averaged = AveragedModel(torch.nn.Sequential(module), use_buffers=True)
    for change in (1, 2):  # the mean of two orders is none
        order = order.roll(change)
        module.load_state_dict({**module.state_dict(), "order": order})
        averaged.update_parameters(torch.nn.Sequential(module))
    averaged.eval()
    assert torch.equal(averaged.module[0].order, order)
    assert torch.equal(torch.compile(module, backend="aot_eager", fullgraph=True)(x), module(x))
    program = torch.export.export(torch.nn.Sequential(module).eval(), (x,))
    assert torch.equal(program.module()(x), module(x))
    twice = torch.cat([order[:1], order[:-1]])
    message = r"order: output\.order must have each label once, but label"
    with pytest.raises(RuntimeError, match=message):
        module.load_state_dict({**module.state_dict(), "order": twice})
    assert torch.equal(module.order, order)
    module.reset_parameters()
    assert torch.equal(module.order, torch.arange(70).int())


def test_leading_dimensions_and_strided_inputs():
    module = FixedFanInLinear(40, 70, 7)
    x = torch.randn(40, 2, 3).permute(1, 2, 0)
    assert torch.equal(module(x), module(x.reshape(6, 40)).reshape(2, 3, 70))
    assert module(torch.randn(0, 40)).shape == (0, 70)


def test_autocast_computes_in_float32():
    module = FixedFanInLinear(40, 70, 7)
    x = torch.randn(5, 40).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        scores = module(x)
    assert scores.dtype == torch.float32
    assert torch.equal(scores, module(x.float()))


def test_double():
    module = FixedFanInLinear(40, 70, 7).double()
    assert module.indices.dtype == torch.uint16
    assert module(torch.randn(5, 40, dtype=torch.float64)).dtype == torch.float64


def test_rewire_of_any_type_and_by_an_optimizer_only():
    module = FixedFanInLinear(20, 70, 7, dtype=torch.bfloat16)
    assert 50 < module.rewire(0.2, rng=3) <= 98  # in bfloat16 some are equal
    with pytest.raises(ValueError, match=r"optimizer must be one of torch\.optim, got 'adam'"):
        module.rewire(0.2, "adam")


def test_rewire_leaves_what_is_not_kept_for_each_weight():
    """Adafactor has sums over rows and over columns."""
    module = FixedFanInLinear(20, 70, 7)
    optimizer = torch.optim.Adafactor(module.parameters())
    module(torch.randn(4, 20)).square().sum().backward()
    optimizer.step()
    state = optimizer.state[module.weights]
    before = {name: value.clone() for name, value in state.items()}
    assert {value.ndim for value in before.values()} == {0, 2}
    module.rewire(0.2, optimizer)
    assert all(torch.equal(state[name], value) for name, value in before.items())


@pytest.mark.parametrize("shape", [(3, 41), (3, 39), (2, 3, 41), ()])
def test_width_is_that_of_the_layer(shape):
    module = FixedFanInLinear(40, 70, 7)
    module.indices.copy_(torch.zeros(70, 7, dtype=torch.uint16))
    named = re.escape(f"features must be [..., 40], got {list(shape)}")
    with pytest.raises(ValueError, match=named):
        module(torch.randn(shape))
