"""The GPU's memory through NVML, sampled by a small process of its own.

A thread of the training process would get no turn while that is busy, miss the peak, and add to
what is measured. `Sampler` therefore starts this module as a child process, which looks every few
milliseconds and keeps the peaks; each message makes it look at once and answer with them. It
imports pynvml and the standard library alone.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

from fanin.benchmarks.measuring.process import Child, EndedError, Parent

_SAMPLE_SECONDS = 0.005
# How long the sampler is waited for at most: loading the driver takes seconds on some machines.
_START_SECONDS, _ANSWER_SECONDS, _END_SECONDS = 30.0, 10.0, 2.0


class Figures(NamedTuple):
    """What NVML has seen since the sampler began; bytes, None where it could not say."""

    device_delta: int | None
    process_peak: int | None
    error: str | None


def first_gpu() -> Any:
    """NVML's handle of the GPU that CUDA counts first, which both frameworks take: the first entry
    of CUDA_VISIBLE_DEVICES (an index, or a UUID in full), else the first GPU.

    NVML counts in the order of the PCI bus, as CUDA does among equal GPUs; where they differ, only
    with CUDA_DEVICE_ORDER=PCI_BUS_ID. Raises pynvml.NVMLError where there is no such GPU.
    """
    import pynvml

    pynvml.nvmlInit()
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES", "0").partition(",")[0].strip()
    if chosen.startswith(("GPU-", "MIG-")):
        return pynvml.nvmlDeviceGetHandleByUUID(chosen)
    if not chosen.isdecimal():  # empty or -1: none is visible
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
    return pynvml.nvmlDeviceGetHandleByIndex(int(chosen))


# The parent -------------------------------------------------------------------------------------


class Sampler:
    """Samples `first_gpu` in a process of its own until it is closed; its start is the zero of
    `Figures.device_delta`, and this process is the one of `Figures.process_peak`.

    Whatever happens to that process or to NVML, nothing is raised and no wait is without end: the
    figures are None, with the reason beside them.
    """

    def __init__(self) -> None:
        self._error: str | None = None
        self._child = Child("fanin.benchmarks.measuring.nvml", str(os.getpid()))
        self.figures(_START_SECONDS)

    def figures(self, patience: float = _ANSWER_SECONDS) -> Figures:
        """Let it look now; what was seen since the start. Waits `patience` seconds at most."""
        if self._error is None:
            try:
                self._child.send("look")
                return Figures(**self._child.receive(patience))
            except (OSError, ValueError, EndedError) as error:
                self._error = f"the NVML sampler failed: {error}"
                self._child.kill()
        return Figures(None, None, self._error)

    def close(self) -> None:
        """End the sampler."""
        self._child.close(_END_SECONDS)


# The sampler ------------------------------------------------------------------------------------


class _Peak:
    """The largest answer to a question that NVML is asked again and again.

    From the first error on it is None, since a later peak would have been missed, and NVML is left
    alone.
    """

    def __init__(self, ask: Callable[[], int | None]) -> None:
        self._ask = ask
        self.value: int | None = None
        self.error: str | None = None

    def look(self) -> None:
        if self.error is not None:
            return
        try:
            answer = self._ask()
        except Exception as error:  # also what pynvml has for a driver that is too old
            self.value, self.error = None, f"{type(error).__name__}: {error}"
            return
        if answer is not None:
            self.value = answer if self.value is None else max(self.value, answer)


def _sample_for(pid: int, parent: Parent) -> None:
    """Sample the memory of the device and of that process, and answer the parent."""
    import pynvml

    gpu = functools.cache(first_gpu)

    def device_bytes() -> int:
        return int(pynvml.nvmlDeviceGetMemoryInfo(gpu()).used)

    def process_bytes() -> int | None:
        processes = pynvml.nvmlDeviceGetComputeRunningProcesses(gpu())
        used = [process.usedGpuMemory for process in processes if process.pid == pid]
        return sum(used) if used and None not in used else None

    device, process = _Peak(device_bytes), _Peak(process_bytes)
    device.look()
    start = device.value or 0
    while True:
        try:
            parent.receive(_SAMPLE_SECONDS)
            is_asked = True
        except TimeoutError:
            is_asked = False
        device.look()
        process.look()
        if is_asked:
            delta = None if device.value is None else device.value - start
            figures = Figures(delta, process.value, device.error or process.error)
            parent.send(figures._asdict())


if __name__ == "__main__":
    _sample_for(int(sys.argv[1]), Parent(int(sys.argv[2])))
