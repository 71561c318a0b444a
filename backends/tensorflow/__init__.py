"""fanin in TensorFlow: the op `fan_in_linear`, the Keras 3 layer `FixedFanIn`, and the trainer.

`ops.cc` binds the kernels (compiled by `compile_ops` at first use), `ops` wraps it in Python,
`layers` has the layer for a user's own Keras model; `trainer`, with its `losses`, is what the
harness runs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fanin.backends.tensorflow.ops import fan_in_linear

if TYPE_CHECKING:
    from fanin.backends.tensorflow.layers import FixedFanIn

__all__ = ["FixedFanIn", "fan_in_linear"]


def __getattr__(name: str) -> Any:
    # Keras is large and only the layer needs it: the trainer runs without.
    if name == "FixedFanIn":
        from fanin.backends.tensorflow.layers import FixedFanIn

        return FixedFanIn
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
