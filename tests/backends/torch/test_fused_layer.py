"""`FusedFanIn` in torch beside what the layers of both frameworks have."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from near import difference
from torch.autograd import forward_ad

from fanin.backends.optimizer import ADAM
from fanin.backends.torch import FixedFanInLinear, FusedFanIn, losses, ops, training_ops
from fanin.backends.torch.losses import LOSSES

pytestmark = pytest.mark.torch


def make(**options):
    return FusedFanIn(40, 300, 7, generator=torch.Generator().manual_seed(0), **options)


def positives(batch=20, count=60):
    rng = np.random.default_rng(1)
    pairs = np.unique(
        np.stack([rng.integers(0, batch, count), rng.integers(0, 300, count)]), axis=1
    )
    return torch.from_numpy(pairs[0].copy()), torch.from_numpy(pairs[1].copy())


def copy_of(layer):
    return [layer.weights.clone(), layer.bias.clone(), layer.indices.clone(), layer.steps.clone()]


def test_a_layer_without_memory_is_refused():
    """torch would take the shapes of the fakes for results."""
    instances, label_ids = positives()
    empty, x = FusedFanIn(40, 300, 7, device="meta"), torch.randn(20, 40)
    for ask in (
        lambda: empty.training_step(x, instances, label_ids),
        lambda: empty.top_k(x, 2),
        lambda: make().training_step(x, instances.to("meta"), label_ids),
        lambda: make().top_k(x.to("meta"), 2),
    ):
        with pytest.raises(ValueError, match=r"is on (meta|cpu) but .* is on (cpu|meta)"):
            ask()
    ids = empty.top_k(x.to("meta"), 2)[1]
    assert ids.is_meta and ids.shape == (20, 2)
    assert empty.training_step(x.to("meta"), instances.to("meta"), label_ids.to("meta")).is_meta


@pytest.mark.parametrize("loss", ["squared_hinge", "bce"])
def test_trains_itself_and_what_lies_below(loss):
    """Beside the ordinary layer and torch's Adam, with the same numbers."""
    fused_layer = make(loss=loss, learning_rate=1e-2)
    plain = FixedFanInLinear(40, 300, 7)
    plain.indices.copy_(fused_layer.indices)
    plain.weights.data.copy_(fused_layer.weights)
    intermediate = [torch.nn.Linear(12, 40) for _ in range(2)]
    intermediate[1].load_state_dict(intermediate[0].state_dict())
    optimizers = [
        torch.optim.SGD(intermediate[0].parameters(), 10.0),
        torch.optim.SGD(intermediate[1].parameters(), 10.0),
    ]
    adam = torch.optim.Adam(plain.parameters(), lr=1e-2)
    instances, label_ids = positives()
    for step in range(1, 30):
        x = torch.randn(20, 12, generator=torch.Generator().manual_seed(step))
        one = fused_layer.training_step(intermediate[0](x), instances, label_ids)
        other = LOSSES[loss](plain(intermediate[1](x)), instances, label_ids)
        assert one.item() == pytest.approx(other.item(), rel=1e-5)
        for optimizer in (*optimizers, adam):
            optimizer.zero_grad()
        one.backward()
        other.backward()
        adam.param_groups[0]["eps"] = 1e-7 / (1 - 0.999**step) ** 0.5
        for optimizer in (*optimizers, adam):
            optimizer.step()
    assert difference(fused_layer.weights.numpy(), plain.weights.detach().numpy()) < 1e-4
    assert difference(fused_layer.bias.numpy(), plain.bias.detach().numpy()) < 1e-4
    a, b = (m.weight.detach().numpy() for m in intermediate)
    assert difference(a, b) < 1e-4


@pytest.mark.parametrize(
    ("instances", "label_ids"), [([1, 2**32], [3, 2]), ([1, 20], [3, 2]), ([1, 0], [3, -1])]
)
def test_bad_positives_where_nothing_may_wait(instances, label_ids, monkeypatch):
    """As on a GPU: the kernel's loss is NaN for row -1, and torch's is made so."""
    in_range = losses._in_range

    def without_waiting(*positives, may_wait):
        return in_range(*positives, may_wait=False)

    monkeypatch.setattr(losses, "_in_range", without_waiting)
    given = (torch.tensor(instances), torch.tensor(label_ids))
    checked = losses.checked_positives(*given, 20, 300)
    assert [part.tolist() for part in checked] == [[1, -1], [3, 0]]
    layer, x = make(), torch.randn(20, 40)
    assert layer.evaluate_loss(x, *given).isnan()
    assert layer.evaluate_loss(x, *positives()).isfinite()


@pytest.mark.parametrize("method", ["training_step", "evaluate_loss"])
@pytest.mark.parametrize(
    ("instances", "label_ids", "message"),
    [
        ([0, 1, 2], [1.5, 2, 3], "positive_labels must be integers, got torch.float32"),
        ([0.0, 1, 2], [1, 2, 3], "positive_instances must be integers, got torch.float32"),
        ([True, False], [1, 2], "positive_instances must be integers, got torch.bool"),
        ([0, 1, 2], [1, 2], r"vectors of one length, got \[3\] and \[2\]"),
        ([[0, 1]], [[1, 2]], r"vectors of one length, got \[1, 2\] and \[1, 2\]"),
    ],
)
def test_tensors_that_name_no_positives(method, instances, label_ids, message):
    layer = make()
    before = copy_of(layer)
    given = (torch.tensor(instances), torch.tensor(label_ids))
    with pytest.raises(ValueError, match=message):
        getattr(layer, method)(torch.randn(20, 40), *given)
    assert all(torch.equal(a, b) for a, b in zip(before, copy_of(layer), strict=True))


def test_empty_tensors_name_no_positives():
    """Of torch's usual type, which is no integer."""
    loss = make().training_step(torch.randn(20, 40), torch.tensor([]), torch.tensor([]))
    assert loss.item() == pytest.approx(1, rel=0.1)  # each score is near 0, and a negative's


def test_trains_without_gradients_too():
    layer, x = make(), torch.randn(20, 40, requires_grad=True)
    before = copy_of(layer)
    with torch.no_grad():
        quiet = layer.evaluate_loss(x, *positives())
        layer(x)
        assert all(torch.equal(a, b) for a, b in zip(before, copy_of(layer), strict=True))
        loss = layer.training_step(x, *positives())
    assert not loss.requires_grad
    assert loss.item() == pytest.approx(quiet.item(), rel=1e-5)
    assert int(layer.steps) == 1 and not torch.equal(before[0], layer.weights)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("method", ["training_step", "evaluate_loss"])
def test_a_pair_that_stands_twice_counts_once_in_the_gradient(loss, method):
    x = torch.randn(20, 40, requires_grad=True)
    seen = []
    for given in (positives(), [torch.cat([each, each]) for each in positives()]):
        value = getattr(make(loss=loss), method)(x, *given)
        seen.append((value.item(), torch.autograd.grad(value, x)[0]))
    assert seen[0][0] == pytest.approx(seen[1][0], rel=1e-6)
    torch.testing.assert_close(seen[0][1], seen[1][1])


def test_positives_may_be_tensors():
    """As well as arrays or lists: the same step."""
    instances, label_ids = positives()
    seen = []
    for kind in (lambda t: t, torch.Tensor.numpy, torch.Tensor.tolist):
        step = make().training_step
        given = (torch.ones(20, 40), kind(instances), kind(label_ids))
        seen.append([step(*given).item() for _ in range(2)])
    assert seen[0] == seen[1] == seen[2]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["training_step", "evaluate_loss"])
def test_compiled_whole(method):
    """Other batch sizes, learning rates and steps compile nothing anew."""
    ours, plain = make(), make()
    intermediate = torch.nn.Linear(12, 40)

    def model(layer, x, instances, label_ids):
        return getattr(layer, method)(torch.relu(intermediate(x)), instances, label_ids)

    compiled = torch.compile(model, fullgraph=True, dynamic=True)
    seen = []
    for step in range(12):
        size = 20 - step
        ours.learning_rate = plain.learning_rate = 1e-2 / (1 + step)
        x, (instances, label_ids) = torch.randn(size, 12), positives(size, 60 + step)
        losses, grads = [], []
        for run, layer in ((compiled, ours), (model, plain)):
            intermediate.zero_grad()
            loss = run(layer, x, instances, label_ids)
            loss.backward()
            losses.append(loss.item())
            grads.append(intermediate.weight.grad.clone())
        assert losses[0] == pytest.approx(losses[1], rel=1e-5)
        torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-7)
        seen.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert seen[0] == seen[-1]
    assert int(ours.steps) == (12 if method == "training_step" else 0)
    torch.testing.assert_close(ours.weights, plain.weights, rtol=1e-4, atol=1e-6)
    with pytest.raises(ValueError, match=r"positive_labels\[0\] is 300, out of range"):
        compiled(ours, x, torch.tensor([1, 2]), torch.tensor([300, 1]))


@pytest.mark.parametrize("method", ["training_step", "evaluate_loss"])
def test_under_autocast(method):
    """The features are bfloat16 then; the layer computes in float32."""
    intermediate, layer = torch.nn.Linear(6, 40), make()
    x = torch.randn(20, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features = intermediate(x)
        loss = getattr(layer, method)(features, *positives())
        scores, ids = layer.top_k(features, 3)
    assert features.dtype == torch.bfloat16
    assert loss.dtype == scores.dtype == torch.float32 and ids.shape == (20, 3)
    loss.backward()
    assert intermediate.weight.grad.abs().sum() > 0
    assert int(layer.steps) == (method == "training_step")


def test_keeps_its_types():
    """`model.half()` and the like are for what an optimizer trains."""
    layer = make(weights_dtype=torch.bfloat16)
    before = {name: (b.dtype, b.clone()) for name, b in layer.named_buffers()}
    for change in (layer.half, layer.double, lambda: layer.to(torch.bfloat16)):
        assert change() is layer
    for name, buffer in layer.named_buffers():
        assert buffer.dtype == before[name][0]
        assert torch.equal(buffer, before[name][1])
    layer.training_step(torch.randn(20, 40), *positives())


@pytest.mark.parametrize("method", ["training_step", "evaluate_loss"])
def test_has_no_second_derivative(method):
    """Which would be wrong: what the gradient owes to the features is gone."""
    x = torch.randn(20, 40, requires_grad=True)
    loss = getattr(make(), method)(x, *positives())
    (grad,) = torch.autograd.grad(loss * x.sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


@pytest.mark.parametrize("method", ["training_step", "evaluate_loss"])
def test_derivatives_that_a_loss_does_not_have(method):
    """torch would take them for 0. A step that is refused is not made."""
    layer, x = make(), torch.randn(20, 40)

    def loss(x):
        return getattr(layer, method)(x, *positives())

    for ask in (
        lambda: torch.func.jvp(loss, (x,), (x,)),
        lambda: torch.func.grad(loss)(x),
        lambda: torch.func.vmap(loss)(x[None]),
    ):
        with pytest.raises(NotImplementedError, match="a loss of FusedFanIn has one derivative"):
            ask()
    with forward_ad.dual_level(), pytest.raises(NotImplementedError, match="has one derivative"):
        loss(forward_ad.make_dual(x, x))
    assert int(layer.steps) == 0


def test_a_loss_may_be_changed_in_place():
    x = torch.randn(20, 40, requires_grad=True)
    for method in ("training_step", "evaluate_loss"):
        loss = getattr(make(), method)(x, *positives())
        before = loss.item()
        loss += 1
        loss *= 2
        assert loss.item() == pytest.approx(2 * before + 2)
        assert torch.autograd.grad(loss, x)[0].abs().sum() > 0
        with torch.no_grad():
            assert not getattr(make(), method)(x, *positives())._is_view()


def test_values_that_make_no_layer():
    for sizes, options, message in (
        ((40.0, 300, 7), {}, "in_features must be a whole number, got 40.0"),
        ((2**31, 300, 7), {}, r"in_features must be in 1\.\.2147483647, got 2147483648"),
        ((40, 300, 7), {"rounding_seed": 2**63}, "rounding_seed must be in 0"),
        ((40, 300, 7), {"weights_dtype": torch.float16}, "weights_dtype must be torch.float32 or"),
    ):
        with pytest.raises(ValueError, match=message):
            FusedFanIn(*sizes, **options)


@pytest.mark.parametrize("kind", [FusedFanIn, FixedFanInLinear])
@pytest.mark.parametrize("inputs", [300, 70_000])
def test_is_pickled(kind, inputs):
    """Which torch does not do for unsigned integers."""
    layer = kind(inputs, 90, 7)
    for other in (pickle.loads(pickle.dumps(layer)), copy.deepcopy(layer)):
        assert other.indices.dtype == layer.indices.dtype
        assert other.indices.data_ptr() != layer.indices.data_ptr()
        for name, array in layer.state_dict().items():
            assert torch.equal(other.state_dict()[name].double(), array.double()), name


@pytest.mark.parametrize("kind", [FusedFanIn, FixedFanInLinear])
def test_indices_of_a_wider_layer_are_not_loaded(kind):
    """torch would make uint16 of them, and others."""
    wide, layer = kind(70_000, 90, 7), kind(300, 90, 7)
    model = torch.nn.Sequential(layer)
    before = {name: array.clone() for name, array in layer.state_dict().items()}
    state = {f"0.{name}": array for name, array in wide.state_dict().items()}
    message = r"0\.indices\[\d+, \d+\] is \d+, out of range for 300 inputs"
    with pytest.raises(RuntimeError, match=message):
        model.load_state_dict(state)
    state["0.indices"] = torch.full((90, 7), 1.5)
    with pytest.raises(RuntimeError, match=r"0\.indices must be integers, got float32"):
        model.load_state_dict(state)
    for name, array in layer.state_dict().items():
        assert torch.equal(array.double(), before[name].double())
    model.load_state_dict({f"0.{name}": array for name, array in before.items()})


def test_a_copy_has_its_own_learning_rate():
    layer = make(learning_rate=0.0)
    other = copy.deepcopy(layer)
    layer.learning_rate = 0.1
    assert (layer.learning_rate, other.learning_rate) == (0.1, 0.0)


@pytest.mark.slow
def test_ops_pass_opcheck():
    layer, (instances, label_ids) = make(), positives()
    torch.library.opcheck(losses.checked_positives, (instances, label_ids, 20, 300))
    torch.library.opcheck(losses.checked_positives, (instances.int(), label_ids.int(), 20, 300))
    torch.library.opcheck(losses.checked_positives, (instances[::2], label_ids[::2], 20, 300))
    state = (layer.weights, layer.weights_m, layer.weights_v)
    state += (layer.bias, layer.bias_m, layer.bias_v)
    x = torch.randn(20, 40)
    rest = (instances.int(), label_ids, "bce", ADAM.numbers, 1e-3, 1, 0)
    for want_grad in (True, False):
        arguments = (x, layer.indices, None, None, *state, *rest, want_grad)
        torch.library.opcheck(training_ops.fused_step, arguments)
        arguments = (x, layer.indices, *state, layer.steps, torch.tensor(1e-3, dtype=float))
        arguments += (instances.int(), label_ids, "bce", ADAM.numbers, 0, want_grad)
        torch.library.opcheck(training_ops.counted_step, arguments)
    arguments = (x, layer.indices, None, None, layer.weights, layer.bias, 3)
    torch.library.opcheck(ops.top_k, arguments)
    dense = [torch.randn(9, 40), torch.zeros(9, 40), torch.zeros(9, 40)]
    bias = [torch.zeros(9) for _ in range(3)]
    torch.library.opcheck(training_ops.dense_relu, (x, dense[0], bias[0]))
    grad, outputs = torch.randn(20, 9), torch.rand(20, 9)
    arguments = (grad, outputs, x, *dense, *bias, ADAM.numbers, 1e-3, 1, 0, True)
    torch.library.opcheck(training_ops.dense_relu_update, arguments)


@pytest.mark.parametrize(
    "method, message",
    [
        ("training_step", "features must be float32"),
        ("evaluate_loss", "weights is float32 but features is float64"),
    ],
)
def test_features_of_another_type_are_named(method, message):
    layer = make()
    before = copy_of(layer)
    with pytest.raises(ValueError, match=message):
        getattr(layer, method)(torch.randn(20, 40, dtype=torch.float64), *positives())
    assert all(torch.equal(a, b) for a, b in zip(before, copy_of(layer), strict=True))
