"""`ShardedFanIn`: an output layer whose labels are spread over the ranks of a process group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from functools import reduce
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from fanin.backends import checks
from fanin.backends.arrays import InitialArrays, drawn_seed
from fanin.backends.interface import Execution
from fanin.backends.kinds import ConnectionKind, Part
from fanin.backends.moments import Resets
from fanin.backends.optimizer import Optimizer, OptimizerKind
from fanin.backends.ranges import LabelRanges
from fanin.backends.setup import LayerSetup, Loss
from fanin.backends.torch.fused_layer import TrainsItself, WithGradient
from fanin.backends.torch.linear import known_features, widened
from fanin.backends.torch.losses import LOSSES, known_positives
from fanin.backends.torch.optimizers import resets_of
from fanin.backends.torch.sharded.own_layer import OwnLayer
from fanin.backends.torch.sharded.ranks import Ranks, joined
from fanin.backends.torch.sharded.rewiring import plan_rewiring
from fanin.backends.torch.sharded.spread import (
    BatchLayout,
    Spread,
    Total,
    WholeBatch,
    summed,
    whole_batch,
)
from fanin.backends.torch.sharded.state import StateOfAll

_NONE: Sequence[int] = ()  # of positives


class ShardedFanIn(TrainsItself, StateOfAll):
    """An output layer of which each rank has a range of the labels: their connections, weights and
    moments, and nothing of the others'. A step sends the features of the batch, the gradient of
    them and the loss; no rank ever has all scores. The numbers are those of one process, up to
    rounding, and the best labels are the same.

    output: how labels are connected, such as `FixedFanIn(32)`; every kind of
    `fanin.backends.kinds`, and `HeadAndTail`. All ranks make the layer, with equal arguments, and
    call the same methods together.

    batch: what `training_step` and the like are given on each rank. "same": all have the same
    batch. "split": each has instances of its own, also of unequal numbers, and the loss is that of
    all of them. This is how an encoder is trained data-parallel while labels are spread (PartialFC;
    An et al., CVPR 2022). The gradient of a rank's own features is then `size` times that of the
    loss, since DDP and FSDP take means over ranks.

    Neither may touch this layer, whose arrays differ between ranks. Wrap what is below it alone,
    `DistributedDataParallel(encoder)` or `fully_shard(encoder)`. Or, of a whole model, call
    `fanin.backends.torch.sharded.left_alone(model)` before `DistributedDataParallel(model)`, and
    give its parameters to `fully_shard(model, ignored_params=set(layer.parameters()))`.

    execution: "fused", where `training_step` trains the layer in one pass, and its arrays are
    buffers; or "autograd", where `weights` and `bias` are parameters that the loss gives gradients
    to, and any optimizer trains (each rank its own part). loss, learning_rate, optimizer, momentum,
    weight_decay, l2, weights_dtype, moments_dtype, rounding_seed: as of `FusedFanIn`; autograd has
    use for the loss alone. Rounding to bfloat16 is that of one process, whatever the number of
    ranks. seed: of connections and weights, which are those of `LayerSetup.initial_array`, whatever
    the number of ranks; they are drawn in blocks. group: None for all processes; where
    torch.distributed is not initialised, this process has all labels. timeout: see `Ranks`.

    `state_dict` has the arrays of this rank alone, `full_state_dict` those of all. Raises
    ValueError for what makes no layer, and where there are more ranks than label groups.
    """

    order: Tensor | None

    def __init__(
        self,
        in_features: int,
        labels: int,
        output: ConnectionKind,
        *,
        execution: Execution = "fused",
        batch: BatchLayout = "same",
        loss: Loss = "squared_hinge",
        learning_rate: float = 1e-3,
        optimizer: OptimizerKind = "adam",
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        l2: float = 0.0,
        weights_dtype: torch.dtype = torch.float32,
        moments_dtype: torch.dtype = torch.float32,
        rounding_seed: int = 0,
        seed: int = 0,
        device: torch.device | str | None = None,
        group: dist.ProcessGroup | None = None,
        timeout: timedelta | None = None,
    ) -> None:
        super().__init__()
        checks.whole("in_features", in_features, 1, checks.MOST_INPUTS)
        checks.whole("labels", labels, 1)
        checks.whole("seed", seed, 0, 2**63 - 1)
        _check_one_of("execution", execution, ("fused", "autograd"))
        _check_one_of("batch", batch, ("same", "split"))
        _check_one_of("loss", loss, tuple(LOSSES))
        for name, dtype in (("weights_dtype", weights_dtype), ("moments_dtype", moments_dtype)):
            known = (torch.float32, torch.bfloat16) if execution == "fused" else (torch.float32,)
            if dtype not in known:
                kinds = " or ".join(map(str, known))
                raise ValueError(f"{name} must be {kinds} in {execution}, got {dtype}")
        self.ranks = Ranks(group, timeout)
        self.setup = LayerSetup(in_features, labels, output, loss=loss)
        self.execution, self.batch, self.loss = execution, batch, loss
        self.optimizer = Optimizer(optimizer, weight_decay, l2, momentum)
        self.rounding_seed = checks.whole("rounding_seed", rounding_seed, 0, 2**63 - 1)
        dtypes = (weights_dtype, moments_dtype)
        numbers = (self.setup, execution, batch, self.optimizer, learning_rate, dtypes, seed)
        self.ranks.check_equal("the layer", repr((*numbers, rounding_seed)))
        self._dtypes = dtypes
        arrays = InitialArrays(self.setup, seed)
        self._take_ranges(LabelRanges(self.setup, self.ranks.size, arrays))
        self._make(arrays, device)
        if execution == "fused":
            self._add_progress(checks.learning_rate(learning_rate))

    def _take_ranges(self, ranges: LabelRanges) -> None:
        rank = self.ranks.rank
        self.ranges, self.own_setup = ranges, ranges.local_setup(rank)
        pairs = zip(ranges.setup.parts, self.own_setup.parts, strict=True)
        first_weights = ranges.first_weights(rank)
        self._own_layers = [
            OwnLayer(
                self,
                self.own_setup.layer_setup(part),
                part,
                ranges.positions(whole, rank).start,
                first_weights[part.name],
                self.execution,
            )
            for whole, part in pairs
        ]

    @property
    def in_features(self) -> int:
        return self.setup.inputs

    @property
    def labels(self) -> int:
        """Of all ranks."""
        return self.setup.labels

    @property
    def label_ids(self) -> Tensor:
        """The labels of this rank in the order of its scores, int64 [own labels]."""
        return joined([each.label_ids() for each in self._own_layers])

    @torch.compiler.disable
    def forward(self, features: Tensor) -> Tensor:
        """Scores of this rank's labels, [batch, own labels] of features [batch, in_features], in
        the order of `label_ids`; with split batches of the instances of all ranks. Differentiable
        in features, and in autograd in the parameters, where all ranks do the same."""
        batch = self._whole_batch(features, _NONE, _NONE)
        with self._in_float32():
            spread = self._spread(batch)
            return torch.cat([own.scores(spread) for own in self._own_layers], 1)

    @torch.compiler.disable
    def training_step(
        self,
        features: Tensor,
        positive_instances: Tensor | Sequence[int],
        positive_labels: Tensor | Sequence[int],
    ) -> Tensor:
        """The loss, a scalar that is the same on all ranks, differentiable once in the features. In
        the fused execution this trains the layer, and the loss is that before it; in autograd the
        loss's backward gives the parameters their gradients.

        features [batch, in_features]; positive_instances and positive_labels: as of
        `FusedFanIn.training_step`, instances within this rank's batch, labels of the whole layer.
        ValueError, on all ranks, for what is wrong on one.
        """
        if self.execution == "autograd":
            return self.evaluate_loss(features, positive_instances, positive_labels)
        rate, step = self.learning_rate, int(self.steps) + 1
        settings = {"learning_rate": rate, "step": step}
        batch = self._whole_batch(features, positive_instances, positive_labels, settings)
        _refuse_empty(batch)
        made = [
            own.step(batch, self.loss, self.optimizer.numbers, rate, step, seed, self.labels)
            for own, seed in zip(self._own_layers, self._rounding_seeds(), strict=True)
        ]
        self.steps += 1
        own_loss, own_grad = (reduce(torch.add, each) for each in zip(*made, strict=True))
        if not batch.wants_grad:
            return self.ranks.sum(own_loss.view(1)).view(())
        grad, loss = summed(self.ranks, batch, own_grad, own_loss.view(1))
        with_gradient: Tensor = WithGradient.apply(batch.own_features, loss.view(()), grad)
        return with_gradient

    @torch.compiler.disable
    def evaluate_loss(
        self,
        features: Tensor,
        positive_instances: Tensor | Sequence[int],
        positive_labels: Tensor | Sequence[int],
    ) -> Tensor:
        """The loss without a step; arguments as in `training_step`. The scores of this rank's
        labels are held."""
        batch = self._whole_batch(features, positive_instances, positive_labels)
        _refuse_empty(batch)
        with self._in_float32():
            spread, total = self._spread(batch), torch.zeros((), device=self._device)
            for own in self._own_layers:
                scores = own.scores_by_position(spread)
                given = own.positives(batch.positive_instances, batch.positive_labels)
                share = own.setup.labels / self.labels
                total = total + share * LOSSES[self.loss](scores, given[0].long(), given[1])
            summed: Tensor = Total.apply(total, self.ranks)
            return summed.masked_fill((batch.positive_instances < 0).any(), torch.nan)

    @torch.no_grad()
    @torch.compiler.disable
    def top_k(self, features: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Scores and ids of the k best labels of all ranks, [batch, k] each, of this rank's batch,
        best first, ties to the lower id. In the fused execution no other scores are ever held."""
        k = checks.best(k, self.labels)
        batch = self._whole_batch(features, _NONE, _NONE, {"k": k})
        with self._in_float32():
            lists = [own.best(batch.features, k) for own in self._own_layers]
        ids, scores = self.ranks.best(
            [(ids.cpu().numpy(), scores.cpu().numpy()) for ids, scores in lists], k, self._device
        )
        made = (torch.from_numpy(np.ascontiguousarray(each[batch.own])) for each in (scores, ids))
        best_scores, best_ids = (each.to(self._device) for each in made)
        return best_scores, best_ids

    @torch.no_grad()
    def rewire(
        self,
        fraction: float,
        optimizer: torch.optim.Optimizer | None = None,
        rng: np.random.Generator | int | None = None,
    ) -> int:
        """Give the `fraction` of connections with the smallest |weight| over all ranks new random
        inputs; how many moved. Weights keep their value, and their moments become 0; in autograd
        those that `optimizer` keeps, as of `FixedFanInLinear.rewire`. rng: a generator or a seed,
        of which that of rank 0 counts. The same connections move, and get the same inputs, with any
        number of ranks. Of a head and a tail each moves that fraction of its own. ValueError for a
        kind whose connections cannot be rewired."""
        parts = self.setup.check_rewired()
        self.ranks.check_equal("fraction", fraction)
        seed = self.ranks.from_first(drawn_seed(rng))
        moved = [
            self._rewire(part, fraction, (seed + number) % 2**64, optimizer)
            for number, part in enumerate(parts)
        ]
        return int(self.ranks.sum(torch.tensor([sum(moved)], device=self._device)))

    def _rewire(
        self, part: Part, fraction: float, seed: int, optimizer: torch.optim.Optimizer | None
    ) -> int:
        """Of one output layer; how many of this rank's own moved."""
        own, name = self._owner(part.weights), part.source_array
        weights = own.tensor(part.weights)
        assert weights is not None
        assert name is not None
        resets: Resets = [] if optimizer is None else resets_of(optimizer, weights)
        for moment in self.optimizer.keeps if self.execution == "fused" else ():
            resets.append((own.tensor(f"{part.weights}.{moment}"), 0.0))
        magnitudes = part.kind.source_magnitudes(weights.detach().float().cpu().numpy())
        plan = plan_rewiring(
            self.ranks, self.ranges, part, magnitudes, fraction, seed, self._device
        )
        sources = own.array(name).copy()
        sources.reshape(-1)[plan.positions] = plan.sources
        self._write(name, sources)
        moved = part.kind.connections_of(plan.positions, own.setup.labels)
        where = torch.from_numpy(moved).to(self._device)
        for array, start in resets:
            array.view(-1)[where] = weights.view(-1)[where] if start is None else start
        return len(plan.positions)

    def _spread(self, batch: WholeBatch) -> Tensor:
        spread: Tensor = Spread.apply(batch.own_features, self.ranks, batch)
        return spread

    def _whole_batch(
        self,
        features: Any,
        positive_instances: Any,
        positive_labels: Any,
        settings: Mapping[str, float] = {},
    ) -> WholeBatch:
        def read() -> tuple[Tensor, Tensor, Tensor]:
            known = widened(known_features(features, self.in_features)).contiguous()
            if known.ndim != 2:
                raise ValueError(
                    f"features must be [batch, {self.in_features}], got {list(known.shape)}"
                )
            if known.device != self._device:
                raise ValueError(
                    f"features are on {known.device} but the layer is on {self._device}; move them"
                )
            instances, label_ids = (
                torch.as_tensor(each, device=known.device)
                for each in (positive_instances, positive_labels)
            )
            positives = known_positives(instances, label_ids, known.shape[0], self.labels)
            return known, *positives

        return whole_batch(self.ranks, self.batch, read, self._device, settings)

    def _in_float32(self) -> torch.autocast:
        return torch.autocast(self._device.type, enabled=False)

    def _rounding_seeds(self) -> list[int]:
        """A head and a tail have random numbers of their own."""
        streams = range(len(self._own_layers))
        return [(self.rounding_seed + stream * 2**40) % 2**63 for stream in streams]

    def extra_repr(self) -> str:
        own = f"{self.own_setup.labels} of {self.labels} on rank {self.ranks.rank}"
        return (
            f"in_features={self.in_features}, labels={own}, output={self.setup.output}, "
            f"execution={self.execution!r}, batch={self.batch!r}, loss={self.loss!r}"
        )


def _refuse_empty(batch: WholeBatch) -> None:
    if not len(batch.features):
        raise ValueError("a loss needs at least one instance; the batch is empty")


def _check_one_of(name: str, value: Any, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")
