"""Where a part's figures come from: the GPU, the code that was made for it, and the checkout."""

from __future__ import annotations

import re
import shutil
import subprocess

import torch

from fanin.benchmarks.gpu_parts.needs import ROOT
from fanin.benchmarks.records.gpu import Cuda
from fanin.kernels import build_info


def cuda(device: torch.device) -> Cuda:
    """Describe the GPU, null where there is none, and the code for it."""
    properties = None
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
    return Cuda(
        capability=f"{properties.major}.{properties.minor}" if properties else None,
        memory_bytes=properties.total_memory if properties else None,
        driver=_driver(),
        runtime=torch.version.cuda,
        compiler=_nvcc(),
        architectures=build_info()["cuda"],
    )


def device_name(device: torch.device) -> str:
    """The GPU's name, or "cpu"."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def checkout() -> tuple[str | None, bool | None]:
    """Commit of the checkout that this file lies in, and whether files of it were changed."""

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=False
            )
        except FileNotFoundError:
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    # An installed fanin may lie below somebody else's repository.
    if not (ROOT / ".git").exists() or (commit := git("rev-parse", "HEAD")) is None:
        return None, None
    # Results that the parts write are no change of the code.
    changes = git("status", "--porcelain", "--", ".", ":!benchmarks/results")
    return commit, None if changes is None else bool(changes)


def _driver() -> str | None:
    import pynvml

    try:
        pynvml.nvmlInit()
        version = pynvml.nvmlSystemGetDriverVersion()
    except pynvml.NVMLError:
        return None
    return version if isinstance(version, str) else version.decode()


def _nvcc() -> str | None:
    nvcc = shutil.which("nvcc")
    if not nvcc:
        return None
    output = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=False).stdout
    version = re.search(r"release [\d.]+, V([\d.]+)", output)
    return version[1] if version else None
