"""Loads libfanin and speaks its C interface (`include/fanin.h`) through ctypes.

The framework adapters describe their tensors with `describe`, fill a parameter struct and hand it
to `call`; arrays are never copied and never owned.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib.resources
import json
import os
import platform
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

ABI_VERSION = 3

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


_WORKSPACE = (
    ("workspace", ctypes.c_void_p),
    ("workspace_bytes", ctypes.c_uint64),
    ("stream", ctypes.c_void_p),
)
_THREADS = ("threads", ctypes.c_int32)


def _tensors(*names: str) -> Iterator[tuple[str, type[ctypes.Structure]]]:
    return ((name, Tensor) for name in names)


class _Params(ctypes.Structure):
    def __init__(self, *values: Any, **named: Any) -> None:
        threads = named.get("threads", 0)
        if not -(2**31) <= threads < 2**31:  # of which ctypes would leave the upper bits out
            raise ValueError(f"threads must be 0 (all) or 1 to 1024, got {threads}")
        inputs = named.get("inputs", 1)
        if not -(2**63) <= inputs < 2**63:
            raise ValueError(f"inputs must be at least 1 and below 2^31, got {inputs}")
        super().__init__(*values, **named)


class ForwardParams(_Params):
    """`fanin_linear_forward_params`."""

    _fields_ = (
        *_tensors("features", "indices", "weights", "bias", "scores"),
        *_WORKSPACE,
        _THREADS,
    )


class BackwardParams(_Params):
    """`fanin_linear_backward_params`."""

    _fields_ = (
        *_tensors("grad_scores", "features", "indices", "weights"),
        *_tensors("grad_features", "grad_weights", "grad_bias"),
        *_WORKSPACE,
        _THREADS,
    )


class Trained(ctypes.Structure):
    """`fanin_trained`: an array with Adam's moments."""

    _fields_ = (*_tensors("values", "m", "v"),)


class Adam(ctypes.Structure):
    """`fanin_adam`: step counts from 1; seed is that of stochastic rounding."""

    _fields_ = (
        *((n, ctypes.c_double) for n in ("learning_rate", "beta1", "beta2", "epsilon")),
        ("step", ctypes.c_int64),
        ("seed", ctypes.c_uint64),
    )


class Connections(ctypes.Structure):
    """`fanin_connections`: dense, fixed fan-in, sorted or unstructured."""

    _fields_ = (*_tensors("indices", "starts", "rows"),)


LOSSES = {"squared_hinge": 1, "bce": 2}


class StepParams(_Params):
    """`fanin_step_params`."""

    _fields_ = (
        *_tensors("features"),
        ("connections", Connections),
        ("weights", Trained),
        ("bias", Trained),
        *_tensors("positive_rows", "positive_labels", "loss", "grad_features"),
        ("adam", Adam),
        ("loss_kind", ctypes.c_int32),
        _THREADS,
        *_WORKSPACE,
    )


class DenseForwardParams(_Params):
    """`fanin_dense_forward_params`."""

    _fields_ = (
        *_tensors("features", "weights", "bias", "outputs"),
        ("relu", ctypes.c_int32),
        _THREADS,
        *_WORKSPACE,
    )


class DenseUpdateParams(_Params):
    """`fanin_dense_update_params`."""

    _fields_ = (
        *_tensors("grad_outputs", "outputs", "features"),
        ("weights", Trained),
        ("bias", Trained),
        *_tensors("grad_features"),
        ("adam", Adam),
        _THREADS,
        *_WORKSPACE,
    )


class TopKParams(_Params):
    """`fanin_top_k_params`."""

    _fields_ = (
        *_tensors("features"),
        ("connections", Connections),
        *_tensors("weights", "bias", "ids", "scores"),
        _THREADS,
        *_WORKSPACE,
    )


class RewireParams(_Params):
    """`fanin_rewire_params`; `threshold` and `moved` are results."""

    _fields_ = (
        *_tensors("indices"),
        ("weights", Trained),
        ("inputs", ctypes.c_int64),
        ("fraction", ctypes.c_double),
        ("seed", ctypes.c_uint64),
        _THREADS,
        ("threshold", ctypes.c_double),
        ("moved", ctypes.c_int64),
        *_WORKSPACE,
    )


class SortParams(_Params):
    """`fanin_sort_params`."""

    _fields_ = (
        *_tensors("indices", "rows", "slots"),
        ("weights", Trained),
        ("inputs", ctypes.c_int64),
        ("undo", ctypes.c_int32),
        _THREADS,
        *_WORKSPACE,
    )


# The function of each parameter struct; `<function>_workspace` tells its scratch memory.
_FUNCTIONS: dict[type[ctypes.Structure], str] = {
    ForwardParams: "fanin_linear_forward",
    BackwardParams: "fanin_linear_backward",
    StepParams: "fanin_step",
    DenseForwardParams: "fanin_dense_forward",
    DenseUpdateParams: "fanin_dense_update",
    TopKParams: "fanin_top_k",
    RewireParams: "fanin_rewire",
    SortParams: "fanin_sort",
}


def absent() -> Tensor:
    """A tensor that is not there (an optional bias, a gradient that is not wanted)."""
    return Tensor(rank=-1)


@functools.lru_cache(maxsize=1024)
def _described(
    dtype: str, shape: tuple[int, ...], strides: tuple[int, ...], device: str, device_index: int
) -> bytes:
    known = min(len(shape), _MAX_RANK)
    return bytes(
        Tensor(
            dtype=_DTYPES.get(dtype, 0),
            device=_DEVICES.get(device, 0),
            rank=len(shape),
            device_index=device_index,
            shape=_Sizes(*shape[:known]),
            strides=_Sizes(*strides[:known]),
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
    """Describe a tensor. dtype: its NumPy name; shape and strides in elements; -1 where a size is
    not known yet. What the library does not take is passed on for it to name in its message."""
    # Step after step they look the same, and to make the struct anew takes longer than a small op.
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
    """The library at `path`, checked for its version; mode as ctypes.CDLL has it."""
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
    for params, name in _FUNCTIONS.items():
        getattr(library, name).argtypes = (ctypes.POINTER(params), *message)
        workspace = getattr(library, f"{name}_workspace")
        workspace.argtypes = (ctypes.POINTER(params),)
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
    """Labels in a tile of sorted connections (see fanin.h) of a layer with so many of both."""
    of_tile: int = load().fanin_sorted_labels(inputs, labels)
    return of_tile


def processor() -> str:
    """Name of this machine's CPU as the system has it, with family and model: a virtual machine's
    name, such as "AMD EPYC", may be that of generations one of which is twice as fast."""
    with contextlib.suppress(OSError):  # there is no such file elsewhere, nor in some sandboxes
        first = Path("/proc/cpuinfo").read_text().partition("\n\n")[0]
        pairs = (line.partition(":") for line in first.splitlines())
        of = {key.strip(): value.strip() for key, _, value in pairs}
        if "model name" in of and "cpu family" in of:
            return f"{of['model name']} (family {of['cpu family']}, model {of['model']})"
    return platform.processor() or "unknown"


def sorting_pays(inputs: int, cpu: str | None = None) -> bool:
    """Whether steps and predictions of a layer with so many inputs are faster with sorted
    connections (see fanin.h), on a CPU of that name, or on this machine's.

    Measured on two cores with 1 MiB of second-level cache each, fan-in 32, batch 32. Intel, Cascade
    Lake: slower with 2,048 inputs, faster from 4,096 on (features and their gradients, 256 bytes an
    input, fill three quarters of the cache with 3,072). AMD has a near third-level cache. Zen 4
    (family 25): as fast with 16,384 and 32,768 inputs, where unsorted connections take less memory;
    with 65,536 to 131,072 between 0.3 and 1.0 times the time, in the median of layers 0.6. Zen 5
    (family 26): 1.8 times as slow with 768 inputs, 1.4 times with 32,768, never faster up to
    131,072.
    """
    name = processor() if cpu is None else cpu
    if not name.startswith("AMD"):
        return inputs > 3072
    family = re.search(r"family (\d+)", name, re.IGNORECASE)
    return inputs > 32_768 and not (family and int(family[1]) >= 26)


def set_instruction_set(name: str) -> None:
    """Use "avx512", "avx2", "baseline" or "auto" (the best one) from now on, as the environment
    variable FANIN_INSTRUCTION_SET does from the start. ValueError where there is no such set,
    RuntimeError where it does not run here."""
    _call(load().fanin_set_instruction_set, name.encode())


def check(params: ForwardParams) -> None:
    """Check shapes, types and devices; reads no data, and sizes of -1 are skipped."""
    _call(load().fanin_linear_forward_check, ctypes.byref(params))


def workspace_bytes(params: ctypes.Structure) -> int:
    """Scratch memory that the function needs which the struct is for; reads no data. 0 where it
    would fail."""
    name = _FUNCTIONS[type(params)]
    size: int = getattr(load(), f"{name}_workspace")(ctypes.byref(params))
    return size


def call(params: ctypes.Structure, allocate: Callable[[int], tuple[int, Any]]) -> None:
    """Run the function that the struct is for. allocate(bytes) -> (pointer, owner) supplies scratch
    memory. Raises ValueError with the library's words where an argument is wrong."""
    library, name = load(), _FUNCTIONS[type(params)]
    reference = ctypes.byref(params)
    size = workspace_bytes(params)
    pointer, owner = allocate(size) if size else (None, None)
    params.workspace, params.workspace_bytes = pointer, size
    _call(getattr(library, name), reference)
    del owner  # kept alive until the call has returned
