# /// script
# dependencies = ["nox>=2025.2"]
# ///
"""Everything one does with the project: `nox -s SESSION -- ARGUMENTS`.

`reproduce`, `compare`, `report` and `tests` share one environment, `.nox/fanin`, since PyTorch and
TensorFlow together take minutes to install. It is made at the first use and brought up to date
whenever a file of the project changed. Arguments behind `--` go to the command as they are.
"""

from __future__ import annotations

import hashlib
import shutil
import sys
from pathlib import Path

import nox

nox.needs_version = ">=2025.2"
nox.options.sessions = ["tests", "lint"]

ROOT = Path(__file__).parent
ENVIRONMENT = ROOT / ".nox" / "fanin"
PROJECT = nox.project.load_toml("pyproject.toml")
# TensorFlow without its GPU code is half the size.
TENSORFLOW = "tensorflow-cuda" if shutil.which("nvidia-smi") else "tensorflow-cpu"
GROUPS = ("test", "lint")


def project_state() -> str:
    """Changes whenever something that is installed changes."""
    digest = hashlib.sha256(f"{sys.version} {TENSORFLOW}".encode())
    files = [ROOT / "pyproject.toml", ROOT / "constraints.txt"]
    for folder in ("kernels", "backends", "datasets", "benchmarks", "reports"):
        files += (ROOT / folder).rglob("*")
    ignored = {"__pycache__", "results"}
    for path in sorted(p for p in files if p.is_file()):
        if ignored & {*path.relative_to(ROOT).parts}:
            continue
        digest.update(f"{path.relative_to(ROOT)}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def environment(session: nox.Session) -> Path:
    """The shared environment with fanin, both frameworks and the test tools; its bin folder."""
    binaries = ENVIRONMENT / "bin"
    stamp = ENVIRONMENT / "fanin-state"
    state = project_state()
    if not stamp.exists() or stamp.read_text() != state:
        if not (binaries / "python").exists():
            session.run(sys.executable, "-m", "venv", str(ENVIRONMENT), external=True)
        requirements = [f"{ROOT}[torch,{TENSORFLOW}]"]
        requirements += nox.project.dependency_groups(PROJECT, *GROUPS)
        session.log("installing into .nox/fanin: minutes the first time, seconds later")
        session.run(
            str(binaries / "python"),
            *("-m", "pip", "install", "--quiet", "--disable-pip-version-check"),
            *("--constraint", "constraints.txt", *requirements),
            external=True,
        )
        stamp.write_text(state)
    return binaries


def fanin(session: nox.Session, *arguments: str) -> None:
    """Run the console script; its exit code is the session's."""
    session.run(str(environment(session) / "fanin"), *arguments, external=True)


@nox.session(venv_backend="none")
def reproduce(session: nox.Session) -> None:
    """Train all setups in both backends, by default on the small real data set, and report.

    nox -s reproduce                          minutes on two cores, no GPU
    nox -s reproduce -- --dataset wordnet     the whole set, hours
    nox -s reproduce -- --help                all options
    """
    fanin(session, "reproduce", *session.posargs)


@nox.session(venv_backend="none")
def compare(session: nox.Session) -> None:
    """Compare PyTorch and TensorFlow after every training step; fail when they drift apart."""
    fanin(session, "compare", *session.posargs)


@nox.session(venv_backend="none")
def report(session: nox.Session) -> None:
    """Make tables, plots and the HTML page from the result files at hand."""
    fanin(session, "report", *session.posargs)


@nox.session(venv_backend="none")
def tests(session: nox.Session) -> None:
    """Run the tests; `-- --fast` leaves the slow ones out, other arguments go to pytest."""
    arguments = list(session.posargs)
    if "--fast" in arguments:
        arguments.remove("--fast")
        arguments += ["-m", "not slow"]
    session.run(str(environment(session) / "pytest"), *arguments, external=True)


@nox.session(venv_backend="none")
def lint(session: nox.Session) -> None:
    """Check style with ruff and clang-format, and types with mypy."""
    binaries = environment(session)
    ruff = str(binaries / "ruff")
    session.run(ruff, "check", external=True)
    session.run(ruff, "format", "--check", external=True)
    sources = [
        str(path.relative_to(ROOT))
        for folder in ("kernels", "backends", "tests")
        for path in sorted((ROOT / folder).rglob("*"))
        if path.suffix in {".h", ".cpp", ".cc", ".cu"}
    ]
    session.run(str(binaries / "clang-format"), "--dry-run", "-Werror", *sources, external=True)
    packages = ("kernels", "backends", "datasets", "benchmarks", "reports")
    session.run(
        str(binaries / "mypy"),
        *(argument for package in packages for argument in ("-p", f"fanin.{package}")),
        external=True,
    )


@nox.session(venv_backend="none")
def gpu(session: nox.Session) -> None:
    """One of the GPU parts: `-- --part correct|shapes|kernels|sanitize [--dry-run]`."""
    python = str(environment(session) / "python")
    session.run(python, "-P", "-m", "fanin.benchmarks.gpu", *session.posargs, external=True)


@nox.session(venv_backend="none")
def readme(session: nox.Session) -> None:
    """Write the README's tables and plot and the page of all devices from benchmarks/results."""
    session.run(str(environment(session) / "python"), ".ci/readme.py", external=True)


@nox.session(venv_backend="none")
def kernels(session: nox.Session) -> None:
    """Compile the CUDA kernels for sm_80, sm_90 and sm_100; fail on register spills. Needs nvcc."""
    session.run(sys.executable, "kernels/compile_report.py", *session.posargs, external=True)
