"""What torch's ways share: the loss and torch's fused Adam after their own forward and backward
pass, and torch's top-k after their scores."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from fanin.backends.optimizer import ADAM_BETAS, ADAM_EPSILON
from fanin.backends.torch.losses import squared_hinge
from fanin.benchmarks.gpu_parts.contestants.inputs import InputSets, K


class Peer(ABC):
    """One of torch's ways. note: what a reader should know of how it was run."""

    note: str | None = None

    def __init__(self, inputs: InputSets) -> None:
        self.inputs = inputs
        # (values, bias) of each input set, and their optimisers, made at the first step.
        self.trained: list[tuple[Tensor, Tensor]] = []
        self._optimizers: list[torch.optim.Adam] = []

    @abstractmethod
    def scores(self, i: int) -> Tensor:
        """[batch, labels]."""

    @abstractmethod
    def gradients(self, i: int, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of features, values and bias."""

    def forward(self, i: int) -> Tensor:
        return self.scores(i)

    def backward(self, i: int) -> Any:
        return self.gradients(i, self.inputs.grads[i])

    def step(self, i: int) -> Any:
        """Scores, loss, gradients and torch's fused Adam."""
        if not self._optimizers:
            self._optimizers = [_adam(list(pair)) for pair in self.trained]
        scores = self.scores(i).detach().requires_grad_()
        positives = (self.inputs.positive_instances[i], self.inputs.positive_labels[i])
        with torch.enable_grad():
            loss = squared_hinge(scores, *positives)
            (grad,) = torch.autograd.grad(loss, scores)
        grad_features, *grads = self.gradients(i, grad)
        which = i % len(self.trained)
        for values, value_grad in zip(self.trained[which], grads, strict=True):
            values.grad = value_grad
        self._optimizers[which].step()
        self._optimizers[which].zero_grad()
        return grad_features

    def best(self, i: int) -> Any:
        return torch.topk(self.scores(i), K)


def _adam(values: list[Tensor]) -> torch.optim.Adam:
    return torch.optim.Adam(values, lr=1e-3, betas=ADAM_BETAS, eps=ADAM_EPSILON, fused=True)
