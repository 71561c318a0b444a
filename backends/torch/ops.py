"""The ops of both executions in torch: those of `fan_in_linear` (see `linear.py`), `top_k` and
`rewire`; and how an op calls the kernels.

The C interface is called through ctypes with data pointers and the current stream, so
nothing is compiled against torch and any supported version works.
"""

from __future__ import annotations

import functools
import threading
from typing import Any

import torch
from torch import Tensor

from fanin.kernels import library, params

CONNECTIONS = ("indices", "starts", "tile_labels")


def refuse_other_devices(features: Tensor, **others: Tensor | None) -> None:
    """For fakes, which torch also asks where some tensors are on the meta device and some are not:
    ValueError, since the answer would be memory that nobody has written."""
    for name, other in others.items():
        if other is not None and other.device != features.device:
            raise ValueError(
                f"{name} is on {other.device} but features is on {features.device}; "
                "move them to one device"
            )


@functools.cache
def _name_of(dtype: torch.dtype) -> str:
    """As NumPy has it."""
    return str(dtype).removeprefix("torch.")


def described(tensor: Tensor | None) -> params.Tensor:
    """A tensor as the C interface has it; None for one that is absent."""
    if tensor is None:
        return library.absent()
    if tensor.layout != torch.strided:
        raise ValueError(
            f"a tensor of {list(tensor.shape)} is {tensor.layout}; make it dense first"
        )
    return library.describe(
        tensor.data_ptr(),
        _name_of(tensor.dtype),
        tensor.shape,
        tensor.stride(),
        tensor.device.type,
        tensor.device.index or 0,
    )


def stream(where: Tensor) -> int | None:
    """torch's current stream on the device of `where`, None for a CPU."""
    return torch.cuda.current_stream(where.device).cuda_stream if where.is_cuda else None


# Scratch memory on a CPU is kept from call to call, one piece a thread. Were it given back, glibc's
# malloc would cut small pieces off it, not find room for the next, and take more from the system
# for dozens of steps. What is larger than this comes from the system and goes straight back there.
_KEPT_BYTES = 32 << 20
_kept = threading.local()


def _scratch(size: int, where: Tensor) -> Tensor:
    """At least so many bytes on the device of `where`. On a GPU torch's allocator keeps them."""
    kept: Tensor | None = getattr(_kept, "memory", None)
    keep = where.device.type == "cpu" and size <= _KEPT_BYTES
    if keep and kept is not None and kept.numel() >= size:
        return kept
    memory = torch.empty(size, dtype=torch.uint8, device=where.device)
    if keep:
        _kept.memory = memory
    return memory


def call(arguments: Any, where: Tensor) -> None:
    """`library.call` on the device of `where` and on torch's current stream there; scratch memory
    from torch's allocator, so that it is counted and reused like any tensor."""

    def allocate(size: int) -> tuple[int, Tensor]:
        memory = _scratch(size, where)
        return memory.data_ptr(), memory

    if not where.is_cuda:
        return library.call(arguments, allocate)
    arguments.resources.stream = stream(where)
    with torch.cuda.device_of(where):
        library.call(arguments, allocate)


@torch.library.custom_op("fanin::fan_in_linear", mutates_args=())
def linear_forward(
    features: Tensor,
    indices: Tensor,
    weights: Tensor,
    bias: Tensor | None,
    threads: int,
    group_size: int = 0,
) -> Tensor:
    arguments = params.ForwardParams(
        features=described(features),
        indices=described(indices),
        weights=described(weights),
        bias=described(bias),
        scores=library.absent(),
        group_size=group_size,
        threads=threads or torch.get_num_threads(),
    )
    library.check(arguments)
    scores = features.new_empty((features.shape[0], weights.shape[0]))
    arguments.scores = described(scores)
    call(arguments, features)
    return scores


@linear_forward.register_fake
def _(
    features: Tensor, indices: Tensor, weights: Tensor, bias: Tensor | None, *numbers: int
) -> Tensor:
    refuse_other_devices(features, indices=indices, weights=weights, bias=bias)
    return features.new_empty((features.shape[0], weights.shape[0]))


@torch.library.custom_op("fanin::fan_in_linear_backward", mutates_args=())
def linear_backward(
    grad_scores: Tensor,
    features: Tensor,
    indices: Tensor,
    weights: Tensor,
    wanted: list[bool],
    threads: int,
    group_size: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:
    grads = _empty_grads(features, weights, wanted)
    of_features, of_weights, of_bias = (
        described(grad if want else None) for grad, want in zip(grads, wanted, strict=True)
    )
    arguments = params.BackwardParams(
        grad_scores=described(grad_scores),
        features=described(features),
        indices=described(indices),
        weights=described(weights),
        grad_features=of_features,
        grad_weights=of_weights,
        grad_bias=of_bias,
        group_size=group_size,
        threads=threads or torch.get_num_threads(),
    )
    call(arguments, features)
    return grads


@linear_backward.register_fake
def _(
    grad_scores: Tensor,
    features: Tensor,
    indices: Tensor,
    weights: Tensor,
    wanted: list[bool],
    *numbers: int,
) -> tuple[Tensor, Tensor, Tensor]:
    refuse_other_devices(features, grad_scores=grad_scores, indices=indices, weights=weights)
    return _empty_grads(features, weights, wanted)


def _empty_grads(
    features: Tensor, weights: Tensor, wanted: list[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    """Memory for the gradients of features, weights and bias; no elements where not wanted."""
    shapes = (features.shape, weights.shape, weights.shape[:1])
    grads = [
        features.new_empty(shape if want else (0,))
        for shape, want in zip(shapes, wanted, strict=True)
    ]
    return grads[0], grads[1], grads[2]


def connections(
    indices: Tensor | None, starts: Tensor | None, tile_labels: Tensor | None, group_size: int
) -> params.Connections:
    return params.Connections(
        indices=described(indices),
        starts=described(starts),
        tile_labels=described(tile_labels),
        group_size=group_size,
    )


@torch.library.custom_op("fanin::top_k", mutates_args=())
def top_k(
    features: Tensor,
    indices: Tensor | None,
    starts: Tensor | None,
    tile_labels: Tensor | None,
    weights: Tensor,
    bias: Tensor | None,
    k: int,
    label_ids: Tensor | None = None,
    group_size: int = 0,
) -> tuple[Tensor, Tensor]:
    """Scores and ids [batch, k] of the best labels, best first, equal scores in order of their
    label; without ever holding all scores. Arguments as in `fanin.kernels.top_k`."""
    scores = features.new_empty((features.shape[0], k))
    ids = features.new_empty((features.shape[0], k), dtype=torch.int64)
    arguments = params.TopKParams(
        features=described(features),
        connections=connections(indices, starts, tile_labels, group_size),
        weights=described(weights),
        bias=described(bias),
        label_ids=described(label_ids),
        ids=described(ids),
        scores=described(scores),
        threads=torch.get_num_threads(),
    )
    call(arguments, features)
    return scores, ids


@top_k.register_fake
def _(features: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    names = (*CONNECTIONS, "weights", "bias")
    refuse_other_devices(features, **dict(zip(names, others, strict=False)))
    shape = (features.shape[0], others[len(names)])
    return features.new_empty(shape), features.new_empty(shape, dtype=torch.int64)


def trained(values: Tensor | None, m: Tensor | None, v: Tensor | None) -> params.Trained:
    return params.Trained(described(values), described(m), described(v))


def rewire(
    indices: Tensor,
    weights: Tensor,
    m: Tensor | None,
    v: Tensor | None,
    inputs: int,
    fraction: float,
    seed: int,
) -> int:
    """Rewire in place, see `fanin.kernels.rewire`; how many connections moved."""
    arguments = params.RewireParams(
        indices=described(indices),
        weights=trained(weights, m, v),
        inputs=inputs,
        fraction=fraction,
        seed=seed,
        threads=torch.get_num_threads(),
    )
    call(arguments, indices)
    return int(arguments.moved)
