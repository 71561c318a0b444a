"""`fanin info`: what is installed and usable here."""

from __future__ import annotations

import importlib.util
from typing import Any

from fanin.backends.registry import BACKENDS
from fanin.benchmarks.cli.options import AsJson
from fanin.benchmarks.cli.output import make_console, print_facts, print_json, stop
from fanin.benchmarks.measuring import machine
from fanin.benchmarks.records.task_files import task_files
from fanin.datasets import available
from fanin.kernels import build_info


def info(as_json: AsJson = False) -> None:
    """Show what is installed and usable here: kernels, backends, GPU, data sets, task files."""
    try:
        kernels = build_info()
    except (OSError, ImportError, RuntimeError, ValueError) as error:
        stop(f"the kernels cannot be used: {error}")
    facts: dict[str, Any] = {
        "kernels": kernels,
        "backends": {name: importlib.util.find_spec(name) is not None for name in BACKENDS},
        "packages": machine.packages(),
        "gpu": machine.gpu_name(),
        "datasets": available(),
        "tasks": list(task_files()),
        "code": machine.code_identity(),
    }
    if as_json:
        return print_json(facts)
    rows = {
        "kernels": f"version {kernels['version']}, CPU code {kernels['instruction_set']} "
        f"(here: {', '.join(kernels['instruction_sets'])}), "
        + (
            f"CUDA for sm_{', sm_'.join(map(str, kernels['cuda']))}"
            if kernels["cuda"]
            else "built without CUDA"
        ),
        **{
            f"backend {name}": "installed" if is_installed else f"missing: {BACKENDS[name].install}"
            for name, is_installed in facts["backends"].items()
        },
        "packages": ", ".join(f"{name} {version}" for name, version in facts["packages"].items()),
        "GPU": facts["gpu"] or "none",
        "data sets": ", ".join(facts["datasets"]),
        "task files": ", ".join(facts["tasks"]),
    }
    print_facts(make_console(), rows)
