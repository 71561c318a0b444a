"""How the GPU command starts: from a checkout, with a build, and what it refuses at once."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import emulated
import pytest
from gpu_kit import environment, run

from fanin.benchmarks import gpu
from fanin.benchmarks.gpu_parts import build, needs
from fanin.benchmarks.records.gpu import PARTS, part_path, read_part

ROOT = Path(__file__).parents[3]
COMMAND = ("-P", "-m", "fanin.benchmarks.gpu", "--part")

pytestmark = pytest.mark.slow


def test_each_part_has_a_module():
    assert tuple(gpu.MODULES) == PARTS


@pytest.fixture
def checkout(tmp_path):
    """Another checkout."""
    root = tmp_path / "clone"
    for name in gpu.PACKAGES:
        ignored = shutil.ignore_patterns("__pycache__", "results", "wordnet.txt.xz")
        shutil.copytree(ROOT / name, root / name, ignore=ignored)
    return root


def start(checkout, tmp_path, *arguments, **more):
    """The command as a file of the checkout, with nothing of fanin to be imported."""
    env = environment(tmp_path, **more)
    env["PYTHONPATH"] = str(tmp_path)
    script = checkout / "benchmarks" / "gpu.py"
    done = run([str(script), "--part", "correct", *arguments], env, checkout)
    return done, checkout / "results" / "dry-run" / "cpu" / "gpu" / "correct.json"


def test_from_a_plain_checkout(checkout, tmp_path):
    done, path = start(checkout, tmp_path, "--dry-run", "--minutes", "0")
    assert done.returncode == 0, done.stdout + done.stderr
    part_file = read_part(path)
    assert {row.state for row in part_file.rows} == {"not reached"}
    # It is its code that ran, from a folder with nothing but the package in it.
    links = checkout / "build" / "gpu" / "path"
    assert [p.name for p in links.iterdir()] == ["fanin"]
    assert (links / "fanin" / "kernels").resolve() == checkout / "kernels"
    (checkout / "benchmarks" / "harness" / "plan.py").write_text('"""Other code."""\n')
    done, _ = start(checkout, tmp_path, "--dry-run", "--minutes", "0")
    assert read_part(path).machine.code != part_file.machine.code


def test_builds_the_kernels_once(checkout, tmp_path):
    arguments = ("--dry-run", "--minutes", "0")
    """All but the compiling, which takes a minute: it is that of the emulated kernels' tests."""
    emulator = Path("tests", "kernels", "cuda_emulator")
    shutil.copytree(ROOT / emulator, checkout / emulator)
    cmake = f"{emulated.OPTION} {emulated.launcher(tmp_path / 'launcher')}"
    quick = {"FANIN_LIBRARY": "", "CMAKE_ARGS": cmake}
    done, path = start(checkout, tmp_path, *arguments, **quick)
    assert done.returncode == 0, done.stdout + done.stderr
    library = checkout / "build" / "gpu" / "cpu" / "libfanin.so"
    made = library.stat().st_mtime_ns
    assert read_part(path).cuda.architectures == [0]
    done, _ = start(checkout, tmp_path, *arguments, **quick)
    assert done.returncode == 0 and library.stat().st_mtime_ns == made
    good = library.read_bytes()
    library.write_bytes(good[:1000])
    done, _ = start(checkout, tmp_path, *arguments, **quick)
    assert done.returncode == 0 and library.read_bytes() == good


def test_without_a_gpu_it_says_so(tmp_path):
    env = environment(tmp_path, CUDA_VISIBLE_DEVICES="")
    done = run([*COMMAND, "correct"], env, tmp_path)
    assert done.returncode == gpu.WRONG_USE
    assert "torch sees no GPU here; --dry-run" in done.stderr


def test_a_file_of_another_schema_is_refused_and_named(tmp_path):
    path = part_path(tmp_path, "cpu", "correct")
    path.parent.mkdir(parents=True)
    path.write_text('{"schema_version": 0}')
    command = [*COMMAND, "correct", "--dry-run", "--results", str(tmp_path)]
    done = run(command, environment(tmp_path), tmp_path)
    assert done.returncode == gpu.WRONG_USE
    assert f"gpu: {path}: not a result file of schema 2: schema_version" in done.stderr


@pytest.mark.parametrize("part", PARTS)
def test_what_a_part_lacks_is_named_before_anything_is_built(tmp_path, part):
    # A build would fail, and so would torch.
    more = {"FANIN_LIBRARY": "", "PATH": os.devnull}
    env = environment(tmp_path, ("platformdirs", "pydantic", "pynvml", "torch"), **more)
    done = run([*COMMAND, part, "--dry-run"], env, tmp_path)
    assert done.returncode == gpu.WRONG_USE
    lacking, names = "pydantic, pynvml", "pydantic nvidia-ml-py"
    if part == "shapes":
        lacking, names = f"{lacking}, platformdirs", f"{names} platformdirs"
    assert f"part {part} needs {lacking}: `pip install {names}`" in done.stderr
    assert f"`pip download -d wheels {names}`" in done.stderr
    assert not done.stdout


@pytest.mark.parametrize(
    "compiled, architecture, fits",
    [([80, 90], "90", True), ([80], "86", True), ([80], "90", False), ([], "90", False),
     ([90], "80", False)],
)  # fmt: skip
def test_a_library_without_code_for_the_device(monkeypatch, compiled, architecture, fits):
    monkeypatch.setattr("fanin.kernels.build_info", lambda: {"cuda": compiled})
    if fits:
        return build.check_code(architecture)
    with pytest.raises(needs.GpuError, match=f"not for this device .sm_{architecture}"):
        build.check_code(architecture)
