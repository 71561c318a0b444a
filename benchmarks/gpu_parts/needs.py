"""What a part needs of a machine: Python packages, and a GPU that torch sees.

Both are asked for before anything is built, so this file imports the standard library alone.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# An installed fanin has no sources of its kernels beside it.
IS_CHECKOUT = (ROOT / "kernels" / "CMakeLists.txt").is_file()
# What every part imports beside torch, and what part `shapes` needs besides, by way of the harness.
EACH_PART = ("numpy", "psutil", "pydantic", "pynvml", "scipy", "threadpoolctl")
HARNESS = ("platformdirs", "safetensors")
# What pip knows by another name.
DISTRIBUTIONS = {"pynvml": "nvidia-ml-py"}

_PROBE = """
import json, torch
gpu = torch.cuda.is_available()
name = torch.cuda.get_device_name() if gpu else None
print(json.dumps({"name": name, "capability": torch.cuda.get_device_capability() if gpu else None}))
"""


class GpuError(RuntimeError):
    """What keeps a part from being run; the message says what to do."""


def needed_by(part: str) -> tuple[str, ...]:
    """Names of the packages, torch aside, as they are imported."""
    return (*EACH_PART, *HARNESS) if part == "shapes" else EACH_PART


def check_packages(part: str) -> None:
    """GpuError naming the packages that the part lacks, and how to bring them."""
    missing = [name for name in needed_by(part) if importlib.util.find_spec(name) is None]
    if missing:
        names = " ".join(DISTRIBUTIONS.get(name, name) for name in missing)
        raise GpuError(
            f"part {part} needs {', '.join(missing)}: `pip install {names}`; for a machine without "
            f"a network `pip download -d wheels {names}` on one like it, bring the folder, and "
            f"`pip install --no-index --find-links wheels {names}`"
        )


def find_gpu() -> tuple[str, str]:
    """Name of the GPU and its architecture, such as ("NVIDIA H200", "90"). Asked in a process of
    its own, which leaves no memory in use on the device."""
    done = subprocess.run(
        [sys.executable, "-P", "-c", _PROBE], capture_output=True, text=True, check=False
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        raise GpuError(f"torch cannot be used with {sys.executable}: {last}")
    answer = json.loads(done.stdout.splitlines()[-1])
    if not answer["name"]:
        raise GpuError("torch sees no GPU here; --dry-run rehearses the part on the CPU")
    major, minor = answer["capability"]
    return answer["name"], f"{major}{minor}"
