"""Instances as JSON lines, read as they come:

    {"features": [0.5, 0, 1.25]}                  all inputs, in order
    {"indices": [2, 0], "values": [1.25, 0.5]}    those that are not 0

A line that is neither is a DataError that names the file and the line.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from io import BufferedIOBase
from typing import Any, BinaryIO

import numpy as np
from scipy import sparse

from fanin.datasets.dataset import DataError, Features
from fanin.datasets.file_errors import naming

# Bytes that one read asks for; instances in a block; bytes of the longest line.
_READ_BYTES, _BLOCK, MOST_LINE_BYTES = 1 << 20, 256, 64 << 20
_FORMS = '{"features": [...]} or {"indices": [...], "values": [...]}'


def read_instances(
    stream: BinaryIO | BufferedIOBase, name: str, inputs: int, *, as_sparse: bool
) -> Iterator[Features]:
    """The instances of a stream, float32 [block, inputs], CSR where wanted. A block ends where the
    stream has nothing more at the moment, so whoever writes a line gets an answer to it. name: of
    the file, for errors. Before a bad line raises DataError, the lines above it are handed on."""
    number = 0
    for lines in _blocks(stream, name):
        indices: list[np.ndarray] = []
        values: list[np.ndarray] = []
        failure: DataError | None = None
        for line in lines:
            number += 1
            try:
                own_indices, own_values = _parsed(line, inputs)
            except ValueError as error:
                failure = DataError(f"{name}, line {number}: {error}")
                break
            indices.append(own_indices)
            values.append(own_values)
        if indices:
            yield _features(indices, values, inputs, as_sparse)
        if failure:
            raise failure


def _blocks(stream: BinaryIO | BufferedIOBase, name: str) -> Iterator[list[bytes]]:
    """Lines without their ends. The last one may lack its end."""
    read = getattr(stream, "read1", stream.read)
    rest = b""
    count = 0
    while True:
        with naming(name):
            chunk: bytes = read(_READ_BYTES)
        *lines, rest = (rest + chunk).split(b"\n") if chunk else (rest, b"")
        if not chunk and lines == [b""]:
            return
        for first in range(0, len(lines), _BLOCK):
            yield lines[first : first + _BLOCK]
        count += len(lines)
        if not chunk:
            return
        if len(rest) > MOST_LINE_BYTES:
            raise DataError(
                f"{name}, line {count + 1}: longer than {MOST_LINE_BYTES >> 20} MiB: give each "
                "instance a line of its own"
            )


def _parsed(line: bytes, inputs: int) -> tuple[np.ndarray, np.ndarray]:
    """Ids of inputs, int64, and their values, float32. ValueError says what is wrong."""
    try:
        given = json.loads(line)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"no JSON ({error}); it must be {_FORMS}") from None
    if not isinstance(given, dict) or not ("features" in given) ^ ("values" in given):
        raise ValueError(f"must be {_FORMS}")
    if "features" in given:
        values = _numbers("features", given["features"])
        if len(values) != inputs:
            raise ValueError(f"features has {len(values)} numbers, and the model reads {inputs}")
        return np.arange(inputs), values
    values = _numbers("values", given["values"])
    indices = given.get("indices")
    if not isinstance(indices, list) or len(indices) != len(values):
        count = len(indices) if isinstance(indices, list) else "no"
        raise ValueError(f"there are {count} indices for {len(values)} values")
    for index in indices:
        if type(index) is not int or not 0 <= index < inputs:
            raise ValueError(f"indices has {index!r}; they must be in 0..{inputs - 1}")
    order = np.argsort(np.array(indices, np.int64))
    ordered = np.array(indices, np.int64)[order]
    repeated = ordered[1:][ordered[1:] == ordered[:-1]]
    if len(repeated):
        raise ValueError(f"indices has {repeated[0]} twice")
    return ordered, values[order]


def _numbers(name: str, given: Any) -> np.ndarray:
    if not isinstance(given, list):
        raise ValueError(f"{name} must be a list of numbers, got {type(given).__name__}")
    for value in given:
        if type(value) not in (int, float):
            raise ValueError(f"{name} has {value!r}, which is no number")
    try:
        with np.errstate(over="ignore"):
            numbers = np.array(given, np.float64).astype(np.float32)
    except OverflowError:
        numbers = np.array([math.inf], np.float32)
    if not np.isfinite(numbers).all():
        raise ValueError(f"{name} has a number that is not finite in float32")
    return numbers


def _features(
    indices: list[np.ndarray], values: list[np.ndarray], inputs: int, as_sparse: bool
) -> Features:
    starts = np.concatenate([[0], np.cumsum([len(each) for each in values])])
    parts = np.concatenate(values), np.concatenate(indices), starts
    features = sparse.csr_array(parts, shape=(len(values), inputs))
    return features if as_sparse else features.toarray()
