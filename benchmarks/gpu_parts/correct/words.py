"""`fanin_words_step` and `fanin_words_top_k`: labels that are connected to words, trained on one
instance after the other."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from fanin.backends.torch.ops import call, described
from fanin.benchmarks.gpu_parts.correct.bench import (
    LEARNING_RATE,
    Bench,
    Case,
    Outputs,
    starts_of,
    tolerance,
)
from fanin.kernels import params

THRESHOLDS = {"squared_hinge": -1.0, "bce": -30.0}  # where gradients are almost 0


@dataclass(frozen=True)
class Pairs:
    """`kernels.WordPairs` as tensors."""

    block_labels: int
    starts: Tensor
    labels: Tensor
    weights: Tensor
    bias: Tensor
    squares: Tensor
    bias_squares: Tensor

    def described(self) -> params.WordPairs:
        parts = (self.starts, self.labels, self.weights, self.bias)
        return params.WordPairs(*map(described, parts))


def words_step(
    features: tuple[Tensor, Tensor, Tensor],
    positives: tuple[Tensor, Tensor],
    pairs: Pairs,
    loss_kind: str,
) -> Tensor:
    """features: values, starts and columns; positives: their starts and labels."""
    values, starts, columns = map(described, features)
    positive_starts, positive_labels = map(described, positives)
    loss = torch.empty(1, device=pairs.bias.device)
    arguments = params.WordsStepParams(
        values=values,
        starts=starts,
        columns=columns,
        positive_starts=positive_starts,
        positive_labels=positive_labels,
        pairs=pairs.described(),
        squares=described(pairs.squares),
        bias_squares=described(pairs.bias_squares),
        loss=described(loss),
        block_labels=pairs.block_labels,
        learning_rate=LEARNING_RATE,
        bias_rate=LEARNING_RATE,
        threshold=THRESHOLDS[loss_kind],
        loss_kind=params.LOSSES[loss_kind],
        threads=torch.get_num_threads(),
    )
    call(arguments, pairs.bias)
    return loss


def words_top_k(
    features: tuple[Tensor, Tensor, Tensor], pairs: Pairs, k: int
) -> tuple[Tensor, Tensor]:
    """Scores and ids."""
    values, starts, columns = map(described, features)
    shape = (features[1].numel() - 1, k)
    scores = torch.empty(shape, device=pairs.bias.device)
    ids = torch.empty(shape, dtype=torch.int64, device=pairs.bias.device)
    arguments = params.WordsTopKParams(
        values=values,
        starts=starts,
        columns=columns,
        pairs=pairs.described(),
        ids=described(ids),
        scores=described(scores),
        block_labels=pairs.block_labels,
        threads=torch.get_num_threads(),
    )
    call(arguments, pairs.bias)
    return scores, ids


@dataclass(frozen=True)
class Words:
    """Both calls, on pairs of which the first word has nearly all labels."""

    batch: int
    inputs: int
    labels: int
    block_labels: int
    loss: str

    @property
    def key(self) -> str:
        blocks = f"blocks of {self.block_labels}"
        return f"words {self.labels}x{self.inputs} batch {self.batch} {blocks} {self.loss}"

    def __call__(self, bench: Bench) -> None:
        shape = {"batch": self.batch, "inputs": self.inputs, "labels": self.labels}
        pairs, coordinates = self._pairs(bench)
        # Each word once in an instance.
        flat = bench.integers(0, self.batch * self.inputs, 5 * self.batch).unique()
        instances, columns = flat // self.inputs, flat % self.inputs
        values = bench.normal(flat.numel())
        features = (values, starts_of(instances, self.batch), columns.int())
        dense = torch.zeros(self.batch, self.inputs, dtype=torch.float64, device=bench.device)
        dense.index_put_((instances, columns), values.double(), accumulate=True)

        whole = torch.zeros(self.labels, self.inputs, dtype=torch.float64, device=bench.device)
        weights, squares = whole.clone(), whole.clone()
        weights[coordinates], squares[coordinates] = pairs.weights.double(), pairs.squares.double()
        bias, bias_squares = pairs.bias.double(), pairs.bias_squares.double()
        k = min(9, self.labels)
        (scores, ids), seconds = bench.timed(lambda: words_top_k(features, pairs, k))
        every = dense @ weights.t() + bias
        room = tolerance(torch.float32, 5)
        checked: Outputs = {
            "scores": (scores, every.topk(k).values, room),
            "ids": (every.gather(1, ids.clamp(0, self.labels - 1)), every.topk(k).values, room),
        }
        bench.check("words_top_k", checked, shape, "float32", pairs.labels, seconds)

        positives = bench.integers(0, self.labels, 2 * self.batch)
        positive_starts = 2 * torch.arange(self.batch + 1, device=bench.device)
        has_pair = torch.zeros_like(whole)
        has_pair[coordinates] = 1
        total = 0.0
        for b in range(self.batch):
            x, score = dense[b], weights @ dense[b] + bias
            target = torch.zeros_like(bias)
            target[positives[2 * b : 2 * b + 2]] = 1
            losses, grad = self._loss(score, target)
            looked = (score > THRESHOLDS[self.loss]) | (target > 0)
            grad = grad * looked
            total += float(losses[looked].sum()) / self.batch
            bias_squares += grad**2
            bias -= LEARNING_RATE * grad / bias_squares.sqrt()
            outer = grad[:, None] * x * has_pair
            squares += outer**2
            weights -= LEARNING_RATE * outer / squares.sqrt().clamp(min=1e-30)
        loss, seconds = bench.timed(
            lambda: words_step(features, (positive_starts, positives), pairs, self.loss)
        )
        room = tolerance(torch.float32, 5 * self.batch)
        checked = {
            "loss": (loss, torch.tensor([total], device=bench.device), room),
            "weights": (pairs.weights, weights[coordinates], room),
            "squares": (pairs.squares, squares[coordinates], room),
            "bias": (pairs.bias, bias, room),
            "bias_squares": (pairs.bias_squares, bias_squares, room),
        }
        bench.check("words_step", checked, shape, "float32", pairs.labels, seconds)

    def _loss(self, score: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Of each label, and its derivative by the score."""
        if self.loss == "bce":
            losses = torch.nn.functional.softplus(score) - target * score
            return losses, torch.sigmoid(score) - target
        y = 2 * target - 1
        margin = (1 - y * score).clamp(min=0)
        return margin**2, -2 * y * margin

    def _pairs(self, bench: Bench) -> tuple[Pairs, tuple[Tensor, Tensor]]:
        """The pairs, and the label and the word of each."""
        labels, words = bench.integers(0, 10, self.labels, self.inputs).lt(3).nonzero().t()
        common = torch.arange(self.labels - self.labels // 9, device=bench.device)
        labels, words = torch.cat([labels, common]), torch.cat([words, torch.zeros_like(common)])
        # By block, by word, by label; each pair once.
        block = labels // self.block_labels
        flat = ((block * self.inputs + words) * self.labels + labels).unique()
        labels, of_words = flat % self.labels, flat // self.labels
        blocks = (self.labels - 1) // self.block_labels + 1
        counts = torch.bincount(of_words, minlength=blocks * self.inputs).cumsum(0)
        ends = counts.view(blocks, self.inputs)
        first = torch.cat([ends.new_zeros(1), ends[:-1, -1]])
        pairs = Pairs(
            self.block_labels,
            torch.cat([first[:, None], ends], 1).contiguous(),
            (labels % self.block_labels).to(torch.uint16),
            bench.normal(flat.numel()),
            bench.normal(self.labels) - 2,
            0.1 + bench.normal(flat.numel()).square(),
            0.1 + bench.normal(self.labels).square(),
        )
        return pairs, (labels, of_words % self.inputs)


def cases() -> Iterator[Case]:
    """One block and several, of which the last is ragged; one instance, and more than a GPU divides
    by blocks."""
    for batch, inputs, labels, block_labels in (
        (1, 1, 1, 1),
        (33, 97, 1_003, 251),
        (1, 97, 1_003, 65_536),
        (300, 131, 517, 100),
    ):
        for loss in THRESHOLDS:
            words = Words(batch, inputs, labels, block_labels, loss)
            yield Case(words.key, words, small=batch == 33)
