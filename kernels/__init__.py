"""The kernels of fixed fan-in layers, compiled from one source for CUDA and CPUs; no framework.

`include/fanin.h` is the C interface. `src/core/` holds the logic, written once over a group of 32
lanes. `library.py` loads the built library and `params.py` has its structs; the functions here are
its form for NumPy arrays. README.md tells how to read and extend the kernels.
"""

from fanin.kernels.choose_ops import add_label_sums, choose_sources, replace_sources
from fanin.kernels.connection_ops import rewire, sort_connections
from fanin.kernels.cpu import processor, sorting_pays
from fanin.kernels.float8 import from_float8, to_float8
from fanin.kernels.library import build_info, set_instruction_set, sorted_labels
from fanin.kernels.numpy_ops import (
    OptimizerStep,
    Trained,
    dense_forward,
    dense_update,
    fan_in_linear,
    fan_in_linear_backward,
    step,
    top_k,
)
from fanin.kernels.sparse_ops import Words, by_words, sparse_forward, sparse_update
from fanin.kernels.words_ops import WordPairs, words_step, words_top_k

__all__ = [
    "OptimizerStep",
    "Trained",
    "WordPairs",
    "Words",
    "add_label_sums",
    "build_info",
    "by_words",
    "choose_sources",
    "dense_forward",
    "dense_update",
    "fan_in_linear",
    "fan_in_linear_backward",
    "from_float8",
    "processor",
    "replace_sources",
    "rewire",
    "set_instruction_set",
    "sort_connections",
    "sorted_labels",
    "sorting_pays",
    "sparse_forward",
    "sparse_update",
    "step",
    "to_float8",
    "top_k",
    "words_step",
    "words_top_k",
]
