"""The kernels of fixed fan-in layers, compiled from one source for CUDA and CPUs; no framework.

`include/fanin.h` is the C interface; `src/fan_in_linear.h` (the op) and `src/step.h` (the fused
training step) are the logic, written once over a 32-lane group (`src/lanes.h`); `library.py` loads
the built library, and the functions here are its NumPy form. The environment variable
FANIN_INSTRUCTION_SET (avx512, avx2, baseline, auto) chooses the CPU code.
"""

from fanin.kernels.library import (
    build_info,
    processor,
    set_instruction_set,
    sorted_labels,
    sorting_pays,
)
from fanin.kernels.numpy_form import (
    Adam,
    Trained,
    dense_forward,
    dense_update,
    fan_in_linear,
    fan_in_linear_backward,
    rewire,
    sort_connections,
    step,
    top_k,
)

__all__ = [
    "Adam",
    "Trained",
    "build_info",
    "dense_forward",
    "dense_update",
    "fan_in_linear",
    "fan_in_linear_backward",
    "processor",
    "rewire",
    "set_instruction_set",
    "sort_connections",
    "sorted_labels",
    "sorting_pays",
    "step",
    "top_k",
]
