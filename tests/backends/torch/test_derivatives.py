"""All derivatives of the op in torch, by autograd and torch.func, beside those of a gather."""

from __future__ import annotations

import copy
from itertools import product

import pytest
import torch
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap
from torch.utils._pytree import tree_leaves

from fanin.backends.torch import FixedFanInLinear, FusedFanIn, fan_in_linear

pytestmark = pytest.mark.torch

ALL = (0, 1, 2)


def random(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


INDICES = torch.randint(12, (5, 3), generator=torch.Generator().manual_seed(0))
INDICES[:, 1] = INDICES[:, 0]  # inputs that a label names twice
ARGUMENTS = (random(4, 12, seed=1), random(5, 3, seed=2), random(5, seed=3))
TANGENTS = tuple(random(*argument.shape, seed=4) for argument in ARGUMENTS)


def ours(x, weights, bias):
    return fan_in_linear(x, INDICES.to(torch.uint16), weights, bias)


def gather(x, weights, bias):
    return (x[:, INDICES] * weights).sum(-1) + bias


def ours_grouped(x, weights, bias):
    """Labels 0 and 1, 2 and 3 share their sources."""
    return fan_in_linear(x, INDICES[:3].to(torch.uint16), weights, bias, group_size=2)


def gather_grouped(x, weights, bias):
    return (x[:, INDICES[:3].repeat_interleave(2, 0)[:5]] * weights).sum(-1) + bias


def assert_same(ask):
    """ask: of one of two functions that are the same, for any number of tensors."""
    for pair in ((ours, gather), (ours_grouped, gather_grouped)):
        got, expected = (tree_leaves(ask(function)) for function in pair)
        assert len(got) == len(expected) > 0
        for one, other in zip(got, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-11)


def cubes(function):
    return lambda *arguments: function(*arguments).pow(3).sum()


def slow(ask):
    return pytest.param(ask, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    "ask",
    [
        lambda f: grad(cubes(f), argnums=ALL)(*ARGUMENTS),
        lambda f: jacrev(f, argnums=ALL)(*ARGUMENTS),
        lambda f: jacfwd(f, argnums=ALL)(*ARGUMENTS),
        lambda f: vjp(f, *ARGUMENTS)[1](random(4, 5)),
        lambda f: jvp(f, ARGUMENTS, TANGENTS),
        lambda f: jvp(lambda x: f(x, *ARGUMENTS[1:]), ARGUMENTS[:1], TANGENTS[:1]),
        lambda f: hessian(cubes(f), argnums=ALL)(*ARGUMENTS),
        lambda f: hessian(cubes(f), argnums=0)(*ARGUMENTS),
        lambda f: jacrev(jacrev(cubes(f), argnums=ALL), argnums=ALL)(*ARGUMENTS),
        slow(lambda f: jacrev(jacfwd(cubes(f), argnums=ALL), argnums=ALL)(*ARGUMENTS)),
        slow(lambda f: jacrev(jacrev(grad(cubes(f), argnums=1), argnums=0), argnums=1)(*ARGUMENTS)),
    ],
    ids=["grad", "jacrev", "jacfwd", "vjp", "jvp", "jvp of one", "hessian", "hessian of one",
         "reverse twice", "reverse over forward", "three times"],
)  # fmt: skip
def test_torch_func(ask):
    assert_same(ask)


@pytest.mark.parametrize("batched", [each for each in product((0, 1), repeat=3) if any(each)])
@pytest.mark.parametrize("size", [3, 0])
def test_vmap(batched, size):
    """Over some of the arguments, with gradients within and around it."""
    given = tuple(
        random(size, *argument.shape, seed=9) if each else argument
        for argument, each in zip(ARGUMENTS, batched, strict=True)
    )
    dims = tuple(0 if each else None for each in batched)
    assert_same(lambda f: vmap(f, dims)(*given))
    assert_same(lambda f: vmap(grad(cubes(f), ALL), dims)(*given))
    assert_same(lambda f: grad(cubes(vmap(f, dims)), ALL)(*given))
    assert_same(lambda f: jvp(vmap(f, dims), given, given))


def test_vmap_over_any_axis_and_twice():
    x, weights, bias = (random(3, *each.shape) for each in ARGUMENTS)
    assert_same(lambda f: vmap(f, (2, None, 1), 1)(x.movedim(0, 2), weights[0], bias.movedim(0, 1)))
    assert_same(lambda f: vmap(vmap(f, (None, 0, 0)), (0, None, None))(x, weights, bias))


def test_gradcheck():
    """Of autograd: forward, and twice backward."""
    arguments = tuple(argument.clone().requires_grad_() for argument in ARGUMENTS)
    options = {"check_batched_grad": True, "check_batched_forward_grad": True}
    assert torch.autograd.gradcheck(ours, arguments, check_forward_ad=True, **options)
    assert torch.autograd.gradgradcheck(ours, arguments)


def test_a_second_forward_derivative_is_refused():
    """torch would give 0."""
    with pytest.raises(NotImplementedError, match="one forward derivative only"):
        jacfwd(jacfwd(cubes(ours)))(*ARGUMENTS)
    with pytest.raises(NotImplementedError, match="one forward derivative only"):
        jacfwd(jacfwd(grad(cubes(ours))))(*ARGUMENTS)


@pytest.mark.parametrize("recipe", ["paper", "best"])
@pytest.mark.parametrize("kind", [FixedFanInLinear, FusedFanIn])
def test_layers(kind, recipe):
    layers = [kind(12, 5, 3, recipe=recipe) for _ in range(2)]
    x = torch.randn(4, 12)
    torch.testing.assert_close(vmap(layers[0])(x), layers[0](x))
    assert jacrev(layers[0])(x).shape == (4, 5, 4, 12)
    parameters, buffers = torch.func.stack_module_state(layers)
    expected = torch.stack([layer(x) for layer in layers])
    for base in (layers[0], copy.deepcopy(layers[0]).to("meta")):
        outputs = vmap(lambda p, b, base=base: functional_call(base, (p, b), (x,)))(
            parameters, buffers
        )
        torch.testing.assert_close(outputs, expected)


def test_gradients_of_each_instance():
    layer, x = FixedFanInLinear(12, 5, 3), torch.randn(4, 12)
    parameters = {name: p.detach() for name, p in layer.named_parameters()}

    def loss(parameters, x):
        return functional_call(layer, parameters, (x,)).square().sum()

    for one, many in zip(
        [grad(loss)(parameters, each)["weights"] for each in x],
        vmap(grad(loss), (None, 0))(parameters, x)["weights"],
        strict=True,
    ):
        torch.testing.assert_close(one, many)


def test_compiled_derivatives():
    """torch.compile leaves them to torch; from the op itself it would take 0."""
    layer, x = FixedFanInLinear(12, 5, 3), torch.randn(4, 12)

    def tangent(x):
        return jvp(layer, (x,), (x,))[1]

    torch.testing.assert_close(torch.compile(tangent, backend="eager")(x), tangent(x))
