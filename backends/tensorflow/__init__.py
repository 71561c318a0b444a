"""fanin in TensorFlow: the op `fan_in_linear`, the Keras 3 layers `FixedFanIn` and `FusedFanIn`,
and the trainer.

`native` binds the kernels in C++ (compiled at first use), `ops` wraps it in Python,
`layers` has the layer for a user's own Keras model, `fused` the one that trains itself in one pass;
`trainer`, with its `losses`, is what the harness runs.
"""

from fanin.backends.tensorflow.fused import FusedFanIn
from fanin.backends.tensorflow.layers import FixedFanIn
from fanin.backends.tensorflow.ops import fan_in_linear

__all__ = ["FixedFanIn", "FusedFanIn", "fan_in_linear"]
