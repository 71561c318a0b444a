"""The indices of torch layers in the hands of the tools that carry, copy and average models."""

from __future__ import annotations

import copy
import gc
import io
import pickle

import joblib
import numpy as np
import pytest
import scipy.sparse as sp
import torch
from safetensors.torch import load_file, save_file
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from fanin.backends.torch import FixedFanInLinear, FusedFanIn
from fanin.backends.torch.tools import index_buffer

pytestmark = pytest.mark.torch

KINDS = pytest.mark.parametrize("kind", [FixedFanInLinear, FusedFanIn])
# Indices of 16 bits, some of them above 32,767, and of 32 bits.
INPUTS = pytest.mark.parametrize("inputs", [300, 60_000, 70_000])


def by_joblib(what):
    file = io.BytesIO()
    joblib.dump(what, file)
    file.seek(0)
    return joblib.load(file)


def by_torch(what, **options):
    file = io.BytesIO()
    torch.save(what, file)
    file.seek(0)
    return torch.load(file, **options)


def by_pickle(what):
    return pickle.loads(pickle.dumps(what))


def same(layer, other):
    x = torch.randn(5, layer.in_features)
    assert torch.equal(layer(x), other(x))
    np.testing.assert_array_equal(layer.indices.numpy(), other.indices.numpy())
    layer.rewire(0.5)
    assert not torch.equal(layer(x), other(x))  # each has its own


@KINDS
@INPUTS
@pytest.mark.parametrize(
    "carry",
    [copy.deepcopy, by_pickle, by_joblib, lambda layer: by_torch(layer, weights_only=False)],
)
def test_a_layer_is_carried(kind, inputs, carry):
    layer = kind(inputs, 30, 5)
    same(layer, carry(layer))


@KINDS
@INPUTS
@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("carry", [by_pickle, by_joblib, by_torch, "safetensors"])
def test_a_state_dict_is_carried(kind, inputs, assign, carry, tmp_path):
    layer, other = (kind(inputs, 30, 5) for _ in "ab")
    state = layer.state_dict()
    assert state["indices"].dtype == torch.uint8
    if carry == "safetensors":
        save_file(state, tmp_path / "layer")
        state = load_file(tmp_path / "layer")
    else:
        state = carry(dict(state))
    other.load_state_dict(state, assign=assign)
    assert other.indices.dtype == (torch.uint32 if inputs == 70_000 else torch.uint16)
    same(layer, other)


@KINDS
@INPUTS
@pytest.mark.parametrize("dtype", ["own", torch.uint32, torch.int32, torch.int64])
def test_state_dicts_of_ordinary_indices_are_loaded(kind, inputs, dtype):
    """As fanin wrote them before, and its weights files have them."""
    layer, other = (kind(inputs, 30, 5) for _ in "ab")
    ordinary = layer.indices.clone()
    if dtype != "own":
        ordinary = torch.from_numpy(ordinary.numpy().astype(np.int64)).to(dtype)
    other.load_state_dict({**layer.state_dict(), "indices": ordinary})
    same(layer, other)


@KINDS
@INPUTS
def test_pickles_of_signed_indices_are_loaded(kind, inputs):
    """As fanin wrote them before."""
    layer = kind(inputs, 30, 5)
    state = layer.__getstate__()
    signed = torch.int32 if inputs == 70_000 else torch.int16
    buffers = {**state["_buffers"], "indices": layer.indices.view(signed).clone()}
    del buffers["stamp"]
    other = kind.__new__(kind)
    other.__setstate__({**state, "_buffers": buffers})
    np.testing.assert_array_equal(other.indices.numpy(), layer.indices.numpy())
    other.rewire(0.5)
    assert "stamp" not in other.state_dict() and "stamp" in dict(other.named_buffers())


@KINDS
def test_indices_move_between_the_two_types(kind):
    """A layer of few inputs is read by one of many, and back, where the numbers allow it."""
    narrow, wide = kind(300, 30, 5), kind(70_000, 30, 5)
    wide.load_state_dict(narrow.state_dict())
    np.testing.assert_array_equal(wide.indices.numpy(), narrow.indices.numpy())
    other = kind(300, 30, 5)
    other.load_state_dict(wide.state_dict())
    np.testing.assert_array_equal(other.indices.numpy(), narrow.indices.numpy())


@KINDS
@pytest.mark.parametrize(
    ("given", "message"),
    [
        (torch.zeros(30, 6, dtype=torch.uint16), r"indices must be \[30, 5\], got \[30, 6\]"),
        (torch.zeros(29, 10, dtype=torch.uint8), r"indices must be \[30, 5\], got \[29, 5\]"),
        (torch.zeros((), dtype=torch.int64), r"indices must be \[30, 5\], got \[\]"),
        (torch.full((30, 5), -1, dtype=torch.int16), r"indices\[0, 0\] is -1, out of range for"),
        (torch.full((30, 10), 255, dtype=torch.uint8), r"indices\[0, 0\] is 65535, out of range"),
        (torch.full((30, 5), 1.0), "indices must be integers, got float32"),
    ],
)
def test_indices_that_are_none(kind, given, message):
    layer = kind(300, 30, 5)
    before = layer.indices.clone()
    with pytest.raises(RuntimeError, match=message):
        layer.load_state_dict({**layer.state_dict(), "indices": given})
    if given.shape != (30, 10):  # which tools set as the buffer that it is
        with pytest.raises(ValueError, match=message):
            layer.indices = given
    assert torch.equal(layer.indices, before)


@KINDS
@INPUTS
def test_what_one_reads_is_the_layer(kind, inputs):
    layer, x = kind(inputs, 30, 5), torch.randn(2, inputs)
    assert int(layer.indices.long().max()) < inputs
    layer.indices.copy_(torch.zeros(30, 5).to(layer.indices.dtype))
    torch.testing.assert_close(layer(x)[:, 0], layer.weights[0].float().sum() * x[:, 0])
    layer.indices = torch.ones(30, 5, dtype=torch.uint8)
    torch.testing.assert_close(layer(x)[:, 0], layer.weights[0].float().sum() * x[:, 1])
    layer.indices = torch.full((30, 5), inputs - 1)
    assert layer.indices.dtype == (torch.uint32 if inputs == 70_000 else torch.uint16)
    torch.testing.assert_close(layer(x)[:, 0], layer.weights[0].float().sum() * x[:, -1])


@KINDS
def test_a_layer_without_memory_gets_some(kind):
    layer = kind(60_000, 30, 5)
    empty = kind(60_000, 30, 5, device="meta")
    assert empty.indices.is_meta
    assert index_buffer.is_stamp(empty.to_empty(device="cpu").stamp)
    empty.load_state_dict(layer.state_dict(), strict=kind is FusedFanIn)
    same(layer, empty)
    other = kind(60_000, 30, 5, device="meta")
    other.load_state_dict(layer.state_dict(), assign=True)
    assert torch.equal(other.indices, layer.indices)


def test_torch_s_default_device_is_that_of_all_buffers():
    with torch.device("meta"):
        layer = FixedFanInLinear(300, 30, 5)
        assert all(buffer.is_meta for buffer in layer.buffers())


def test_functional_calls_take_the_buffers():
    layer, other, x = *(FixedFanInLinear(300, 30, 5) for _ in "ab"), torch.randn(2, 300)
    state = {**dict(other.named_parameters()), **dict(other.named_buffers())}
    assert torch.equal(torch.func.functional_call(layer, state, (x,)), other(x))
    assert torch.equal(torch.func.functional_call(layer, other.state_dict(), (x,)), other(x))


def test_is_exported():
    layer, x = FixedFanInLinear(300, 30, 5), torch.randn(2, 300)
    for strict in (True, False):
        exported = torch.export.export(layer, (x,), strict=strict)
        assert torch.equal(exported.module()(x), layer(x))


AVERAGES = {
    "exponential": {"multi_avg_fn": get_ema_multi_avg_fn(0.9)},
    "exponential by hand": {"avg_fn": lambda average, now, _: 0.9 * average + 0.1 * now},
    "plain": {},
    "plain by hand": {"avg_fn": lambda average, now, n: average + (now - average) / (n + 1)},
}


@KINDS
@INPUTS
@pytest.mark.parametrize("average", AVERAGES)
@pytest.mark.parametrize("use_buffers", [True, False])
def test_an_average_has_the_connections_of_the_layer(kind, inputs, average, use_buffers):
    model = torch.nn.Sequential(kind(inputs, 30, 5), torch.nn.Linear(30, 2)).double().float()
    averaged = AveragedModel(model, use_buffers=use_buffers, **AVERAGES[average])
    for step in range(5):
        averaged.update_parameters(model)
        np.testing.assert_array_equal(
            averaged.module[0].indices.numpy(), model[0].indices.numpy(), str(step)
        )
        assert model[0].rewire(0.3) > 0
    averaged.update_parameters(model)
    saved = averaged.state_dict()["module.0.indices"]
    assert torch.equal(saved, model.state_dict()["0.indices"])
    copied = by_pickle(averaged.module)
    np.testing.assert_array_equal(copied[0].indices.numpy(), model[0].indices.numpy())


@KINDS
def test_an_average_has_the_dictionary_of_the_layer(kind):
    """The mean of two is none of either."""
    rng = np.random.default_rng(0)
    layer, x = kind(20, 30, 5, recipe="best"), torch.randn(3, 20)
    averaged = AveragedModel(torch.nn.Sequential(layer, torch.nn.Linear(30, 2)), use_buffers=True)
    averaged.update_parameters(torch.nn.Sequential(layer, torch.nn.Linear(30, 2)))
    features = rng.standard_normal((40, 20)).astype(np.float32)
    layer.start_from(features, sp.random_array((40, 30), density=0.2, format="csr", rng=rng))
    averaged.update_parameters(torch.nn.Sequential(layer, torch.nn.Linear(30, 2)))
    mean, expected = averaged.module[0], kind(20, 30, 5, recipe="best")
    expected.load_state_dict(layer.state_dict())
    expected.weights.data.copy_(mean.weights)
    expected.bias.data.copy_(mean.bias)
    assert torch.equal(mean(x), expected(x))
    for name in ("indices", "feature_scale", "feature_dictionary"):
        assert torch.equal(getattr(averaged.module[0], name), getattr(layer, name)), name


def test_an_average_that_is_compiled_has_them():
    """Compiled code does not look, but `eval` does."""
    model, x = torch.nn.Sequential(FixedFanInLinear(300, 30, 5)), torch.randn(2, 300)
    averaged = AveragedModel(model, use_buffers=True, **AVERAGES["exponential"])
    compiled = torch.compile(averaged, backend="aot_eager", fullgraph=True)
    for _ in range(3):
        model[0].rewire(0.5)
        averaged.update_parameters(model)
        averaged.eval()
        scores = compiled(x)
        expected = copy.deepcopy(averaged.module[0])
        expected.set_connections(model[0].indices)
        assert torch.equal(scores, expected(x))


def test_an_average_whose_layer_is_gone_is_refused():
    layer = FixedFanInLinear(300, 30, 5)
    averaged = AveragedModel(layer, use_buffers=True, **AVERAGES["exponential"])
    averaged.update_parameters(layer)
    layer.rewire(0.5)
    averaged.update_parameters(layer)
    sources = layer.indices.clone()
    del layer
    gc.collect()
    for ask in (
        lambda: averaged(torch.randn(2, 300)),
        averaged.state_dict,
        averaged.eval,
        lambda: averaged.module.indices,
    ):
        with pytest.raises(
            ValueError, match="indices of this layer were averaged, and the mean of"
        ):
            ask()
    averaged.module.set_connections(sources)
    assert torch.equal(averaged.module.indices, sources)


def test_a_layer_that_gets_averaged_buffers_is_refused():
    """As where a tool swaps the average with the model, to ask it."""
    layer = FixedFanInLinear(300, 30, 5)
    averaged = AveragedModel(layer, use_buffers=True, **AVERAGES["exponential"])
    for _ in range(2):
        layer.rewire(0.5)
        averaged.update_parameters(layer)
    for average, own in zip(averaged.module.buffers(), layer.buffers(), strict=True):
        kept = own.clone()
        own.copy_(average)
        average.copy_(kept)
    with pytest.raises(ValueError, match="the indices of this layer were averaged"):
        layer(torch.randn(2, 300))
    averaged(torch.randn(2, 300))  # which has those of the model


def test_layers_side_by_side_in_one_call():
    """As torch.func has it: a copy without memory takes the buffers of several layers."""
    layers = [FixedFanInLinear(60_000, 30, 5) for _ in range(3)]
    base = copy.deepcopy(layers[0]).to("meta")

    def sums(parameters, buffers):
        return torch.func.functional_call(Sums(base), (parameters, buffers), ())

    state = torch.func.stack_module_state([Sums(layer) for layer in layers])
    expected = [layer.indices.long().sum() for layer in layers]
    assert torch.vmap(sums)(*state).tolist() == [int(each) for each in expected]


class Sums(torch.nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self):
        return self.layer.indices.long().sum()


def test_in_inference_mode():
    layer, x = FixedFanInLinear(300, 30, 5), torch.randn(2, 300)
    with torch.inference_mode():
        assert torch.equal(copy.deepcopy(layer)(x), layer(x))
        FixedFanInLinear(300, 30, 5)(x)


def test_copies_that_are_not_averaged_keep_their_own():
    layer = FixedFanInLinear(300, 30, 5)
    one = copy.deepcopy(layer)
    two = copy.deepcopy(one)
    one.rewire(0.5)
    two.indices.copy_(torch.ones(30, 5, dtype=torch.uint16))
    two.load_state_dict(two.state_dict())
    layer.rewire(0.5)
    assert (two.indices.int() == 1).all()
    assert not torch.equal(one.indices, layer.indices)
