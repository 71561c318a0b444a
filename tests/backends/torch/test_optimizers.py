"""What rewiring makes of the state of each of torch's optimizers."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from fanin.backends.torch import FixedFanInLinear
from fanin.backends.torch.optimizers import STARTS

pytestmark = pytest.mark.torch

# What makes them keep all that they can.
OPTIONS = {
    "ASGD": {"t0": 2, "lr": 0.01},
    "Adagrad": {"initial_accumulator_value": 0.25},
    "Adam": {"amsgrad": True},
    "AdamW": {"amsgrad": True},
    "Muon": {},
    "RMSprop": {"momentum": 0.9, "centered": True},
    "Rprop": {"lr": 0.03},
    "SGD": {"momentum": 0.9, "lr": 0.01},
}
FIRST = {"sum": 0.25, "step_size": 0.03}


def trained(name, fan_in=7, steps=4):
    """A layer and its optimizer after some steps."""
    torch.manual_seed(0)
    layer = FixedFanInLinear(20, 70, fan_in)
    parameters = [layer.weights] if name == "Muon" else layer.parameters()
    optimizer = getattr(torch.optim, name)(parameters, **OPTIONS.get(name, {}))
    for _ in range(steps):
        step(layer, optimizer)
    return layer, optimizer


def step(layer, optimizer):
    optimizer.zero_grad()
    layer(torch.randn(30, 20)).sub(1).square().mean().backward()
    optimizer.step()


def blind(layer, optimizer):
    layer.rewire(0.3, optimizer, rng=3)


def towards_gradients(layer, optimizer):
    rng = np.random.default_rng(0)
    features = rng.standard_normal((50, 20)).astype(np.float32)
    positives = sp.random_array((50, 70), density=0.1, format="csr", rng=rng)
    layer.rewire_towards_gradients(features, positives, 0.3, optimizer, rng=3)


@pytest.mark.parametrize("rewire", [blind, towards_gradients])
@pytest.mark.parametrize("name", [name for name in STARTS if hasattr(torch.optim, name)])
def test_moments_start_again_and_averages_take_the_weight(name, rewire):
    layer, optimizer = trained(name)
    state = optimizer.state[layer.weights]
    before = {key: value.clone() for key, value in state.items()}
    sources = layer.indices.int()
    arrays = {key for key, value in state.items() if value.shape == layer.weights.shape}
    assert arrays == {key for key, start in STARTS[name].items() if start is not None} - (
        {"variance"} if name == "Adafactor" else set()  # of vectors only
    )
    rewire(layer, optimizer)
    moved = layer.indices.int() != sources
    assert 50 < moved.sum() < 300
    for key, value in state.items():
        if key not in arrays:
            assert torch.equal(value, before[key])
            continue
        kept = value == before[key]
        started = value == (layer.weights if key == "ax" else FIRST.get(key, 0.0))
        assert kept[~moved].float().mean() > 0.9  # a new random source may be the old one
        assert (kept | started).all() and started[moved].all()
    for _ in range(4):
        step(layer, optimizer)
    assert layer.weights.isfinite().all()


def test_all_of_torch_are_known():
    """But those that cannot train a layer of dense gradients, or keep nothing for each weight."""
    named = {n for n, kind in vars(torch.optim).items() if inspect.isclass(kind)}
    assert named - set(STARTS) - {"Optimizer", "SparseAdam", "LBFGS"} == set()


def test_averaged_descent_keeps_its_average():
    """Which is what one takes in the end: of a weight that moved, the weight."""
    layer, optimizer = trained("ASGD", steps=20)
    average = optimizer.state[layer.weights]["ax"]
    layer.rewire(0.9, optimizer)
    assert (average == 0).sum() == 0


def test_sums_over_rows_are_no_moments_where_they_have_the_shape_of_weights():
    layer, optimizer = trained("Adafactor", fan_in=1)
    sums = optimizer.state[layer.weights]["row_var"]
    assert sums.shape == layer.weights.shape
    before = sums.clone()
    layer.rewire(0.5, optimizer)
    assert torch.equal(sums, before)


class Mine(torch.optim.Adam):
    """An optimizer of the user's own, which keeps more."""

    def step(self, closure=None):
        super().step(closure)
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter]["slow"] = parameter.detach().clone()


class Adam(torch.optim.Optimizer):
    """Another of a known name."""

    def __init__(self, parameters):
        super().__init__(parameters, {})

    def step(self, closure=None):
        pass


Adam.__module__ = "somewhere"


@pytest.mark.parametrize("rewire", [blind, towards_gradients])
def test_what_is_not_known_is_refused(rewire):
    layer, _ = trained("Adam")
    indices = layer.indices.clone()
    mine = Mine(layer.parameters())
    step(layer, mine)
    weights = layer.weights.clone()
    for optimizer, message in (
        (mine, "nothing of 'slow', which this Mine keeps for each weight beside exp_avg, exp_avg_"),
        (Adam(layer.parameters()), "nothing of what Adam keeps for each weight, only of torch's"),
        (torch.optim.LBFGS(layer.parameters()), "nothing of what LBFGS keeps for each weight"),
    ):
        with pytest.raises(ValueError, match=message):
            rewire(layer, optimizer)
    assert torch.equal(layer.indices, indices) and torch.equal(layer.weights, weights)


def test_a_subclass_that_keeps_nothing_else_is_known():
    layer, _ = trained("Adam")
    optimizer = type("Logged", (torch.optim.AdamW,), {})(layer.parameters())
    step(layer, optimizer)
    layer.rewire(0.5, optimizer)
    assert (optimizer.state[layer.weights]["exp_avg"] == 0).sum() > 100


def test_a_part_of_the_state_is_refused():
    """As sharded optimizers have it."""
    layer, optimizer = trained("Adam")
    state = optimizer.state[layer.weights]
    state["exp_avg"] = state["exp_avg"][:35]
    with pytest.raises(ValueError, match=r"'exp_avg' of this Adam is \[35, 7\] and the layer's"):
        layer.rewire(0.5, optimizer)
