"""The idiom x[:, indices] with einsum, int64 indices, in pieces of labels where it has to."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from fanin.benchmarks.gpu_parts.contestants.inputs import InputSets
from fanin.benchmarks.gpu_parts.contestants.peer import Peer

# The idiom holds [batch, labels, fan_in]; above this it goes in pieces of labels.
_GATHER_BYTES = 4 << 30


class Gather(Peer):
    def __init__(self, inputs: InputSets) -> None:
        super().__init__(inputs)
        self._indices = [idx.long() for idx in inputs.indices]
        self.trained = [
            (w.clone(), b.clone()) for w, b in zip(inputs.weights, inputs.bias, strict=True)
        ]
        workload, labels = inputs.workload, inputs.workload.setup.labels
        pieces = math.ceil(workload.batch * labels * workload.fan_in * 4 / _GATHER_BYTES)
        if pieces > 1:
            self.note = f"in {pieces} pieces of labels"
        self._piece = math.ceil(labels / pieces)

    def _pieces(self, i: int) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Where a piece of the labels lies, its indices and weights."""
        weights, _ = self.trained[i]
        for first in range(0, len(weights), self._piece):
            piece = slice(first, first + self._piece)
            yield piece, self._indices[i][piece], weights[piece]

    def scores(self, i: int) -> Tensor:
        x, bias = self.inputs.features[i], self.trained[i][1]
        parts = [torch.einsum("blk,lk->bl", x[:, idx], w) for _, idx, w in self._pieces(i)]
        return (parts[0] if len(parts) == 1 else torch.cat(parts, 1)) + bias

    def gradients(self, i: int, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = self.inputs.features[i]
        grad_features, grad_weights = torch.zeros_like(x), []
        for piece, idx, w in self._pieces(i):
            grad_weights.append(torch.einsum("bl,blk->lk", grad[:, piece], x[:, idx]))
            spread = (grad[:, piece, None] * w).flatten(1)
            grad_features.index_add_(1, idx.view(-1), spread)
        return grad_features, torch.cat(grad_weights), grad.sum(0)
