"""What a run is measured with: memory of process and device, step times, the machine itself.

Every figure stands for one question and is None where this machine cannot answer it.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import importlib.metadata
import importlib.util
import os
import platform
import statistics
import threading
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, SupportsFloat

import psutil

from fanin.backends.interface import Device
from fanin.backends.trainer import Trainer
from fanin.benchmarks.measuring import nvml
from fanin.kernels import build_info, processor
from fanin.kernels.library import library_path

# Imported where they are made: the GPU parts use this file on machines without pydantic.
if TYPE_CHECKING:
    from fanin.benchmarks.records.base import Machine, Memory

_SAMPLE_SECONDS = 0.05
_WARMUP_STEPS = 10


class MemoryWatch:
    """Peak memory of this process and of the GPU, from its making to `result`.

    On Linux the kernel keeps the peak resident set exactly (VmHWM, reset at the start); elsewhere
    it is sampled. The GPU is sampled through NVML by a process of its own (`nvml`), where there is
    one: device-wide and for this process, since process ids often do not match inside containers.
    """

    def __init__(self) -> None:
        self._nvml = nvml.Sampler() if gpu_name() is not None else None
        self._process = psutil.Process()
        _give_back()
        self._baseline = self._process.memory_info().rss
        self._sampled_peak = self._baseline
        self._exact = _reset_peak()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, name="fanin-memory", daemon=True)

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

    def _sample(self) -> None:
        while not self._stop.wait(_SAMPLE_SECONDS):
            self._look()

    def _look(self) -> None:
        self._sampled_peak = max(self._sampled_peak, self._process.memory_info().rss)

    def result(self, trainer: Trainer) -> Memory:
        from fanin.benchmarks.records.base import Memory

        self._look()
        gpu = self._nvml.figures() if self._nvml else nvml.Figures(None, None, None)
        parameters, optimizer = trainer.state_bytes()
        return Memory(
            nvml_device_delta_bytes=gpu.device_delta,
            nvml_process_bytes=gpu.process_peak,
            nvml_error=gpu.error,
            host_peak_rss_bytes=_peak() if self._exact else self._sampled_peak,
            host_baseline_rss_bytes=self._baseline,
            parameter_bytes=parameters,
            optimizer_state_bytes=optimizer,
            **trainer.device.memory(),
        )


def _give_back() -> None:
    """Hand what malloc kept of freed memory (from reading the data, say) back to the system: a
    model that fits into it would seem to need no memory at all. Only glibc can be asked to."""
    with suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def keep_memory() -> None:
    """Let malloc keep whatever is freed in this process. Else it may hand large arrays back to the
    system and take new ones from it, page by page: milliseconds for each, which depend on what lies
    where and say nothing of an op. Only glibc can be asked to; this cannot be undone."""
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


class StepClock:
    """Time of each training step, by marks in the device's order of work, so that nothing waits on
    a GPU either; call it as a trainer's `on_step`."""

    def __init__(self, trainer: Trainer) -> None:
        self.steps = 0
        self._trainer = trainer
        self._marks: list[Any] = []
        self._seconds: list[float] = []

    def __call__(self, loss: SupportsFloat) -> None:
        self.steps += 1
        mark = self._trainer.device.mark()
        if mark is not None:
            self._marks.append(mark)

    def pause(self) -> None:
        """Something else than training follows; the time until the next step does not count."""
        self._seconds += self._trainer.device.seconds(self._marks)
        self._marks = []

    def seconds(self) -> list[float]:
        """Of every step but the first and those after a pause; none where a framework cannot tell
        (TensorFlow on a GPU)."""
        self.pause()
        return self._seconds

    def median(self) -> float | None:
        """Seconds per step after the first ten; None for runs that short."""
        steady = self.seconds()[_WARMUP_STEPS:]
        return statistics.median(steady) if steady else None


def machine(device: Device, threads: int) -> Machine:
    """Describe where this process runs; device: of its framework; threads: CPU threads in use."""
    from fanin.benchmarks.records.base import Machine

    info = build_info()
    described = device.description()
    return Machine(
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        processor=processor(),
        cores=cores(),
        memory_bytes=psutil.virtual_memory().total,
        gpu=gpu_name(),
        python=platform.python_version(),
        packages=packages(),
        framework=described["framework"],
        device=described["device"],
        kernels=f"fanin {info['version']} {info['instruction_set']}",
        threads=threads,
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
    """Name of the GPU that a run would take, as NVML has it, or None without one."""
    import pynvml

    try:
        name = pynvml.nvmlDeviceGetName(nvml.first_gpu())
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


def threads(asked: int) -> int:
    """CPU threads of a run that asks for so many; 0 for OMP_NUM_THREADS, or all without it."""
    setting = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return asked or (int(setting) if setting.isdecimal() else 0) or cores()


def cores() -> int:
    """Cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
