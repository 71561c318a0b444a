"""The kernels for the GPU at hand: built in a checkout, taken from the installation elsewhere.

What the compiler says of each kernel is asked while they are built.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from fanin.benchmarks.gpu_parts.needs import IS_CHECKOUT, ROOT, GpuError
from fanin.benchmarks.records import json_text
from fanin.benchmarks.records.files import checksum, write_atomically

# How long the part waits for the compile report once the kernels are built.
_REPORT_SECONDS = 60.0


def prepare(folder: Path, architecture: str | None) -> tuple[dict[str, str], list[str]]:
    """Environment and further arguments of the part's process: the library, built below `folder`
    where it has to be, and its compile report. architecture: None for a CPU."""
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    if os.environ.get("FANIN_LIBRARY"):
        print(f"library: {os.environ['FANIN_LIBRARY']} (FANIN_LIBRARY)", flush=True)
    elif IS_CHECKOUT:
        folder = folder / (f"sm_{architecture}" if architecture else "cpu")
        print(f"library: building in {folder}", flush=True)
        report = CompileReport(folder, architecture) if architecture else None
        environment["FANIN_LIBRARY"] = str(build(folder, architecture))
        if report is None:
            return environment, ["--compile-report-reason=dry run: no GPU code was compiled"]
        path, reason = report.finish()
        if path is None:
            return environment, [f"--compile-report-reason={reason}"]
        return environment, [f"--compile-report={path}"]
    else:
        print("library: the installed one", flush=True)
    if architecture:
        check_code(architecture)
    return environment, ["--compile-report-reason=the library was not built by this call"]


def build(folder: Path, architecture: str | None) -> Path:
    """libfanin for the architecture (None: without GPU code), brought up to date in `folder`."""
    from fanin.kernels.threads import cores  # needs packages that `needs` looks for

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
    stamp = folder / "checksum"
    expected = stamp.read_text(encoding="ascii", errors="replace") if stamp.is_file() else None
    for old in _libraries(folder):
        # A power cut may leave a library half written, and CMake would not make it again.
        if checksum(old) != expected:
            old.unlink()
    with log.open("w", encoding="utf-8") as output:
        for command in (
            [cmake, "-S", str(ROOT / "kernels"), "-B", str(folder), *options],
            [cmake, "--build", str(folder), "--parallel", str(cores())],
        ):
            done = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, check=False)
            if done.returncode:
                output.flush()
                tail = log.read_text(encoding="utf-8", errors="replace")[-3000:]
                raise GpuError(f"{tail}\nbuilding the kernels failed; all of it is in {log}")
    (library,) = _libraries(folder)
    write_atomically(stamp, checksum(library))
    return library


def _libraries(folder: Path) -> list[Path]:
    return [p for p in folder.glob("libfanin.*") if p.suffix in (".so", ".dylib")]


class CompileReport:
    """Registers, spills and shared memory of each kernel, from `kernels/compile_report.py`; made
    while the kernels are built, and kept until a source changes."""

    def __init__(self, folder: Path, architecture: str) -> None:
        self.path = folder / f"compile-{architecture}.json"
        self._process: subprocess.Popen[str] | None = None
        sources = [p for name in ("src", "include") for p in (ROOT / "kernels" / name).rglob("*")]
        newest = max(p.stat().st_mtime for p in sources)
        if not _is_json(self.path) or self.path.stat().st_mtime < newest:
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
            output, _ = self._process.communicate(timeout=_REPORT_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            return None, "the compiler took longer than the part could wait"
        print(output, flush=True)
        # It exits with 1 for spills too, and has written its file then.
        if _is_json(self.path):
            return self.path, None
        return None, f"compile_report.py failed: {output.strip().splitlines()[-1:]}"


def _is_json(path: Path) -> bool:
    """Whether the file is there and was written to its end."""
    try:
        json_text.parse(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return True


def check_code(architecture: str) -> None:
    """GpuError where the installed library has no code for the device."""
    from fanin.kernels import build_info
    from fanin.kernels.library import library_path

    compiled = build_info()["cuda"]
    # Machine code runs on later minor versions too.
    if not any(n // 10 == int(architecture) // 10 and n <= int(architecture) for n in compiled):
        have = ", ".join(f"sm_{n}" for n in compiled) or "no GPU"
        raise GpuError(
            f"{library_path()} has code for {have}, not for this device (sm_{architecture}); run "
            "`python benchmarks/gpu.py` from a checkout, which builds it, or install fanin where "
            f"nvcc is with CMAKE_ARGS=-DCMAKE_CUDA_ARCHITECTURES={architecture}"
        )
