"""fanin for PyTorch: the op (`ops`), the layer (`layers`) and the harness' trainer (`trainer`)."""

from fanin.backends.torch.layers import FixedFanInLinear
from fanin.backends.torch.ops import fan_in_linear

__all__ = ["FixedFanInLinear", "fan_in_linear"]
