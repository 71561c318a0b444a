"""fanin for PyTorch: the op (`ops`), the layer (`layers`), the layer that trains itself in one pass
(`fused`), and the harness' trainer (`trainer`)."""

from fanin.backends.torch.fused import FusedFanIn
from fanin.backends.torch.layers import FixedFanInLinear
from fanin.backends.torch.ops import fan_in_linear

__all__ = ["FixedFanInLinear", "FusedFanIn", "fan_in_linear"]
