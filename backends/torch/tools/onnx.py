"""What `torch.onnx.export` needs to write a model with fanin's layers in it.

ONNX has no fixed fan-in, so the exporter has to be told what the op is made of, and how indices lie
in their bytes. The files run without fanin. `backends/onnx_export.py` writes whole models that the
trainer made.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from fanin.backends.torch import ops as _ops  # noqa: F401 (registers the op)

# ONNX's numbers of types; the bytes of an index, by its type.
_INT64, _UINT16, _UINT32 = 7, 4, 12
_INDEX_BYTES = {_UINT16: 2, _UINT32: 4}


def translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """For `torch.onnx.export(..., dynamo=True, custom_translation_table=translations())`.

    Connections are computed slot by slot, so no array is larger than the scores of the batch; a
    file has a few operators for each slot. Features must be finite, which a runtime does not check.
    ImportError where onnxscript is not installed, which torch's exporter needs too.
    """
    try:
        from onnxscript import opset18
    except ModuleNotFoundError as error:
        raise ImportError("onnxscript is not installed: pip install 'fanin[onnx]'") from error

    op: Any = opset18  # its types know neither tensors of any type nor calls while translating

    def fan_in_linear(
        features: Any,
        indices: Any,
        weights: Any,
        bias: Any = None,
        threads: int = 0,
        group_size: int = 0,
    ) -> Any:
        labels = weights.shape[0]
        if group_size:  # each label gets its own row
            groups = op.Constant(value_ints=[label // group_size for label in range(labels)])
            indices = op.Gather(indices, groups, axis=0)
        scores = bias
        for slot in range(weights.shape[1]):
            place = op.Constant(value_int=slot)
            read = op.Gather(features, op.Gather(indices, place, axis=1), axis=1)
            terms = op.Mul(read, op.Gather(weights, place, axis=1))
            scores = terms if scores is None else op.Add(scores, terms)
        return scores

    def view(values: Any, dtype: Any) -> Any:
        """Indices, int64 [labels, fan_in], of their bytes [labels, 2 or 4 fan_in]."""
        count = _INDEX_BYTES.get(int(dtype))
        if count is None or values.dtype.name != "UINT8":
            raise ValueError(
                f"this table translates view(dtype) for the indices of fanin's layers only, not "
                f"from {values.dtype} to {dtype}: keep such a view out of the exported model"
            )
        shape = op.Constant(value_ints=[values.shape[0], -1, count])
        numbers = op.Reshape(op.Cast(values, to=_INT64), shape)
        places = op.Constant(value_ints=[256**place for place in range(count)])
        return op.ReduceSum(op.Mul(numbers, places), op.Constant(value_ints=[2]), keepdims=0)

    return {torch.ops.fanin.fan_in_linear.default: fan_in_linear, torch.ops.aten.view.dtype: view}
