"""The structs of `include/fanin.h` as ctypes has them, field by field and in the same order.

A parameter struct is made with keywords, `ForwardParams(features=..., threads=2)`. Of these
`threads` and `stream` go into the struct's `resources`, where `library.call` adds scratch memory.
`library.describe` makes a `Tensor`.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from typing import Any, ClassVar

MAX_RANK = 4
Sizes = ctypes.c_int64 * MAX_RANK

LOSSES = {"squared_hinge": 1, "bce": 2}  # fanin_loss
OPTIMIZERS = {"adam": 1, "sgd": 2, "momentum": 3}  # fanin_optimizer_kind


class Tensor(ctypes.Structure):
    """`fanin_tensor`: where a tensor lies and what it looks like."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("dtype", ctypes.c_int32),
        ("device", ctypes.c_int32),
        ("rank", ctypes.c_int32),
        ("device_index", ctypes.c_int32),
        ("shape", Sizes),
        ("strides", Sizes),
    )


class Resources(ctypes.Structure):
    """`fanin_resources`: scratch memory, stream and threads of a call."""

    _fields_ = (
        ("workspace", ctypes.c_void_p),
        ("workspace_bytes", ctypes.c_uint64),
        ("stream", ctypes.c_void_p),
        ("threads", ctypes.c_int32),
    )


class Trained(ctypes.Structure):
    """`fanin_trained`: an array with the moments that the optimiser keeps."""

    _fields_ = (("values", Tensor), ("m", Tensor), ("v", Tensor))


class Optimizer(ctypes.Structure):
    """`fanin_optimizer`: step counts from 1; seed is that of stochastic rounding; kind is one of
    `OPTIMIZERS`."""

    _fields_ = (
        ("learning_rate", ctypes.c_double),
        ("beta1", ctypes.c_double),
        ("beta2", ctypes.c_double),
        ("epsilon", ctypes.c_double),
        ("momentum", ctypes.c_double),
        ("weight_decay", ctypes.c_double),
        ("l2", ctypes.c_double),
        ("step", ctypes.c_int64),
        ("seed", ctypes.c_uint64),
        ("kind", ctypes.c_int32),
    )


_ALLOWED = {  # sizes, and what the error says of one that does not fit 64 bits
    "inputs": "at least 1 and below 2^31",
    "block_labels": "in 1..65536",
    "group_size": "2 to 64",
    "mean_labels": "0 or at least as many as the layer has",
    "first_weight": "at least 0, below 2^63",
}


def _check_sizes(fields: dict[str, Any]) -> None:
    """ValueError for a size of which ctypes would silently cut off the upper bits."""
    for name, allowed in _ALLOWED.items():
        if not -(2**63) <= fields.get(name, 1) < 2**63:
            raise ValueError(f"{name} must be {allowed}, got {fields[name]}")


class Connections(ctypes.Structure):
    """`fanin_connections`: dense, fixed fan-in, grouped, sorted or unstructured. group_size: 0 for
    all kinds but grouped."""

    def __init__(self, **fields: Any) -> None:
        _check_sizes(fields)
        super().__init__(**fields)

    _fields_ = (
        *(("indices", Tensor), ("starts", Tensor), ("tile_labels", Tensor)),
        ("group_size", ctypes.c_int64),
    )


class WordPairs(ctypes.Structure):
    """`fanin_word_pairs`: labels that are connected to words."""

    _fields_ = (
        ("pair_starts", Tensor),
        ("pair_labels", Tensor),
        ("weights", Tensor),
        ("bias", Tensor),
    )


def _tensors(*names: str) -> Iterator[tuple[str, type[ctypes.Structure]]]:
    return ((name, Tensor) for name in names)


_RESOURCES = ("resources", Resources)


class Params(ctypes.Structure):
    """What the parameter structs share: they are made with keywords, and end with `resources`."""

    FUNCTION: ClassVar[str]
    """The C function that takes the struct; `<FUNCTION>_workspace` tells its scratch memory."""
    resources: Resources

    def __init__(self, *, threads: int = 0, stream: int | None = None, **fields: Any) -> None:
        # ctypes would silently cut off the upper bits of a number that is too large.
        if not -(2**31) <= threads < 2**31:
            raise ValueError(f"threads must be 0 (all) or 1 to 1024, got {threads}")
        _check_sizes(fields)
        super().__init__(**fields)
        self.resources.threads = threads
        self.resources.stream = stream


class ForwardParams(Params):
    """`fanin_linear_forward_params`."""

    FUNCTION = "fanin_linear_forward"
    _fields_ = (
        *_tensors("features", "indices", "weights", "bias", "scores"),
        ("group_size", ctypes.c_int64),
        _RESOURCES,
    )


class BackwardParams(Params):
    """`fanin_linear_backward_params`."""

    FUNCTION = "fanin_linear_backward"
    _fields_ = (
        *_tensors("grad_scores", "features", "indices", "weights"),
        *_tensors("grad_features", "grad_weights", "grad_bias"),
        ("group_size", ctypes.c_int64),
        _RESOURCES,
    )


class StepParams(Params):
    """`fanin_step_params`."""

    FUNCTION = "fanin_step"
    _fields_ = (
        *_tensors("features"),
        ("connections", Connections),
        ("weights", Trained),
        ("bias", Trained),
        *_tensors("positive_instances", "positive_labels", "loss", "grad_features"),
        ("optimizer", Optimizer),
        ("mean_labels", ctypes.c_int64),
        ("first_weight", ctypes.c_int64),
        ("loss_kind", ctypes.c_int32),
        _RESOURCES,
    )


class DenseForwardParams(Params):
    """`fanin_dense_forward_params`."""

    FUNCTION = "fanin_dense_forward"
    _fields_ = (
        *_tensors("features", "weights", "bias", "outputs"),
        ("relu", ctypes.c_int32),
        _RESOURCES,
    )


class DenseUpdateParams(Params):
    """`fanin_dense_update_params`."""

    FUNCTION = "fanin_dense_update"
    _fields_ = (
        *_tensors("grad_outputs", "outputs", "features"),
        ("weights", Trained),
        ("bias", Trained),
        *_tensors("grad_features"),
        ("optimizer", Optimizer),
        _RESOURCES,
    )


class SparseForwardParams(Params):
    """`fanin_sparse_forward_params`."""

    FUNCTION = "fanin_sparse_forward"
    _fields_ = (
        *_tensors("values", "starts", "columns", "weights", "bias", "outputs"),
        ("relu", ctypes.c_int32),
        _RESOURCES,
    )


class SparseUpdateParams(Params):
    """`fanin_sparse_update_params`."""

    FUNCTION = "fanin_sparse_update"
    _fields_ = (
        *_tensors("grad_outputs", "outputs", "words", "word_starts", "instances", "values"),
        ("weights", Trained),
        ("bias", Trained),
        ("optimizer", Optimizer),
        _RESOURCES,
    )


class TopKParams(Params):
    """`fanin_top_k_params`."""

    FUNCTION = "fanin_top_k"
    _fields_ = (
        *_tensors("features"),
        ("connections", Connections),
        *_tensors("weights", "bias", "label_ids", "ids", "scores"),
        _RESOURCES,
    )


class WordsStepParams(Params):
    """`fanin_words_step_params`."""

    FUNCTION = "fanin_words_step"
    _fields_ = (
        *_tensors("values", "starts", "columns", "positive_starts", "positive_labels"),
        ("pairs", WordPairs),
        *_tensors("squares", "bias_squares", "loss"),
        ("block_labels", ctypes.c_int64),
        ("learning_rate", ctypes.c_double),
        ("bias_rate", ctypes.c_double),
        ("threshold", ctypes.c_double),
        ("loss_kind", ctypes.c_int32),
        _RESOURCES,
    )


class WordsTopKParams(Params):
    """`fanin_words_top_k_params`."""

    FUNCTION = "fanin_words_top_k"
    _fields_ = (
        *_tensors("values", "starts", "columns"),
        ("pairs", WordPairs),
        *_tensors("ids", "scores"),
        ("block_labels", ctypes.c_int64),
        _RESOURCES,
    )


class RewireParams(Params):
    """`fanin_rewire_params`; `threshold` and `moved` are results."""

    FUNCTION = "fanin_rewire"
    _fields_ = (
        *_tensors("indices"),
        ("weights", Trained),
        ("inputs", ctypes.c_int64),
        ("fraction", ctypes.c_double),
        ("seed", ctypes.c_uint64),
        ("threshold", ctypes.c_double),
        ("moved", ctypes.c_int64),
        _RESOURCES,
    )


class SortParams(Params):
    """`fanin_sort_params`."""

    FUNCTION = "fanin_sort"
    _fields_ = (
        *_tensors("indices", "tile_labels", "slots"),
        ("weights", Trained),
        ("inputs", ctypes.c_int64),
        ("undo", ctypes.c_int32),
        _RESOURCES,
    )


class LabelSumsParams(Params):
    """`fanin_label_sums_params`."""

    FUNCTION = "fanin_label_sums"
    _fields_ = (
        *_tensors("features", "starts", "columns", "positive_starts", "positive_instances"),
        *_tensors("positive_weights", "sums"),
        _RESOURCES,
    )


class ChooseSourcesParams(Params):
    """`fanin_choose_sources_params`."""

    FUNCTION = "fanin_choose_sources"
    _fields_ = (
        *_tensors("sums", "counts", "mean", "scale", "indices", "values"),
        ("first_label", ctypes.c_int64),
        ("random", ctypes.c_int64),
        ("seed", ctypes.c_uint64),
        _RESOURCES,
    )


class ReplaceSourcesParams(Params):
    """`fanin_replace_sources_params`."""

    FUNCTION = "fanin_replace_sources"
    _fields_ = (
        *_tensors("gradients", "indices"),
        ("weights", Trained),
        *_tensors("moved"),
        ("replaced", ctypes.c_int64),
        ("keep_weights", ctypes.c_int32),
        _RESOURCES,
    )


PARAMS: tuple[type[Params], ...] = (
    *(ForwardParams, BackwardParams, StepParams, DenseForwardParams, DenseUpdateParams),
    *(SparseForwardParams, SparseUpdateParams, WordsStepParams, WordsTopKParams),
    *(TopKParams, RewireParams, SortParams, LabelSumsParams, ChooseSourcesParams),
    ReplaceSourcesParams,
)
