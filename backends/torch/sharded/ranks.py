"""What the ranks of a model send to each other, by plain collectives."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import timedelta
from functools import reduce
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from fanin.backends.head_and_tail import best_of_parts
from fanin.backends.ranges import LabelRanges, without_moment


class Ranks:
    """The ranks of a process group, by gloo on CPUs and NCCL on GPUs.

    rank: this one's number in the group; size: how many there are. Where torch.distributed is not
    initialised, this process is the only one, and nothing is sent.

    All ranks have to call the same methods in the same order. One that fails or ends makes the
    others raise RuntimeError: at once where its connections break, else after the time that the
    group was made with, or on a CPU after `timeout`, where one is given.
    """

    def __init__(
        self, group: dist.ProcessGroup | None = None, timeout: timedelta | None = None
    ) -> None:
        """group: None for that of all processes."""
        is_one_of_several = dist.is_available() and dist.is_initialized()
        self._group = group if group is not None or not is_one_of_several else dist.group.WORLD
        self._timeout = timeout
        self.rank, self.size = 0, 1
        if self._group is not None:
            self.rank, self.size = dist.get_rank(self._group), dist.get_world_size(self._group)

    def sum(self, tensor: Tensor) -> Tensor:
        """Add up a tensor over the ranks, in place; returns it."""
        if self.size > 1:
            self._wait(dist.all_reduce(tensor, group=self._group, async_op=True), tensor)
        return tensor

    def own_sum(self, parts: Sequence[Tensor]) -> Tensor:
        """Of flat tensors, one for each rank, those of the same rank of equal length: the sum over
        the ranks of this rank's. Each sends half as much as `sum` of them all does. gloo's own
        reduce_scatter adds up everything on all ranks (torch 2.13), so it would save nothing."""
        if self.size == 1:
            return parts[0]
        lengths, own = [len(part) for part in parts], len(parts[self.rank])
        received = parts[0].new_empty(self.size * own)
        sent = torch.cat([*parts])
        split = ([own] * self.size, lengths)
        work = dist.all_to_all_single(received, sent, *split, self._group, async_op=True)
        self._wait(work, received)
        # In the order of the ranks, so that a sum that all of them want is equal everywhere.
        return reduce(torch.add, received.split(own))

    def numbers(self, own: Sequence[int], device: torch.device) -> list[list[int]]:
        """The numbers of each rank, in the order of the ranks; each gives as many, in the range of
        int64. device: where the group can send from; a GPU is waited for."""
        if self.size == 1:
            return [[*own]]
        sent = torch.tensor([*own], dtype=torch.int64, device=device)
        received = [torch.empty_like(sent) for _ in range(self.size)]
        self._wait(dist.all_gather(received, sent, self._group, async_op=True), sent)
        return [each.tolist() for each in received]

    def gather(self, tensor: Tensor, lengths: Sequence[int] | None = None) -> list[Tensor]:
        """The tensors of all ranks, in their order. They may differ in the length of their first
        axis, and in nothing else. lengths: of all ranks, where they are known."""
        gathered = self._gathered(tensor, lengths, to_first=False)
        assert gathered is not None
        return gathered

    def gather_to_first(self, tensor: Tensor) -> list[Tensor] | None:
        """`gather` for rank 0 alone; None on the others."""
        return self._gathered(tensor, None, to_first=True)

    def _gathered(
        self, tensor: Tensor, lengths: Sequence[int] | None, to_first: bool
    ) -> list[Tensor] | None:
        if self.size == 1:
            return [tensor]
        if lengths is None:
            lengths = [length for (length,) in self.numbers([len(tensor)], tensor.device)]
        # As bytes: gloo and NCCL do not know all types.
        row = math.prod(tensor.shape[1:]) * tensor.element_size()
        sent = torch.zeros(max(lengths) * row, dtype=torch.uint8, device=tensor.device)
        sent[: tensor.nbytes] = tensor.detach().contiguous().view(-1).view(torch.uint8)
        if to_first and self.rank:
            self._wait(dist.gather(sent, None, self._first, self._group, async_op=True), sent)
            return None
        received = [torch.empty_like(sent) for _ in lengths]
        if to_first:
            work = dist.gather(sent, received, self._first, self._group, async_op=True)
        else:
            work = dist.all_gather(received, sent, self._group, async_op=True)
        self._wait(work, sent)
        return [
            each[: length * row].view(tensor.dtype).view(length, *tensor.shape[1:])
            for each, length in zip(received, lengths, strict=True)
        ]

    def best(
        self, lists: Sequence[tuple[np.ndarray, np.ndarray]], k: int, device: torch.device
    ) -> tuple[np.ndarray, np.ndarray]:
        """The k best labels of all ranks, ids and scores [batch, k], from those of each: lists of
        ids and scores [batch, some]. Equal scores stand in the order of their ids."""
        own = best_of_parts(lists, k)
        if self.size == 1:
            return own
        sent = [torch.from_numpy(np.ascontiguousarray(array.T)).to(device) for array in own]
        lengths = [length for (length,) in self.numbers([len(sent[0])], device)]
        ids, scores = ([t.cpu().numpy().T for t in self.gather(each, lengths)] for each in sent)
        return best_of_parts([*zip(ids, scores, strict=True)], k)

    def from_first(self, value: Any) -> Any:
        """What rank 0 has of something that can be pickled, such as a seed."""
        if self.size == 1:
            return value
        shared = [value]
        dist.broadcast_object_list(shared, self._first, self._group)
        return shared[0]

    def gather_objects(self, value: Any) -> list[Any]:
        """What each rank has of something that can be pickled, in their order."""
        values: list[Any] = [value] * self.size
        if self.size > 1:
            dist.all_gather_object(values, value, self._group)
        return values

    def check_equal(self, what: str, value: Any) -> None:
        """ValueError, on all ranks, where they do not all have an equal value of something that can
        be pickled."""
        values = self.gather_objects(value)
        for rank, other in enumerate(values):
            if other != values[0]:
                raise ValueError(f"{what} is {values[0]} on rank 0 and {other} on rank {rank}")

    def __deepcopy__(self, memo: Any) -> Ranks:
        return self  # a copy of a layer talks to the same ranks

    @property
    def _first(self) -> int:
        """Rank 0 as torch calls it among all processes."""
        return dist.get_global_rank(self._group, 0) if self._group is not None else 0

    def _wait(self, work: Any, tensor: Tensor) -> None:
        """Return when a tensor has come; RuntimeError where it does not. On a GPU a wait with a
        timeout would be one for all that is queued there."""
        if self._timeout is None or tensor.is_cuda:
            work.wait()
        else:
            work.wait(self._timeout)


def whole_array(
    ranks: Ranks, ranges: LabelRanges, name: str, local: np.ndarray, device: torch.device
) -> np.ndarray | None:
    """An array of the whole model, or a moment, from what each rank has of it: on rank 0, None on
    the others. device: where the ranks send from."""
    own = torch.from_numpy(np.require(local, requirements=["C", "W"]).reshape(-1))
    pieces = ranks.gather_to_first(own.to(device))
    if pieces is None:
        return None
    shapes = [ranges.local_setup(rank).array_shapes() for rank in range(ranks.size)]
    arrays = [
        piece.cpu().numpy().reshape(shape[without_moment(name)])
        for piece, shape in zip(pieces, shapes, strict=True)
    ]
    return ranges.joined_array(name, arrays)


def joined(tensors: Sequence[Tensor]) -> Tensor:
    """What was gathered, as one tensor."""
    return tensors[0] if len(tensors) == 1 else torch.cat([*tensors])
