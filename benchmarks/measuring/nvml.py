"""The GPU's memory through NVML, sampled by a small process of its own.

A thread of the training process would get no turn while that is busy, miss the peak, and add to
what is measured. `Sampler` therefore starts `python -m fanin.benchmarks.measuring.nvml PID`, which looks
every few milliseconds and keeps the peaks. Each line of its standard input makes it look at once
and answer by a line of JSON; when standard input ends, so does it. It imports pynvml and the
standard library alone.
"""

from __future__ import annotations

import functools
import json
import os
import queue
import select
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple

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
        # Other descriptors, such as a run's lock, are closed in it; Ctrl-C is not for it.
        self._child = subprocess.Popen(
            [sys.executable, "-P", "-m", "fanin.benchmarks.measuring.nvml", str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
            bufsize=0,
        )
        self.figures(_START_SECONDS)

    def figures(self, patience: float = _ANSWER_SECONDS) -> Figures:
        """Let it look now; what was seen since the start. Waits `patience` seconds at most."""
        if self._error is None:
            try:
                return self._ask(patience)
            except (OSError, ValueError) as error:
                self._error = f"the NVML sampler failed: {error}"
                self._child.kill()
        return Figures(None, None, self._error)

    def _ask(self, patience: float) -> Figures:
        asking, answering = self._child.stdin, self._child.stdout
        assert asking is not None and answering is not None
        asking.write(b"look\n")
        waiting = select.poll()
        waiting.register(answering, select.POLLIN)
        if not waiting.poll(1000 * patience):
            raise TimeoutError(f"no answer within {patience:g} seconds")
        line = answering.readline()
        if not line:
            raise ValueError("it ended; what it said is in the output of this process")
        return Figures(**json.loads(line))

    def close(self) -> None:
        """End the sampler."""
        assert self._child.stdin is not None and self._child.stdout is not None
        self._child.stdin.close()
        try:
            self._child.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            self._child.kill()
            # What hangs in the driver may outlive even this; the run does not wait for it.
            with suppress(subprocess.TimeoutExpired):
                self._child.wait(_END_SECONDS)
        self._child.stdout.close()


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
            found = self._ask()
        except Exception as error:  # also what pynvml has for a driver that is too old
            self.value, self.error = None, f"{type(error).__name__}: {error}"
            return
        if found is not None:
            self.value = found if self.value is None else max(self.value, found)


def _serve(pid: int) -> None:
    """Sample for that process until standard input ends."""
    import pynvml

    requests: queue.SimpleQueue[None] = queue.SimpleQueue()

    def listen() -> None:
        # A thread of its own, so that this process ends with its parent also while NVML hangs. One
        # read is one request: the next comes after the answer only.
        while os.read(0, 100):
            requests.put(None)
        os._exit(0)

    gpu = functools.cache(first_gpu)

    def device_bytes() -> int:
        return int(pynvml.nvmlDeviceGetMemoryInfo(gpu()).used)

    def process_bytes() -> int | None:
        found = pynvml.nvmlDeviceGetComputeRunningProcesses(gpu())
        used = [process.usedGpuMemory for process in found if process.pid == pid]
        return sum(used) if used and None not in used else None

    threading.Thread(target=listen, daemon=True).start()
    device, process = _Peak(device_bytes), _Peak(process_bytes)
    device.look()
    start = device.value or 0
    while True:
        try:
            requests.get(timeout=_SAMPLE_SECONDS)
            asked = True
        except queue.Empty:
            asked = False
        device.look()
        process.look()
        if asked:
            delta = None if device.value is None else device.value - start
            figures = Figures(delta, process.value, device.error or process.error)
            print(json.dumps(figures._asdict()), flush=True)


if __name__ == "__main__":
    _serve(int(sys.argv[1]))
