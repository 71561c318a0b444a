"""A trained model as an ONNX file, which runs without fanin: `export`, and for labels that read
words `export_one_versus_rest`.

Fixed fan-in is an operator that ONNX does not have. So the file defines it, as a function
`FanInLinear` of the domain `fanin`, made of ONNX's own operators; likewise `OneVersusRest`. Any
runtime can run these; one that has an operator of this name may run that instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fanin.backends.arrays import check_arrays
from fanin.backends.features import DICTIONARY, SCALE
from fanin.backends.kinds import ORDER, Dense, Part, Unstructured, index_dtype
from fanin.backends.label_order import LabelOrder
from fanin.backends.setup import LayerSetup
from fanin.backends.words.model import check_arrays as check_words
from fanin.backends.words.setup import OneVersusRestSetup
from fanin.datasets.file_errors import naming
from fanin.kernels.kept_files import replacing

try:
    import onnx
    import onnx.parser
except ModuleNotFoundError as error:
    raise ImportError("ONNX is not installed: pip install 'fanin[onnx]'") from error

# A file of ONNX ends at 2 GiB. From this size on, arrays lie in a second file beside it.
MOST_BYTES_WITHIN = 1 << 30
_ALIGNMENT = 4096  # of arrays in the second file, so that runtimes can map them into memory
_BLOCK_BYTES = 1 << 26  # of an array that is transposed, so that no whole copy is made

# Names and values, one after the other.
Arrays = Iterator[tuple[str, np.ndarray]]
# Where the label of each id stands among the scores of several output layers.
_POSITIONS = "output.positions"
# The columns of each instance that are not 0, and their values.
_SPARSE = "int64[batch, stored] columns, float[batch, stored] values"

# Version 23 of ONNX's operators came in 2025; nothing of later versions is used. The text is
# ONNX's own form for reading (`onnx.parser`).
_MODEL = """
<ir_version: 11, opset_import: ["": 23, "fanin": 1], producer_name: "fanin">
fanin ({inputs}) => ({outputs})
{{
  {nodes}
}}
"""
# scores[b, l] = bias[l] + sum_k weights[k, l] * features[b, indices[k, l]]. A slot of all labels at
# a time, since an array [batch, labels, fan_in] would be too large; so slots stand first in these
# arrays, and nothing is transposed when the model runs. In onnxruntime 1.32 GatherElements has one
# instance scored in a seventh of the time of Gather, 8 in half, and 32 in four thirds of it.
_FAN_IN_LINEAR = """
<domain: "fanin", opset_import: ["": 23]>
FanInLinear (features, indices, weights, bias) => (scores)
{{
  labels = Shape (bias)
  batch = Shape <start = 0, end = 1> (features)
  size = Concat <axis = 0> (batch, labels)
  start = Expand (bias, size)
  scores = Scan <num_scan_inputs = 2, body = slot (
    float[batch, labels] before, {index_type}[labels] sources, float[labels] factors
  ) => (float[batch, labels] after) {{
    ids = Cast <to = 6> (sources)
    ids_of_all = Expand (ids, size)
    read = GatherElements <axis = 1> (features, ids_of_all)
    terms = Mul (read, factors)
    after = Add (before, terms)
  }}> (start, indices, weights)
}}
"""
# scores[b, l] = bias[l] + sum of weights[p] * features[b, words[p]] over the pairs p of label l.
_ONE_VERSUS_REST = """
<domain: "fanin", opset_import: ["": 23]>
OneVersusRest (features, words, label_ids, weights, bias) => (scores)
{
  batch = Shape <start = 0, end = 1> (features)
  labels = Shape (bias)
  pairs = Shape (words)
  size = Concat <axis = 0> (batch, labels)
  size_of_pairs = Concat <axis = 0> (batch, pairs)
  start = Expand (bias, size)
  ids_of_all = Expand (label_ids, size_of_pairs)
  read = Gather <axis = 1> (features, words)
  terms = Mul (read, weights)
  scores = ScatterElements <axis = 1, reduction = "add"> (start, ids_of_all, terms)
}
"""


def export(
    setup: LayerSetup,
    arrays: Mapping[str, np.ndarray],
    path: Path | str,
    *,
    top_k: int | None = None,
    sparse_features: bool = False,
) -> None:
    """Write a trained model as an ONNX file.

    arrays: those of `LayerSetup.array_shapes`, as `Trainer.weights` gives them. The file's input is
    `features` float32 [batch, inputs]; they must be finite, which a runtime does not check. Its
    output is `scores` float32 [batch, labels]. With `top_k` it is the best `scores` and their
    `label_ids` int64, both [batch, top_k], best first, ties to the lower id.

    sparse_features: the inputs are `columns` int64 and `values` float32, both [batch, stored],
    instead: the columns of each instance that are not 0, and their values. Shorter instances are
    filled up with any column and the value 0. Such a model must begin with an intermediate layer or
    a dictionary: of its rows an array [batch, stored, units] is made, and none of [batch, inputs].

    Connections are computed slot by slot, so no array is larger than the scores of the batch; about
    eight of that size are held. Unstructured connections become fixed fan-in, as many as the label
    with most of them has; the others have a weight of 0. Labels that share their sources get each
    its own. Of a head and a tail, the scores are made one after the other and put in the order of
    the labels, which takes twice their size besides.

    Arrays of more than 1 GiB lie in `<path>.data`, which belongs beside the file. Files are written
    whole or not at all. ValueError for arrays of another setup, for a `top_k` out of range, and for
    sparse features where labels read them without a layer between. ImportError without ONNX.
    """
    check_arrays(setup, arrays)
    if top_k is not None:
        setup.check_k(top_k)
    if sparse_features and not (setup.intermediate or setup.atoms):
        raise ValueError(
            "sparse features need an intermediate layer or a dictionary that reads them; this "
            "model takes dense ones in ONNX"
        )
    _write(_model(setup, top_k, sparse_features), lambda: _stored(setup, arrays), Path(path))


def export_one_versus_rest(
    setup: OneVersusRestSetup,
    arrays: Mapping[str, np.ndarray],
    path: Path | str,
    *,
    top_k: int | None = None,
) -> None:
    """Write a trained one-versus-rest model as an ONNX file.

    arrays: those of `OneVersusRest.weights`. The file's inputs are `columns` int64 and `values`
    float32, both [batch, stored], as `export` has them for sparse features; the model scales each
    instance to length 1 itself. Outputs, files and errors are those of `export`. When it runs,
    arrays [batch, inputs] and some of [batch, pairs] are made: give it few instances at a time.
    """
    check_words(setup.inputs, setup.labels, arrays)
    if top_k is not None:
        setup.check_k(top_k)
    _write(_words_model(setup, top_k), lambda: _stored_words(arrays), Path(path))


def _write(model: onnx.ModelProto, stored: Callable[[], Arrays], path: Path) -> None:
    """Write a model with the arrays that `stored` gives, one after the other, at each call."""
    beside = path.with_name(f"{path.name}.data")
    size = sum(array.nbytes for _, array in stored())
    if size <= MOST_BYTES_WITHIN:
        for name, array in stored():
            model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
        with naming(path), replacing(path) as made:
            made.write_bytes(model.SerializeToString())
        beside.unlink(missing_ok=True)  # of a larger model that was at this path
        return
    with naming(path), replacing(path) as made, replacing(beside) as made_beside:
        _write_beside(model, stored(), made_beside, beside.name)
        made.write_bytes(model.SerializeToString())
        path.unlink(missing_ok=True)  # an older model must never be read with the new arrays


def _model(setup: LayerSetup, top_k: int | None, sparse_features: bool) -> onnx.ModelProto:
    """The model without its arrays."""
    inputs = _SPARSE if sparse_features else f"float[batch, {setup.inputs}] features"
    outputs = _outputs(setup.labels, top_k)
    nodes = "\n  ".join(_nodes(setup, top_k, sparse_features))
    text = _MODEL.format(inputs=inputs, outputs=outputs, nodes=nodes)
    if not all(isinstance(part.kind, Dense) for part in setup.parts):
        text += _FAN_IN_LINEAR.format(index_type=index_dtype(setup.output_inputs).__name__)
    return onnx.parser.parse_model(text)


def _words_model(setup: OneVersusRestSetup, top_k: int | None) -> onnx.ModelProto:
    """A one-versus-rest model without its arrays."""
    result = "scores" if top_k is None else "all_scores"
    nodes = [
        "axis = Constant <value_ints = [1]> ()",
        "lengths = ReduceL2 (values, axis)",
        "zero = Constant <value_float = 0.0> ()",
        "one = Constant <value_float = 1.0> ()",
        "is_empty = Equal (lengths, zero)",
        "divisors = Where (is_empty, one, lengths)",
        "scaled = Div (values, divisors)",
        "batch_size = Shape <start = 0, end = 1> (values)",
        f"inputs = Constant <value_ints = [{setup.inputs}]> ()",
        "size = Concat <axis = 0> (batch_size, inputs)",
        "zeros = Expand (zero, size)",
        'features = ScatterElements <axis = 1, reduction = "add"> (zeros, columns, scaled)',
        f'{result} = fanin.OneVersusRest (features, "output.words", "output.label_ids", '
        '"output.weights", "output.bias")',
        *_best(result, top_k),
    ]
    outputs = _outputs(setup.labels, top_k)
    text = _MODEL.format(inputs=_SPARSE, outputs=outputs, nodes="\n  ".join(nodes))
    return onnx.parser.parse_model(text + _ONE_VERSUS_REST)


def _outputs(labels: int, top_k: int | None) -> str:
    if top_k is None:
        return f"float[batch, {labels}] scores"
    return f"float[batch, {top_k}] scores, int64[batch, {top_k}] label_ids"


def _best(scores: str, top_k: int | None) -> Iterator[str]:
    """The operators that choose the best labels, where they are wanted."""
    if top_k is not None:
        yield f"k = Constant <value_ints = [{top_k}]> ()"
        yield f"scores, label_ids = TopK ({scores}, k)"


def _nodes(setup: LayerSetup, top_k: int | None, sparse_features: bool) -> Iterator[str]:
    """The operators of the model, in the order of the data flow."""
    names = setup.array_shapes()
    read = "values" if sparse_features else "features"
    if SCALE in names:
        scale = f'"{SCALE}"'
        if sparse_features:
            yield f"value_scale = Gather ({scale}, columns)"
            scale = "value_scale"
        yield f"scaled = Mul ({read}, {scale})"
        read = "scaled"
    is_sparse = sparse_features
    for name, product in ((DICTIONARY, "atoms"), ("intermediate.weights", "sums")):
        if name not in names:
            continue
        if is_sparse:  # a sum of rows
            yield "axis = Constant <value_ints = [1]> ()"
            yield f"factors = Unsqueeze ({read}, axis)"
            yield f'rows = Gather ("{name}", columns)'
            yield "row_sums = MatMul (factors, rows)"
            yield f"{product} = Squeeze (row_sums, axis)"
        else:
            yield f'{product} = MatMul ({read}, "{name}")'
        read, is_sparse = product, False
    if setup.intermediate:
        yield f'biased = Add ({read}, "intermediate.bias")'
        yield "units = Relu (biased)"
        read = "units"
    result = "scores" if top_k is None else "all_scores"
    several = len(setup.parts) > 1
    for part in setup.parts:
        scores = f"{part.name}_scores" if several else result
        values = f'"{part.weights}", "{part.bias}"'
        if isinstance(part.kind, Dense):
            yield f"{scores} = Gemm ({read}, {values})"
        else:
            indices = part.outside("output.indices")
            yield f'{scores} = fanin.FanInLinear ({read}, "{indices}", {values})'
    if several:
        of_parts = ", ".join(f"{part.name}_scores" for part in setup.parts)
        yield f"by_position = Concat <axis = 1> ({of_parts})"
        yield f'{result} = Gather <axis = 1> (by_position, "{_POSITIONS}")'
    yield from _best(result, top_k)


def _stored_words(arrays: Mapping[str, np.ndarray]) -> Arrays:
    """The arrays of a one-versus-rest model as the file has them."""
    starts = arrays["output.starts"]
    yield "output.words", np.repeat(np.arange(len(starts) - 1, dtype=np.int32), np.diff(starts))
    yield "output.label_ids", np.asarray(arrays["output.label_ids"], np.int32)
    yield "output.weights", np.asarray(arrays["output.weights"], np.float32)
    yield "output.bias", np.asarray(arrays["output.bias"], np.float32)


def _stored(setup: LayerSetup, arrays: Mapping[str, np.ndarray]) -> Arrays:
    """The arrays as the file has them, one after the other; some are views, transposed."""
    of_outputs = {name for name in setup.array_shapes() for part in setup.parts if part.owns(name)}
    for name in setup.array_shapes():
        if name not in of_outputs and name != ORDER:
            yield name, np.asarray(arrays[name], np.float32)
    positions = LabelOrder.of(arrays[ORDER]).positions if ORDER in setup.array_shapes() else None
    if len(setup.parts) == 1:
        yield from _stored_layer(setup, setup.parts[0], arrays, positions)
        return
    for part in setup.parts:
        yield from _stored_layer(setup, part, arrays, None)
    assert positions is not None
    yield _POSITIONS, positions.astype(np.int64)


def _stored_layer(
    setup: LayerSetup, part: Part, arrays: Mapping[str, np.ndarray], positions: np.ndarray | None
) -> Arrays:
    """The arrays of an output layer, every label with its own sources. positions: where each label
    stands, to give it to the file by label; None to leave labels where they are."""

    def read(inside: str, dtype: Any = np.float32) -> np.ndarray:
        return np.asarray(arrays[part.outside(inside)], dtype)

    weights, bias = read("output.weights"), read("output.bias")
    index_type, group_size = index_dtype(setup.output_inputs), part.kind.group_size
    if positions is not None:
        weights, bias = weights[positions], bias[positions]
    yield part.bias, bias
    if isinstance(part.kind, Dense):
        yield part.weights, weights
    elif isinstance(part.kind, Unstructured):
        rows, columns = read("output.rows", np.int64), read("output.columns", index_type)
        names = part.outside("output.indices"), part.weights
        equal = _with_equal_fan_in(part.labels, rows, columns, weights)
        yield from zip(names, equal, strict=True)
    else:
        indices = read("output.indices", index_type)
        if group_size:
            places = np.arange(part.labels) if positions is None else positions
            indices = indices[places // group_size]
        yield part.outside("output.indices"), indices.T
        yield part.weights, weights.T


def _with_equal_fan_in(
    labels: int, rows: np.ndarray, columns: np.ndarray, weights: np.ndarray
) -> Iterator[np.ndarray]:
    """Unstructured connections as indices and weights [most connections of a label, labels]; those
    that are added read input 0 and have a weight of 0."""
    most = np.bincount(rows).max()
    slots = np.arange(len(rows)) % most  # differ within a label: its connections stand together
    for values in (columns, weights):
        padded = np.zeros((most, labels), values.dtype)
        padded[slots, rows] = values
        yield padded


def _write_beside(model: onnx.ModelProto, arrays: Arrays, path: Path, file_name: str) -> None:
    """Write arrays to `path`, and where they stand into the model, for a file of that name beside
    it."""
    with path.open("wb") as file:
        for name, array in arrays:
            file.seek(-(-file.tell() // _ALIGNMENT) * _ALIGNMENT)
            place = {"location": file_name, "offset": file.tell(), "length": array.nbytes}
            tensor = model.graph.initializer.add(
                name=name,
                dims=array.shape,
                data_type=onnx.helper.np_dtype_to_tensor_dtype(array.dtype),
                data_location=onnx.TensorProto.EXTERNAL,
            )
            for key, value in place.items():
                tensor.external_data.add(key=key, value=str(value))
            block = max(1, _BLOCK_BYTES // array[:1].nbytes)
            for first in range(0, len(array), block):
                file.write(np.ascontiguousarray(array[first : first + block]).data)
