"""`fan_in_linear`, the fixed fan-in function with all its derivatives, for autograd and torch.func.

Scores are linear in features and in weights. So every derivative is made of the two ops, with
something else in the place of features or weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from fanin.backends import checks
from fanin.backends.torch import ops

Grads = tuple[Tensor | None, ...]


def fan_in_linear(
    features: Tensor,
    indices: Tensor,
    weights: Tensor,
    bias: Tensor | None = None,
    *,
    group_size: int = 0,
    threads: int = 0,
) -> Tensor:
    """scores[b, l] = bias[l] + sum_k weights[l, k] * features[b, indices[l, k]].

    features [batch, inputs] float32 or float64, finite; indices [labels, fan_in] torch.uint16 or
    torch.uint32, each below inputs; weights [labels, fan_in] and bias [labels] like features; all
    contiguous and on one device. group_size: so many labels, one after the other, share a row of
    indices, which are [label groups, fan_in] then: indices[l // group_size, k]; 0 for none.
    threads: CPU threads, 0 for as many as torch uses. Returns [batch, labels]. Differentiable in
    features, weights and bias by autograd and torch.func: any number of times backward, once
    forward. Works under autocast (in float32) and torch.compile.
    Raises ValueError naming the argument that is wrong.
    """
    given = (features, indices, weights, bias, threads, group_size)
    if not features.is_meta and torch.is_autocast_enabled(features.device.type):
        widths = (widened(features), indices, widened(weights), widened(bias))
        given = (*widths, threads, group_size)
    # What was made in inference mode has no derivatives.
    compiled = torch.compiler.is_compiling() and not torch._C._are_functorch_transforms_active()
    plain = compiled or weights.is_inference()
    scores: Tensor = (torch.ops.fanin.fan_in_linear if plain else _with_derivatives)(*given)
    return scores


@torch.compiler.disable  # which takes no Function with derivatives of its own (torch 2.13)
def _with_derivatives(*given: Any) -> Tensor:
    scores: Tensor = _Scores.apply(*given)
    return scores


def widened(values: Any) -> Any:
    """float16 and bfloat16 as float32, in which the ops compute; others, and None, as they are."""
    is_half = isinstance(values, Tensor) and values.dtype in (torch.float16, torch.bfloat16)
    return values.float() if is_half else values


def known_features(features: Any, in_features: int) -> Tensor:
    """Features [..., in_features] as nn.Linear takes them, made dense where they are sparse;
    ValueError for others."""
    checks.no_scipy_matrix("features", features)
    if not isinstance(features, Tensor):
        raise ValueError(
            f"features must be a torch.Tensor, got {type(features).__name__}; torch.as_tensor "
            "makes one"
        )
    if features.is_nested:
        raise ValueError(
            "features must not be a nested tensor; make it padded first "
            "(torch.nested.to_padded_tensor) or hand over its values()"
        )
    if features.shape[-1:] != (in_features,):
        raise ValueError(f"features must be [..., {in_features}], got {list(features.shape)}")
    return features if features.layout == torch.strided else features.to_dense()


class _Scores(torch.autograd.Function):
    """The op forward; ctx.numbers are threads and group size. (torch.func does not take the
    derivatives of an op itself, torch 2.13.)"""

    @staticmethod
    def forward(
        features: Tensor,
        indices: Tensor,
        weights: Tensor,
        bias: Tensor | None,
        threads: int,
        group_size: int,
    ) -> Tensor:
        given = (features, indices, weights, bias, threads, group_size)
        scores: Tensor = torch.ops.fanin.fan_in_linear(*given)
        return scores

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        features, indices, weights, _, *ctx.numbers = inputs
        ctx.save_for_backward(features, indices, weights)
        ctx.save_for_forward(features, indices, weights)

    @staticmethod
    def backward(ctx: Any, grad_scores: Tensor) -> Grads:
        wanted = [ctx.needs_input_grad[i] for i in (0, 2, 3)]
        features, weights, bias = _gradients(
            grad_scores, *ctx.saved_tensors, wanted=wanted, numbers=ctx.numbers
        )
        return features, None, weights, bias, None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Tensor:
        _refuse_second_level()
        features, indices, weights = ctx.saved_tensors
        of_features, _, of_weights, of_bias, *_ = tangents
        terms = []
        if of_features is not None:
            terms.append(_scores(of_features, indices, weights, ctx.numbers))
        if of_weights is not None:
            terms.append(_scores(features, indices, of_weights, ctx.numbers))
        if of_bias is not None:
            terms.append(of_bias.expand(len(features), -1))
        return reduce(torch.add, terms)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> tuple[Tensor, int]:
        features, *others = inputs
        if in_dims[0] is not None and in_dims[1:] == (None,) * len(others):
            features = features.movedim(in_dims[0], 0)  # more instances, all in one call
            scores = _Scores.apply(features.flatten(0, 1).contiguous(), *others)
            return scores.unflatten(0, features.shape[:2]), 0
        (scores,) = _one_by_one(_Scores, info, in_dims, inputs)
        return scores, 0


class _Gradients(torch.autograd.Function):
    """The op backward: gradients of features, weights and bias, without elements where not
    wanted."""

    @staticmethod
    def forward(
        grad_scores: Tensor,
        features: Tensor,
        indices: Tensor,
        weights: Tensor,
        of_features: bool,
        of_weights: bool,
        of_bias: bool,
        *numbers: int,
    ) -> tuple[Tensor, ...]:
        given = (grad_scores, features, indices, weights, [of_features, of_weights, of_bias])
        grads: tuple[Tensor, ...] = torch.ops.fanin.fan_in_linear_backward(*given, *numbers)
        return grads

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        tensors, ctx.wanted, ctx.numbers = inputs[:4], inputs[4:7], inputs[7:]
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Grads:
        grad_scores, features, indices, weights = ctx.saved_tensors
        terms, for_features, for_weights = [], None, None
        if ctx.wanted[0]:
            terms.append(_scores(grads[0], indices, weights, ctx.numbers))
            given = (grad_scores, grads[0], indices, weights)
            for_weights = _gradients(*given, wanted=(False, True, False), numbers=ctx.numbers)[1]
        if ctx.wanted[1]:
            terms.append(_scores(features, indices, grads[1], ctx.numbers))
            given = (grad_scores, features, indices, grads[1])
            for_features = _gradients(*given, wanted=(True, False, False), numbers=ctx.numbers)[0]
        if ctx.wanted[2]:
            terms.append(grads[2].expand(grad_scores.shape))
        for_scores = reduce(torch.add, terms)
        return for_scores, for_features, None, for_weights, None, None, None, None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> tuple[Tensor, ...]:
        _refuse_second_level()
        grad_scores, features, _, weights = ctx.saved_tensors
        shapes = (features.shape, weights.shape, weights.shape[:1])
        total = [  # torch takes no None for 0 here (2.13)
            grad_scores.new_zeros(shape if want else (0,))
            for shape, want in zip(shapes, ctx.wanted, strict=True)
        ]
        # A tangent in the place of its tensor, in each gradient that depends on it.
        for at, affected in ((0, (0, 1, 2)), (1, (1,)), (3, (0,))):
            tangent = tangents[at]
            if tangent is None:
                continue
            given = list(ctx.saved_tensors)
            given[at] = tangent
            wanted = [i in affected and ctx.wanted[i] for i in range(3)]
            for i, term in enumerate(_gradients(*given, wanted=wanted, numbers=ctx.numbers)):
                if term is not None:
                    total[i] = total[i] + term
        return tuple(total)

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], *inputs: Any
    ) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        return _one_by_one(_Gradients, info, in_dims, inputs), (0, 0, 0)


def _scores(features: Tensor, indices: Tensor, weights: Tensor, numbers: Sequence[int]) -> Tensor:
    given = (features.contiguous(), indices, weights.contiguous(), None)
    scores: Tensor = _Scores.apply(*given, *numbers)
    return scores


def _gradients(
    grad_scores: Tensor,
    features: Tensor,
    indices: Tensor,
    weights: Tensor,
    *,
    wanted: Sequence[bool],
    numbers: Sequence[int],
) -> Grads:
    """Gradients of features, weights and bias; None for those that are not wanted. numbers: threads
    and group size. What autograd hands over may be an expanded scalar, say after .sum()."""
    tensors = (each.contiguous() for each in (grad_scores, features, indices, weights))
    grads = _Gradients.apply(*tensors, *wanted, *numbers)
    return tuple(grad if want else None for grad, want in zip(grads, wanted, strict=True))


def _refuse_second_level() -> None:
    """Forward derivatives of forward derivatives would be 0: torch hides those of outer levels
    while it asks a Function for its own (torch 2.13)."""
    levels = torch._C._functorch.get_interpreter_stack() or ()
    kinds = [level.key() for level in levels]
    if kinds.count(torch._C._functorch.TransformType.Jvp) > 1:
        raise NotImplementedError(
            "fan_in_linear has one forward derivative only; take the others backward, as "
            "torch.func.hessian does"
        )


def _one_by_one(
    function: Any, info: Any, in_dims: tuple[int | None, ...], inputs: tuple[Any, ...]
) -> tuple[Tensor, ...]:
    """What torch.vmap asks for, by one call for each element of the batch. The batch is the first
    axis of the results."""

    def one(values: Any, axis: int | None, at: int) -> Any:
        if axis is None:
            return values
        if not info.batch_size:  # a call all the same, for the shapes of its results
            return values.new_zeros(values.shape[:axis] + values.shape[axis + 1 :])
        return values.select(axis, at).contiguous()

    results = []
    for at in range(info.batch_size or 1):
        made = function.apply(*(one(x, d, at) for x, d in zip(inputs, in_dims, strict=True)))
        results.append(made if isinstance(made, tuple) else (made,))
    return tuple(torch.stack(each)[: info.batch_size] for each in zip(*results, strict=True))


# For those who call the op itself, as exported and compiled programs do.
ops.linear_forward.register_autograd(_Scores.backward, setup_context=_Scores.setup_context)
