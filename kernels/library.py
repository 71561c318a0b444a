"""Loads libfanin and calls its C interface (`include/fanin.h`) through ctypes.

An adapter of a framework describes its tensors with `describe`, fills a struct of `params` and
hands it to `call`. Arrays are never copied and never owned.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.resources
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fanin.kernels.params import MAX_RANK, PARAMS, ForwardParams, Params, Sizes, Tensor

ABI_VERSION = 13

# In the order of fanin_dtype, from 1.
_DTYPE_NAMES = (
    *("float32", "float64", "uint16", "uint32", "float16", "bfloat16", "uint8", "uint64"),
    *("int8", "int16", "int32", "int64", "bool"),
)
_DTYPES = {name: code for code, name in enumerate(_DTYPE_NAMES, start=1)}
_DEVICES = {"cpu": 1, "cuda": 2}
_STATUS_ERRORS: dict[int, type[Exception]] = {1: ValueError, 2: RuntimeError, 3: RuntimeError}


def absent() -> Tensor:
    """What stands for a missing tensor: an optional bias, or a gradient that nobody wants."""
    return Tensor(rank=-1)


@functools.lru_cache(maxsize=1024)
def _described(
    dtype: str, shape: tuple[int, ...], strides: tuple[int, ...], device: str, device_index: int
) -> bytes:
    known = min(len(shape), MAX_RANK)
    return bytes(
        Tensor(
            dtype=_DTYPES.get(dtype, 0),
            device=_DEVICES.get(device, 0),
            rank=len(shape),
            device_index=device_index,
            shape=Sizes(*shape[:known]),
            strides=Sizes(*strides[:known]),
        )
    )


def describe(
    pointer: int | None,
    dtype: str,
    shape: Sequence[int],
    strides: Sequence[int],
    device: str = "cpu",
    device_index: int = 0,
) -> Tensor:
    """Describe a tensor. dtype: its NumPy name. shape and strides count elements; a size that is
    not known yet is -1. Types and devices that the library does not take are passed on, so that its
    message can name them."""
    # Tensors look the same step after step, and making the struct takes longer than a small op.
    tensor = Tensor.from_buffer_copy(
        _described(dtype, tuple(shape), tuple(strides), device, device_index)
    )
    tensor.data = pointer
    return tensor


def library_path() -> Path:
    """Where libfanin lies; FileNotFoundError says how to build it."""
    if override := os.environ.get("FANIN_LIBRARY"):
        path = Path(override)
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file; correct FANIN_LIBRARY or unset it")
        return path
    name = "libfanin.dylib" if sys.platform == "darwin" else "libfanin.so"
    # In an editable install the library is not beside this file, but importlib finds it.
    path = Path(str(importlib.resources.files("fanin.kernels").joinpath(name)))
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: the fanin library is not built; install the project (`pip install .`), or "
            "build kernels/ with CMake and set FANIN_LIBRARY to the file"
        )
    return path


def open_library(path: Path, mode: int) -> ctypes.CDLL:
    """Open the library at `path` and check its version. mode: that of ctypes.CDLL."""
    library = ctypes.CDLL(str(path), mode=mode)
    if not hasattr(library, "fanin_abi_version"):
        raise ImportError(f"{path} is no library of fanin; correct FANIN_LIBRARY or unset it")
    library.fanin_abi_version.restype = ctypes.c_int32
    if (version := library.fanin_abi_version()) != ABI_VERSION:
        raise ImportError(
            f"{path} has interface version {version} but this fanin needs {ABI_VERSION}: "
            "reinstall fanin so that both come from one version"
        )
    library.fanin_version.restype = ctypes.c_char_p
    library.fanin_build_info.restype = ctypes.c_char_p
    library.fanin_sorted_labels.argtypes = (ctypes.c_int64, ctypes.c_int64)
    library.fanin_sorted_labels.restype = ctypes.c_int64
    message = (ctypes.c_char_p, ctypes.c_size_t)
    library.fanin_set_instruction_set.argtypes = (ctypes.c_char_p, *message)
    for params in PARAMS:
        pointer = ctypes.POINTER(params)
        getattr(library, params.FUNCTION).argtypes = (pointer, *message)
        workspace = getattr(library, f"{params.FUNCTION}_workspace")
        workspace.argtypes = (pointer,)
        workspace.restype = ctypes.c_uint64
    library.fanin_linear_forward_check.argtypes = (ctypes.POINTER(ForwardParams), *message)
    return library


@functools.cache
def load() -> ctypes.CDLL:
    """The library in use, loaded once."""
    # RTLD_GLOBAL: the TensorFlow op finds the fanin_* symbols in the process.
    return open_library(library_path(), ctypes.RTLD_GLOBAL)


_Message = ctypes.c_char * 512


def _call(function: Callable[..., int], *arguments: Any) -> None:
    """Call a C function that ends in (message, bytes); raise what it reports."""
    message = _Message()
    if status := function(*arguments, message, len(message)):
        raise _STATUS_ERRORS.get(status, RuntimeError)(message.value.decode())


def build_info() -> dict[str, Any]:
    """What was built and what is used here.

    version; cuda: list of GPU architectures compiled in, empty without CUDA; openmp;
    instruction_sets: usable on this machine, best first; instruction_set: the one in use. Raises
    what `set_instruction_set` does where FANIN_INSTRUCTION_SET names none that runs here.
    """
    library = load()
    info: dict[str, Any] = json.loads(library.fanin_build_info())
    if info["instruction_set"] is None:
        set_instruction_set(os.environ["FANIN_INSTRUCTION_SET"])  # fails again, and says why
    return {"version": library.fanin_version().decode(), **info}


def sorted_labels(inputs: int, labels: int) -> int:
    """How many labels a tile of sorted connections has (see fanin.h) in a layer of this size."""
    tile: int = load().fanin_sorted_labels(inputs, labels)
    return tile


def set_instruction_set(name: str) -> None:
    """Use "avx512", "avx2", "baseline" or "auto" (the best one) from now on, as the environment
    variable FANIN_INSTRUCTION_SET does from the start. ValueError where there is no such set,
    RuntimeError where it does not run here."""
    _call(load().fanin_set_instruction_set, name.encode())


def check(params: ForwardParams) -> None:
    """Check shapes, types and devices. Reads no data; sizes of -1 are skipped."""
    _call(load().fanin_linear_forward_check, ctypes.byref(params))


def workspace_bytes(params: Params) -> int:
    """The scratch memory that a call with these parameters needs, in bytes; 0 where it would fail.
    Reads no data."""
    size: int = getattr(load(), f"{params.FUNCTION}_workspace")(ctypes.byref(params))
    return size


def call(params: Params, allocate: Callable[[int], tuple[int, Any]]) -> None:
    """Run the function that takes these parameters. allocate(bytes) -> (pointer, owner) supplies
    scratch memory. Raises ValueError with the library's words where an argument is wrong."""
    size = workspace_bytes(params)
    pointer, owner = allocate(size) if size else (None, None)
    params.resources.workspace, params.resources.workspace_bytes = pointer, size
    _call(getattr(load(), params.FUNCTION), ctypes.byref(params))
    del owner  # it was kept alive until the call returned
