"""Shows on a GPU what there is to show, one part at a time, and keeps it as result files:
`python -m fanin.benchmarks.gpu --part correct`, or from a checkout without an installed fanin
`python benchmarks/gpu.py --part correct`.

Says first what the machine lacks, then builds the kernels for the device at hand (in a checkout; an
installed fanin has its own library), runs the part in a process of its own and prints its table.
With `--dry-run` all of it happens on the CPU, so that nothing is left to be found out where GPU
time is short. Only the standard library is imported at the top: from a checkout this file runs
before the package can be imported, and a missing package should be named, not raise.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("kernels", "backends", "datasets", "benchmarks", "reports")
# The module of `gpu_parts` that each part is.
MODULES = {
    "correct": "correct",
    "shapes": "published_rows",
    "kernels": "contest",
    "sanitize": "sanitize",
}
WRONG_USE = 2


def start_from_checkout() -> None:
    """Become `python -m fanin.benchmarks.gpu` with the checkout's five folders as the package.

    They are linked to from a folder that has nothing else in it: the checkout itself on sys.path
    would shadow other packages called `datasets`.
    """
    folder = ROOT / "build" / "gpu" / "path"
    (folder / "fanin").mkdir(parents=True, exist_ok=True)
    targets = {name: ROOT / name for name in PACKAGES}
    # Without it, an installed fanin would be imported: a package goes before folders without one.
    targets["__init__.py"] = ROOT / "backends" / "package_init.py"
    for name, target in targets.items():
        link = folder / "fanin" / name
        if not link.exists() or link.resolve() != target:
            link.unlink(missing_ok=True)
            link.symlink_to(target, target_is_directory=target.is_dir())
    path = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-P", "-m", "fanin.benchmarks.gpu", *sys.argv[1:]]
    os.execve(sys.executable, command, {**os.environ, "PYTHONPATH": path})


def run(options: argparse.Namespace) -> int:
    """Prepare and run the part, and print its table; the exit code of the part's process."""
    from fanin.benchmarks.gpu_parts import needs

    start = time.monotonic()
    needs.check_packages(options.part)
    name, architecture = ("cpu", None) if options.dry_run else needs.find_gpu()

    from fanin.benchmarks.gpu_parts.build import prepare
    from fanin.benchmarks.records.files import written_at
    from fanin.benchmarks.records.gpu import part_path, read_part
    from fanin.benchmarks.records.printing import printable
    from fanin.benchmarks.records.store import ResultError
    from fanin.reports.tables.gpu import part_text

    path = part_path(options.results, name, options.part)
    written = written_at(path)
    try:
        if written is not None:  # found out before anything is built
            read_part(path)
    except ResultError as error:
        raise needs.GpuError(str(error)) from error
    environment, more = prepare(options.build, architecture)
    left = 60 * options.minutes - (time.monotonic() - start)
    module = f"fanin.benchmarks.gpu_parts.{MODULES[options.part]}"
    command = [
        *(sys.executable, "-P", "-m", module),
        f"--path={path}",
        f"--device={'cpu' if options.dry_run else 'cuda'}",
        f"--seconds={left:.1f}",
        f"--minutes={options.minutes:g}",
        *more,
        *(["--dry-run"] if options.dry_run else []),
        *([] if options.seed is None else [f"--seed={options.seed}"]),
    ]
    code = subprocess.run(command, env=environment, check=False).returncode
    # A part that ended before it wrote anything has left the file of an earlier call, or none.
    if written_at(path) not in (None, written):
        print(printable(f"\n{part_text(read_part(path))}\n{path}"), flush=True)
    return code


def main(arguments: list[str] | None = None) -> int:
    from fanin.benchmarks.gpu_parts.needs import IS_CHECKOUT, GpuError
    from fanin.benchmarks.records.printing import prepare_streams, printable

    prepare_streams()
    base = ROOT if IS_CHECKOUT else Path.cwd()
    parser = argparse.ArgumentParser(
        prog="python -m fanin.benchmarks.gpu", description="One of the GPU parts; see the README."
    )
    parser.add_argument("--part", choices=MODULES, required=True)
    parser.add_argument("--dry-run", action="store_true", help="on the CPU, with small shapes")
    parser.add_argument(
        *("--results",),
        type=Path,
        help="folder of the devices' folders; benchmarks/results, for a dry run results/dry-run",
    )
    parser.add_argument(
        *("--minutes",),
        type=float,
        default=9.0,
        help="when they are over no new row is begun (9); the next call goes on there",
    )
    parser.add_argument("--seed", type=int, help="of the inputs; a fresh one if not given")
    parser.add_argument("--build", type=Path, default=base / "build" / "gpu", help="build folder")
    options = parser.parse_args(arguments)
    if options.results is None:
        usual = Path("results", "dry-run") if options.dry_run else Path("benchmarks", "results")
        options.results = base / usual
    try:
        return run(options)
    except GpuError as error:
        print(printable(f"gpu: {error}"), file=sys.stderr)
        return WRONG_USE
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    # Run as a file: the package has yet to be made importable.
    if not __package__:
        start_from_checkout()
    sys.exit(main())
