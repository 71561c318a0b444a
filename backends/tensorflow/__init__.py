"""fanin in TensorFlow.

For users: the op `fan_in_linear` and the Keras 3 layers `FixedFanIn` and `FusedFanIn`. For the
trainer: a device, and an executor for each execution (`autograd`, `fused`). `native` binds the
kernels in C++.
"""

import warnings

from fanin.backends.tensorflow.fused_layer import FusedFanIn
from fanin.backends.tensorflow.layers import FixedFanIn
from fanin.backends.tensorflow.linear import fan_in_linear
from fanin.backends.tensorflow.ops import ops as load_ops

# Registered at once: a SavedModel that names them is loaded without any call of this package.
try:
    load_ops()
except ImportError as error:  # whoever uses them gets the error itself
    warnings.warn(f"fanin's ops are not registered: {error}", RuntimeWarning, stacklevel=2)

__all__ = ["FixedFanIn", "FusedFanIn", "fan_in_linear"]
