"""A layer whose labels are spread over ranks, each of which has a range of them."""

from __future__ import annotations

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from fanin.backends.torch.sharded.layer import ShardedFanIn

__all__ = ["ShardedFanIn", "left_alone"]


def left_alone(model: nn.Module) -> list[str]:
    """Have DistributedDataParallel leave all `ShardedFanIn` within a model alone, whose arrays
    differ between ranks; the names of what it leaves alone. Call it before the model is wrapped."""
    names = [
        f"{path}.{name}" if path else name
        for path, module in model.named_modules()
        if isinstance(module, ShardedFanIn)
        for name in (*module._parameters, *module._buffers)
    ]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, names)
    return names
