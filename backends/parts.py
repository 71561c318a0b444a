"""Models of several output layers in the fused execution: each layer is trained and asked by an
executor of its own, and what they give is brought together.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, ClassVar

import numpy as np

from fanin.backends.fused import OUTPUT_SEED, TAIL_SEED, FusedExecutor
from fanin.backends.head_and_tail import best_of_parts, ranks_of
from fanin.backends.interface import Device, TrainingBatch, TransformedBatch
from fanin.backends.kinds import ORDER, Part
from fanin.backends.optimizer import Optimizer
from fanin.backends.setup import LayerSetup
from fanin.backends.trainer import Trained


def positives_of(batch: TrainingBatch, part: Part) -> TransformedBatch:
    """The positives among the labels of a layer, in its own positions."""
    positions = batch.positive_labels
    own = (positions >= part.first) & (positions < part.first + part.labels)
    return TransformedBatch(
        batch.features, batch.positive_instances[own], positions[own] - part.first
    )


class FusedParts(FusedExecutor):
    """An executor of several output layers; a framework derives from it and from its own executor
    of one layer, which is `of_one`."""

    of_one: ClassVar[type[FusedExecutor]]

    def __init__(
        self,
        setup: LayerSetup,
        device: Device,
        optimizer: Optimizer,
        mean_labels: int = 0,
        first_weights: Mapping[str, int] | None = None,
    ) -> None:
        super().__init__(setup, device, optimizer, mean_labels or setup.labels)
        self._order = np.empty(0, np.int32)
        # Of each layer, ascending; it calls a label by its rank.
        self._label_ids: list[np.ndarray] = []
        self._parts: list[tuple[Part, FusedExecutor]] = []
        for part, seed in zip(setup.parts, (OUTPUT_SEED, TAIL_SEED), strict=True):
            executor = self.of_one(setup.layer_setup(part), device, optimizer, self.mean_labels)
            executor.output_seed = seed
            executor.first_weight = (first_weights or {}).get(part.name, 0)
            executor.wants_grad = self.wants_grad
            self._parts.append((part, executor))
        self.is_sorted = any(executor.is_sorted for _, executor in self._parts)

    def _owner(self, name: str) -> tuple[Part, FusedExecutor]:
        return next(each for each in self._parts if each[0].owns(name))

    def rewire(self, part: Part, fraction: float, seed: int) -> int:
        return self._owner(part.weights)[1].rewire(part, fraction, seed)

    def is_transposed(self, name: str) -> bool:
        if any(part.owns(name) for part, _ in self._parts):
            part, executor = self._owner(name)
            return executor.is_transposed(part.inside(name))
        return super().is_transposed(name)

    def set_connections(self, name: str, array: np.ndarray) -> None:
        if name == ORDER:
            self._order = np.array(array, np.int32)
            self._label_ids.clear()
            for part, executor in self._parts:
                ranks, label_ids = ranks_of(part, self._order)
                executor.set_label_ids(ranks)
                self._label_ids.append(label_ids)
            return
        part, executor = self._owner(name)
        executor.set_connections(part.inside(name), array)

    def connections(self, name: str) -> np.ndarray:
        if name == ORDER:
            return self._order
        part, executor = self._owner(name)
        return executor.connections(part.inside(name))

    def connection_bytes(self) -> int:
        return sum(executor.connection_bytes() for _, executor in self._parts)

    def start(self, trained: Mapping[str, Trained]) -> None:
        self.start_below(trained)
        for part, executor in self._parts:
            executor.start(
                {part.inside(name): each for name, each in trained.items() if part.owns(name)}
            )

    @contextmanager
    def in_label_order(self) -> Iterator[None]:
        with ExitStack() as stack:
            for _, executor in self._parts:
                stack.enter_context(executor.in_label_order())
            yield

    def output_step(
        self, features: Any, batch: TrainingBatch, learning_rate: float, step: int
    ) -> tuple[Any, Any]:
        results = [
            executor.output_step(features, positives_of(batch, part), learning_rate, step)
            for part, executor in self._parts
        ]
        (loss, grad), *others = results
        for other_loss, other_grad in others:
            loss, grad = loss + other_loss, grad + other_grad
        return loss, grad

    def best(self, features: Any, k: int) -> tuple[np.ndarray, np.ndarray]:
        lists = []
        for (part, executor), sorted_ids in zip(self._parts, self._label_ids, strict=True):
            ranks, scores = executor.best(features, min(k, part.labels))
            lists.append((sorted_ids[ranks], scores))
        return best_of_parts(lists, k)

    def sort(self, undo: bool) -> None:
        for _, executor in self._parts:
            if executor.is_sorted:
                executor.sort(undo)
