"""Peak memory of a process and of its GPU.

Every figure answers one question, and is None where this machine cannot answer it.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from fanin.backends.trainer import Trainer
from fanin.benchmarks.measuring import machine, nvml
from fanin.benchmarks.records.base import Memory

_SAMPLE_SECONDS = 0.05


class MemoryWatch:
    """Peak memory of this process and of the GPU, from its making to `result`.

    On Linux the kernel keeps the peak resident set exactly (VmHWM, reset at the start); elsewhere
    it is sampled. The GPU is sampled through NVML by a process of its own (`nvml`), where there is
    one: device-wide and for this process, since process ids often do not match inside containers.
    """

    def __init__(self) -> None:
        self._nvml = nvml.Sampler() if machine.gpu_name() is not None else None
        self._process = psutil.Process()
        _give_back()
        self._baseline = self._process.memory_info().rss
        self._sampled_peak = self._baseline
        self._exact = _reset_peak()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample_on, name="fanin-memory", daemon=True)

    def __enter__(self) -> MemoryWatch:
        if not self._exact:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if not self._exact:
            self._stop.set()
            self._thread.join()
        if self._nvml:
            self._nvml.close()

    def _sample_on(self) -> None:
        while not self._stop.wait(_SAMPLE_SECONDS):
            self._sample()

    def _sample(self) -> None:
        self._sampled_peak = max(self._sampled_peak, self._process.memory_info().rss)

    def host(self) -> tuple[int, int | None]:
        """Resident set at the start, and its peak since, in bytes."""
        self._sample()
        peak = _peak() if self._exact else self._sampled_peak
        # The kernel counts pages late: the peak that it reports may be below the baseline.
        return self._baseline, None if peak is None else max(peak, self._baseline)

    def result(self, trainer: Trainer) -> Memory:
        baseline, peak = self.host()
        gpu = self._nvml.figures() if self._nvml else nvml.Figures(None, None, None)
        parameters, optimizer = trainer.state_bytes()
        return Memory(
            nvml_device_delta_bytes=gpu.device_delta,
            nvml_process_bytes=gpu.process_peak,
            nvml_error=gpu.error,
            host_peak_rss_bytes=peak,
            host_baseline_rss_bytes=baseline,
            parameter_bytes=parameters,
            optimizer_state_bytes=optimizer,
            **trainer.device.memory(),
        )


def total(of_ranks: Sequence[Memory]) -> Memory:
    """What several processes take together; None where one of them cannot tell."""
    first, *others = of_ranks
    if not others:
        return first
    sums: dict[str, Any] = {}
    for name in Memory.model_fields:
        values = [getattr(memory, name) for memory in of_ranks]
        if name == "nvml_error":
            sums[name] = next(filter(None, values), None)
        else:
            sums[name] = None if None in values else sum(values)
    return Memory(**sums)


def _give_back() -> None:
    """Have malloc give freed memory (of reading the data, say) back to the system: a model that
    fits into it would seem to need no memory at all. Only glibc can be asked to do so."""
    with suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def keep_memory() -> None:
    """Have malloc keep whatever this process frees, from now on for good.

    Otherwise it may give the memory of large arrays back to the system and take new memory for the
    next ones, page by page. That costs milliseconds for each array, which depend on where other
    arrays lie and tell nothing about an op. Only glibc can be asked to do so.
    """
    most_mapped, trim_threshold = -4, -1  # of malloc.h
    with suppress(OSError, AttributeError, TypeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(most_mapped, 0)
        libc.mallopt(trim_threshold, -1)


def _reset_peak() -> bool:
    """Start the kernel's peak resident set anew; False where there is no such thing."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
        return _peak() is not None
    except OSError:
        return False


def _peak() -> int | None:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return None
