"""The GPU parts, rehearsed on the CPU: the whole path, the schema, and what must not pass."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import stat
import subprocess
import sys
import time
import types
import typing
from pathlib import Path

import numpy as np
import pytest
import reference as in_numpy
import torch

from fanin.backends.arrays import initial_arrays
from fanin.backends.setup import Dense, FixedFanIn, LayerSetup, Unstructured
from fanin.benchmarks import gpu
from fanin.benchmarks.gpu_parts import correct, kernels, part, reference, results, sanitize, tables
from fanin.benchmarks.gpu_parts.results import Contestant, KernelRow, PartFileError, Row
from fanin.benchmarks.records.task import files_of, read_tasks
from fanin.kernels.library import library_path
from fanin.reports.devices import devices_page

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
LEAN = ("correct", "kernels", "sanitize")


def environment(tmp_path, without=(), **more):
    """Of a child: the library at hand, and `without` as if it was not installed."""
    hook = "import sys\n" + "".join(f"sys.modules[{name!r}] = None\n" for name in without)
    (tmp_path / "sitecustomize.py").write_text(hook)
    path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
    library = {"FANIN_LIBRARY": str(library_path())}
    return {**os.environ, **library, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **more}


def run(command, env, cwd):
    return subprocess.run(
        [sys.executable, *command], env=env, cwd=cwd, capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def rehearsal(tmp_path_factory):
    """A dry run of each part, where pydantic and platformdirs are missing but for `shapes`."""
    folder = tmp_path_factory.mktemp("gpu")
    done = {}

    def of(name):
        if name not in done:
            hooks = tmp_path_factory.mktemp(name)
            env = environment(hooks, ("pydantic", "platformdirs") if name in LEAN else ())
            command = ["-P", "-m", "fanin.benchmarks.gpu", "--part", name, "--dry-run"]
            done[name] = run([*command, "--results", str(folder), "--seed", "3"], env, hooks)
        return done[name], results.part_path(folder, "cpu", name)

    return of


@pytest.mark.slow
@pytest.mark.parametrize("name", results.PARTS)
def test_a_dry_run_walks_the_whole_path(rehearsal, name):
    done, path = rehearsal(name)
    assert done.returncode == 0, done.stdout + done.stderr
    found = results.read(path)
    assert found.dry_run and found.part == name and found.machine.device == "cpu"
    assert found.machine.code and found.compile_report is None and found.compile_report_reason
    assert found.rows and all(row.state != "not reached" for row in found.rows)
    # The table comes last, then where the file is.
    *_, table, where = done.stdout.rstrip().rpartition("\n")
    assert where == str(path)
    assert tables.text(found).splitlines()[-1] == done.stdout.rstrip().splitlines()[-2]
    if name == "correct":
        checks = [check for row in found.rows for check in row.checks]
        assert {check.index for check in checks} >= {"uint16", "uint32"}
        assert {check.op for check in checks} >= {"fused_step", "dense_relu_update", "top_k"}
        (graph,) = (row for row in found.rows if row.state == "gap")
        assert "need a GPU" in graph.reason
    if name == "kernels":
        for row in found.rows:
            there = {one.name for one in row.contestants if one.seconds}
            assert there == {"copy", *kernels.makers(None, "forward")} - {"dense tf32"}
    if name == "sanitize":
        assert [(row.check, row.tool, row.exit_code) for row in found.rows] == [
            ("memcheck", None, 0),
            ("racecheck", None, 0),
        ]
    if name == "shapes":
        assert [row.execution for row in found.rows] == ["fused", "autograd"]
        assert all((path.parent.parent / row.file).exists() for row in found.rows)


def keys_of(kind, value, where=""):
    """The keys of a file, and of the schema along it."""
    if dataclasses.is_dataclass(kind):
        kinds = typing.get_type_hints(kind)
        yield where, set(value), set(kinds)
        for name, of in kinds.items():
            yield from keys_of(of, value[name], f"{where}.{name}")
    elif typing.get_origin(kind) is types.UnionType and value is not None:
        yield from keys_of(typing.get_args(kind)[0], value, where)
    elif typing.get_origin(kind) is list and typing.get_args(kind)[0] is not typing.Any:
        for one in value:
            yield from keys_of(typing.get_args(kind)[0], one, where)


@pytest.mark.slow
@pytest.mark.parametrize("name", results.PARTS)
def test_a_dry_runs_file_has_the_keys_of_the_schema(rehearsal, name):
    _, path = rehearsal(name)
    content = json.loads(path.read_text())
    seen = list(keys_of(results.PartFile, content))
    for row in content["rows"]:
        seen += keys_of(results.ROWS[name], row, ".rows")
    assert len(seen) > 2
    for where, there, expected in seen:
        assert there == expected, where


@pytest.mark.slow
def test_the_page_is_right_with_part_of_the_files(rehearsal):
    _, path = rehearsal("kernels")
    page = devices_page(path.parents[2])
    assert "32 of 32 rows (dry run)" in page
    assert "no GPU was at hand" not in page  # there is a folder of a device with GPU parts


def few_cases(*words):
    found = [c for c in correct.cases(True) if any(word in c.key for word in words)]
    assert found
    return found


def given(tmp_path, **changes):
    usual = {"device": "cpu", "dry_run": True, "seconds": 60.0, "minutes": 1.0, "seed": 5}
    none = {"compile_report": None, "compile_report_reason": "not asked"}
    return part.Options(path=tmp_path / "correct.json", **{**usual, **none, **changes})


def conduct(tmp_path, cases, **changes):
    options = given(tmp_path, **changes)
    jobs = correct.jobs(CPU, options.seed, cases)
    return part.conduct("correct", options, CPU, jobs, correct.failed), results.read(options.path)


def wrong_scores(op):
    return lambda *args, **kwargs: op(*args, **kwargs) * (1 + 1e-5)


def wrong_gradient(op):
    def call(*arguments):
        value, grad = op(*arguments)
        return value, grad + 1e-4 * grad.abs().max()

    return call


def wrong_moment(op):
    def call(*arguments):
        arguments[5].mul_(1.001)  # m, before the step: what the second step has of the first
        return op(*arguments)

    return call


def wrong_tie(op):
    def call(*arguments):
        values, ids = op(*arguments)
        return values, ids.flip(1)

    return call


def one_too_many(op):
    def call(indices, *arguments):
        moved = op(indices, *arguments)
        indices.view(-1)[0] = 1
        indices.view(-1)[1] = 2
        return moved

    return call


def never_there(op):
    def call(*arguments):
        raise RuntimeError("CUDA: no kernel image")

    return call


@pytest.mark.parametrize(
    "op, wrong, cases, named",
    [
        ("fan_in_linear", wrong_scores, "fan_in_linear 1003x97 fan-in 7 batch 33", "scores"),
        ("fused_step", wrong_gradient, "fused_step fixed 1003x97 fan-in 7 batch 33", "grad_feat"),
        ("fused_step", wrong_moment, "fused_step dense 1003x97 fan-in 97 batch 33", "weights_m"),
        ("dense_relu", wrong_scores, "dense_relu 131x97", "dense_relu outputs"),
        ("top_k", wrong_tie, "top_k fixed 3001", "top_k ids"),
        ("rewire", one_too_many, "regrow 0.1", "regrow 0.1 indices"),
        ("top_k", never_there, "top_k fixed 3001", "no kernel image"),
    ],
)
def test_a_wrong_op_fails_the_part_and_is_named(tmp_path, monkeypatch, op, wrong, cases, named):
    code, _ = conduct(tmp_path, few_cases(cases))
    assert code == 0
    monkeypatch.setattr(correct, op, wrong(getattr(correct, op)))
    code, found = conduct(tmp_path, few_cases(cases))
    assert code == part.FAILED
    assert all(row.state == "done" for row in found.rows)  # the others were run all the same
    assert any(named in row.reason for row in found.rows if row.reason)


def test_outputs_that_are_not_written_are_found(tmp_path, monkeypatch):
    """The kernel leaves out what it was not asked for; the poison shows."""
    monkeypatch.setattr(correct.library, "call", lambda params, allocate: None)
    code, found = conduct(tmp_path, few_cases("batch 7 float32 uint16 (C)"))
    assert code == part.FAILED
    assert all(check.error is None and not check.passed for check in found.rows[0].checks)


class TestBudget:
    def test_gaps_are_left_and_filled_by_the_next_call(self, tmp_path, capsys):
        cases = few_cases("top_k fixed")
        code, found = conduct(tmp_path, cases, seconds=0.0)
        assert code == 0
        assert {(row.state, row.reason) for row in found.rows} == {
            ("not reached", "not reached within the budget of 1 minutes")
        }
        assert f"0 of {len(cases)} rows, {len(cases)} not reached" in capsys.readouterr().out
        _, found = conduct(tmp_path, cases)
        assert {row.state for row in found.rows} == {"done"}

    def test_what_is_there_is_not_run_again(self, tmp_path, monkeypatch):
        ran = []

        def jobs():
            def job(name):
                def work():
                    ran.append(name)
                    time.sleep(0.2)

                return part.Job(results.SanitizeRow(key=name, check=name), work)

            return [job(name) for name in "abc"]

        def call(**changes):
            options = given(tmp_path, **changes)
            part.conduct("sanitize", options, CPU, jobs(), sanitize.failed)
            return [row.state for row in results.read(options.path).rows]

        assert call(seconds=0.1) == ["done", "not reached", "not reached"]
        assert call(seconds=0.1) == ["done", "done", "not reached"]
        # Other code: nothing of before counts.
        with monkeypatch.context() as patch:
            patch.setattr(part.measure, "code_identity", lambda: "another")
            assert call(seconds=0.1) == ["done", "not reached", "not reached"]
        assert ran == ["a", "b", "a"]
        assert call() == ["done"] * 3
        ran.clear()
        assert call() == ["done"] * 3  # a complete file is made anew
        assert ran == ["a", "b", "c"]


class TestReader:
    @pytest.fixture
    def path(self, tmp_path):
        conduct(tmp_path, few_cases("top_k fixed 1x3"))
        return tmp_path / "correct.json"

    @pytest.mark.parametrize(
        "change, said",
        [
            (lambda c: c["machine"].pop("driver"), "missing key machine.driver"),
            (lambda c: c.pop("dry_run"), "missing key dry_run"),
            (lambda c: c["rows"][0].pop("seed"), r"missing key rows\[0\].seed"),
            (lambda c: c["rows"][0]["checks"][0].pop("passed"), r"checks\[0\].passed"),
            (lambda c: c.update(more=1), "unknown key more"),
            (lambda c: c.update(schema_version=9), "schema_version must be 1, got 9"),
            (lambda c: c.update(minutes="9"), "minutes must be float, got '9'"),
            (lambda c: c.update(dry_run=1), "dry_run must be bool, got 1"),
            (lambda c: c["rows"][0].update(state="ok"), "state must be 'done' or 'gap'"),
        ],
    )
    def test_refuses_what_is_not_of_the_schema(self, path, change, said):
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))
        with pytest.raises(PartFileError, match=said) as error:
            results.read(path)
        assert str(path) in str(error.value)

    def test_refuses_what_is_no_json(self, path):
        path.write_text(path.read_text()[:50])
        with pytest.raises(PartFileError, match=r"correct\.json: not a result file"):
            results.read(path)

    def test_gives_back_what_was_written(self, path):
        found = results.read(path)
        results.write(path, found)
        assert results.read(path) == found


@pytest.mark.parametrize("kind", ["stratified", "sparse", "dense"])
@pytest.mark.parametrize("loss", ["squared_hinge", "bce"])
def test_the_reference_is_the_tests_own(kind, loss, monkeypatch):
    monkeypatch.setattr(reference, "_PIECE", 37)  # many pieces, none of them whole rows
    rng = np.random.default_rng(0)
    output = {"dense": Dense(), "sparse": Unstructured(7)}.get(kind, FixedFanIn(7))
    setup = LayerSetup(30, 50, output, loss=loss)
    arrays = initial_arrays(setup, 1)
    arrays["output.weights"] = rng.standard_normal(arrays["output.weights"].shape, np.float32)
    arrays["output.bias"] = rng.standard_normal(50, np.float32)
    model = in_numpy.Model(setup, arrays)
    weights = arrays["output.weights"]
    indices = starts = None
    if kind == "dense":
        weights = np.ascontiguousarray(weights.T)
    elif kind == "sparse":
        starts = torch.from_numpy(np.searchsorted(arrays["output.rows"], np.arange(51)))
        indices = torch.from_numpy(arrays["output.columns"])
    else:
        indices = torch.from_numpy(arrays["output.indices"].astype(np.int64))
    layer = reference.Layer(
        torch.from_numpy(weights), torch.from_numpy(arrays["output.bias"]), indices, starts
    )
    for _ in range(3):
        rows, labels = np.nonzero(rng.random((9, 50)) < 0.05)
        batch = types.SimpleNamespace(
            features=rng.standard_normal((9, 30), np.float32),
            positive_instances=rows,
            positive_labels=labels,
        )
        x = torch.from_numpy(batch.features)
        np.testing.assert_allclose(layer.scores(x), model.scores(batch.features), atol=1e-12)
        _, of_scores = in_numpy.loss(loss, model.scores(batch.features), rows, labels)
        wanted = of_scores @ model.output_matrix().T
        expected = model.step(batch, 0.01)
        value, grad = layer.step(x, torch.from_numpy(rows), torch.from_numpy(labels), loss, 0.01)
        assert float(value) == pytest.approx(expected, rel=1e-12)
        np.testing.assert_allclose(grad, wanted, atol=1e-15)
    trained = layer.weights.t() if kind == "dense" else layer.weights
    np.testing.assert_allclose(trained, model.arrays["output.weights"], atol=1e-12)
    np.testing.assert_allclose(layer.bias, model.arrays["output.bias"], atol=1e-12)
    if kind == "stratified":
        g = rng.standard_normal((9, 50))
        wanted = in_numpy.gradients(g, batch.features, indices.numpy(), layer.weights.numpy())
        for a, b in zip(layer.gradients(torch.from_numpy(g), x), wanted, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-12)


def test_every_published_fixed_fan_in_row_is_checked():
    tasks = [
        task
        for name in ("amazon-670k", "wiki-500k", "amazon-3m")
        for path in files_of(name)
        for task in read_tasks(path)
        if "stratified" in task.architecture
    ]
    assert len(tasks) == 41
    wanted = {
        (t.dataset, t.features, t.intermediate or {"slice": 512, "cascade": 768}[t.features],
         t.connectivity)
        for t in tasks
    }  # fmt: skip
    assert set(correct.published_layers()) == wanted
    keys = [case.key for case in correct.cases(False)]
    assert len(set(keys)) == len(keys)
    for _, _, sources, fan_in in wanted:
        types_of = ("uint16", "uint32") if sources <= 65_536 else ("uint32",)
        for dtype in ("float32", "float64"):
            for index in types_of:
                key = f"4099x{sources} fan-in {fan_in} batch 33 {dtype} {index}"
                assert f"fan_in_linear {key}" in keys
    assert any("2812281x131072" in key for key in keys)


def test_shapes_has_all_published_rows_the_most_telling_first():
    from fanin.benchmarks.gpu_parts import shapes

    tasks = shapes.tasks(False)
    assert len(tasks) == 2 * 58
    first = tasks[0]
    assert (first.dataset, first.features, first.execution) == ("amazon-670k", "slice", "fused")
    assert {t.execution for t in tasks[:58]} == {"fused"}
    assert [t.dataset for t in tasks[53:58]] == ["amazon-3m"] * 5


def test_floor_and_ratios_follow_from_the_raw_figures():
    shape = kernels.Shape("amazon-3m", 2_812_281, 131_072, 32)
    assert shape.least_bytes("forward") == pytest.approx(1.108e9, rel=1e-3)
    row = KernelRow(
        key="a", op="forward", dataset="amazon-3m", labels=2_812_281, inputs=131_072, fan_in=32,
        batch=32, index="uint32", bytes=1_000, copy_bytes=2_000, state="done",
        contestants=[
            Contestant("copy", [0.002, 0.004, 0.003]),
            Contestant("fanin", [0.003, 0.006, 0.004]),
            Contestant("CSR", [0.006, 0.006, 0.006]),
            Contestant("dense fp32", None, "does not fit: needs 1,373 GiB, and 139 are free"),
        ],
    )  # fmt: skip
    assert tables.floor_seconds(row) == pytest.approx(0.0015)
    heads, (line,) = tables._kernels([row])
    cells = dict(zip(heads, line, strict=True))
    assert cells["ms"] == "4.000 (3.500–5.000)"
    assert (cells["floor ms"], cells["share"]) == ("1.500", "38 %")
    assert (cells["CSR / ours"], cells["dense fp32 / ours"]) == ("1.50", "—")


def test_peers_compute_the_same():
    """What is compared for its speed has to give the same numbers."""
    shape = kernels.Shape("wiki-500k", 300, 200, 32)
    of = kernels.Inputs(shape, CPU, 2, 0)
    # A source that is named twice would be two entries of one place to a sparse matrix.
    of.indices = [
        torch.rand(300, 200).argsort(1)[:, :32].sort(1).values.to(torch.uint16) for _ in range(2)
    ]
    ours = kernels.Fanin(of)
    csr, gather = kernels.Csr(of), kernels.Gather(of)
    gather._piece = 77
    dense = kernels.Dense(of, "forward", "fp32")
    ((matrix, bias),) = dense.trained  # larger than the stand-in for a cache: one for all sets
    for i in (0, 1):
        matrix.zero_().scatter_(1, of.indices[i].long(), of.weights[i])
        bias.copy_(of.bias[i])
        for peer in (csr, gather, dense):
            torch.testing.assert_close(peer.forward(i), ours.forward(i), atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(peer.best(i)[0], ours.best(i)[0], atol=1e-4, rtol=1e-4)
            features, weights, of_bias = peer.backward(i)
            if peer is dense:
                weights = weights.gather(1, of.indices[i].long())
            wanted = ours.backward(i)
            torch.testing.assert_close(features, wanted[0], atol=1e-3, rtol=1e-4)
            torch.testing.assert_close(weights.view(300, 32), wanted[1], atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(of_bias, wanted[2], atol=1e-4, rtol=1e-4)
    with torch.no_grad():
        csr.step(0)
        gather.step(0)
    ours.step(0)
    for peer in (csr, gather):
        values, bias = peer.trained[0]
        # A step is of 1e-3. torch's epsilon is after the bias correction, which shows where a
        # gradient is as small.
        for got, wanted in ((values.view(300, 32), of.weights[0]), (bias, of.bias[0])):
            assert (got - wanted).abs().quantile(0.99) < 1e-4


class TestSanitizer:
    @pytest.fixture
    def tool(self, tmp_path, monkeypatch):
        """A stand-in that looks at nothing and says what it is told to."""

        def make(says, code):
            path = tmp_path / sanitize.TOOL
            path.write_text(f"#!/bin/sh\ncat <<'E'\n{says}\nE\nexit {code}\n")
            path.chmod(path.stat().st_mode | stat.S_IXUSR)
            monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
            row = results.SanitizeRow(key="memcheck", check="memcheck")
            sanitize.run(row, "cuda", 1, 60.0)
            return row

        return make

    def test_errors_fail_the_part(self, tool):
        row = tool(
            "========= Invalid __global__ read of size 4 bytes\n=========     at forward_kernel\n"
            "========= ERROR SUMMARY: 3 errors",
            86,
        )
        assert sanitize.failed(row) and row.exit_code == 86
        assert row.tool == "compute-sanitizer --tool memcheck"
        assert row.summary[0] == "ERROR SUMMARY: 3 errors"
        assert "Invalid __global__ read of size 4 bytes" in row.summary

    def test_none_pass(self, tool):
        row = tool("ok top_k\n========= ERROR SUMMARY: 0 errors", 0)
        assert row.passed and not sanitize.failed(row)

    def test_a_device_that_it_cannot_look_at_is_a_gap(self, tool):
        with pytest.raises(sanitize.UnavailableError, match=r"did not check: .*not supported"):
            tool("========= Error: Device not supported", 1)

    def test_a_missing_tool_is_a_gap(self, monkeypatch):
        monkeypatch.setattr(sanitize.shutil, "which", lambda name: None)
        row = results.SanitizeRow(key="memcheck", check="memcheck")
        with pytest.raises(sanitize.UnavailableError, match="compute-sanitizer is not on the PATH"):
            sanitize.run(row, "cuda", 1, 60.0)


@pytest.mark.slow
class TestStart:
    @pytest.fixture
    def checkout(self, tmp_path):
        """Another checkout, and a folder for what Python is to do without."""
        root = tmp_path / "clone"
        for name in gpu.PACKAGES:
            ignored = shutil.ignore_patterns("__pycache__", "results", "wordnet.txt.xz")
            shutil.copytree(ROOT / name, root / name, ignore=ignored)
        return root

    def start(self, checkout, tmp_path, *arguments, **more):
        env = environment(tmp_path, **more)
        env["PYTHONPATH"] = str(tmp_path)  # nothing of fanin
        script = checkout / "benchmarks" / "gpu.py"
        done = run([str(script), "--part", "correct", *arguments], env, checkout)
        return done, checkout / "results" / "dry-run" / "cpu" / "gpu" / "correct.json"

    def test_from_a_plain_checkout(self, checkout, tmp_path):
        done, path = self.start(checkout, tmp_path, "--dry-run", "--minutes", "0")
        assert done.returncode == 0, done.stdout + done.stderr
        found = results.read(path)
        assert {row.state for row in found.rows} == {"not reached"}
        # It is its code that ran, from a folder with nothing but the package in it.
        links = checkout / "build" / "gpu" / "path"
        assert [p.name for p in links.iterdir()] == ["fanin"]
        assert (links / "fanin" / "kernels").resolve() == checkout / "kernels"
        (checkout / "benchmarks" / "plan.py").write_text('"""Other code."""\n')
        done, _ = self.start(checkout, tmp_path, "--dry-run", "--minutes", "0")
        assert results.read(path).machine.code != found.machine.code

    @pytest.mark.slow
    def test_builds_the_kernels_once(self, checkout, tmp_path):
        arguments = ("--dry-run", "--minutes", "0")
        # Emulated kernels are the quickest to compile.
        shutil.copytree(
            ROOT / "tests" / "kernels" / "cuda_emulator",
            checkout / "tests" / "kernels" / "cuda_emulator",
        )
        quick = {"FANIN_LIBRARY": "", "CMAKE_ARGS": "-DFANIN_CUDA=EMULATED"}
        done, path = self.start(checkout, tmp_path, *arguments, **quick)
        assert done.returncode == 0, done.stdout + done.stderr
        library = checkout / "build" / "gpu" / "cpu" / "libfanin.so"
        made = library.stat().st_mtime_ns
        assert results.read(path).machine.architectures == [0]
        done, _ = self.start(checkout, tmp_path, *arguments, **quick)
        assert done.returncode == 0 and library.stat().st_mtime_ns == made

    def test_without_a_gpu_it_says_so(self, tmp_path):
        env = environment(tmp_path, CUDA_VISIBLE_DEVICES="")
        done = run(["-P", "-m", "fanin.benchmarks.gpu", "--part", "correct"], env, tmp_path)
        assert done.returncode == gpu.WRONG_USE
        assert "torch sees no GPU here; --dry-run" in done.stderr

    def test_a_file_of_another_schema_is_refused_and_named(self, tmp_path):
        path = results.part_path(tmp_path, "cpu", "correct")
        path.parent.mkdir(parents=True)
        path.write_text('{"schema_version": 0}')
        command = ["-P", "-m", "fanin.benchmarks.gpu", "--part", "correct", "--dry-run"]
        done = run([*command, "--results", str(tmp_path)], environment(tmp_path), tmp_path)
        assert done.returncode == gpu.WRONG_USE
        assert f"gpu: {path}: not a result file of schema 1: schema_version" in done.stderr

    def test_what_shapes_lacks_is_named(self, tmp_path):
        env = environment(tmp_path, ("pydantic", "sklearn"))
        command = ["-P", "-m", "fanin.benchmarks.gpu", "--part", "shapes", "--dry-run"]
        done = run(command, env, tmp_path)
        assert done.returncode == gpu.WRONG_USE
        assert "needs pydantic, sklearn: `pip install pydantic scikit-learn`" in done.stderr
        assert "pip download" in done.stderr

    @pytest.mark.parametrize(
        "there, architecture, fits",
        [([80, 90], "90", True), ([80], "86", True), ([80], "90", False), ([], "90", False),
         ([90], "80", False)],
    )  # fmt: skip
    def test_a_library_without_code_for_the_device(self, monkeypatch, there, architecture, fits):
        monkeypatch.setattr("fanin.kernels.build_info", lambda: {"cuda": there})
        if fits:
            return gpu.check_code(architecture)
        with pytest.raises(gpu.GpuError, match=f"not for this device .sm_{architecture}"):
            gpu.check_code(architecture)


def test_a_devices_folder():
    path = results.part_path(Path("r"), "NVIDIA H200", "kernels")
    assert path == Path("r/nvidia-h200/gpu/kernels.json")


def test_the_page_of_a_folder_without_a_gpu_says_so(tmp_path):
    page = devices_page(tmp_path)
    assert page.count("not run: no GPU was at hand so far") == 4


def test_a_row_that_ends_in_an_error_is_a_gap(tmp_path):
    def work():
        raise ValueError("nothing to be had\nmore")

    options = given(tmp_path)
    job = part.Job(results.SanitizeRow(key="a", check="a"), work)
    assert part.conduct("sanitize", options, CPU, [job], lambda row: False) == 0
    (row,) = results.read(options.path).rows
    assert isinstance(row, Row)
    assert (row.state, row.reason) == ("gap", "ValueError: nothing to be had")
