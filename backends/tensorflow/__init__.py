"""fanin in TensorFlow.

For users: the op `fan_in_linear` and the Keras 3 layers `FixedFanIn` and `FusedFanIn`. For the
trainer: a device, and an executor for each execution (`autograd`, `fused`). `native` binds the
kernels in C++.
"""

from fanin.backends.tensorflow.fused_layer import FusedFanIn
from fanin.backends.tensorflow.layers import FixedFanIn
from fanin.backends.tensorflow.linear import fan_in_linear
from fanin.backends.tensorflow.ops import ops

# Registered at once: a SavedModel that names them is loaded without any call of this package.
ops()

__all__ = ["FixedFanIn", "FusedFanIn", "fan_in_linear"]
