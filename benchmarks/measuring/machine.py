"""What a measurement was made on: processor, GPU, threads, versions, and the code's identity."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import importlib.util
import platform
from pathlib import Path
from typing import Protocol

import psutil

from fanin.benchmarks.measuring import nvml
from fanin.benchmarks.records.base import Machine
from fanin.kernels import build_info, processor
from fanin.kernels.library import library_path
from fanin.kernels.threads import cores


class Described(Protocol):
    """What a framework's device says of itself."""

    def description(self) -> dict[str, str]:
        """`framework` with its version, and `device`."""


def describe_machine(device: Described, threads: int, processes: int = 1) -> Machine:
    """Describe where this process runs; device: of its framework; threads: CPU threads in use, by
    all the processes that train together."""
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
        processes=processes,
        code=code_identity(),
    )


def packages() -> dict[str, str]:
    """Versions of what can change a number, of those that are installed."""
    names = ("fanin", "numpy", "scipy", "scikit-learn", "torch", "keras", "tensorflow")
    versions = {}
    for name in (*names, "tensorflow-cpu"):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


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
        # The package is not imported: reports need more than a machine that only measures may have.
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
