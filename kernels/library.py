"""Loads libfanin and speaks its C interface (`include/fanin.h`) through ctypes.

The framework adapters describe their tensors with `describe` and call `forward` and `backward`
here; arrays are never copied and never owned.
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

ABI_VERSION = 1

# In the order of fanin_dtype, from 1.
_DTYPE_NAMES = (
    *("float32", "float64", "uint16", "uint32", "float16", "bfloat16", "uint8", "uint64"),
    *("int8", "int16", "int32", "int64", "bool"),
)
_DTYPES = {name: code for code, name in enumerate(_DTYPE_NAMES, start=1)}
_DEVICES = {"cpu": 1, "cuda": 2}
_STATUS_ERRORS: dict[int, type[Exception]] = {1: ValueError, 2: RuntimeError, 3: RuntimeError}
_MAX_RANK = 4
_Sizes = ctypes.c_int64 * _MAX_RANK


class Tensor(ctypes.Structure):
    """`fanin_tensor`: where a tensor lies and what it looks like."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("dtype", ctypes.c_int32),
        ("device", ctypes.c_int32),
        ("rank", ctypes.c_int32),
        ("device_index", ctypes.c_int32),
        ("shape", _Sizes),
        ("strides", _Sizes),
    )


class _Scratch:
    """The fields that end every parameter struct."""

    fields = (
        ("workspace", ctypes.c_void_p),
        ("workspace_bytes", ctypes.c_uint64),
        ("stream", ctypes.c_void_p),
        ("threads", ctypes.c_int32),
    )


class ForwardParams(ctypes.Structure):
    """`fanin_linear_forward_params`."""

    _fields_ = (
        *((name, Tensor) for name in ("features", "indices", "weights", "bias", "scores")),
        *_Scratch.fields,
    )


class BackwardParams(ctypes.Structure):
    """`fanin_linear_backward_params`."""

    _fields_ = (
        *(
            (name, Tensor)
            for name in (
                "grad_scores",
                "features",
                "indices",
                "weights",
                "grad_features",
                "grad_weights",
                "grad_bias",
            )
        ),
        *_Scratch.fields,
    )


def absent() -> Tensor:
    """A tensor that is not there (an optional bias, a gradient that is not wanted)."""
    return Tensor(rank=-1)


def describe(
    pointer: int | None,
    dtype: str,
    shape: Sequence[int],
    strides: Sequence[int],
    device: str = "cpu",
    device_index: int = 0,
) -> Tensor:
    """Describe a tensor. dtype: its NumPy name; shape and strides in elements; -1 where a size is
    not known yet. What the library does not take is passed on for it to name in its message."""
    rank = len(shape)
    known = min(rank, _MAX_RANK)
    return Tensor(
        data=pointer,
        dtype=_DTYPES.get(dtype, 0),
        device=_DEVICES.get(device, 0),
        rank=rank,
        device_index=device_index,
        shape=_Sizes(*shape[:known]),
        strides=_Sizes(*strides[:known]),
    )


def library_path() -> Path:
    """Where libfanin lies; FileNotFoundError says how to build it."""
    if override := os.environ.get("FANIN_LIBRARY"):
        return Path(override)
    name = "libfanin.dylib" if sys.platform == "darwin" else "libfanin.so"
    # In an editable install the library is not beside this file, but importlib finds it.
    path = Path(str(importlib.resources.files("fanin.kernels").joinpath(name)))
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: the fanin library is not built; install the project (`pip install .`), or "
            "build kernels/ with CMake and set FANIN_LIBRARY to the file"
        )
    return path


@functools.cache
def load() -> ctypes.CDLL:
    """The library, loaded once and checked for its version."""
    path = library_path()
    # RTLD_GLOBAL: the TensorFlow op finds the fanin_* symbols in the process.
    library = ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
    library.fanin_abi_version.restype = ctypes.c_int32
    if (version := library.fanin_abi_version()) != ABI_VERSION:
        raise ImportError(
            f"{path} has interface version {version} but this fanin needs {ABI_VERSION}: "
            "reinstall fanin so that both come from one version"
        )
    library.fanin_version.restype = ctypes.c_char_p
    library.fanin_build_info.restype = ctypes.c_char_p
    message = (ctypes.c_char_p, ctypes.c_size_t)
    library.fanin_set_instruction_set.argtypes = (ctypes.c_char_p, *message)
    for op, params in (("forward", ForwardParams), ("backward", BackwardParams)):
        getattr(library, f"fanin_linear_{op}").argtypes = (ctypes.POINTER(params), *message)
        workspace = getattr(library, f"fanin_linear_{op}_workspace")
        workspace.argtypes = (ctypes.POINTER(params),)
        workspace.restype = ctypes.c_uint64
    library.fanin_linear_forward_check.argtypes = (ctypes.POINTER(ForwardParams), *message)
    return library


def _call(function: Callable[..., int], *arguments: Any) -> None:
    """Call a C function that ends in (message, bytes); raise what it reports."""
    message = ctypes.create_string_buffer(512)
    if status := function(*arguments, message, len(message)):
        raise _STATUS_ERRORS.get(status, RuntimeError)(message.value.decode())


def build_info() -> dict[str, Any]:
    """What was built and what is used here.

    version; cuda: list of GPU architectures compiled in, empty without CUDA; openmp;
    instruction_sets: usable on this machine, best first; instruction_set: the one in use.
    """
    library = load()
    info: dict[str, Any] = json.loads(library.fanin_build_info())
    return {"version": library.fanin_version().decode(), **info}


def set_instruction_set(name: str) -> None:
    """Use "avx512", "avx2", "baseline" or "auto" (the best one) from now on, as the environment
    variable FANIN_INSTRUCTION_SET does from the start. RuntimeError where it does not run here."""
    _call(load().fanin_set_instruction_set, name.encode())


def check(params: ForwardParams) -> None:
    """Check shapes, types and devices; reads no data, and sizes of -1 are skipped."""
    _call(load().fanin_linear_forward_check, ctypes.byref(params))


def forward(params: ForwardParams, allocate: Callable[[int], tuple[int, Any]]) -> None:
    """Run the forward pass. allocate(bytes) -> (pointer, owner) supplies scratch memory."""
    _run("forward", params, allocate)


def backward(params: BackwardParams, allocate: Callable[[int], tuple[int, Any]]) -> None:
    """Run the backward pass; `allocate` as in `forward`."""
    _run("backward", params, allocate)


def _run(
    op: str, params: ForwardParams | BackwardParams, allocate: Callable[[int], tuple[int, Any]]
) -> None:
    library = load()
    reference = ctypes.byref(params)
    size = getattr(library, f"fanin_linear_{op}_workspace")(reference)
    pointer, owner = allocate(size) if size else (None, None)
    params.workspace, params.workspace_bytes = pointer, size
    _call(getattr(library, f"fanin_linear_{op}"), reference)
    del owner  # kept alive until the call has returned
