"""Losses over sparse positives: no dense [batch, labels] target is ever made.

The gradient is written down rather than recorded, so that one [batch, labels] array is kept for
the backward pass instead of one per operation.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import softplus


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
