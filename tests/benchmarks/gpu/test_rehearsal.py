"""Each GPU part rehearsed on the CPU by the command itself: the whole path and the schema."""

from __future__ import annotations

import json
import re
import tomllib
import types
import typing
from pathlib import Path

import pytest
from gpu_kit import environment, run
from pydantic import BaseModel

from fanin.benchmarks.gpu_parts import contestants, needs
from fanin.benchmarks.records.gpu import FILES, PARTS, part_path, read_part
from fanin.reports.pages.devices import devices_page
from fanin.reports.tables.gpu import part_text

pytestmark = [pytest.mark.torch, pytest.mark.slow]


def unneeded_by(part):
    """Of the packages that fanin depends on, those that a part is said to do without."""
    content = (Path(__file__).parents[3] / "pyproject.toml").read_text(encoding="utf-8")
    names = [
        re.split("[>=]", each)[0] for each in tomllib.loads(content)["project"]["dependencies"]
    ]
    imported = {distribution: name for name, distribution in needs.DISTRIBUTIONS.items()}
    imported["scikit-learn"] = "sklearn"
    return {imported.get(name, name) for name in names} - {*needs.needed_by(part)}


@pytest.fixture(scope="module")
def rehearsal(tmp_path_factory):
    """A dry run of each part, at the first use, where nothing is installed but what it needs."""
    folder = tmp_path_factory.mktemp("gpu")
    processes = {}

    def rehearse(part):
        if part not in processes:
            hooks = tmp_path_factory.mktemp(part)
            command = ["-P", "-m", "fanin.benchmarks.gpu", "--part", part, "--dry-run"]
            command += ["--results", str(folder), "--seed", "3"]
            processes[part] = run(command, environment(hooks, unneeded_by(part)), hooks)
        return processes[part], part_path(folder, "cpu", part)

    return rehearse


@pytest.mark.parametrize("name", PARTS)
def test_a_dry_run_walks_the_whole_path(rehearsal, name):
    done, path = rehearsal(name)
    assert done.returncode == 0, done.stdout + done.stderr
    part_file = read_part(path)
    assert part_file.dry_run and part_file.part == name
    assert part_file.device == part_file.machine.device == "cpu"
    assert part_file.machine.code
    assert part_file.compile_report is None and part_file.compile_report_reason
    assert part_file.rows and all(row.state != "not reached" for row in part_file.rows)
    # The table comes last, then where the file is.
    *_, where = done.stdout.rstrip().rpartition("\n")
    assert where == str(path)
    assert part_text(part_file).splitlines()[-1] == done.stdout.rstrip().splitlines()[-2]
    if name == "correct":
        checks = [check for row in part_file.rows for check in row.checks]
        assert {check.index for check in checks} >= {"uint16", "uint32"}
        assert {check.op for check in checks} >= {
            "fused_step",
            "dense_relu_update",
            "top_k",
            "label_sums",
            "sparse_relu_update",
        }
        (graph,) = (row for row in part_file.rows if row.state == "gap")
        assert "need a GPU" in graph.reason
    if name == "kernels":
        for row in part_file.rows:
            ran = {one.name for one in row.contestants if one.seconds}
            expected = {"copy", *contestants.makers(None, "forward")} - {"dense tf32"}
            if row.op not in ("fused step", "top-k"):  # the op itself has no bfloat16
                expected.discard("groups of 32 bf16")
            assert ran == expected
    if name == "sanitize":
        assert [(row.check, row.tool, row.exit_code) for row in part_file.rows] == [
            ("memcheck", None, 0),
            ("racecheck", None, 0),
        ]
    if name == "shapes":
        assert [row.execution for row in part_file.rows] == ["fused", "autograd"]
        assert all((path.parent.parent / row.file).exists() for row in part_file.rows)


def keys_of(kind, value, where=""):
    """The keys of a file, and of the schema along it."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        kinds = typing.get_type_hints(kind)
        yield where, set(value), set(kind.model_fields)
        for name in kind.model_fields:
            yield from keys_of(kinds[name], value[name], f"{where}.{name}")
    elif typing.get_origin(kind) is types.UnionType and value is not None:
        yield from keys_of(typing.get_args(kind)[0], value, where)
    elif typing.get_origin(kind) is list:
        for one in value:
            yield from keys_of(typing.get_args(kind)[0], one, where)


@pytest.mark.parametrize("name", PARTS)
def test_a_dry_runs_file_has_the_keys_of_the_schema(rehearsal, name):
    _, path = rehearsal(name)
    seen = list(keys_of(FILES[name], json.loads(path.read_text())))
    assert len(seen) > 4 and any(where == ".rows" for where, _, _ in seen)
    for where, present, expected in seen:
        assert present == expected, where


def test_the_page_is_right_with_part_of_the_files(rehearsal):
    _, path = rehearsal("kernels")
    page = devices_page(path.parents[2])
    assert "32 of 32 rows (dry run)" in page
    assert "no GPU was at hand" not in page  # there is a folder of a device with GPU parts
