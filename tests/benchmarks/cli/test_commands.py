"""The commands in processes of their own, and which tasks they choose."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from fakes import command, make_task

from fanin.benchmarks.cli.selection import select_tasks
from fanin.benchmarks.records.store import ResultError, read_result, result_path
from fanin.benchmarks.records.task_files import read_tasks, task_files


@pytest.mark.parametrize("module", ["fanin.benchmarks.cli.app", "fanin.benchmarks.harness.child"])
def test_what_takes_long_is_imported_where_it_is_used(module):
    """Not by each command, nor by each run's own process."""
    long = {"keras", "matplotlib", "pandas", "pyarrow", "sklearn", "tensorflow", "torch"}
    code = f"import sys, {module}; print(*{long} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == ""


@pytest.mark.slow
class TestCommandLine:
    @pytest.mark.parametrize("name", ["reproduce", "compare", "report", "plan", "info"])
    def test_help(self, name):
        done = command(name, "--help")
        assert done.returncode == 0
        assert len(done.stdout) > 300

    def test_info_for_a_program(self):
        answer = json.loads(command("info", "--json").stdout)
        assert answer["backends"] == {"torch": True, "tensorflow": True}
        assert "wordnet-small" in answer["datasets"]
        assert answer["kernels"]["instruction_set"] in answer["kernels"]["instruction_sets"]

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            (("--backend", "jax"), "unknown 'jax'; there are torch, tensorflow"),
            (("--execution", "fuse"), "unknown 'fuse'; there are autograd, fused"),
            (("--setup", "ffi-33"), "no setup 'ffi-33' .* there are bottleneck-64, dense"),
            (("--dataset", "nowhere"), "no data set named 'nowhere'; fanin comes with wordnet"),
            (("--dataset", "nowhere", "--features", "bow"), "no data set named 'nowhere'"),
            (("--dataset", ""), "no data set named ''"),
            (
                ("--weights-dtype", "bfloat16"),
                r"tasks\[0\] with .*weights_dtype=bfloat16.*: weights_dtype and .* need execution",
            ),
            (
                ("--weights-dtype", "float8", "--execution", "fused"),
                r"dense: weights in float8 are for .*, not for Dense; .*; --setup chooses tasks",
            ),
            (("--tasks", "/nowhere.json"), "/nowhere.json: no such task file"),
            (("--tasks", "amazon-670k"), "no such task file; fanin's own are .*amazon-670k/slice"),
        ],
    )
    def test_wrong_usage_is_one_line_and_code_2(self, tmp_path, given, message):
        done = command("reproduce", *given, "--results", tmp_path)
        assert done.returncode == 2
        assert re.search(message, done.stderr)
        assert "Traceback" not in done.stderr

    def test_tasks_of_a_data_set_by_any_of_its_names(self):
        def named(dataset, features=None, file=None, data_dir=None):
            return select_tasks([dataset], features, data_dir, file, None, {})

        def kinds(tasks):
            return {(t.dataset, t.features) for t in tasks}

        both = named("Amazon670k")
        assert kinds(both) == {("amazon-670k", "cascade"), ("amazon-670k", "slice")}
        assert not any("=" in t.slug for t in both)  # no ablations
        assert named("amazon-670k", "slice") == [t for t in both if t.features == "slice"]
        assert kinds(named(None)) == {("wordnet-small", "tfidf-svd512")}

        ablations = Path("wiki-500k/slice-ablations")
        assert kinds(named(None, file=ablations)) == {("wiki-500k", "slice")}
        assert all("=" in t.slug for t in named(None, file=ablations))
        assert kinds(named("wiki-500k", "mine", file=ablations)) == {("wiki-500k", "mine")}

    def test_only_the_features_that_are_there(self, tmp_path):
        (tmp_path / "Amazon670k").mkdir()
        (tmp_path / "Amazon670k" / "train-slice.npy").touch()
        tasks = select_tasks(["amazon-670k"], None, tmp_path, None, None, {})
        assert {t.features for t in tasks} == {"slice"}

    def test_ones_own_data_take_the_usual_setups(self, tmp_path):
        def named(dataset, features=None):
            return select_tasks([dataset], features, tmp_path, None, None, {})

        (tmp_path / "mine").mkdir()
        file = task_files()["wordnet/tfidf-svd512"]
        usual = [t.slug for t in read_tasks(file, {"recipe": "best"})]
        assert [t.slug for t in named("mine", "bert")] == usual
        assert {(t.dataset, t.features) for t in named("wordnet", "bert")} == {("wordnet", "bert")}
        # The only features that are there need not be named.
        (tmp_path / "mine" / "train-bert.npy").touch()
        assert {(t.dataset, t.features) for t in named("mine")} == {("mine", "bert")}
        (tmp_path / "mine" / "train-lsa.npy").touch()
        done = command("reproduce", "--dataset", "mine", "--data-dir", tmp_path)
        assert done.returncode == 2
        assert r"name --features (bert, lsa) or --tasks" in done.stderr

    def test_a_report_of_nothing(self, tmp_path):
        done = command("report", "--results", tmp_path)
        assert done.returncode == 2
        assert str(tmp_path) in done.stderr

    def test_a_broken_result_file_is_named(self, tmp_path):
        path = result_path(tmp_path, make_task(), "torch", 0)
        path.parent.mkdir(parents=True)
        path.write_text('{"schema_version": 1}')
        with pytest.raises(ResultError, match="not a result file of schema 1"):
            read_result(path)
        done = command("report", "--results", tmp_path)
        assert done.returncode == 2
        assert str(path) in done.stderr

    def test_a_missing_backend_says_what_to_install(self, tmp_path):
        """A finder that hides TensorFlow stands in for a machine without it."""
        (tmp_path / "sitecustomize.py").write_text(
            "import sys\n"
            "class Hide:\n"
            "    def find_spec(self, name, path=None, target=None):\n"
            "        if name.partition('.')[0] == 'tensorflow':\n"
            "            raise ModuleNotFoundError(name, name=name)\n"
            "sys.meta_path.insert(0, Hide())\n"
            "import importlib.util as u\n"
            "real = u.find_spec\n"
            "u.find_spec = lambda n, p=None: None if n == 'tensorflow' else real(n, p)\n"
        )
        path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
        done = command("reproduce", "--results", tmp_path, env={**os.environ, "PYTHONPATH": path})
        assert done.returncode == 2
        assert "'tensorflow' was asked for but is not installed: pip install" in done.stderr
