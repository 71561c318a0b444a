"""The arrays of a layer whose labels are spread over ranks: how they are made, and how they are one
model in a file, whatever the number of ranks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fanin.backends.arrays import check_names
from fanin.backends.interface import Execution
from fanin.backends.kinds import ORDER, index_dtype
from fanin.backends.optimizer import Optimizer
from fanin.backends.ranges import LabelRanges, without_moment
from fanin.backends.setup import LayerSetup
from fanin.backends.torch.fused_layer import PROGRESS
from fanin.backends.torch.sharded.own_layer import OwnLayer
from fanin.backends.torch.sharded.ranks import Ranks, whole_array
from fanin.backends.torch.tools.index_buffer import as_bytes


class StateOfAll(nn.Module):
    """The part of `ShardedFanIn` that holds arrays."""

    setup: LayerSetup
    ranks: Ranks
    ranges: LabelRanges
    execution: Execution
    optimizer: Optimizer
    _own_layers: list[OwnLayer]
    _dtypes: tuple[torch.dtype, torch.dtype]

    def _take_ranges(self, ranges: LabelRanges) -> None:
        """Have the labels of this rank."""
        raise NotImplementedError

    def _trained(self) -> Iterator[str]:
        for part in self.setup.parts:
            yield from (f"{part.name}.weights", f"{part.name}.bias")

    def _names(self) -> list[str]:
        """Of all arrays, moments included, in the order of `LayerSetup.array_shapes`."""
        keeps = self.optimizer.keeps if self.execution == "fused" else ()
        trained = set(self._trained())
        names = []
        for name in self.setup.array_shapes():
            names += [name, *(f"{name}.{m}" for m in keeps if name in trained)]
        return names

    def _owner(self, name: str) -> OwnLayer:
        return next(own for own in self._own_layers if own.part.owns(name))

    def _make(self, arrays: Mapping[str, np.ndarray], device: torch.device | str | None) -> None:
        """Register the tensors of what this rank has of the arrays of the whole model, one after
        the other, and moments of 0."""
        trained = {*self._trained()}
        for name in self.setup.array_shapes():
            array = self.ranges.local_array(arrays, name, self.ranks.rank)
            if name == ORDER:
                order = torch.from_numpy(array).to(device or torch.get_default_device())
                self.register_buffer("order", order)
                continue
            own = self._owner(name)
            made = own.made(name, array).to(device or torch.get_default_device())
            if name.endswith(".weights"):
                made = made.to(self._dtypes[0])
            attribute = own.attribute(name)
            if self.execution == "autograd" and name in trained:
                self.register_parameter(attribute, nn.Parameter(made))
                continue
            self.register_buffer(attribute, made)
            for moment in self.optimizer.keeps if name in trained else ():
                dtype = made.dtype if name.endswith(".bias") else self._dtypes[1]
                zeros = torch.zeros_like(made, dtype=dtype)
                self.register_buffer(own.attribute(f"{name}.{moment}"), zeros)
        self._make_tables()

    def _make_tables(self) -> None:
        for own in self._own_layers:
            own.make_tables(self._buffers.get("order"))

    # One model ------------------------------------------------------------------------------------

    def full_state(self) -> Iterator[tuple[str, Tensor]]:
        """The arrays of all ranks as one model, with their names, one after the other, on the CPU:
        on rank 0; the others have to ask too, and get nothing. Names and forms are those of a state
        dict of `FusedFanIn`, or in autograd of `FixedFanInLinear`; with a head and a tail,
        `head.weights` and so on. Dense weights are [in_features, labels], unstructured connections
        `rows` and `columns`, int32."""
        for name in self._names():
            array = self._gathered(name)
            if array is not None:
                yield _key(name), _saved(name, array, self.setup, self._is_bfloat16(name))
        if self.ranks.rank == 0:
            for name in PROGRESS:
                if (buffer := self._buffers.get(name)) is not None:
                    yield name, buffer.clone()

    def full_state_dict(self) -> dict[str, Tensor]:
        """All of `full_state` at once, on rank 0; on the others an empty one. All ranks have to
        ask."""
        return dict(self.full_state())

    def _gathered(self, name: str) -> np.ndarray | None:
        order = self._buffers.get("order")
        if name == ORDER and order is not None:
            local = order.cpu().numpy()
        else:
            local = self._owner(name).array(name)
        return whole_array(self.ranks, self.ranges, name, local, self._device)

    @property
    def _device(self) -> torch.device:
        bias = self._own_layers[0].tensor(f"{self.setup.parts[0].name}.bias")
        assert bias is not None
        return bias.device

    def _is_bfloat16(self, name: str) -> bool:
        if name == ORDER:
            return False
        tensor = self._owner(name).tensor(name)
        return tensor is not None and tensor.dtype == torch.bfloat16

    @torch.no_grad()
    def load_full_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take this rank's part of what `full_state_dict` gave, with any number of ranks, or of a
        state dict of `FusedFanIn` or `FixedFanInLinear`. Every rank has to have it; of a file that
        was loaded by `torch.load(..., mmap=True)` each reads its own part, and the connections of
        all to check them. ValueError for another model; nothing has changed then.

        Where the labels are connected at random without a fixed number, a rank may have another
        number of connections afterwards, and parameters are new ones: make optimizers later.
        """
        own_progress = [name for name in PROGRESS if name in self._buffers]
        check_names([*map(_key, self._names()), *own_progress], state)
        arrays = _Loaded(self.setup, state)
        shapes = self.setup.array_shapes()
        for name in self._names():
            shape = shapes[without_moment(name)]
            if arrays[name].shape != shape:
                given = list(arrays[name].shape)
                raise ValueError(f"{_key(name)} must be {list(shape)}, got {given}")
            if name in shapes:
                self.setup.check_array(name, arrays[name])
        self._take_ranges(LabelRanges(self.setup, self.ranks.size, arrays))
        for name in self._names():
            local = self.ranges.local_array(arrays, name, self.ranks.rank)
            if name == ORDER:
                assert self._buffers["order"] is not None
                self._buffers["order"].copy_(torch.from_numpy(np.ascontiguousarray(local)))
                continue
            self._write(name, local)
        for name in own_progress:
            self._buffers[name].copy_(state[name])  # type: ignore[union-attr]
        self._make_tables()

    def _write(self, name: str, local: np.ndarray) -> None:
        own = self._owner(name)
        tensor, given = own.tensor(name), own.made(name, local)
        assert tensor is not None
        if given.dtype == torch.int16:
            given = given.view(torch.bfloat16)
        if given.shape == tensor.shape:
            tensor.copy_(given)
        else:
            tensor.data = given.to(tensor.device, tensor.dtype)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *others: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *others)
        self._make_tables()


class _Loaded(Mapping[str, np.ndarray]):
    """The arrays of a state dict of all labels, by their names; bfloat16 as int16."""

    def __init__(self, setup: LayerSetup, state: Mapping[str, Tensor]) -> None:
        self._setup, self._state = setup, state

    def __getitem__(self, name: str) -> np.ndarray:
        tensor = self._state[_key(name)].detach().cpu()
        if tensor.dtype == torch.bfloat16:
            tensor = tensor.view(torch.int16)
        array = tensor.numpy()
        if name.endswith(".indices") and array.dtype == np.uint8:
            array = array.view(index_dtype(self._setup.inputs))
        return array

    def __iter__(self) -> Iterator[str]:
        return iter(self._state)

    def __len__(self) -> int:
        return len(self._state)


def _key(name: str) -> str:
    """What a state dict calls an array, or a moment."""
    name = name.removeprefix("output.")
    for moment in ("m", "v"):
        if name.endswith(f".{moment}"):
            name = f"{name[:-2]}_{moment}"
    return name


def _saved(name: str, array: np.ndarray, setup: LayerSetup, is_bfloat16: bool) -> Tensor:
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    if name.endswith(".indices"):
        return as_bytes(tensor)
    return tensor.view(torch.bfloat16) if is_bfloat16 else tensor
