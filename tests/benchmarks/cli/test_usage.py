"""What is wrong with a command line is said in one line, before anything runs."""

from __future__ import annotations

import json
import os
import re
import sys

import made_results
import pytest
import typer
from fakes import TASKS, arguments, command, in_process, write_dataset
from numpy.linalg import _umath_linalg  # a shared library that is there everywhere

from fanin.backends import estimate
from fanin.benchmarks.cli import reproduce
from fanin.benchmarks.cli.selection import select_tasks
from fanin.benchmarks.harness import compare as lockstep
from fanin.benchmarks.harness.request import Options, Request, begun, failed
from fanin.benchmarks.records.store import result_path, write_result
from fanin.benchmarks.records.task_files import read_tasks
from fanin.kernels import library


class TestUsage:
    """What is wrong is said in one line, before anything runs."""

    @pytest.fixture
    def spoiled(self, tmp_path):
        """Results of one run, and the file of another that cannot be read."""
        write_dataset(tmp_path / "data")
        (tmp_path / "tasks.json").write_text(json.dumps(TASKS))
        done, broken = read_tasks(tmp_path / "tasks.json")[:2]
        options = Options(results=tmp_path / "all")
        request = Request(task=done, backend="torch", repeat=0, options=options)
        write_result(request.path, failed(begun(request), "ValueError", "so it is", ""))
        path = result_path(tmp_path / "all", broken, "torch", 0)
        path.parent.mkdir()
        path.write_bytes(b"\xff")
        return tmp_path

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            (("reproduce", "--checkpoint-minutes", "inf"), "inf is not a number below 1e12"),
            (("plan", "--memory", "inf"), "inf is not a number below"),
            (("plan", "--bandwidth", "1e300"), "1e.300 is not a number below"),
            (("plan", "--gflops", "inf"), "inf is not a number below"),
            (("reproduce", "--device", "gpu"), "unknown 'gpu'; there are cpu, cuda, auto"),
            (("compare", "--device", "gpu"), "unknown 'gpu'"),
            (("plan", "--data-dir", "nowhere"), "'nowhere' does not exist"),
            (("reproduce", "--data-dir", "."), "--data-dir . needs --dataset too, or --tasks"),
            (("reproduce", "--data-dir", ".", "--profile", "shapes"), "needs --dataset too"),
            (("report", "--out", __file__), "is a file"),
            (("reproduce", "--results", f"{__file__}/x"), f"{__file__}/x: Not a directory"),
            (("compare", "--results", f"{__file__}/x"), f"{__file__}/x: Not a directory"),
        ],
    )
    def test_wrong_options(self, given, message):
        done = in_process(*given, env={"TERMINAL_WIDTH": "1000"})
        assert done.exit_code == 2
        assert re.search(message, done.output)
        assert isinstance(done.exception, SystemExit)

    @pytest.mark.parametrize("command", ["plan", "compare"])
    def test_a_setup_that_does_not_fit_the_data(self, tmp_path, command):
        write_dataset(tmp_path / "data")
        wide = {"dataset": "tiny", "features": "dense40", "connectivity": 41}
        content = {"tasks": [{**wide, "architecture": "stratified"}]}
        (tmp_path / "tasks.json").write_text(json.dumps(content))
        options = (
            ["--bandwidth", 1, "--gflops", 1] if command == "plan" else ["--results", tmp_path]
        )
        places = ("--data-dir", tmp_path / "data", "--tasks", tmp_path / "tasks.json")
        done = in_process(command, *places, *options)
        assert done.exit_code == 2
        assert done.output.startswith(
            "fanin: tiny, dense40 features, setup ffi-41: connectivity 41"
        )
        assert done.output.count("\n") == 1

    @pytest.mark.parametrize("command", ["reproduce", "compare", "report"])
    def test_results_are_read_before_anything_runs(self, spoiled, monkeypatch, command):
        monkeypatch.setattr(reproduce, "run_all", None)
        monkeypatch.setattr(lockstep, "compare", None)
        options = ["--setup", "dense", *arguments(spoiled, "all")]
        if command == "report":
            options = ["--results", spoiled / "all"]
        done = in_process(command, *options)
        assert done.exit_code == 2
        assert re.search(r"unstructured-8_epochs=2/torch-0\.json: not UTF-8", done.output)

    def test_what_is_run_again_need_not_be_readable(self, spoiled, monkeypatch):
        def run_all(todo, options, display, runs):
            (request,) = todo
            task = request.task
            data = made_results.dataset(name=task.dataset, features=task.features)
            result = made_results.run(for_task=task, epochs=task.epochs, dataset=data)
            write_result(request.path, result)
            return [result]

        monkeypatch.setattr(reproduce, "run_all", run_all)
        again = ("--setup", "unstructured-8", "--backend", "torch", "--force")
        done = in_process("reproduce", *arguments(spoiled, "all"), *again)
        assert done.exit_code == 0, done.output

    @pytest.mark.parametrize(
        ("kinds", "more", "code"),
        [
            (["DataError"], (), 2),
            (["TaskError", "ProcessDied"], (), 2),
            (["ProcessDied"], (), 1),
            (["TooLargeError"], (), 1),
            (["TooLargeError"], ("--profile", "shapes", "--dataset", "amazon-3m"), 0),
        ],
    )
    def test_exit_code(self, tmp_path, monkeypatch, kinds, more, code):
        def run_all(todo, options, display, runs):
            made = []
            for request, kind in zip(todo, kinds, strict=False):
                made.append(failed(begun(request), kind, "so it is", ""))
                write_result(request.path, made[-1])
            return made

        monkeypatch.setattr(reproduce, "run_all", run_all)
        done = in_process("reproduce", "--results", tmp_path, "--json", *more)
        assert done.exit_code == code
        assert re.search(r"not tried, since the data cannot be used: \d+ runs", done.output)

    @pytest.mark.parametrize(
        ("path", "message"),
        [
            ("/nope.so", "/nope.so: no such file; correct FANIN_LIBRARY or unset it"),
            (__file__, f"{__file__}: "),  # the rest is the system's
            (_umath_linalg.__file__, f"{_umath_linalg.__file__} is no library of fanin"),
        ],
        ids=["missing", "no library", "another library"],
    )
    def test_says_why_the_library_cannot_be_used(self, monkeypatch, path, message):
        monkeypatch.setattr(library, "load", library.load.__wrapped__)
        done = in_process("info", env={"FANIN_LIBRARY": path})
        assert done.exit_code == 2
        assert done.output.startswith(f"fanin: the kernels cannot be used: {message}")
        amazon = ("--dataset", "amazon-670k", "--execution", "fused")
        monkeypatch.setattr(
            estimate, "sorting_pays", lambda sources, cpu: True
        )  # in tiles it knows
        done = in_process("plan", *amazon, env={"FANIN_LIBRARY": path})
        assert done.exit_code == 2
        assert done.output.startswith(f"fanin: {message}")

    @pytest.mark.slow
    def test_info_says_that_an_instruction_set_does_not_exist(self):
        done = command("info", env={**os.environ, "FANIN_INSTRUCTION_SET": "avx9"})
        assert done.returncode == 2
        assert "cannot be used: unknown instruction set 'avx9'; there are " in done.stderr

    @pytest.mark.parametrize(
        ("name", "slugs"),
        [
            ("FFI 32-16k", ["ffi-32-16384"]),
            ("ffi 32-16384", ["ffi-32-16384"]),
            ("FFI-32", ["ffi-32"]),
            ("dense", ["dense"]),
            ("Dense", ["dense"]),
            ("Unstructured 32-32k", ["unstructured-32-32768"]),
        ],
    )
    def test_a_setup_by_its_name_in_the_table(self, name, slugs):
        tasks = select_tasks(["amazon-670k"], "slice", None, None, [name], {"execution": "fused"})
        assert [t.slug.removesuffix("_execution=fused") for t in tasks] == slugs
        label = f"{name}, fused"
        if name == "FFI 32-16k":
            assert (
                select_tasks(["amazon-670k"], "slice", None, None, [label], {"execution": "fused"})
                == tasks
            )

    @pytest.mark.parametrize("name", ["ffi-32", "FFI 32", "FFI 32, recipe best", "ffi-32,fused",
                                      "ffi-32_recipe=best_execution=fused"])  # fmt: skip
    def test_a_setup_with_a_recipe_by_its_name_in_the_table(self, name):
        given = {"execution": "fused", "recipe": "best"}
        (task,) = select_tasks(["wordnet-small"], None, None, None, [name], given)
        assert task.slug.startswith("ffi-32_recipe=best")

    @pytest.mark.parametrize("name", ["FFI 32, recipe best", "ffi-3", "recipe best"])
    def test_a_name_with_a_departure_that_no_task_has_is_refused(self, name, capsys):
        with pytest.raises(typer.Exit):
            select_tasks(["amazon-670k"], "slice", None, None, [name], {})
        assert f"no setup {name!r}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--retries", "1"], "--slurm are for jobs: name --cluster"),
        (["--cluster", "local", "--slurm", "mem=8G"], "--slurm is for --cluster slurm"),
        (["--cluster", "slurm", "--slurm", "long"], "--slurm 'long' is no KEY=VALUE"),
        (["--cluster", "slurm", "--slurm", "a\nb=1"], "is no KEY=VALUE"),
        (["--cluster", "slurm", "--slurm", "comment=1\n#SBATCH --x"], "is no KEY=VALUE"),
        (["--cluster", "slurm", "--slurm", "cpus-per-task=3"], "CPUs come from --threads"),
        (["--cluster", "slurm", "--slurm", "time=1-0"], "give minutes, such as time=90"),
        (["--cluster", "slurm"], "--cluster slurm needs Slurm's sbatch, squeue, scancel, which"),
    ],
)
def test_how_jobs_are_run(tmp_path, monkeypatch, given, message):
    monkeypatch.setenv("PATH", str(tmp_path))
    done = in_process("reproduce", "--results", tmp_path, "--setup", "dense", *given)
    assert done.exit_code == 2
    assert message in done.output and done.output.count("fanin: ") == 1


def test_jobs_need_submitit(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit", None)
    given = ("--results", tmp_path, "--setup", "dense", "--cluster", "local")
    done = in_process("reproduce", *given)
    assert done.exit_code == 2
    assert "--cluster needs submitit: pip install 'fanin[cluster]'" in done.output
