"""What the tests of the GPU kit share: its command in a process of its own, and its parts in this
one, on the CPU. torch is imported where it is needed, since not every process of tests may load it.
"""

from __future__ import annotations

import os
import subprocess
import sys

from fanin.benchmarks.records.gpu import read_part
from fanin.kernels.library import library_path


def environment(tmp_path, without=(), **more):
    """Of a child: the library at hand, and `without` as if it was not installed."""
    hook = "import sys\n" + "".join(f"sys.modules[{name!r}] = None\n" for name in without)
    (tmp_path / "sitecustomize.py").write_text(hook)
    path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
    library = {"FANIN_LIBRARY": str(library_path())}
    return {**os.environ, **library, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **more}


def run(command, env, cwd):
    return subprocess.run(
        [sys.executable, *command], env=env, cwd=cwd, capture_output=True, text=True, check=False
    )


def part_options(tmp_path, **changes):
    """Of a dry run whose file is `correct.json`."""
    from fanin.benchmarks.gpu_parts import part

    usual = {"device": "cpu", "dry_run": True, "seconds": 60.0, "minutes": 1.0, "seed": 5}
    none = {"compile_report": None, "compile_report_reason": "not asked"}
    return part.Options(path=tmp_path / "correct.json", **{**usual, **none, **changes})


def few_cases(*words):
    """The cases of part `correct` that have one of the words in their key."""
    from fanin.benchmarks.gpu_parts.correct.cases import cases

    chosen = [case for case in cases(True) if any(word in case.key for word in words)]
    assert chosen
    return chosen


def conduct_correct(tmp_path, cases, **changes):
    """Exit code and file of part `correct` with these cases alone."""
    from fanin.benchmarks.gpu_parts import part
    from fanin.benchmarks.gpu_parts.correct.cases import failed, jobs

    options = part_options(tmp_path, **changes)
    chosen = jobs(options.torch_device, options.seed, cases)
    return part.conduct("correct", options, chosen, failed), read_part(options.path)
