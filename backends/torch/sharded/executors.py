"""The executors of a rank: they train the labels that the rank has, as if these were a model, and
bring together over all ranks what concerns the whole one.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fanin.backends.interface import Execution, Features, TrainingBatch
from fanin.backends.optimizer import Optimizer
from fanin.backends.ranges import OwnLabels
from fanin.backends.setup import LayerSetup
from fanin.backends.sparse import tensors
from fanin.backends.torch.autograd import TorchAutograd
from fanin.backends.torch.device import TorchDevice
from fanin.backends.torch.fused import TorchFused, TorchFusedParts
from fanin.backends.torch.sharded.ranks import Ranks
from fanin.backends.trainer import Executor


class OfRank(Executor):
    """What the executors of a rank have in common.

    own: the labels of this rank, set by its trainer. communication_seconds: how long training steps
    have waited for other ranks so far, and for what these sent.
    """

    setup: LayerSetup
    device: TorchDevice
    ranks: Ranks
    own: OwnLabels
    communication_seconds = 0.0

    def summed(self, tensor: Tensor) -> Tensor:
        """A tensor added up over all ranks, in place."""
        start = time.perf_counter()
        self.ranks.sum(tensor)
        self.communication_seconds += time.perf_counter() - start
        return tensor

    def best_of_all(self, ids: np.ndarray, scores: np.ndarray, k: int) -> np.ndarray:
        """Ids of the k best labels of the whole model, from this rank's own best ones."""
        return self.ranks.best([(self.own.ids_of(ids), scores)], k, self.device.torch)[0]


class FusedOfRank(OfRank, TorchFused):
    """The fused execution: kernels count the labels of all ranks in the mean that the loss is."""

    def output_step(
        self, features: Tensor, batch: TrainingBatch, learning_rate: float, step: int
    ) -> tuple[Tensor, Tensor]:
        loss, grad = super().output_step(features, batch, learning_rate, step)
        # One message for both: a small one takes time by its way, not by its length.
        total = self.summed(torch.cat((loss.view(1), grad.view(-1))))
        return total[0], total[1:].view(grad.shape)

    def top_k(self, features: Features, k: int) -> np.ndarray:
        outputs = self._output_features(tensors(features, self.device))
        return self.best_of_all(*self.best(outputs, min(k, self.setup.labels)), k)


class FusedPartsOfRank(FusedOfRank, TorchFusedParts):
    """The same of several output layers. What all of them give is added up over ranks once."""


class AutogradOfRank(OfRank, TorchAutograd):
    """The autograd execution. labels: of the whole model, which the loss is a mean over."""

    labels: int

    def label_loss(self, outputs: Tensor, batch: TrainingBatch) -> Tensor:
        if outputs.requires_grad:
            # An auxiliary loss reads these outputs too, and its gradient is that of each rank.
            outputs = outputs.view_as(outputs)
            outputs.register_hook(lambda grad: self.summed(grad.contiguous().clone()))
        loss = super().label_loss(outputs, batch)
        return loss * (self.setup.labels / self.labels)

    def reported(self, loss: Tensor) -> Tensor:
        return self.summed(loss.detach().clone())

    def best(self, features: Features, k: int) -> np.ndarray:
        return self.best_of_all(*self.best_with_scores(features, min(k, self.setup.labels)), k)


def executor_of_rank(
    ranks: Ranks,
    local: LayerSetup,
    labels: int,
    first_weights: Mapping[str, int],
    execution: Execution,
    optimizer: Optimizer,
    device: TorchDevice,
) -> Any:
    """local: the model of the rank's own labels; labels: how many all ranks have together;
    first_weights: see `LabelRanges`."""
    executor: FusedOfRank | AutogradOfRank
    if execution == "autograd":
        executor = AutogradOfRank(local, device, optimizer)
        executor.labels = labels
    else:
        kind = FusedOfRank if len(local.parts) == 1 else FusedPartsOfRank
        executor = kind(local, device, optimizer, labels, first_weights)
    executor.ranks = ranks
    return executor
