"""`fanin merge`: what is copied, what passes, and what is refused."""

from __future__ import annotations

import json

import made_results
import pytest
from fakes import in_process

from fanin.benchmarks.records.files import checksum
from fanin.benchmarks.records.store import read_results, result_path, write_result

FIRST, SECOND = (made_results.machine(processor=f"{name} CPU") for name in ("First", "Second"))


@pytest.fixture
def folders(tmp_path):
    """Two machines' results: a task each, one run that both have, and a comparison."""
    shared = made_results.run(machine=FIRST)
    others = [made_results.task(seed=seed) for seed in (1, 2)]
    one = made_results.run(for_task=others[0], machine=FIRST)
    two = made_results.run(for_task=others[1], machine=SECOND, p1=0.6)
    made_results.save(tmp_path / "one", shared, one)
    made_results.save(tmp_path / "two", shared, two, made_results.lockstep())
    return tmp_path


def merge(folders, *names, **options):
    given = [folders / name for name in names or ("one", "two")]
    return in_process("merge", *given, "--into", folders / "into", **options)


def files(folder):
    paths = [path for path in folder.rglob("*") if path.is_file() and "report" not in path.parts]
    return {path.relative_to(folder): path.read_bytes() for path in paths}


@pytest.mark.slow
def test_two_machines_become_one_report(folders):
    done = merge(folders)
    assert done.exit_code == 0, done.output
    assert "4 results in" in done.output and "4 of them new" in done.output
    assert files(folders / "into") == {**files(folders / "one"), **files(folders / "two")}
    machines = [result.machine.processor for result in read_results(folders / "into")]
    assert sorted(machines) == ["First CPU", "First CPU", "Second CPU"]
    page = (folders / "into" / "report" / "index.html").read_text()
    assert "First CPU" in page and "Second CPU" in page
    again = merge(folders)
    assert again.exit_code == 0 and "0 of them new" in again.output
    as_json = in_process("merge", folders / "one", "--into", folders / "into", "--json")
    assert json.loads(as_json.stdout)["results"] == 4


@pytest.mark.parametrize("names", [("one", "two"), ("two",)])
def test_conflicts_are_named_and_nothing_is_written(folders, names):
    """Between two folders, or one and what lies in the target already."""
    place = "one" if len(names) == 2 else "into"
    differing = made_results.run(machine=FIRST, p1=0.4)
    made_results.save(folders / place, differing)
    before = files(folders / "into")
    done = merge(folders, *names)
    assert done.exit_code == 2
    assert "nothing was written; keep one of each, and merge again" in done.output
    path = result_path(folders / "two", differing.task, "torch", 0)
    assert f"  {path}: finished on First CPU, 2026-01-02 05:06" in done.output
    assert str(result_path(folders / place, differing.task, "torch", 0)) in done.output
    assert done.output.count("different results of one run") == 1
    assert files(folders / "into") == before


def test_a_failed_run_is_no_less_a_conflict(folders):
    made_results.save(folders / "one", made_results.failed(made_results.task(seed=2)))
    done = merge(folders)
    assert done.exit_code == 2
    assert "torch-0.json: failed, 2026-01-02" in done.output


@pytest.mark.slow
def test_weights_go_with_their_result(folders):
    run = made_results.run(machine=FIRST)
    path = result_path(folders / "two", run.task, "torch", 0)
    weights = path.with_suffix(".safetensors")
    weights.write_bytes(b"weights")
    run.weights_checksum = checksum(weights)
    for name in ("one", "two"):
        write_result(result_path(folders / name, run.task, "torch", 0), run)
    copy = result_path(folders / "into", run.task, "torch", 0).with_suffix(".safetensors")
    assert merge(folders, "one").exit_code == 0 and not copy.exists()
    weights.write_bytes(b"damaged")
    done = merge(folders)
    assert done.exit_code == 2
    assert f"{weights}: not the weights that its result file names" in done.output
    weights.write_bytes(b"weights")
    assert merge(folders).exit_code == 0
    assert copy.read_bytes() == b"weights"


def test_what_is_no_results_folder(folders):
    (folders / "empty").mkdir()
    done = merge(folders, "one", "empty")
    assert done.exit_code == 2 and f"{folders / 'empty'}: no result files below it" in done.output
    (path,) = [p for p in (folders / "two").rglob("*.json") if "seed=2" in str(p)]
    path.write_text("{")
    done = merge(folders)
    assert done.exit_code == 2 and f"{path}: not a result file" in done.output
    assert not files(folders / "into")
