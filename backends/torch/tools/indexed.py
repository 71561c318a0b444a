"""`Indexed`: a module with the indices of its connections, in the hands of torch's tools."""

from __future__ import annotations

import copy
import weakref
from typing import Any, ClassVar, Self

import torch
import torch.distributed as dist
from torch import Tensor, nn

from fanin.backends.setup import LayerSetup
from fanin.backends.torch.tools import index_buffer, ranks

_OF_THE_PROCESS = ("_origin", "_seen", "_ddp")  # which no copy and no file has


class Indexed(nn.Module):
    """A module with a buffer for the indices [labels, fan_in] of its connections (`index_buffer`).
    They survive whatever copies, saves or averages the module, and are the same in all ranks."""

    labels: int
    fan_in: int
    weights: Tensor
    stamp: Tensor
    not_averaged: ClassVar[tuple[str, ...]] = ()
    """Names of the other buffers whose mean means nothing."""
    _origin: weakref.ref[Indexed] | None = None
    """The layer that this one is a copy of."""
    _seen: tuple[Tensor, int] | None = None
    """The stamp that was checked last, and how often it had been written then."""
    _ddp: weakref.ref[nn.Module] | None = None
    """The DistributedDataParallel that this layer was last called in."""

    @property
    def _setup(self) -> LayerSetup:
        """The layer as a model."""
        raise NotImplementedError

    def _add_indices(self, inputs: int, device: torch.device | str | None) -> None:
        """The buffers of the connections, not filled. inputs: how many the labels read."""
        dtype = index_buffer.index_type(inputs)
        made = torch.empty(self._indices_shape, dtype=dtype, device=device)
        self.register_buffer("indices", index_buffer.as_bytes(made))
        stamp = torch.empty(2, dtype=torch.int64, device=device)
        self.register_buffer("stamp", stamp, persistent=False)
        self._stamp()

    @property
    def _indices_shape(self) -> tuple[int, int]:
        rows, fan_in = self._setup.array_shapes()["output.indices"]
        return rows, fan_in

    # It hides the buffer of its name, which holds the same memory as bytes.
    @property
    def indices(self) -> Tensor:
        """The sources of all connections [labels, fan_in], or of all label groups, uint16 up to
        65,536 inputs and else uint32. In place, what changes here changes in the layer."""
        self._settle()
        return self._indices_as_they_are()

    def _settle(self) -> None:
        """Before buffers are read: have those that this layer ought to have."""
        if not torch.compiler.is_compiling():
            self._undo_average()
            self._agree_in_ddp()

    def _indices_as_they_are(self) -> Tensor:
        buffer = self._buffers.get("indices")
        if buffer is None:
            raise AttributeError("a layer has no indices before they are registered")
        return index_buffer.read(buffer, self.fan_in)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "indices" and isinstance(value, Tensor):
            own = self._buffers["indices"]
            assert own is not None
            if (value.dtype, value.shape) != (own.dtype, own.shape):  # as other tools set it
                value = self._as_buffer(value)
        super().__setattr__(name, value)

    def _as_buffer(self, given: Tensor) -> Tensor:
        """Indices that come from elsewhere as the buffer holds them. ValueError for others."""
        if given.is_meta:
            return index_buffer.as_bytes(given)
        return index_buffer.loaded(given, self._indices_shape, self._setup.output_inputs)

    def _agree_in_ddp(self) -> None:
        """In the first forward pass within a DistributedDataParallel: take what rank 0 has. DDP did
        so with parameters when it was made, but the layer may have been started anew since; and DDP
        may be told not to broadcast buffers."""
        ddp = ranks.calling_ddp()
        if ddp is None or (self._ddp is not None and self._ddp() is ddp):
            return
        self._ddp = weakref.ref(ddp)
        for parameter in self.parameters(recurse=False):
            ranks.take_from_first(parameter.detach(), self._groups)
        if not ddp.broadcast_buffers:
            self._take_from_first()

    @property
    def _groups(self) -> list[dist.ProcessGroup]:
        return ranks.groups_of(self.weights, None if self._ddp is None else self._ddp())

    def _take_from_first(self) -> None:
        """Where several ranks train this layer, take the connections of rank 0, and its other
        buffers: what the layer does to features, say."""
        groups = self._groups
        for buffer in self._buffers.values():
            if buffer is not None and buffer.device == self.stamp.device:
                ranks.take_from_first(buffer, groups)

    def _whole_weights(self) -> Tensor:
        """All weights [labels, fan_in]. ValueError where this rank has a part and cannot ask."""
        ranks.check_whole(self.weights, (self.labels, self.fan_in))
        return ranks.whole(self.weights.detach())

    def _undo_average(self) -> None:
        """Where a tool has averaged the buffers of this copy with those of the layer that it is a
        copy of, as AveragedModel does with use_buffers=True: take that layer's connections.
        ValueError where there is no such layer."""
        stamp = self.stamp
        origin = None if self._origin is None else self._origin()
        if not index_buffer.is_readable(stamp):
            return
        if self._seen is not None and self._seen[0] is stamp and self._seen[1] == stamp._version:
            return
        if origin is None and self._ddp is not None:
            return  # DDP writes the buffers at each step, and a GPU would have to be waited for
        if not index_buffer.is_stamp(stamp):
            if origin is None:
                raise ValueError(
                    "the indices of this layer were averaged, and the mean of two inputs is another"
                    " one; average the parameters only (use_buffers=False), or set_connections"
                )
            self._indices_as_they_are().copy_(origin.indices)
            for name in self.not_averaged:
                if (own := self._buffers.get(name)) is not None:
                    own.copy_(getattr(origin, name))
            self._stamp()
        self._seen = (stamp, stamp._version)

    def _stamp(self) -> None:
        """The connections are others now."""
        if not self.stamp.is_meta:
            self.stamp.copy_(index_buffer.new_stamp())

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        had_no_memory = self.stamp.is_meta
        super()._apply(fn, recurse)
        if had_no_memory:
            self._stamp()
        return self

    def train(self, mode: bool = True) -> Self:
        if not torch.compiler.is_compiling():
            self._undo_average()  # compiled code does not look
        return super().train(mode)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        copied = type(self).__new__(type(self))
        memo[id(self)] = copied
        copied.__setstate__(copy.deepcopy(self.__getstate__(), memo))
        copied._origin = weakref.ref(self)
        return copied

    def __getstate__(self) -> dict[str, Any]:
        self._undo_average()
        return {name: value for name, value in self.__dict__.items() if name not in _OF_THE_PROCESS}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        indices = self._buffers["indices"]
        if indices is not None and indices.dtype != torch.uint8:  # as fanin pickled it before
            self._buffers["indices"] = index_buffer.as_bytes(indices)
        if "stamp" not in self._buffers:  # pickled before there was one
            self.register_buffer("stamp", index_buffer.new_stamp(), persistent=False)

    def _save_to_state_dict(self, *arguments: Any) -> None:
        self._undo_average()
        super()._save_to_state_dict(*arguments)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *others: Any) -> None:
        name = f"{prefix}indices"
        given = state_dict.get(name)
        if isinstance(given, Tensor):
            try:
                state_dict[name] = self._as_buffer(given)
            except ValueError as error:
                error_messages: list[str] = others[-1]
                error_messages.append(f"{prefix}{error}")
                return
        super()._load_from_state_dict(state_dict, prefix, *others)
        self._stamp()
