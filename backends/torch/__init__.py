"""fanin in PyTorch.

For users: the op `fan_in_linear`, the layers `FixedFanInLinear` and `FusedFanIn`, and in `sharded`
one for several processes, `ShardedFanIn`. For the trainer: a device, and an executor for each
execution (`autograd`, `fused`).
"""

from fanin.backends.torch.fused_layer import FusedFanIn
from fanin.backends.torch.layers import FixedFanInLinear
from fanin.backends.torch.linear import fan_in_linear

__all__ = ["FixedFanInLinear", "FusedFanIn", "fan_in_linear"]
