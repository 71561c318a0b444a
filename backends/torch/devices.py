"""What both executions ask torch about the device."""

from __future__ import annotations

from typing import SupportsFloat

import torch


def prepare_device(device: str, threads: int) -> torch.device:
    """ "cpu", "cuda", or "auto" for a GPU where torch sees one; sets the CPU threads, 0 for all."""
    if threads:
        torch.set_num_threads(threads)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise RuntimeError("device cuda was asked for but torch sees no GPU")
    return torch.device(device)


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


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
