"""The torch side: op, layer and trainer, against the float64 reference."""

from __future__ import annotations

import copy
import io
import re
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fanin.backends.arrays import copied, initial_arrays, plan_rewiring
from fanin.backends.registry import make_trainer
from fanin.backends.setup import Dense, FixedFanIn, LayerSetup, Unstructured
from fanin.backends.torch import FixedFanInLinear, fan_in_linear, ops
from fanin.backends.torch.losses import LOSSES
from fanin.datasets import Batch

OP = torch.ops.fanin.fan_in_linear.default
BACKWARD = torch.ops.fanin.fan_in_linear_backward.default


def layer(batch=5, inputs=40, labels=70, fan_in=7, dtype=torch.float32, index=torch.uint16):
    generator = torch.Generator().manual_seed(0)
    return (
        torch.randn(batch, inputs, generator=generator, dtype=dtype),
        torch.randint(inputs, (labels, fan_in), generator=generator).to(index),
        torch.randn(labels, fan_in, generator=generator, dtype=dtype),
        torch.randn(labels, generator=generator, dtype=dtype),
    )


@settings(max_examples=40, deadline=None)
@given(
    batch=st.integers(0, 70),
    inputs=st.integers(1, 90),
    labels=st.integers(1, 90),
    data=st.data(),
)
def test_op_and_gradients_against_the_reference(batch, inputs, labels, data):
    fan_in = data.draw(st.integers(1, inputs))
    index = data.draw(st.sampled_from([torch.uint16, torch.uint32]))
    x, indices, weights, bias = layer(batch, inputs, labels, fan_in, index=index)
    for tensor in (x, weights, bias):
        tensor.requires_grad_()
    scores = fan_in_linear(x, indices, weights, bias)
    grad = torch.randn(scores.shape)
    scores.backward(grad)
    arrays = [t.detach().numpy() for t in (x, indices, weights)]
    expected = reference.scores(*arrays, bias.detach().numpy())
    assert np.abs(scores.detach().numpy() - expected).max(initial=0) < 1e-4
    for tensor, right in zip(
        (x, weights, bias), reference.gradients(grad.numpy(), *arrays), strict=True
    ):
        assert np.abs(tensor.grad.numpy() - right).max(initial=0) < 3e-4


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
    (lambda x, i, w, b: (x, i.long(), w, b), "indices must be uint16 or uint32, got int64"),
    (lambda x, i, w, b: (x.half(), i, w, b), "features must be float32 or float64, got float16"),
    (lambda x, i, w, b: (x.bfloat16(), i, w, b), "got bfloat16"),
    (lambda x, i, w, b: (x.to("meta"), i, w, b), "indices is on cpu but features is on meta"),
    (lambda x, i, w, b: (x, i.to("meta"), w, b), "indices is on meta but features is on cpu"),
    (lambda x, i, w, b: (x.t().contiguous().t(), i, w, b), "features .* is not contiguous"),
    (lambda x, i, w, b: (x, i, w[:, :3], b), "fan_in is 3 here but 7 in indices"),
    (lambda x, i, w, b: (x, i, w[:9], b), "labels is 9 here but 70 in indices"),
    (lambda x, i, w, b: (x, i, w.double(), b), "weights is float64 but features is float32"),
    (lambda x, i, w, b: (x[:, :6].contiguous(), i, w, b), "fan_in 7 is larger than the 6 inputs"),
    (lambda x, i, w, b: (x * torch.nan, i, w, b), r"features\[0, 0\] is NaN"),
    (lambda x, i, w, b: (x, torch.full((70, 7), 40).to(torch.uint16), w, b), "out of range for 40"),
    (lambda x, i, w, b: (x[0], i, w, b), r"features must be \[batch, inputs\]"),
])  # fmt: skip
def test_bad_arguments_are_named(change, message):
    arguments = layer()
    with pytest.raises(ValueError, match=message):
        fan_in_linear(*change(*arguments))
    assert fan_in_linear(*arguments).shape == (5, 70)


class TestLayer:
    def test_needs_fewer_connections_than_inputs(self):
        with pytest.raises(ValueError, match="fan_in 9 is larger than the 8 inputs"):
            FixedFanInLinear(8, 5, 9)
        with pytest.raises(ValueError, match="must be at least 1"):
            FixedFanInLinear(8, 0, 2)

    def test_index_type_follows_the_inputs(self):
        assert FixedFanInLinear(65_536, 3, 2).indices.dtype == torch.uint16
        assert FixedFanInLinear(65_537, 3, 2).indices.dtype == torch.uint32

    def test_initial_weights_are_near_zero_as_published(self):
        module = FixedFanInLinear(512, 2000, 32)
        limit = (3 / (2000 * 32)) ** 0.5
        assert 0.95 * limit < module.weights.abs().max() <= limit
        assert not module.bias.any()
        assert len(np.unique(module.indices.numpy())) == 512

    def test_state_dict_round_trip_and_copies(self):
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

    def test_generator_makes_it_repeatable(self):
        one, two = (
            FixedFanInLinear(40, 70, 7, generator=torch.Generator().manual_seed(5)) for _ in "ab"
        )
        assert torch.equal(one.indices, two.indices)
        assert torch.equal(one.weights, two.weights)

    def test_leading_dimensions_and_strided_inputs(self):
        module = FixedFanInLinear(40, 70, 7)
        x = torch.randn(40, 2, 3).permute(1, 2, 0)
        assert torch.equal(module(x), module(x.reshape(6, 40)).reshape(2, 3, 70))
        assert module(torch.randn(0, 40)).shape == (0, 70)

    def test_autocast_computes_in_float32(self):
        module = FixedFanInLinear(40, 70, 7)
        x = torch.randn(5, 40).bfloat16()
        with torch.autocast("cpu", torch.bfloat16):
            scores = module(x)
        assert scores.dtype == torch.float32
        assert torch.equal(scores, module(x.float()))

    def test_double(self):
        module = FixedFanInLinear(40, 70, 7).double()
        assert module.indices.dtype == torch.uint16
        assert module(torch.randn(5, 40, dtype=torch.float64)).dtype == torch.float64

    def test_rewire_moves_the_smallest_and_resets_their_moments(self):
        module = FixedFanInLinear(500, 70, 10)
        optimizer = torch.optim.Adam(module.parameters())
        module(torch.randn(5, 500)).sum().backward()
        optimizer.step()
        weights, indices = module.weights.detach().clone(), module.indices.clone()
        moved = module.rewire(0.2, optimizer, np.random.default_rng(0))
        assert moved == 140
        assert torch.equal(module.weights, weights)
        small = weights.abs().flatten().argsort()[:140]
        flat = torch.zeros(700, dtype=torch.bool)
        flat[small] = True
        same = module.indices.int().flatten() == indices.int().flatten()
        assert same[~flat].all()
        assert same[flat].float().mean() < 0.1  # a random source may be the old one
        moment = optimizer.state[module.weights]["exp_avg_sq"].flatten()
        assert not moment[flat].any()
        assert moment[~flat].any()

    def test_rewire_takes_only_an_optimizer_that_trains_it(self):
        module = FixedFanInLinear(40, 70, 7)
        indices = module.indices.int()
        other = torch.optim.Adam(torch.nn.Linear(2, 2).parameters())
        with pytest.raises(ValueError, match="this Adam does not train the layer's weights"):
            module.rewire(0.2, other)
        assert torch.equal(module.indices.int(), indices)
        # One that has made no step has nothing to reset.
        assert module.rewire(0.2, torch.optim.Adam(module.parameters()), rng=3) == 98

    def test_rewire_of_any_type_and_by_an_optimizer_only(self):
        module = FixedFanInLinear(20, 70, 7, dtype=torch.bfloat16)
        assert 50 < module.rewire(0.2, rng=3) <= 98  # in bfloat16 some are equal
        with pytest.raises(ValueError, match=r"optimizer must be one of torch\.optim, got 'adam'"):
            module.rewire(0.2, "adam")

    def test_rewire_leaves_what_is_not_kept_for_each_weight(self):
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

    def test_rewire_by_generator_or_seed(self):
        modules = [
            FixedFanInLinear(40, 70, 7, generator=torch.Generator().manual_seed(5)) for _ in "ab"
        ]
        for module, rng in zip(modules, (3, np.random.default_rng(3)), strict=True):
            assert module.rewire(0.2, rng=rng) == 98
        assert torch.equal(*(module.indices.int() for module in modules))

    @pytest.mark.parametrize("shape", [(3, 41), (3, 39), (2, 3, 41), ()])
    def test_width_is_that_of_the_layer(self, shape):
        module = FixedFanInLinear(40, 70, 7)
        module.indices.copy_(torch.zeros(70, 7, dtype=torch.uint16))
        named = re.escape(f"features must be [..., 40], got {list(shape)}")
        with pytest.raises(ValueError, match=named):
            module(torch.randn(shape))

    def test_learns(self):
        torch.manual_seed(0)
        x = torch.randn(64, 30)
        target = torch.randint(20, (64,))
        model = torch.nn.Sequential(
            torch.nn.Linear(30, 100), torch.nn.ReLU(), FixedFanInLinear(100, 20, 16)
        )
        optimizer = torch.optim.Adam(model.parameters(), 1e-2)
        for _ in range(200):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(x), target).backward()
            optimizer.step()
        assert (model(x).argmax(1) == target).float().mean() > 0.95


@pytest.mark.parametrize("name", ["squared_hinge", "bce"])
def test_losses_against_the_reference(name):
    rng = np.random.default_rng(0)
    s = 2 * rng.standard_normal((6, 50))
    rows, labels = np.nonzero(rng.random((6, 50)) < 0.1)
    scores = torch.tensor(s, requires_grad=True)
    loss = LOSSES[name](scores, torch.tensor(rows), torch.tensor(labels))
    (3 * loss).backward()
    value, grad = reference.loss(name, s, rows, labels)
    assert abs(loss.item() - value) < 1e-12
    assert np.abs(scores.grad.numpy() - 3 * grad).max() < 1e-12


SETUPS = [
    LayerSetup(20, 30, Dense()),
    LayerSetup(20, 30, Unstructured(4)),
    LayerSetup(20, 30, FixedFanIn(4)),
    LayerSetup(20, 30, Unstructured(4), intermediate=16),
    LayerSetup(20, 30, FixedFanIn(4), intermediate=16),
    LayerSetup(20, 30, Dense(), intermediate=8),
    LayerSetup(20, 30, FixedFanIn(4), intermediate=16, loss="bce"),
]


def batches(count, seed=0):
    rng = np.random.default_rng(seed)
    for _ in range(count):
        rows, labels = np.nonzero(rng.random((7, 30)) < 0.1)
        x = rng.standard_normal((7, 20)).astype(np.float32)
        yield Batch(x, rows.astype(np.int32), labels)


@pytest.mark.parametrize("setup", SETUPS, ids=str)
def test_trainer_follows_the_reference(setup):
    arrays = initial_arrays(setup, 1)
    trainer = make_trainer("torch", setup, arrays, device="cpu")
    model = reference.Model(setup, arrays)
    losses = trainer.train(batches(25), 1e-2)
    expected = [model.step(batch, 1e-2) for batch in batches(25)]
    assert np.abs(losses - expected).max() < 1e-5
    for name, array in trainer.weights().items():
        assert array.dtype == arrays[name].dtype
        assert np.abs(array - model.arrays[name]).max() < 1e-4, name


@pytest.mark.parametrize("setup", [s for s in SETUPS if s.is_rewired][:4],
                         ids=str)  # fmt: skip
def test_trainer_rewires(setup):
    trainer = make_trainer("torch", setup, initial_arrays(setup, 1), device="cpu")
    trainer.train(batches(3), 1e-2)
    name = setup.output.source_array
    before, weights = trainer.array(name).copy(), trainer.array("output.weights").copy()
    plan = plan_rewiring(weights, 0.1, setup.output_inputs, 0)
    trainer.apply_rewiring(plan)
    expected = before.reshape(-1)
    expected[plan.positions] = plan.sources
    assert np.array_equal(trainer.array(name).reshape(-1), expected)
    assert np.array_equal(trainer.array("output.weights"), weights)
    moments = copied(trainer.optimizer_arrays())
    for key in ("output.weights.m", "output.weights.v"):
        flat = moments[key].reshape(-1)
        assert not flat[plan.positions].any()
        assert flat.any()


@pytest.mark.parametrize("setup", SETUPS[:6], ids=str)
def test_state_moves_to_another_trainer_whole(setup):
    one = make_trainer("torch", setup, initial_arrays(setup, 1), device="cpu")
    one.train(batches(5), 1e-2)
    two = make_trainer("torch", setup, initial_arrays(setup, 2), device="cpu")
    two.load_weights(one.weights())
    two.load_optimizer_arrays(copied(one.optimizer_arrays()))
    assert np.array_equal(one.train(batches(5, 3), 1e-2), two.train(batches(5, 3), 1e-2))


def test_top_k_is_exact_and_breaks_ties_by_id():
    setup = LayerSetup(2, 9, Dense())
    arrays = initial_arrays(setup, 0)
    arrays["output.weights"] = np.array(
        [[1, 3, 3, 2, 3, 0, 1, 1, 1], [0, 0, 0, 0, 0, 0, 0, 0, 0]], np.float32
    )
    trainer = make_trainer("torch", setup, arrays, device="cpu")
    x = np.array([[1, 0], [0, 1], [-1, 0]], np.float32)
    top = trainer.top_k(x, 5)
    assert top.tolist() == [[1, 2, 4, 3, 0], [0, 1, 2, 3, 4], [5, 0, 6, 7, 8]]
    with pytest.raises(ValueError, match=r"k must be in 1\.\.9"):
        trainer.top_k(x, 10)


def test_a_loss_that_is_not_finite_names_the_step():
    setup = SETUPS[0]
    trainer = make_trainer("torch", setup, initial_arrays(setup, 0), device="cpu")
    trainer.train(batches(2), 1e-2)
    (batch,) = batches(1)
    batch.features[0, 0] = np.inf
    with pytest.raises(FloatingPointError, match="the loss of step 4 is"):
        trainer.train([*batches(1), batch], 1e-2)


def test_load_weights_checks_what_it_gets():
    setup = SETUPS[2]
    arrays = initial_arrays(setup, 0)
    trainer = make_trainer("torch", setup, arrays, device="cpu")
    with pytest.raises(ValueError, match=r"missing \['output.bias'\]"):
        trainer.load_weights({k: v for k, v in arrays.items() if k != "output.bias"})
    with pytest.raises(ValueError, match=r"output.bias must be \[30\], got \[3\]"):
        trainer.load_weights({**arrays, "output.bias": np.zeros(3, np.float32)})
    with pytest.raises(ValueError, match=r"output.indices has values .* must be in 0\.\.19"):
        trainer.load_weights({**arrays, "output.indices": arrays["output.indices"] + np.uint16(20)})
    with pytest.raises(ValueError, match=r"output.indices must be integers, got float64"):
        trainer.load_weights({**arrays, "output.indices": arrays["output.indices"] + 0.5})
    setup = SETUPS[1]
    arrays = initial_arrays(setup, 0)
    trainer = make_trainer("torch", setup, arrays, device="cpu")
    with pytest.raises(ValueError, match=r"output.rows must ascend"):
        trainer.load_weights({**arrays, "output.rows": arrays["output.rows"][::-1].copy()})


def test_counted_bytes():
    setup = LayerSetup(512, 1000, FixedFanIn(32))
    trainer = make_trainer("torch", setup, initial_arrays(setup, 0), device="cpu")
    assert trainer.state_bytes() == (1000 * 32 * (4 + 2) + 4000, 2 * (1000 * 32 + 1000) * 4)


def test_scratch_memory_is_kept_by_the_thread_that_calls():
    """Otherwise steps that need many megabytes make a process grow (see `ops`)."""
    where = torch.empty(0)
    one = ops._scratch(1000, where)
    assert ops._scratch(500, where) is one
    larger = ops._scratch(one.numel() + 1, where)
    assert larger.numel() > one.numel() and ops._scratch(1000, where) is larger
    with ThreadPoolExecutor(1) as threads:
        assert threads.submit(ops._scratch, 1000, where).result() is not larger
    huge = ops._scratch(ops._HELD_BYTES + 1, where)
    assert huge.numel() > ops._HELD_BYTES and ops._scratch(1000, where) is larger


def test_no_forward_derivative_rather_than_a_wrong_one():
    layer, x = FixedFanInLinear(20, 70, 7), torch.randn(4, 20)
    for ask in (
        lambda: torch.func.jvp(layer, (x,), (x,)),
        lambda: torch.func.jacfwd(layer)(x),
        lambda: torch.func.jvp(
            lambda w: fan_in_linear(x, layer.indices, w), (layer.weights,), (layer.weights,)
        ),
    ):
        with pytest.raises(NotImplementedError, match="has a backward derivative only"):
            ask()


def test_sparse_features_are_refused():
    layer = FixedFanInLinear(20, 70, 7)
    with pytest.raises(ValueError, match=r"a tensor of \[4, 20\] is torch\.sparse_coo"):
        fan_in_linear(torch.randn(4, 20).to_sparse(), layer.indices, layer.weights)


def test_asking_for_another_device():
    with pytest.raises(ValueError, match="device must be one of cpu, cuda, auto, got 'tpu'"):
        make_trainer("torch", SETUPS[0], initial_arrays(SETUPS[0], 0), device="tpu")


def test_asking_for_a_gpu_that_is_not_there():
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(RuntimeError, match="torch sees none here"):
        make_trainer("torch", SETUPS[0], initial_arrays(SETUPS[0], 0), device="cuda")
