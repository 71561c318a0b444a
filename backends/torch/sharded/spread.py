"""A batch that ranks bring together, and the ways of gradients between them."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fanin.backends.torch.sharded.ranks import Ranks, joined

# What each rank hands over: the same batch, or instances of its own.
BatchLayout = Literal["same", "split"]


@dataclass(frozen=True)
class WholeBatch:
    """A batch as every rank has it. features: of all instances, detached; own_features: what this
    rank gave, with its graph; own: which instances these are; sizes: how many each rank gave, or
    that of the whole where all gave the same; wants_grad: whether the layers below are trained."""

    features: Tensor
    own_features: Tensor
    own: slice
    sizes: Sequence[int]
    positive_instances: Tensor
    positive_labels: Tensor
    wants_grad: bool


def whole_batch(
    ranks: Ranks,
    layout: BatchLayout,
    read: Callable[[], tuple[Tensor, Tensor, Tensor]],
    device: torch.device,
    settings: Mapping[str, float],
) -> WholeBatch:
    """Bring a batch together. read: gives features [batch, inputs], and the positives as
    `known_positives` makes them, on the device that ranks send from. settings: numbers that have to
    be equal on all ranks, by their names.

    ValueError, on all ranks, where one of them refuses what it was given, or where they do not have
    what the layout says. On a GPU the same batch is not compared, nor are settings with it, since
    that would be to wait.
    """
    if ranks.size == 1 or (layout == "same" and device.type == "cuda"):
        return _own_batch(*read())
    failure: Exception | None = None
    try:
        features, instances, label_ids = read()
    except Exception as error:
        failure = error
        features = instances = label_ids = torch.empty(0, dtype=torch.int64, device=device)
    positives = torch.stack([instances.long(), label_ids], 1)
    # A checksum of the positives, to compare them between ranks.
    mark = zlib.crc32(positives.numpy().tobytes()) if layout == "same" else 0
    size = -1 if failure else len(features)
    own_numbers = [size, len(positives), int(_wants_grad(features)), mark]
    given = ranks.numbers([*own_numbers, *map(_bits, settings.values())], device)
    if failure:
        raise failure
    _check(layout, given, [*settings])
    if layout == "same":
        return _own_batch(features, instances, label_ids)
    sizes = [each[0] for each in given]
    first = sum(sizes[: ranks.rank])
    # On a GPU an instance out of range is -1, and stays so.
    positives[:, 0].add_(torch.where(instances < 0, 0, first))
    whole = joined(ranks.gather(features, sizes))
    instances, label_ids = joined(ranks.gather(positives, [each[1] for each in given])).unbind(1)
    return WholeBatch(
        features=whole,
        own_features=features,
        own=slice(first, first + len(features)),
        sizes=sizes,
        positive_instances=instances.int(),
        positive_labels=label_ids.contiguous(),
        wants_grad=_wants_grad(features),
    )


def _own_batch(features: Tensor, instances: Tensor, label_ids: Tensor) -> WholeBatch:
    size, wants_grad = len(features), _wants_grad(features)
    own = slice(0, size)
    return WholeBatch(features.detach(), features, own, [size], instances, label_ids, wants_grad)


def _wants_grad(features: Tensor) -> bool:
    return features.requires_grad and torch.is_grad_enabled()


def _bits(number: float) -> int:
    """Of a float64, as an int64."""
    (bits,) = struct.unpack("<q", struct.pack("<d", number))
    return int(bits)


def _check(layout: BatchLayout, given: list[list[int]], settings: list[str]) -> None:
    """ValueError where the ranks did not hand over what belongs together. given: of each rank the
    size of its batch, -1 where it refused it, the number of positives, whether it wants gradients,
    a checksum of its positives, and the bits of the settings of these names."""
    refused = [rank for rank, each in enumerate(given) if each[0] < 0]
    if refused:
        raise ValueError(f"rank {refused[0]} refuses its batch and raises why; the others stop")
    if len({each[2] for each in given}) > 1:
        wanting = [rank for rank, each in enumerate(given) if each[2]]
        raise ValueError(
            f"features require gradients on ranks {wanting} alone: let them on all ranks or on none"
        )
    for rank, each in enumerate(given):
        for name, own, first in zip(settings, each[4:], given[0][4:], strict=True):
            if own != first:
                raise ValueError(f"{name} on rank {rank} is another than on rank 0")
    if layout == "same":
        for rank, each in enumerate(given):
            if each != given[0]:
                raise ValueError(
                    f"rank {rank} has another batch than rank 0: {each[0]} instances with "
                    f"{each[1]} positives, where rank 0 has {given[0][0]} with {given[0][1]}, or "
                    "other positives; hand the same to all, or make the layer with batch='split'"
                )


def summed(ranks: Ranks, batch: WholeBatch, grad: Tensor, beside: Tensor) -> tuple[Tensor, Tensor]:
    """What the labels of all ranks add up to: the gradient that the layers below get, from that by
    all features; and numbers that all ranks want, [any].

    With split batches it is `size` times the gradient: DDP and FSDP take the mean over the ranks of
    what each rank's own instances give, and the gradient of the loss is their sum.
    """
    # One message for both: a small one takes time by its way, not by its length.
    parts = [torch.cat((beside, rows.flatten())) for rows in grad.split([*batch.sizes])]
    total = ranks.sum(parts[0]) if len(parts) == 1 else ranks.own_sum(parts)
    own = total[len(beside) :].view(-1, grad.shape[1])
    return own if len(parts) == 1 else own.mul_(ranks.size), total[: len(beside)]


class Spread(torch.autograd.Function):
    """Features of the whole batch, from those of a rank; backward adds up the gradients of all
    ranks."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, ranks: Ranks, batch: WholeBatch) -> Tensor:
        ctx.given = (ranks, batch)
        return batch.features.view_as(batch.features)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        ranks, batch = ctx.given
        return summed(ranks, batch, grad, grad.new_empty(0))[0], None, None


class Total(torch.autograd.Function):
    """The sum over ranks of what each adds to the loss; each is a summand of it."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, ranks: Ranks) -> Tensor:
        return ranks.sum(value.clone())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None
