"""Layers of the recipe "best" in torch beside what the layers of both frameworks have."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from planted import FAN_IN, INPUTS, LABELS, planted_data

from fanin.backends.features import inputs_as_atoms
from fanin.backends.torch import FixedFanInLinear, FusedFanIn

pytestmark = pytest.mark.torch

KINDS = [FusedFanIn, FixedFanInLinear]
every_kind = pytest.mark.parametrize("kind", KINDS)
BUFFERS = {"feature_scale", "feature_dictionary"}
x, y = planted_data()


def make(kind, **options):
    generator = torch.Generator().manual_seed(0)
    layer = kind(INPUTS, LABELS, FAN_IN, recipe="best", generator=generator, **options)
    layer.start_from(x, y)
    return layer


def positives(count=20):
    instances, label_ids = y[:count].nonzero()
    return torch.from_numpy(instances), torch.from_numpy(label_ids)


@every_kind
def test_the_papers_layer_is_as_ever(kind):
    paper, best = kind(INPUTS, LABELS, FAN_IN), make(kind)
    assert set(best.state_dict()) - set(paper.state_dict()) == BUFFERS
    assert not BUFFERS & set(paper.state_dict())
    assert "recipe" not in repr(paper) and "fan_in=6, recipe='best', " in repr(best)
    state = paper.__getstate__()
    for name in BUFFERS:
        state.pop(name)
    state.pop("recipe")
    older = kind.__new__(kind)
    older.__setstate__(state)  # as it was pickled before there were recipes
    assert older.recipe == "paper"
    assert torch.equal(older(torch.from_numpy(x)), paper(torch.from_numpy(x)))


@every_kind
def test_is_pickled(kind):
    layer, features = make(kind), torch.from_numpy(x)
    for other in (pickle.loads(pickle.dumps(layer)), copy.deepcopy(layer)):
        assert other.recipe == "best"
        assert torch.equal(other(features), layer(features))
        other.start_from(x[::-1].copy(), y)  # it has buffers of its own
        assert not torch.equal(other(features), layer(features))


@every_kind
def test_copies_have_the_same_buffers(kind):
    for recipe in ("paper", "best"):
        layer = kind(INPUTS, LABELS, FAN_IN, recipe=recipe)
        assert copy.deepcopy(layer)._buffers.keys() == layer._buffers.keys()


@every_kind
def test_nothing_of_it_is_trained_by_an_optimizer(kind):
    named = {name for name, _ in make(kind).named_parameters()}
    assert named == ({"weights", "bias"} if kind is FixedFanInLinear else set())


@every_kind
def test_state_of_another_recipe_is_refused(kind):
    layer = make(kind)
    with pytest.raises(RuntimeError, match=r"Missing key.*feature_scale"):
        layer.load_state_dict(kind(INPUTS, LABELS, FAN_IN).state_dict())
    with pytest.raises(RuntimeError, match=r"Unexpected key.*feature_scale"):
        kind(INPUTS, LABELS, FAN_IN).load_state_dict(layer.state_dict())


@every_kind
def test_gradient_of_the_features(kind):
    layer = make(kind)
    features = torch.from_numpy(x[:7]).requires_grad_()
    grad = torch.randn(7, LABELS)
    (gradient,) = torch.autograd.grad(layer(features), features, grad)
    plain = torch.from_numpy(x[:7]).requires_grad_()
    read = layer._buffers["feature_scale"] * plain @ layer._buffers["feature_dictionary"]
    matrix = torch.zeros(layer.feature_dictionary.shape[1], LABELS)
    sources = layer.indices.long()
    matrix.scatter_add_(0, sources.T, layer.weights.detach().T)
    (expected,) = torch.autograd.grad(read @ matrix, plain, grad)
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-4)


def test_trains_beside_an_optimizer():
    """The other layer with torch's Adam, with the same numbers."""
    fused, plain = make(FusedFanIn), make(FixedFanInLinear)
    adam = torch.optim.Adam(plain.parameters(), lr=3e-3)
    for step in range(1, 10):
        rows = slice(20 * step, 20 * step + 20)
        features = torch.from_numpy(x[rows])
        one = fused.training_step(features, *y[rows].nonzero())
        target = torch.from_numpy(y[rows].toarray()).float()
        other = torch.nn.functional.binary_cross_entropy_with_logits(plain(features), target)
        assert one.item() == pytest.approx(other.item(), rel=1e-5)
        adam.zero_grad()
        other.backward()
        adam.param_groups[0]["eps"] = 1e-7 / (1 - 0.999**step) ** 0.5
        adam.step()
    torch.testing.assert_close(fused.weights, plain.weights.detach(), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["training_step", "evaluate_loss"])
def test_compiled_whole(method):
    ours, plain, given = make(FusedFanIn), make(FusedFanIn), positives()

    def model(layer, features):
        return getattr(layer, method)(2 * features, *given)

    compiled = torch.compile(model, fullgraph=True)
    for _ in range(3):
        seen = []
        for run, layer in ((compiled, ours), (model, plain)):
            features = torch.from_numpy(x[:20]).requires_grad_()
            loss = run(layer, features)
            loss.backward()
            seen.append((loss.item(), features.grad))
        assert seen[0][0] == pytest.approx(seen[1][0], rel=1e-5)
        torch.testing.assert_close(seen[0][1], seen[1][1], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(ours.weights, plain.weights, rtol=1e-4, atol=1e-6)
    linear, features = make(FixedFanInLinear), torch.from_numpy(x)
    compiled = torch.compile(linear, fullgraph=True)
    torch.testing.assert_close(compiled(features), linear(features), rtol=1e-4, atol=1e-5)


@every_kind
def test_under_autocast(kind):
    """Features are bfloat16 there; the layer computes in float32, dictionary included."""
    layer, features = make(kind), torch.from_numpy(x[:20])
    half = features.bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scores, whole = layer(half), layer(features)
    assert scores.dtype == whole.dtype == torch.float32
    assert torch.equal(scores, layer(half.float())) and torch.equal(whole, layer(features))


def test_keeps_its_types():
    layer = make(FusedFanIn, weights_dtype=torch.bfloat16, moments_dtype=torch.bfloat16)
    assert layer.weights.dtype == torch.bfloat16
    before = layer(torch.from_numpy(x))
    for change in (layer.half, layer.double):
        change()
        assert layer.feature_scale.dtype == layer.feature_dictionary.dtype == torch.float32
    assert torch.equal(layer(torch.from_numpy(x)), before)
    assert layer.rewire_towards_gradients(x, y, 0.5, rng=0) > 0
    wide = make(FixedFanInLinear).double()
    assert wide(torch.from_numpy(x).double()).dtype == torch.float64
    with pytest.raises(ValueError, match="weights is float64 but features is float32"):
        wide(torch.from_numpy(x))
    for layer in (make(FixedFanInLinear), make(FusedFanIn)):
        with pytest.raises(ValueError, match="weights is float32 but features is float64"):
            layer(torch.from_numpy(x).double())
        with pytest.raises(ValueError, match="features must be float32 or float64, got int64"):
            layer(torch.from_numpy(x).long())


def test_a_scale_that_float16_does_not_have():
    """Features are changed in float32, whatever the layer was cast to."""
    small = x * np.float32(1e-6)
    for cast in (torch.float16, torch.bfloat16):
        layer = FixedFanInLinear(INPUTS, LABELS, FAN_IN, recipe="best")
        layer.start_from(small, y)
        scale = layer.feature_scale.clone()
        assert scale.max() > torch.finfo(torch.float16).max
        layer.to(cast)
        assert torch.equal(layer.feature_scale, scale)
        assert torch.isfinite(layer(torch.from_numpy(small))).all()
        assert layer.rewire_towards_gradients(small, y, 0.5, rng=0) > 0


def test_drawn_anew():
    layer = make(FixedFanInLinear)
    layer.reset_parameters()
    assert torch.equal(layer.feature_scale, torch.ones(INPUTS))
    atoms = layer.feature_dictionary.shape[1]
    unchanged = torch.from_numpy(inputs_as_atoms(INPUTS, atoms))
    assert torch.equal(layer.feature_dictionary, unchanged)
    assert layer.indices.int().max() == atoms - 1
    empty = FixedFanInLinear(INPUTS, LABELS, FAN_IN, recipe="best", device="meta")
    empty = empty.to_empty(device="cpu")
    empty.reset_parameters()
    assert torch.equal(empty.feature_dictionary, unchanged)


@every_kind
def test_a_layer_without_memory_is_refused(kind):
    empty = kind(INPUTS, LABELS, FAN_IN, recipe="best", device="meta")
    with pytest.raises(ValueError, match="feature_scale is on meta but features is on cpu"):
        empty(torch.from_numpy(x))
    assert empty(torch.from_numpy(x).to("meta")).is_meta
