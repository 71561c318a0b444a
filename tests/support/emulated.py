"""The CUDA kernels compiled for a CPU, over `tests/kernels/cuda_emulator`, once for all tests."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
# With what CMake is told to build them.
OPTION = "-DFANIN_CUDA=EMULATED"


def build_emulated() -> Path:
    """The folder of the build, brought up to date."""
    build = ROOT / "build" / "emulated"
    build.mkdir(parents=True, exist_ok=True)
    # Beside this Python, where the test dependencies put it, whether or not that is on the PATH.
    folders = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    cmake = shutil.which("cmake", path=folders)
    assert cmake, "cmake was not found; it is one of the test dependencies (pyproject.toml)"
    with (build / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # of several workers one builds, and the others wait
        for command in (
            ["-S", str(ROOT / "kernels"), "-B", str(build), "-G", "Ninja", OPTION],
            ["--build", str(build), "--parallel", "2"],
        ):
            done = subprocess.run(
                [cmake, *command],
                capture_output=True,
                text=True,
                env={**os.environ, "PATH": folders},
            )
            assert done.returncode == 0, done.stdout + done.stderr
    return build


def launcher(path: Path) -> str:
    """The option by which CMake takes objects from that build where it has them, instead of
    compiling: for another checkout with the same sources. `path`: where its script is written."""
    build = build_emulated()
    path.write_text(f"""#!/bin/sh
for word; do [ "$last" = -o ] && object=$word; last=$word; done
[ -f "{build}/$object" ] && exec cp "{build}/$object" "$object"
exec "$@"
""")
    path.chmod(0o700)
    return f"-DCMAKE_CXX_COMPILER_LAUNCHER={path}"
