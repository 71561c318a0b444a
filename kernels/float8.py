"""Weights in float8: rows of a byte for each weight, in E4M3, and one for the scale of them all.
`include/fanin_training.h` says what a byte means. A step rounds stochastically; here is how a row
begins and how it is read, in NumPy."""

from __future__ import annotations

import numpy as np

# Of the smallest scale, 2^-100.
_LEAST = 27
# Rows are converted so many weights at a time: temporary arrays stay small.
_BLOCK = 1 << 20


def _values() -> np.ndarray:
    """The numbers of E4M3, by their byte: float32 [256]."""
    byte = np.arange(128)
    exponent, mantissa = byte >> 3, byte & 7
    values = np.where(exponent > 0, 8 + mantissa, mantissa) * 2.0 ** (np.maximum(exponent, 1) - 10)
    values[127] = np.nan
    return np.concatenate([values, -values]).astype(np.float32)


_VALUES = _values()


def to_float8(weights: np.ndarray) -> np.ndarray:
    """Weights, float32 [labels, fan_in], as rows in float8, uint8 [labels, fan_in + 1]. Each is
    rounded to the nearest number, a tie to the even byte, in the smallest scale, but at least
    2^-100, in which no |weight| of its row is above 448. What is not finite becomes NaN. ValueError
    for arrays of another shape or type."""
    if not isinstance(weights, np.ndarray) or weights.ndim != 2 or weights.dtype != np.float32:
        raise ValueError(f"weights must be float32 [labels, fan_in], got {_form(weights)}")
    labels, fan_in = weights.shape
    if not fan_in:
        raise ValueError("fan_in must be at least 1, but weights have 0 columns")
    rows = np.empty((labels, fan_in + 1), np.uint8)
    for block in _blocks(labels, fan_in):
        rows[block] = _rounded(np.ascontiguousarray(weights[block]))
    return rows


def from_float8(rows: np.ndarray) -> np.ndarray:
    """The weights of rows in float8, float32 [labels, fan_in]. ValueError for arrays of another
    shape or type."""
    if not isinstance(rows, np.ndarray) or rows.ndim != 2 or rows.dtype != np.uint8:
        raise ValueError(f"rows must be uint8 [labels, fan_in + 1], got {_form(rows)}")
    labels, fan_in = rows.shape[0], rows.shape[1] - 1
    if fan_in < 1:
        raise ValueError(f"rows must be of at least 2 bytes, got {rows.shape[1]}")
    weights = np.empty((labels, fan_in), np.float32)
    for block in _blocks(labels, fan_in):
        scale = (rows[block, -1:].astype(np.uint32) << 23).view(np.float32)
        np.multiply(_VALUES[rows[block, :-1]], scale, out=weights[block])
    return weights


def _form(array: object) -> str:
    if not isinstance(array, np.ndarray):
        return type(array).__name__
    return f"{array.dtype} {list(array.shape)}"


def _blocks(labels: int, fan_in: int) -> list[slice]:
    size = max(1, _BLOCK // fan_in)
    return [slice(first, first + size) for first in range(0, labels, size)]


def _rounded(weights: np.ndarray) -> np.ndarray:
    largest = (weights.view(np.uint32) & 0x7FFFFFFF).max(1, keepdims=True)
    # One more from 1.75 * a power of two on: 448 is 1.75 * 2^8.
    scale = np.maximum((largest + 0x1FFFFF) >> 23, _LEAST + 8) - 8
    scaled = np.abs(weights) * ((254 - scale) << 23).astype(np.uint32).view(np.float32)
    is_number = np.isfinite(weights)
    scaled[~is_number] = 0
    # Between powers of two numbers are equally far from each other, and below 2^-6 too.
    unit = np.ldexp(np.float32(1), np.maximum(np.frexp(scaled)[1] - 1, -6) - 3)
    code = np.searchsorted(_VALUES[:127], np.rint(scaled / unit) * unit).astype(np.uint8)
    code[~is_number] = 0x7F
    return np.concatenate([code | np.signbit(weights) * np.uint8(0x80), scale.astype(np.uint8)], 1)
