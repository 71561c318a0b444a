"""The device in torch: the arrays that it holds, and what measuring asks of it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, SupportsFloat

import numpy as np
import torch

from fanin.backends.interface import check_device


class TorchDevice:
    """See `fanin.backends.interface.Device`."""

    def __init__(self, name: str, threads: int) -> None:
        """name: "cpu", "cuda", or "auto" for a GPU where torch sees one. Sets the CPU threads of
        the process, 0 for all."""
        check_device(name)
        if threads:
            torch.set_num_threads(threads)
        if name == "auto":
            name = "cuda" if torch.cuda.is_available() else "cpu"
        if name == "cuda" and not torch.cuda.is_available():
            raise RuntimeError(
                "a GPU was asked for but torch sees none here: it needs an NVIDIA driver and a "
                "build of torch for CUDA (https://pytorch.org/get-started)"
            )
        self.torch = torch.device(name)
        self.is_cpu = self.torch.type == "cpu"

    def hold(self, array: np.ndarray, dtype: str) -> torch.Tensor:
        tensor = self.zeros(array.shape, dtype)
        self.write(tensor, array)
        return tensor

    def zeros(self, shape: tuple[int, ...], dtype: str) -> torch.Tensor:
        return torch.zeros(shape, dtype=getattr(torch, dtype), device=self.torch)

    def read(self, array: torch.Tensor) -> np.ndarray:
        array = array.detach()
        return (array.float() if array.dtype == torch.bfloat16 else array).cpu().numpy()

    @torch.no_grad()
    def write(self, target: torch.Tensor, array: np.ndarray) -> None:
        if target.dtype in (torch.uint16, torch.uint32):  # torch converts nothing to these
            array = array.astype(str(target.dtype).removeprefix("torch."), copy=False)
        target.copy_(torch.from_numpy(array if array.flags.writeable else array.copy()))

    def bytes(self, array: torch.Tensor) -> int:
        return array.nbytes

    def tensor(self, array: np.ndarray) -> torch.Tensor:
        """The array itself on a CPU; on a GPU a copy that nobody waits for: from memory that the
        driver has pinned, since from any other it would first wait for all that is queued."""
        array = np.ascontiguousarray(array)
        if not array.flags.writeable:  # torch would warn: it has no read-only tensors
            array = array.copy()
        tensor = torch.from_numpy(array)
        return tensor if self.is_cpu else tensor.pin_memory().to(self.torch, non_blocking=True)

    def number(self, loss: torch.Tensor) -> SupportsFloat:
        return loss.item() if self.is_cpu else loss.detach()

    def synchronize(self) -> None:
        if not self.is_cpu:
            torch.cuda.synchronize(self.torch)

    def mark(self) -> Any:
        if self.is_cpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self, marks: Sequence[Any]) -> list[float]:
        if not marks or self.is_cpu:
            return [after - before for before, after in pairwise(marks)]
        marks[-1].synchronize()
        return [before.elapsed_time(after) / 1e3 for before, after in pairwise(marks)]

    def description(self) -> dict[str, str]:
        name = str(self.torch)
        if not self.is_cpu:
            name += f" ({torch.cuda.get_device_name(self.torch)})"
        return {"framework": f"torch {torch.__version__}", "device": name}

    def memory(self) -> dict[str, int | None]:
        if self.is_cpu:
            return {"allocator_peak_bytes": None, "allocator_reserved_bytes": None}
        return {
            "allocator_peak_bytes": torch.cuda.max_memory_allocated(self.torch),
            "allocator_reserved_bytes": torch.cuda.max_memory_reserved(self.torch),
        }
