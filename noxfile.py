# /// script
# dependencies = ["nox>=2025.2.9"]
# ///
"""Everything one does with the project: `nox -s SESSION -- ARGUMENTS`.

All sessions but `kernels` work in one environment, `.nox/fanin`, since PyTorch and TensorFlow
together take minutes to install. The session `fanin` makes it at the first use and brings it up to
date whenever a file of the project changed; the others require it. Arguments behind `--` go to the
command as they are.
"""

from __future__ import annotations

import hashlib
import shutil
import sys
from functools import partial
from pathlib import Path

import nox

nox.needs_version = ">=2025.2.9"

ROOT = Path(__file__).parent
PROJECT = nox.project.load_toml("pyproject.toml")
FOLDERS = ("kernels", "backends", "datasets", "benchmarks", "reports")
# TensorFlow without its GPU code is half the size.
TENSORFLOW = "tensorflow-cuda" if shutil.which("nvidia-smi") else "tensorflow-cpu"


def project_state() -> str:
    """Changes whenever something that is installed changes."""
    digest = hashlib.sha256(f"{sys.version} {TENSORFLOW}".encode())
    files = [ROOT / "pyproject.toml", ROOT / "constraints.txt"]
    for folder in FOLDERS:
        files += (ROOT / folder).rglob("*")
    ignored = {"__pycache__", "results"}
    for path in sorted(p for p in files if p.is_file() and p.suffix != ".md"):
        if ignored & {*path.relative_to(ROOT).parts}:
            continue
        digest.update(f"{path.relative_to(ROOT)}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


# pip installs and not uv: pip's settings may name an index with builds of PyTorch for CPUs. uv does
# not read them and would install the builds for GPUs, which are several times the size.
@nox.session(venv_backend="virtualenv", reuse_venv=True, default=False)
def fanin(session: nox.Session) -> None:
    """Bring the environment of the other sessions up to date: fanin, frameworks, test tools."""
    stamp = Path(session.virtualenv.location) / "fanin-state"
    state = project_state()
    if stamp.exists() and stamp.read_text() == state:
        return
    session.log("installing into .nox/fanin: minutes the first time, seconds later")
    groups = nox.project.dependency_groups(PROJECT, "test", "lint")
    session.install(
        "--constraint", "constraints.txt", f".[cluster,onnx,torch,{TENSORFLOW}]", *groups
    )
    # In the environment's Python, so that `nox -R`, which installs nothing, notes nothing either.
    note = "import pathlib, sys; pathlib.Path(sys.argv[1]).write_text(sys.argv[2])"
    session.run_install("python", "-c", note, str(stamp), state, silent=True)


def run(session: nox.Session, program: str, *arguments: str) -> None:
    """Run a program of the shared environment; its exit code is the session's."""
    # nox gives each session an environment of its own name, all beside its cache.
    binaries = session.cache_dir.parent / "fanin" / "bin"
    session.run(str(binaries / program), *arguments, external=True)


shared = partial(nox.session, venv_backend="none", requires=["fanin"])


@shared(default=False)
def reproduce(session: nox.Session) -> None:
    """Train all setups in both backends, by default on the small real data set, and report.

    nox -s reproduce                          minutes on two cores, no GPU
    nox -s reproduce -- --dataset wordnet     the whole set, hours
    nox -s reproduce -- --help                all options
    """
    run(session, "fanin", "reproduce", *session.posargs)


@shared(default=False)
def compare(session: nox.Session) -> None:
    """Compare PyTorch and TensorFlow after every training step; fail when they drift apart."""
    run(session, "fanin", "compare", *session.posargs)


@shared(default=False)
def report(session: nox.Session) -> None:
    """Make tables, plots and the HTML page from the result files at hand."""
    run(session, "fanin", "report", *session.posargs)


@shared
def tests(session: nox.Session) -> None:
    """Run the tests; `-- --fast` leaves the slow ones out, other arguments go to pytest."""
    arguments = list(session.posargs)
    if "--fast" in arguments:
        arguments.remove("--fast")
        arguments += ["-m", "not slow"]
    run(session, "pytest", *arguments)


def cpp_files() -> list[str]:
    """The C++ and CUDA files, tests included."""
    files = (
        path for folder in ("kernels", "backends", "tests") for path in (ROOT / folder).rglob("*")
    )
    return sorted(str(path) for path in files if path.suffix in {".h", ".cpp", ".cc", ".cu"})


@shared
def lint(session: nox.Session) -> None:
    """Check style with ruff and clang-format, and types with mypy."""
    run(session, "ruff", "check")
    run(session, "ruff", "format", "--check")
    run(session, "clang-format", "--dry-run", "--Werror", *cpp_files())
    run(session, "mypy", "-p", "fanin")


@shared(default=False)
def sanitize(session: nox.Session) -> None:
    """Run the kernels' tests under GCC's sanitizers: addresses, undefined behaviour, threads."""
    run(session, "python", "-P", "tests/support/sanitized.py", *session.posargs)


@shared(default=False)
def gpu(session: nox.Session) -> None:
    """One of the GPU parts: `-- --part correct|shapes|kernels|sanitize [--dry-run]`."""
    run(session, "python", "-P", "-m", "fanin.benchmarks.gpu", *session.posargs)


@shared(default=False)
def readme(session: nox.Session) -> None:
    """Write the tables and the plot of all READMEs from the files in benchmarks/results."""
    run(session, "python", "-P", "-m", "fanin.reports.pages.readme")


@nox.session(venv_backend="none", default=False)
def kernels(session: nox.Session) -> None:
    """Compile the CUDA kernels for sm_80, sm_90 and sm_100; fail on register spills. Needs nvcc."""
    session.run(sys.executable, "kernels/compile_report.py", *session.posargs, external=True)


if __name__ == "__main__":
    nox.main()
