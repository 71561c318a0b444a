"""What both executions ask torch about the device."""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, SupportsFloat

import numpy as np
import torch


def prepare_device(device: str, threads: int) -> torch.device:
    """ "cpu", "cuda", or "auto" for a GPU where torch sees one; sets the CPU threads, 0 for all."""
    if threads:
        torch.set_num_threads(threads)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise RuntimeError(
            "a GPU was asked for but torch sees none here: it needs an NVIDIA driver and a build "
            "of torch for CUDA (https://pytorch.org/get-started)"
        )
    return torch.device(device)


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def to_device(array: np.ndarray, device: torch.device) -> torch.Tensor:
    """The array itself on a CPU; on a GPU a copy that nobody waits for: from memory that the driver
    has pinned, since from any other it would first wait for all that is queued."""
    array = np.ascontiguousarray(array)
    if not array.flags.writeable:  # torch would warn: it has no read-only tensors
        array = array.copy()
    tensor = torch.from_numpy(array)
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)


def mark(device: torch.device) -> Any:
    """See `fanin.backends.interface.Trainer`."""
    if device.type == "cpu":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def seconds(marks: Sequence[Any]) -> list[float]:
    """See `fanin.backends.interface.Trainer`."""
    if not marks or isinstance(marks[0], float):
        return [after - before for before, after in pairwise(marks)]
    marks[-1].synchronize()
    return [before.elapsed_time(after) / 1e3 for before, after in pairwise(marks)]


def loss_number(loss: torch.Tensor) -> SupportsFloat:
    """A loss as a number, but on a GPU, where that would wait, as it is.

    A tensor of four bytes that is kept, step after step, between large ones that are freed also
    keeps the C library from using their memory again: a run would grow without end.
    """
    return loss.item() if loss.device.type == "cpu" else loss.detach()


def description(device: torch.device) -> dict[str, str]:
    """Framework with its version, and device."""
    name = str(device)
    if device.type == "cuda":
        name += f" ({torch.cuda.get_device_name(device)})"
    return {"framework": f"torch {torch.__version__}", "device": name}


def device_memory(device: torch.device) -> dict[str, int | None]:
    """What torch's allocator had in use and held at most; None on a CPU."""
    if device.type != "cuda":
        return {"allocator_peak_bytes": None, "allocator_reserved_bytes": None}
    return {
        "allocator_peak_bytes": torch.cuda.max_memory_allocated(device),
        "allocator_reserved_bytes": torch.cuda.max_memory_reserved(device),
    }
