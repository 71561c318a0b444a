"""Shows on a GPU what there is to show, one part at a time, and keeps it as result files:
`python -m fanin.benchmarks.gpu --part correct`, or from a checkout without an installed fanin
`python benchmarks/gpu.py --part correct`.

Builds the kernels for the device at hand (in a checkout; an installed fanin has its own library)
and runs the part in a process of its own, see `gpu_parts`. With `--dry-run` all of it happens on
the CPU, so that nothing is left to be found out where GPU time is short. Only the standard library
is imported here, for the same reason.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("kernels", "backends", "datasets", "benchmarks", "reports")
# An installed fanin has no sources of its kernels beside it.
IS_CHECKOUT = (ROOT / "kernels" / "CMakeLists.txt").is_file()
PARTS = ("correct", "shapes", "kernels", "sanitize")
# What part `shapes` imports by way of the harness.
HARNESS = ("pydantic", "platformdirs", "psutil", "scipy", "sklearn", "safetensors")
DISTRIBUTIONS = {"sklearn": "scikit-learn"}
WRONG_USE = 2
# How long the part waits for the compile report once the kernels are built.
_REPORT_SECONDS = 60.0

_PROBE = """
import json, torch
gpu = torch.cuda.is_available()
name = torch.cuda.get_device_name() if gpu else None
print(json.dumps({"name": name, "capability": torch.cuda.get_device_capability() if gpu else None}))
"""


class GpuError(RuntimeError):
    """What keeps a part from being run; the message says what to do."""


def start_from_checkout() -> None:
    """Become `python -m fanin.benchmarks.gpu` with the checkout's five folders as the package.

    They are linked to from a folder that has nothing else in it: the checkout itself on sys.path
    would shadow other packages called `datasets`.
    """
    folder = ROOT / "build" / "gpu" / "path"
    (folder / "fanin").mkdir(parents=True, exist_ok=True)
    for name in PACKAGES:
        link = folder / "fanin" / name
        if not link.exists() or link.resolve() != ROOT / name:
            link.unlink(missing_ok=True)
            link.symlink_to(ROOT / name, target_is_directory=True)
    path = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-P", "-m", "fanin.benchmarks.gpu", *sys.argv[1:]]
    os.execve(sys.executable, command, {**os.environ, "PYTHONPATH": path})


def probe() -> tuple[str, str]:
    """Name of the GPU and its architecture, such as ("NVIDIA H200", "90"); asked in a process of
    its own, which leaves no memory in use on the device."""
    done = subprocess.run(
        [sys.executable, "-P", "-c", _PROBE], capture_output=True, text=True, check=False
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        raise GpuError(f"torch cannot be used with {sys.executable}: {last}")
    found = json.loads(done.stdout.splitlines()[-1])
    if not found["name"]:
        raise GpuError("torch sees no GPU here; --dry-run rehearses the part on the CPU")
    major, minor = found["capability"]
    return found["name"], f"{major}{minor}"


def build(folder: Path, architecture: str | None) -> Path:
    """libfanin for the architecture (None: without GPU code), brought up to date in `folder`."""
    cmake = shutil.which("cmake")
    if not cmake:
        raise GpuError("cmake is not on the PATH; `pip install cmake ninja` brings it")
    options = ["-DCMAKE_BUILD_TYPE=Release", "-DFANIN_CUDA=OFF"]
    if architecture:
        options[1:] = ["-DFANIN_CUDA=ON", f"-DCMAKE_CUDA_ARCHITECTURES={architecture}-real"]
    options += shlex.split(os.environ.get("CMAKE_ARGS", ""))
    # The generator is chosen once for a folder.
    if shutil.which("ninja") and not (folder / "CMakeCache.txt").exists():
        options += ["-G", "Ninja"]
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "build.log"
    with log.open("w", encoding="utf-8") as output:
        for command in (
            [cmake, "-S", str(ROOT / "kernels"), "-B", str(folder), *options],
            [cmake, "--build", str(folder), "--parallel", str(os.cpu_count() or 1)],
        ):
            code = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, check=False)
            if code.returncode:
                output.flush()
                tail = log.read_text(encoding="utf-8", errors="replace")[-3000:]
                raise GpuError(f"{tail}\nbuilding the kernels failed; all of it is in {log}")
    (library,) = (p for p in folder.glob("libfanin.*") if p.suffix in (".so", ".dylib"))
    return library


class CompileReport:
    """Registers, spills and shared memory of each kernel, from `kernels/compile_report.py`; made
    while the kernels are built, and kept until a source changes."""

    def __init__(self, folder: Path, architecture: str) -> None:
        self.path = folder / f"compile-{architecture}.json"
        self._process: subprocess.Popen[str] | None = None
        sources = [p for name in ("src", "include") for p in (ROOT / "kernels" / name).iterdir()]
        newest = max(p.stat().st_mtime for p in sources)
        if not self.path.exists() or self.path.stat().st_mtime < newest:
            folder.mkdir(parents=True, exist_ok=True)
            self.path.unlink(missing_ok=True)  # an older one, which a failure would leave there
            script = [sys.executable, str(ROOT / "kernels" / "compile_report.py")]
            self._process = subprocess.Popen(
                [*script, "--architectures", architecture, "--json", str(self.path)],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )

    def finish(self) -> tuple[Path | None, str | None]:
        """Its file, or None and why there is none."""
        if self._process is None:
            return self.path, None
        try:
            said, _ = self._process.communicate(timeout=_REPORT_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            return None, "the compiler took longer than the part could wait"
        print(said, flush=True)
        # It exits with 1 for spills too, and has written its file then.
        if self.path.exists():
            return self.path, None
        return None, f"compile_report.py failed: {said.strip().splitlines()[-1:]}"


def check_code(architecture: str) -> None:
    """GpuError where the installed library has no code for the device."""
    from fanin.kernels import build_info
    from fanin.kernels.library import library_path

    there = build_info()["cuda"]
    # Machine code runs on later minor versions too.
    if not any(n // 10 == int(architecture) // 10 and n <= int(architecture) for n in there):
        have = ", ".join(f"sm_{n}" for n in there) or "no GPU"
        raise GpuError(
            f"{library_path()} has code for {have}, not for this device (sm_{architecture}); run "
            "`python benchmarks/gpu.py` from a checkout, which builds it, or install fanin where "
            f"nvcc is with CMAKE_ARGS=-DCMAKE_CUDA_ARCHITECTURES={architecture}"
        )


def check_harness() -> None:
    """GpuError naming what part `shapes` lacks."""
    missing = [name for name in HARNESS if importlib.util.find_spec(name) is None]
    if missing:
        names = " ".join(DISTRIBUTIONS.get(name, name) for name in missing)
        raise GpuError(
            f"part shapes runs the harness, which needs {', '.join(missing)}: `pip install "
            f"{names}`; for a machine without a network `pip download -d wheels {names}` on one "
            f"like it, bring the folder, and `pip install --no-index --find-links wheels {names}`"
        )


def prepare(
    options: argparse.Namespace, architecture: str | None
) -> tuple[dict[str, str], list[str]]:
    """Environment and further arguments of the part's process: the library, built where it has to
    be, and its compile report."""
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    if os.environ.get("FANIN_LIBRARY"):
        print(f"library: {os.environ['FANIN_LIBRARY']} (FANIN_LIBRARY)", flush=True)
    elif IS_CHECKOUT:
        folder = options.build / (f"sm_{architecture}" if architecture else "cpu")
        print(f"library: building in {folder}", flush=True)
        report = CompileReport(folder, architecture) if architecture else None
        environment["FANIN_LIBRARY"] = str(build(folder, architecture))
        if report:
            path, reason = report.finish()
            return environment, [f"--compile-report={path}" if path else
                                 f"--compile-report-reason={reason}"]  # fmt: skip
        return environment, ["--compile-report-reason=dry run: no GPU code was compiled"]
    else:
        print("library: the installed one", flush=True)
    if architecture:
        check_code(architecture)
    return environment, ["--compile-report-reason=the library was not built by this call"]


def run(options: argparse.Namespace) -> int:
    """Prepare and run the part; its exit code."""
    start = time.monotonic()
    name, architecture = ("cpu", None) if options.dry_run else probe()
    if options.part == "shapes":
        check_harness()
    from fanin.benchmarks.gpu_parts.results import PartFileError, part_path, read

    path = part_path(options.results, name, options.part)
    try:
        if path.exists():  # found out before anything is built
            read(path)
    except PartFileError as error:
        raise GpuError(str(error)) from error
    environment, more = prepare(options, architecture)
    left = 60 * options.minutes - (time.monotonic() - start)
    command = [sys.executable, "-P", "-m", f"fanin.benchmarks.gpu_parts.{options.part}"]
    command += [
        f"--path={path}",
        f"--device={'cpu' if options.dry_run else 'cuda'}",
        f"--seconds={left:.1f}",
        f"--minutes={options.minutes:g}",
        *more,
        *(["--dry-run"] if options.dry_run else []),
        *([] if options.seed is None else [f"--seed={options.seed}"]),
    ]
    return subprocess.run(command, env=environment, check=False).returncode


def main(arguments: list[str] | None = None) -> int:
    base = ROOT if IS_CHECKOUT else Path.cwd()
    parser = argparse.ArgumentParser(
        prog="python -m fanin.benchmarks.gpu", description="One of the GPU parts; see the README."
    )
    parser.add_argument("--part", choices=PARTS, required=True)
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
        print(f"gpu: {error}", file=sys.stderr)
        return WRONG_USE
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    # Run as a file: the package has yet to be made importable.
    if not __package__:
        start_from_checkout()
    sys.exit(main())
