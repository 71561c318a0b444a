"""The layers in torch do what nn.Linear does, or say why not."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

from fanin.backends.torch import FixedFanInLinear, FusedFanIn

pytestmark = pytest.mark.torch

EACH_LAYER = [
    pytest.param(lambda **o: FixedFanInLinear(20, 10, 4, **o), id="fixed"),
    pytest.param(lambda **o: FixedFanInLinear(20, 10, 4, recipe="best", **o), id="fixed best"),
    pytest.param(lambda **o: FusedFanIn(20, 10, 4, **o), id="fused"),
    pytest.param(lambda **o: FusedFanIn(20, 10, 4, recipe="best", **o), id="fused best"),
]
each_layer = pytest.mark.parametrize("make", EACH_LAYER)


@pytest.fixture
def default():
    """Sets one of torch's defaults, until the test ends."""

    def set_default(dtype=torch.float32, device=None):
        torch.set_default_dtype(dtype)
        torch.set_default_device(device)

    yield set_default
    set_default()


@each_layer
@pytest.mark.parametrize("layout", ["coo", "csr", "csc", "bsr", "twice"])
def test_sparse_features(make, layout):
    layer, x = make(), torch.randn(4, 20).relu()
    sparse = {
        "coo": x.to_sparse,
        "csr": x.to_sparse_csr,
        "csc": x.to_sparse_csc,
        "bsr": lambda: x.to_sparse_bsr((2, 2)),
        # Entries that stand twice are added up.
        "twice": lambda: torch.sparse_coo_tensor(
            x.nonzero().t().repeat(1, 2), x[x != 0].repeat(2) / 2, x.shape
        ),
    }[layout]()
    torch.testing.assert_close(layer(sparse), layer(x))
    if isinstance(layer, FusedFanIn):
        dense = layer.evaluate_loss(x, [0, 1], [2, 3])
        assert layer.evaluate_loss(sparse, [0, 1], [2, 3]) == dense
        assert layer.training_step(sparse, [0, 1], [2, 3]).item() == pytest.approx(dense.item())
        assert layer.top_k(sparse, 2)[0].shape == (4, 2)


@each_layer
@pytest.mark.parametrize(
    ("features", "message"),
    [
        (np.ones((4, 20), np.float32), "features must be a torch.Tensor, got ndarray"),
        ([[1.0] * 20], "features must be a torch.Tensor, got list"),
        (torch.ones(4, 20, dtype=torch.int64), "features must be float32 or float64, got int64"),
        (torch.ones(4, 20, dtype=torch.bool), "features must be float32 or float64, got bool"),
        (torch.ones(4, 20, dtype=torch.complex64), "features must be float32 or float64, got an"),
        (torch.ones(4, 21), "features must be [..., 20], got [4, 21]"),
    ],
)
def test_what_is_no_features_is_named(make, features, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make()(features)


@each_layer
def test_nested_tensors_are_named(make):
    for layout in (torch.strided, torch.jagged):
        nested = torch.nested.nested_tensor([torch.ones(2, 20), torch.ones(3, 20)], layout=layout)
        with pytest.raises(ValueError, match="features must not be a nested tensor"):
            make()(nested)


@each_layer
@pytest.mark.parametrize("shape", [(20,), (0, 20), (2, 0, 20), (2, 3, 20), (2, 1, 3, 1, 2, 20)])
def test_features_of_any_rank(make, shape):
    layer, x = make(), torch.randn(shape)
    scores = layer(x)
    assert scores.shape == (*shape[:-1], 10)
    torch.testing.assert_close(scores.reshape(-1, 10), layer(x.reshape(-1, 20)))


@each_layer
def test_strided_features(make):
    layer, x = make(), torch.randn(20, 4)
    torch.testing.assert_close(layer(x.t()), layer(x.t().contiguous()))
    torch.testing.assert_close(layer(x[:, :1].t().expand(3, 20)), layer(x[:, :1].t().repeat(3, 1)))


@each_layer
def test_strided_weights(make):
    layer, x = make(), torch.randn(4, 20)
    state = layer.state_dict()
    strided = {**state, "weights": state["weights"].t().contiguous().t()}
    torch.testing.assert_close(torch.func.functional_call(layer, strided, (x,)), layer(x))


@each_layer
def test_scores_may_be_changed_in_place(make):
    """They are no view, and share nothing with the features or the layer."""
    layer = make()
    for batch in (4, 0):
        x = torch.randn(batch, 20, requires_grad=True)
        before = {name: array.clone() for name, array in layer.state_dict().items()}
        scores, given = layer(x), x.detach().clone()
        assert not scores._is_view()
        scores.mul_(2).relu_()
        scores.sum().backward()
        assert torch.equal(x, given)
        for name, array in layer.state_dict().items():
            assert torch.equal(array.double(), before[name].double())
    layer(torch.randn(2, 3, 20, requires_grad=True)).add_(1).sum().backward()


@each_layer
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_layers_of_half_the_bytes(make, dtype):
    """They compute in float32, from numbers that were rounded."""
    layer, x = make(), torch.randn(4, 20).to(dtype).requires_grad_()
    scores = layer.to(dtype)(x)
    own = layer.weights.dtype
    assert scores.dtype == own == (dtype if isinstance(layer, FixedFanInLinear) else torch.float32)
    expected = layer.float()(x.detach().float())
    torch.testing.assert_close(scores, expected.to(own))
    scores.float().square().sum().backward()
    assert x.grad.dtype == dtype and x.grad.abs().sum() > 0
    # A float32 layer takes such features as well, with autocast and without.
    for enabled in (True, False):
        with torch.autocast("cpu", dtype, enabled=enabled):
            assert torch.equal(layer(x), expected)


def test_layers_of_half_the_bytes_are_trained():
    layer = FixedFanInLinear(20, 10, 4, dtype=torch.bfloat16)
    layer(torch.randn(4, 20)).square().sum().backward()
    assert layer.weights.grad.dtype == layer.bias.grad.dtype == torch.bfloat16
    assert layer.weights.grad.abs().sum() > 0


@pytest.mark.parametrize("recipe", ["paper", "best"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_default_types(default, recipe, dtype):
    """`FixedFanInLinear` takes torch's default type, as nn.Linear; `FusedFanIn` has its own."""
    default(dtype)
    layer, fused = (kind(20, 10, 4, recipe=recipe) for kind in (FixedFanInLinear, FusedFanIn))
    x = torch.randn(4, 20)
    assert layer(x).dtype == layer.bias.dtype == dtype
    types = {
        name: array.dtype for name, array in fused.named_buffers() if array.is_floating_point()
    }
    assert types.pop("rate") == torch.float64
    assert set(types.values()) == {torch.float32}
    assert fused.training_step(x.float(), [0, 1], [2, 3]).dtype == torch.float32
    assert fused(x.float()).dtype == fused.evaluate_loss(x.float(), [0], [2]).dtype == torch.float32


@each_layer
def test_default_device(default, make):
    """A layer is where it was told to be, and works there."""
    default(device="meta")
    assert all(
        p.is_meta for name, p in make().state_dict().items() if name not in ("steps", "rate")
    )
    layer = make(device="cpu", generator=torch.Generator("cpu").manual_seed(0))
    assert not any(array.is_meta for array in layer.state_dict().values())
    x = torch.ones(4, 20, device="cpu")
    assert layer(x).shape == (4, 10)
    if isinstance(layer, FusedFanIn):
        for given in (([0, 1], [2, 3]), (np.array([0, 1]), np.array([2, 3]))):
            assert layer.evaluate_loss(x, *given).isfinite()
            assert layer.training_step(x, *given).isfinite()
        layer.rewire(0.1)
    else:
        layer.rewire(0.1, torch.optim.Adam(layer.parameters()))
    layer.set_connections(np.zeros((10, 4), int))


@pytest.mark.parametrize("recipe", ["paper", "best"])
@pytest.mark.parametrize("kind", [FixedFanInLinear, FusedFanIn])
def test_made_without_memory_and_filled_later(kind, recipe):
    options = {"recipe": recipe, "device": "meta"}
    for layer in (
        kind(20, 10, 4, **options).to_empty(device="cpu"),
        torch.nn.utils.skip_init(kind, 20, 10, 4, recipe=recipe),
    ):
        layer.reset_parameters(torch.Generator().manual_seed(0))
        expected = kind(20, 10, 4, recipe=recipe, generator=torch.Generator().manual_seed(0))
        assert layer.state_dict().keys() == expected.state_dict().keys()
        for name, array in expected.state_dict().items():
            assert torch.equal(layer.state_dict()[name].double(), array.double()), name


def test_a_fused_layer_begins_anew():
    layer, x = FusedFanIn(20, 10, 4, learning_rate=0.5), torch.randn(4, 20)
    layer.training_step(x, [0, 1], [2, 3])
    layer.reset_parameters()
    for name in ("weights_m", "weights_v", "bias", "bias_m", "bias_v", "steps"):
        assert not getattr(layer, name).any(), name
    assert layer.learning_rate == 0.5


@pytest.mark.parametrize("recipe", ["paper", "best"])
def test_frozen(recipe):
    layer = FixedFanInLinear(20, 10, 4, recipe=recipe).requires_grad_(False)
    assert not layer(torch.randn(4, 20)).requires_grad
    x = torch.randn(4, 20, requires_grad=True)
    layer(x).sum().backward()
    assert x.grad.abs().sum() > 0 and layer.weights.grad is None


@pytest.mark.parametrize("kind", [FixedFanInLinear, FusedFanIn])
def test_exported(kind):
    layer, x = kind(20, 10, 4), torch.randn(4, 20)
    exported = torch.export.export(layer, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    for batch in (4, 7):
        x = torch.randn(batch, 20)
        assert torch.equal(exported.module()(x), layer(x))


@pytest.mark.parametrize("recipe", ["paper", "best"])
def test_made_in_inference_mode(recipe):
    with torch.inference_mode():
        layer, x = FixedFanInLinear(20, 10, 4, recipe=recipe), torch.randn(4, 20)
        expected = layer(x)
    with torch.no_grad():
        assert torch.equal(layer(x), expected)
