"""Trained arrays on a device, by how they are stored: rows in float8 are bytes there, and what
passes in and out is float32."""

from __future__ import annotations

import numpy as np

from fanin.backends.interface import Device, DeviceArray
from fanin.kernels import from_float8, to_float8


def hold(device: Device, array: np.ndarray, dtype: str) -> DeviceArray:
    """A copy of an array, as `dtype`, in the framework's memory."""
    if dtype == "float8":
        return device.hold(to_float8(np.ascontiguousarray(array, np.float32)), "uint8")
    return device.hold(array, dtype)


def shape_of(array: DeviceArray, dtype: str) -> tuple[int, ...]:
    """As it passes in and out; a row in float8 has its scale behind its numbers."""
    *rows, row = array.shape
    return (*rows, row - (dtype == "float8"))


def read(device: Device, array: DeviceArray, dtype: str) -> np.ndarray:
    """The array in NumPy, float32; may be a view."""
    values = device.read(array)
    return from_float8(values) if dtype == "float8" else values


def write(device: Device, target: DeviceArray, array: np.ndarray, dtype: str) -> None:
    """Overwrite an array on the device."""
    if dtype == "float8":
        array = to_float8(np.ascontiguousarray(array, np.float32))
    device.write(target, array)


def changed(array: np.ndarray, positions: np.ndarray, new: np.ndarray | float) -> np.ndarray:
    """The array, or a copy where it cannot be written to, with new values at flat positions."""
    if not array.flags.writeable:
        array = array.copy()
    array.reshape(-1)[positions] = new
    return array
