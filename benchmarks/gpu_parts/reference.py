"""The numerics in float64 torch, on the device of the arrays: what `correct` compares with.

The formulas are those of the tests' reference (NumPy, `tests/support/reference.py`), and a test
holds the two together to 1e-12. That one multiplies by the whole matrix of weights and can be read
at a glance, but the published layers do not fit into it: their matrices would have terabytes. This
one goes through the connections in pieces and fits on the GPU whose ops it checks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from fanin.backends.optimizer import ADAM, Optimizer

# Connections of a piece; each holds a float64 for every instance of the batch.
_PIECE = 1 << 19


class Layer:
    """An output layer in float64 that trains by an `Optimizer`: Adam with epsilon beside sqrt(v),
    before the bias correction.

    weights [labels, fan_in] with indices alike, or, with a group_size, with indices [label groups,
    fan_in], of which so many labels share a row; flat weights and indices with starts [labels + 1];
    or [labels, inputs] without either, a dense layer. bias [labels] or None. m, v and bias_m,
    bias_v are the moments, 0 where none are kept.
    """

    def __init__(
        self,
        weights: Tensor,
        bias: Tensor | None,
        indices: Tensor | None = None,
        starts: Tensor | None = None,
        group_size: int = 0,
    ) -> None:
        self.weights = weights.double()
        self.labels = weights.shape[0] if starts is None else starts.numel() - 1
        self.bias = torch.zeros(self.labels).to(self.weights) if bias is None else bias.double()
        self.m, self.v = torch.zeros_like(self.weights), torch.zeros_like(self.weights)
        self.bias_m, self.bias_v = torch.zeros_like(self.bias), torch.zeros_like(self.bias)
        self.steps = 0
        if indices is not None and group_size:
            indices = indices.long().repeat_interleave(group_size, dim=0)[: self.labels]
        self._sources = None if indices is None else indices.reshape(-1).long()
        label_ids = torch.arange(self.labels, device=weights.device)
        if starts is not None:
            self._labels = label_ids.repeat_interleave(starts.long().diff())
        elif indices is not None:
            self._labels = label_ids.repeat_interleave(indices.shape[1])

    def _pieces(self) -> Iterator[tuple[slice, Tensor, Tensor, Tensor]]:
        """Where a piece of the flat connections lies, its sources, labels and weights."""
        assert self._sources is not None
        flat = self.weights.view(-1)
        for first in range(0, flat.numel(), _PIECE):
            piece = slice(first, first + _PIECE)
            yield piece, self._sources[piece], self._labels[piece], flat[piece]

    def scores(self, features: Tensor) -> Tensor:
        """[batch, labels]: bias plus the sum of weight * feature over a label's connections."""
        x = features.double()
        if self._sources is None:
            return x @ self.weights.t() + self.bias
        scores = self.bias[:, None].repeat(1, len(x))
        columns = x.t().contiguous()
        for _, sources, labels, weights in self._pieces():
            scores.index_add_(0, labels, columns[sources] * weights[:, None])
        return scores.t()

    def gradients(self, grad_scores: Tensor, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of features, weights and bias."""
        g, x = grad_scores.double(), features.double()
        if self._sources is None:
            return g @ self.weights, g.t() @ x, g.sum(0)
        columns, across = x.t().contiguous(), g.t().contiguous()
        grad_features = torch.zeros_like(columns)
        grad_weights = torch.empty_like(self.weights).view(-1)
        for piece, sources, labels, weights in self._pieces():
            grad_weights[piece] = (across[labels] * columns[sources]).sum(1)
            grad_features.index_add_(0, sources, across[labels] * weights[:, None])
        return grad_features.t(), grad_weights.view_as(self.weights), g.sum(0)

    def step(
        self,
        features: Tensor,
        positive_instances: Tensor,
        positive_labels: Tensor,
        loss_name: str,
        learning_rate: float,
        optimizer: Optimizer = ADAM,
    ) -> tuple[Tensor, Tensor]:
        """The loss before the update, and its gradient by the features."""
        scores = self.scores(features)
        value, g = loss(loss_name, scores, positive_instances, positive_labels)
        grad_features, grad_weights, grad_bias = self.gradients(g, features)
        self.steps += 1
        numbers = (self.steps, learning_rate)
        update(optimizer, self.weights, self.m, self.v, grad_weights, *numbers)
        of_bias = replace(optimizer, weight_decay=0.0, l2=0.0)
        update(of_bias, self.bias, self.bias_m, self.bias_v, grad_bias, *numbers)
        return value, grad_features


def loss(
    name: str, scores: Tensor, positive_instances: Tensor, positive_labels: Tensor
) -> tuple[Tensor, Tensor]:
    """Mean over labels and batch, and its gradient by the scores (float64)."""
    y = -torch.ones_like(scores)
    y[positive_instances.long(), positive_labels.long()] = 1
    if name == "squared_hinge":
        margin = (1 - y * scores).clamp(min=0)
        return margin.square().mean(), -2 * y * margin / scores.numel()
    grad_scores = -y * torch.sigmoid(-y * scores) / scores.numel()
    return torch.nn.functional.softplus(-y * scores).mean(), grad_scores


def update(
    optimizer: Optimizer,
    values: Tensor,
    m: Tensor,
    v: Tensor,
    grad: Tensor,
    step: int,
    learning_rate: float,
) -> None:
    """One step in place; step counts from 1."""
    before = values.clone()
    grad = grad + optimizer.l2 * before
    if optimizer.kind == "adam":
        adam(values, m, v, grad, step, learning_rate)
    elif optimizer.kind == "momentum":
        m.mul_(optimizer.momentum).add_(grad)
        values -= learning_rate * m
    else:
        values -= learning_rate * grad
    values -= learning_rate * optimizer.weight_decay * before


def adam(
    values: Tensor, m: Tensor, v: Tensor, grad: Tensor, step: int, learning_rate: float
) -> None:
    """One step in place; step counts from 1."""
    m += (1 - 0.9) * (grad - m)
    v += (1 - 0.999) * (grad.square() - v)
    adam_update(values, m, v, step, learning_rate)


def adam_update(values: Tensor, m: Tensor, v: Tensor, step: int, learning_rate: float) -> None:
    """What a step makes of the values once it has the moments; in place."""
    size = learning_rate * (1 - 0.999**step) ** 0.5 / (1 - 0.9**step)
    values -= size * m / (v.sqrt() + 1e-7)


def top_k(scores: Tensor, k: int) -> Tensor:
    """Ids [batch, k], best first, equal scores in order of their label."""
    return torch.sort(scores, dim=1, descending=True, stable=True).indices[:, :k]


def label_sums(
    features: Tensor,
    instances: Tensor,
    label_ids: Tensor,
    weights: Tensor | None,
    before: Tensor,
) -> Tensor:
    """`before` [labels, inputs] plus, for each pair (instance, label), the instance's features
    times the pair's weight."""
    added = features.double()[instances.long()]
    if weights is not None:
        added *= weights.double()[:, None]
    return before.double().index_add(0, label_ids, added)


def chosen_sources(
    sums: Tensor, counts: Tensor, mean: Tensor, scale: Tensor, drawn: Tensor, random: int
) -> tuple[Tensor, Tensor]:
    """Sources and values [labels, fan_in], see fanin_choose_sources_params. drawn [labels, fan_in]:
    the source that each slot gets where it is random and the label does not have it yet."""
    (labels, inputs), fan_in = sums.shape, drawn.shape[1]
    values = (sums.double() / counts.clamp(min=1)[:, None] - mean.double()) * scale.double()
    values[counts == 0] = 0
    strongest = torch.sort(values.abs(), dim=1, descending=True, stable=True).indices
    known = torch.where(counts > 0, fan_in - random, 0)  # slots of a label that are not random
    slots = torch.arange(fan_in).to(known)
    # Chosen ones stand in ascending order; what is beyond them is replaced below.
    chosen = torch.where(slots < known[:, None], strongest[:, :fan_in], inputs).sort(1).values
    taken = torch.zeros(labels, inputs + 1).to(known).bool().scatter(1, chosen, True)
    rows = torch.arange(labels).to(known)
    for slot in range(fan_in):
        is_random = known <= slot
        source = torch.where(is_random, drawn[:, slot], chosen[:, slot])
        while (collides := is_random & taken[rows, source]).any():
            source = torch.where(collides, (source + 1) % inputs, source)
        chosen[:, slot] = source
        taken[rows, source] = True
    return chosen, values.gather(1, chosen)


def replaced_sources(
    gradients: Tensor, sources: Tensor, weights: Tensor, replaced: int
) -> tuple[Tensor, Tensor]:
    """Which connections move, bool [labels, fan_in], and all sources afterwards; see
    fanin_replace_sources_params. All numbers are finite."""
    size = gradients.double().abs().scatter(1, sources, 0)
    largest = torch.sort(size, dim=1, descending=True, stable=True).indices
    weakest = torch.sort(weights.double().abs(), dim=1, stable=True).indices
    count = (size > 0).sum(1, keepdim=True).clamp(max=replaced)
    moves, taken = (
        torch.zeros_like(order, dtype=torch.bool).scatter(1, order, _first(order, count))
        for order in (weakest, largest)
    )
    # In both, a label's come one after the other in ascending order.
    after = sources.clone()
    after[moves] = taken.nonzero()[:, 1]
    return moves, after


def _first(order: Tensor, count: Tensor) -> Tensor:
    """Whether each place of a row is one of its first `count`."""
    return torch.arange(order.shape[1]).to(count) < count
