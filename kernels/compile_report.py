"""Compiles the CUDA kernels for each architecture and reports registers, spills and shared memory.

`python kernels/compile_report.py` needs nvcc and no GPU. It fails where a kernel of KERNELS spills
registers or is missing. `--json FILE` writes the figures.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

FOLDER = Path(__file__).parent
SOURCES = sorted((FOLDER / "src" / "cuda").glob("*.cu"))
ARCHITECTURES = ("80", "90", "100")
# Kernels and their variants: float and double for the op, float32 and bfloat16 for weights and for
# moments in training, of a fixed fan-in float8 for weights too, both index types where indices are
# read; rows kept in shared memory or not.
KERNELS = {
    "transpose_kernel": 4,
    "forward_kernel": 8,
    "backward_kernel": 8,
    "step_kernel": 24,
    "grouped_step_kernel": 12,
    "dense_step_kernel": 8,
    "dense_forward_kernel": 2,
    "dense_update_kernel": 4,
    "sparse_forward_kernel": 2,
    "sparse_bias_kernel": 1,
    "sparse_update_kernel": 4,
    "sparse_rows_kernel": 2,
    "words_step_kernel": 1,
    "words_loss_kernel": 1,
    "words_top_k_kernel": 1,
    "words_merge_kernel": 1,
    "top_k_kernel": 6,
    "grouped_top_k_kernel": 6,
    "merge_kernel": 1,
    "mark_kernel": 1,
    "write_loss_kernel": 1,
    "begin_kernel": 1,
    "count_kernel": 2,
    "find_kernel": 1,
    "rewire_kernel": 8,
    "sums_kernel": 2,
    "choose_kernel": 2,
    "replace_kernel": 8,
}

_ENTRY = re.compile(r"Compiling entry function '(\S+)' for 'sm_(\w+)'")
_SPILL = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_USED = re.compile(r"Used (\d+) registers(?:.*?(\d+) bytes smem)?")
_TYPES = {"unsigned short": "uint16", "unsigned int": "uint32", "Bf16": "bfloat16"}


def compile_for(nvcc: str, source: Path, architecture: str) -> str:
    """The compiler's report. RuntimeError with its output where it fails."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            nvcc,
            "-std=c++17",
            "-O3",
            "-cubin",
            f"-arch=sm_{architecture}",
            "-Xptxas=-v",
            '-DFANIN_CUDA_ARCHITECTURES=""',
            f"-I{FOLDER / 'include'}",
            f"-I{FOLDER / 'src'}",
            "-o",
            f"{folder}/kernels.cubin",
            str(source),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    return done.stdout + done.stderr


def readable(symbols: list[str]) -> list[str]:
    """`forward_kernel<float, uint16, true>` and the like, from mangled symbols."""
    plain = subprocess.run(
        ["c++filt"], input="\n".join(symbols), capture_output=True, text=True, check=True
    )
    names = []
    for line in plain.stdout.splitlines():
        name = re.sub(r"fanin::|cuda::|\(anonymous namespace\)::|^void ", "", line).split("(")[0]
        for long, short in _TYPES.items():
            name = name.replace(long, short)
        names.append(name)
    return names


def read_report(text: str) -> Iterator[dict[str, str | int]]:
    """One row per kernel in what `ptxas -v` printed."""
    row: dict[str, str | int] = {}
    for line in text.splitlines():
        if match := _ENTRY.search(line):
            row = {"kernel": match[1], "architecture": f"sm_{match[2]}"}
        elif row and (match := _SPILL.search(line)):
            row["stack_bytes"] = int(match[1])
            row["spill_bytes"] = int(match[2]) + int(match[3])
        elif row and (match := _USED.search(line)):
            row |= {"registers": int(match[1]), "shared_bytes": int(match[2] or 0)}
            yield row
            row = {}


def problems(rows: list[dict[str, str | int]]) -> list[str]:
    """What is wrong: spills, and kernels that were not compiled."""
    faults = [
        f"{row['kernel']} spills {row['spill_bytes']} bytes on {row['architecture']}"
        for row in rows
        if row["spill_bytes"]
    ]
    for architecture in {row["architecture"] for row in rows}:
        names = [str(row["kernel"]) for row in rows if row["architecture"] == architecture]
        for kernel, expected in KERNELS.items():
            count = sum(name.split("<")[0] == kernel for name in names)
            if count != expected:
                faults.append(f"{kernel}: {count} of {expected} variants for {architecture}")
    return faults


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--architectures", nargs="+", default=ARCHITECTURES, metavar="SM")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    nvcc = shutil.which("nvcc")
    if not nvcc:
        print("compile_report: nvcc is not on the PATH; install the CUDA toolkit", file=sys.stderr)
        return 2
    rows: list[dict[str, str | int]] = []
    jobs = [(nvcc, s, a) for a in options.architectures for s in SOURCES]
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for text in pool.map(compile_for, *zip(*jobs, strict=True)):
            rows += read_report(text)
    for row, name in zip(rows, readable([str(row["kernel"]) for row in rows]), strict=True):
        row["kernel"] = name
    print(f"{'kernel':48} {'arch':7} {'registers':>9} {'spills':>7} {'stack':>6} {'shared':>7}")
    for row in rows:
        print(
            f"{row['kernel']:48} {row['architecture']:7} {row['registers']:9} "
            f"{row['spill_bytes']:7} {row['stack_bytes']:6} {row['shared_bytes']:7}"
        )
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")
    wrong = problems(rows)
    for line in wrong:
        print(f"compile_report: {line}", file=sys.stderr)
    return 1 if wrong or not rows else 0


if __name__ == "__main__":
    sys.exit(main())
