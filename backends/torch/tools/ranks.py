"""Ranks that train one model together: what a layer needs where several processes have it.

They must have the same connections. torch's wrappers do not see to that by themselves: FSDP leaves
buffers alone, and so does DDP where it is told (`broadcast_buffers=False`). With FSDP2 each rank
holds a part of every trained array, a DTensor.
"""

from __future__ import annotations

from typing import Any, TypeVar

import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


def check_whole(array: Tensor, shape: tuple[int, ...]) -> None:
    """ValueError where a rank has a part of an array, or none of its memory, and cannot ask for
    all of it: outside `summon_full_params` in the older FullyShardedDataParallel."""
    own_bytes = array.untyped_storage().nbytes() if _shared_out(array) is None else array.nbytes
    if array.shape != shape or own_bytes < array.nbytes:
        raise ValueError(
            f"the layer's weights, {list(shape)}, are sharded, and here are {list(array.shape)} of "
            f"them in {own_bytes} bytes; do this within FullyShardedDataParallel.summon_full_params"
        )


def is_part_of_larger(array: Tensor) -> bool:
    """Whether it lies in one array with others, as FullyShardedDataParallel gathers them."""
    is_view = _shared_out(array) is None and array.untyped_storage().nbytes() > array.nbytes
    return is_view and _is_one_of_several()


def whole(array: Tensor) -> Tensor:
    """All of an array of which each rank may hold a part. Then every rank has to ask."""
    if not _is_one_of_several():
        return array
    shared_out = _shared_out(array)
    # Else a copy: FSDP gives memory back that it gathers, and cannot where NumPy has looked at it.
    return array.clone() if shared_out is None else shared_out.full_tensor()


def assign(array: Tensor, values: Tensor) -> None:
    """Give an array its values, those of rank 0 where each rank holds a part."""
    shared_out = _shared_out(array)
    if shared_out is not None:
        from torch.distributed.tensor import distribute_tensor

        values = values.to(array.device, array.dtype)
        values = distribute_tensor(values, shared_out.device_mesh, shared_out.placements)
    array.copy_(values)


def put(array: Tensor, positions: Tensor, values: Tensor | float) -> None:
    """Set some values, by their flat positions."""
    if _shared_out(array) is None:
        array.view(-1)[positions] = values
        return
    changed = whole(array.detach())
    changed.view(-1)[positions] = values
    assign(array, changed)


def groups_of(array: Tensor, ddp: Any) -> list[dist.ProcessGroup]:
    """The ranks that train this array together: one group for each dimension of their mesh. ddp:
    the DistributedDataParallel that it was last called in, or None."""
    shared_out = _shared_out(array)
    if shared_out is not None:
        mesh = shared_out.device_mesh
        return [mesh.get_group(dimension) for dimension in range(mesh.ndim)]
    return [ddp.process_group] if ddp is not None and _is_one_of_several() else []


def from_first(value: T, groups: list[dist.ProcessGroup]) -> T:
    """What rank 0 has of something that can be pickled. Every rank has to ask."""
    shared = [value]
    for group in groups:
        dist.broadcast_object_list(shared, dist.get_global_rank(group, 0), group)
    return shared[0]


def take_from_first(array: Tensor, groups: list[dist.ProcessGroup]) -> None:
    """Fill an array with that of rank 0. Every rank has to ask."""
    for group in groups:
        dist.broadcast(array, dist.get_global_rank(group, 0), group)


def calling_ddp() -> Any:
    """The DistributedDataParallel whose forward pass is under way, or None."""
    if not _is_one_of_several():
        return None
    from torch.nn.parallel import DistributedDataParallel

    return DistributedDataParallel._get_active_ddp_module()


def _is_one_of_several() -> bool:
    return dist.is_available() and dist.is_initialized()


def _shared_out(array: Tensor) -> Any:
    """The array where each rank holds a part of it, else None."""
    if not _is_one_of_several():
        return None
    from torch.distributed.tensor import DTensor

    return array if isinstance(array, DTensor) else None
