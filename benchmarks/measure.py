"""What a run is measured with: memory of process and device, step times, the machine itself.

Every figure stands for one question and is None where this machine cannot answer it.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import importlib.util
import os
import platform
import statistics
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, SupportsFloat

import psutil

from fanin.backends.interface import Trainer
from fanin.kernels import build_info
from fanin.kernels.library import library_path

# Imported where they are made: the GPU parts use this file on machines without pydantic.
if TYPE_CHECKING:
    from fanin.benchmarks.results import Machine, Memory

_SAMPLE_SECONDS = 0.05
_WARMUP_STEPS = 10


class MemoryWatch:
    """Peak memory of this process and of the GPU between `start` and `stop`.

    On Linux the kernel keeps the peak resident set exactly (VmHWM, reset at the start); elsewhere
    it is sampled. The GPU is asked through NVML every 50 ms, device-wide and for this process:
    process ids often do not match inside containers, hence both.
    """

    def __init__(self) -> None:
        self._nvml = _Nvml.open()
        self._process = psutil.Process()
        self._baseline = self._process.memory_info().rss
        self._sampled_peak = self._baseline
        self._exact = _reset_peak()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, name="fanin-memory", daemon=True)

    def __enter__(self) -> MemoryWatch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._stop.wait(_SAMPLE_SECONDS):
            self._look()

    def _look(self) -> None:
        if not self._exact:
            self._sampled_peak = max(self._sampled_peak, self._process.memory_info().rss)
        if self._nvml:
            self._nvml.look()

    def result(self, trainer: Trainer) -> Memory:
        from fanin.benchmarks.results import Memory

        self._look()
        parameters, optimizer = trainer.state_bytes()
        return Memory(
            nvml_device_delta_bytes=self._nvml.device_delta if self._nvml else None,
            nvml_process_bytes=self._nvml.process_peak if self._nvml else None,
            host_peak_rss_bytes=_peak() if self._exact else self._sampled_peak,
            host_baseline_rss_bytes=self._baseline,
            parameter_bytes=parameters,
            optimizer_state_bytes=optimizer,
            **trainer.device_memory(),
        )


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


class _Nvml:
    """The first GPU through NVML; peaks since it was opened."""

    def __init__(self, pynvml: Any, handle: Any) -> None:
        self._pynvml = pynvml
        self._handle = handle
        self._start = pynvml.nvmlDeviceGetMemoryInfo(handle).used
        self.device_delta = 0
        self.process_peak: int | None = None

    @classmethod
    def open(cls) -> _Nvml | None:
        import pynvml

        try:
            pynvml.nvmlInit()
            return cls(pynvml, pynvml.nvmlDeviceGetHandleByIndex(0))
        except pynvml.NVMLError:
            return None

    def look(self) -> None:
        pynvml = self._pynvml
        try:
            used = pynvml.nvmlDeviceGetMemoryInfo(self._handle).used
            self.device_delta = max(self.device_delta, used - self._start)
            for process in pynvml.nvmlDeviceGetComputeRunningProcesses(self._handle):
                if process.pid == os.getpid() and process.usedGpuMemory is not None:
                    self.process_peak = max(self.process_peak or 0, process.usedGpuMemory)
        except pynvml.NVMLError:
            return


class StepClock:
    """Wall-clock time of each training step; call it as a trainer's `on_step`."""

    def __init__(self) -> None:
        self.steps = 0
        self._last: float | None = None
        self._seconds: list[float] = []

    def __call__(self, loss: SupportsFloat) -> None:
        now = time.perf_counter()
        self.steps += 1
        if self._last is not None:
            self._seconds.append(now - self._last)
        self._last = now

    def pause(self) -> None:
        """Something else than training follows; the time until the next step does not count."""
        self._last = None

    def median(self, trainer: Trainer) -> float | None:
        """Seconds per step after the first ten. None on a GPU, where a step is only queued by the
        time it returns, and for runs that short."""
        if not trainer.description()["device"].startswith("cpu"):
            return None
        steady = self._seconds[_WARMUP_STEPS:]
        return statistics.median(steady) if steady else None


def machine(trainer: Trainer, threads: int) -> Machine:
    """Describe where this process runs."""
    from fanin.benchmarks.results import Machine

    info = build_info()
    described = trainer.description()
    return Machine(
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        processor=processor(),
        cores=_cores(),
        memory_bytes=psutil.virtual_memory().total,
        gpu=gpu_name(),
        python=platform.python_version(),
        packages=packages(),
        framework=described["framework"],
        device=described["device"],
        kernels=f"fanin {info['version']} {info['instruction_set']}",
        threads=threads or _cores(),
        code=code_identity(),
    )


def packages() -> dict[str, str]:
    """Versions of what can change a number, of those that are installed."""
    names = ("fanin", "numpy", "scipy", "scikit-learn", "torch", "keras", "tensorflow")
    found = {}
    for name in (*names, "tensorflow-cpu"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def gpu_name() -> str | None:
    """Name of the first GPU as NVML has it, or None without one."""
    import pynvml

    try:
        pynvml.nvmlInit()
        name = pynvml.nvmlDeviceGetName(pynvml.nvmlDeviceGetHandleByIndex(0))
    except pynvml.NVMLError:
        return None
    return name if isinstance(name, str) else name.decode()


@functools.cache
def code_identity() -> str:
    """sha256 (first 12 digits) over what is installed of fanin: the kernels' library, Python, the
    TensorFlow op's source and task files."""
    digest = hashlib.sha256(library_path().read_bytes())
    for package in ("kernels", "backends", "datasets", "benchmarks", "reports"):
        # Not imported: reports need more than a machine that only measures may have.
        spec = importlib.util.find_spec(f"fanin.{package}")
        assert spec is not None and spec.origin is not None
        root = Path(spec.origin).parent
        for path in sorted(p for p in root.rglob("*") if p.suffix in (".py", ".cc", ".h", ".json")):
            name = path.relative_to(root)
            # Result files lie there in a checkout; an installed fanin has none.
            if name.parts[0] != "results":
                digest.update(f"{package}/{name}\0".encode())
                digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def runs_on_cpu(device: str) -> bool:
    """Whether a run with that `--device` stays on the CPU; asks no framework."""
    return device == "cpu" or gpu_name() is None


def available_bytes() -> int:
    """Memory that a process may still take: the machine's, or what its control group leaves."""
    free = int(psutil.virtual_memory().available)
    limit, used = (_cgroup_bytes(name) for name in ("memory.max", "memory.current"))
    return free if limit is None else min(free, limit - (used or 0))


def _cgroup_bytes(name: str) -> int | None:
    """A figure of this process's control group (version 2); None without one or without limit."""
    try:
        return int((Path("/sys/fs/cgroup") / name).read_text())
    except (OSError, ValueError):
        return None


def threads(asked: int) -> int:
    """CPU threads of a run that asks for so many, 0 for all."""
    return asked or _cores()


def _cores() -> int:
    """Cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def processor() -> str:
    """Name of the CPU as the system has it."""
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown"
