"""Trained arrays on a device, which has rows in float8 as bytes, while what passes in and out is
float32."""

from __future__ import annotations

import numpy as np

from fanin.backends.interface import Device, DeviceArray
from fanin.kernels import from_float8, to_float8


def hold(device: Device, array: np.ndarray, dtype: str) -> DeviceArray:
    """A copy of an array, as `dtype`, in the framework's memory."""
    return device.hold(_stored(array, dtype), "uint8" if dtype == "float8" else dtype)


def shape_of(array: DeviceArray, dtype: str) -> tuple[int, ...]:
    """The shape that passes in and out: without the scale at the end of each row in float8."""
    *rows, row = array.shape
    return (*rows, row - (dtype == "float8"))


def read(device: Device, array: DeviceArray, dtype: str) -> np.ndarray:
    """The array in NumPy, float32; may be a view."""
    values = device.read(array)
    return from_float8(values) if dtype == "float8" else values


def write(device: Device, target: DeviceArray, array: np.ndarray, dtype: str) -> None:
    """Overwrite an array on the device."""
    device.write(target, _stored(array, dtype))


def _stored(array: np.ndarray, dtype: str) -> np.ndarray:
    """An array as the device takes it, which converts all types but float8 itself."""
    return to_float8(np.asarray(array, np.float32)) if dtype == "float8" else array


def changed(array: np.ndarray, positions: np.ndarray, new: np.ndarray | float) -> np.ndarray:
    """The array, or a copy where it cannot be written to, with new values at flat positions."""
    if not array.flags.writeable:
        array = array.copy()
    array.reshape(-1)[positions] = new
    return array
