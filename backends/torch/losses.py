"""Losses over sparse positives, and checks of these: no dense [batch, labels] target is ever made.

A loss's gradient is written down rather than recorded, so that one [batch, labels] array is kept
for the backward pass instead of one per operation.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import softplus

from fanin.backends import checks


class _SquaredHinge(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, scores: Tensor, positive_instances: Tensor, positive_labels: Tensor
    ) -> Tensor:
        positive = (1 - scores[positive_instances, positive_labels]).clamp_(min=0)
        margins = (scores + 1).clamp_(min=0)
        margins[positive_instances, positive_labels] = positive
        total = margins.square().sum(1, dtype=torch.float64).sum()
        scale = 2 / scores.numel()
        grad = margins.mul_(scale)
        grad[positive_instances, positive_labels] = positive.mul_(-scale)
        ctx.save_for_backward(grad)
        return (total / scores.numel()).to(scores.dtype)

    @staticmethod
    @once_differentiable  # what the gradient owes to the scores is gone
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor, None, None]:
        (grad,) = ctx.saved_tensors
        return grad * grad_loss, None, None


class _BinaryCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, scores: Tensor, positive_instances: Tensor, positive_labels: Tensor
    ) -> Tensor:
        positive = -scores[positive_instances, positive_labels]
        parts = softplus(scores)
        parts[positive_instances, positive_labels] = softplus(positive)
        total = parts.sum(1, dtype=torch.float64).sum()
        del parts
        grad = torch.sigmoid(scores)
        grad[positive_instances, positive_labels] = -torch.sigmoid(positive)
        ctx.save_for_backward(grad.div_(scores.numel()))
        return (total / scores.numel()).to(scores.dtype)

    @staticmethod
    @once_differentiable  # what the gradient owes to the scores is gone
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor, None, None]:
        (grad,) = ctx.saved_tensors
        return grad * grad_loss, None, None


def squared_hinge(scores: Tensor, positive_instances: Tensor, positive_labels: Tensor) -> Tensor:
    """mean over labels, then over the batch, of max(0, 1 - y s)^2 with y = +1 for positives.

    scores [batch, labels]; positive_instances and positive_labels int64 [positives]; a pair that
    stands twice counts once.
    """
    loss: Tensor = _SquaredHinge.apply(scores, positive_instances, positive_labels)
    return loss


def binary_cross_entropy(
    scores: Tensor, positive_instances: Tensor, positive_labels: Tensor
) -> Tensor:
    """mean over labels, then over the batch, of log(1 + exp(s)) - s [positive]; arguments as in
    `squared_hinge`."""
    loss: Tensor = _BinaryCrossEntropy.apply(scores, positive_instances, positive_labels)
    return loss


LOSSES = {"squared_hinge": squared_hinge, "bce": binary_cross_entropy}


@torch.library.custom_op("fanin::checked_positives", mutates_args=())
def checked_positives(
    positive_instances: Tensor, positive_labels: Tensor, batch: int, labels: int
) -> tuple[Tensor, Tensor]:
    """The positives' instances as int32 and their labels as int64; ValueError where one of them is
    out of range.

    That cannot be an error on a GPU, where nothing may wait: there such positives become (-1, 0),
    for which the loss of `fused_step` is NaN, and which torch can index by.
    """
    may_wait = not positive_instances.is_cuda
    return _in_range(positive_instances, positive_labels, batch, labels, may_wait=may_wait)


@checked_positives.register_fake
def _(
    positive_instances: Tensor, positive_labels: Tensor, batch: int, labels: int
) -> tuple[Tensor, Tensor]:
    return (
        positive_instances.new_empty(positive_instances.shape, dtype=torch.int32),
        positive_labels.new_empty(positive_labels.shape, dtype=torch.int64),
    )


def _in_range(
    positive_instances: Tensor, positive_labels: Tensor, batch: int, labels: int, may_wait: bool
) -> tuple[Tensor, Tensor]:
    # Before instances become int32, in which larger ones would wrap around. A copy of the labels,
    # since an op must not return what it was given.
    instances, label_ids = positive_instances.long(), positive_labels.to(torch.int64, copy=True)
    if may_wait:
        checks.positives(instances.cpu().numpy(), label_ids.cpu().numpy(), batch, labels)
    else:
        bad = (instances < 0) | (instances >= batch) | (label_ids < 0) | (label_ids >= labels)
        instances, label_ids = instances.masked_fill(bad, -1), label_ids.masked_fill(bad, 0)
    return instances.int().contiguous(), label_ids.contiguous()


def known_positives(
    positive_instances: Tensor, positive_labels: Tensor, batch: int, labels: int
) -> tuple[Tensor, Tensor]:
    """See `checked_positives`; ValueError also for types and shapes that name no positives."""
    named = {"positive_instances": positive_instances, "positive_labels": positive_labels}
    for name, values in named.items():
        dtype = values.dtype
        integers = not (dtype.is_floating_point or dtype.is_complex or dtype == torch.bool)
        if not integers and values.numel():  # an empty list makes a float tensor
            raise ValueError(f"{name} must be integers, got {dtype}")
    if positive_instances.ndim != 1 or positive_instances.shape != positive_labels.shape:
        raise ValueError(
            "positive_instances and positive_labels must be two vectors of one length, got "
            f"{list(positive_instances.shape)} and {list(positive_labels.shape)}"
        )
    checked: tuple[Tensor, Tensor] = checked_positives(*named.values(), batch, labels)
    return checked
