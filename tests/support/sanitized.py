"""Runs tests of the kernels under GCC's sanitizers: `nox -s sanitize`, or `python -P
tests/support/sanitized.py` where fanin and its test tools are installed. Arguments go to pytest.

The kernels are built twice, without optimization and for one instruction set: with AddressSanitizer
and UndefinedBehaviorSanitizer for all tests that are not slow, and with ThreadSanitizer for those
of several threads, over the OpenMP of `openmp_threads.cpp`. The first finding ends a run.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
TESTS = {
    "address,undefined": (),
    "thread": ("-k", "test_c_interface or step_of_any_shape or thread_count or depend_on_threads"),
}


def build(sanitizers: str, folder: Path, environment: dict[str, str]) -> None:
    options = ("-G", "Ninja", "-DCMAKE_CXX_COMPILER=g++", "-DFANIN_CUDA=OFF")
    sources = ("-S", "kernels", "-B", str(folder))
    for command in (
        (*sources, *options, f"-DFANIN_SANITIZE={sanitizers}"),
        ("--build", str(folder)),
    ):
        subprocess.run(("cmake", *command), cwd=ROOT, env=environment, check=True)


def gcc_library(name: str) -> str:
    """Where g++ has one of its libraries."""
    command = ("g++", f"-print-file-name={name}")
    path = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    if not Path(path).is_absolute():
        sys.exit(f"g++ has no {name}; install the sanitizers' libraries that belong to it")
    return path


def preloaded(sanitizers: str, folder: Path) -> list[str]:
    """What has to be there before Python: it is not sanitized itself."""
    if sanitizers != "thread":
        return [gcc_library("libasan.so"), gcc_library("libstdc++.so")]
    threads = str(folder / "openmp_threads.so")
    flags = ("-shared", "-fPIC", "-O1", "-g1", "-fsanitize=thread")
    source = ROOT / "tests/support/openmp_threads.cpp"
    subprocess.run(("g++", *flags, str(source), "-o", threads), check=True)
    return [gcc_library("libtsan.so"), gcc_library("libstdc++.so"), threads]


def main() -> int:
    if not shutil.which("g++"):
        sys.exit("the sanitizers need g++")
    # Where the test dependencies put CMake and Ninja, whether or not that is on the PATH.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path}
    # ThreadSanitizer cannot work where the system puts a program's parts at just any address.
    before = ("setarch", "-R") if shutil.which("setarch") else ()
    for sanitizers, tests in TESTS.items():
        folder = ROOT / "build" / f"sanitized-{sanitizers.partition(',')[0]}"
        build(sanitizers, folder, environment)
        settings = {
            "LD_PRELOAD": " ".join(preloaded(sanitizers, folder)),
            "FANIN_LIBRARY": str(folder / "libfanin.so"),
            "ASAN_OPTIONS": "detect_leaks=0",  # Python itself leaves memory behind
            "UBSAN_OPTIONS": "print_stacktrace=1",
            "TSAN_OPTIONS": "halt_on_error=1",
            "PYTHONMALLOC": "malloc",
            "OPENBLAS_NUM_THREADS": "1",
        }
        # The sanitizers write past Python, and what pytest holds back is lost when they stop it.
        options = ("-q", "--capture=sys", "--framework", "none", "-m", "not slow", "--maxfail=1")
        options += ("--numprocesses=2", "--max-worker-restart=0")
        command = (*before, sys.executable, "-P", "-m", "pytest", *options)
        done = subprocess.run(
            (*command, "tests/kernels", *tests, *sys.argv[1:]),
            cwd=ROOT,
            env={**environment, **settings},
            check=False,
        )
        if done.returncode:
            return done.returncode
    return 0


if __name__ == "__main__":
    sys.exit(main())
