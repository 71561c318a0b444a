"""`fanin reproduce` from end to end, in small."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from fakes import arguments, command, write_dataset

from fanin.backends.arrays import initial_arrays
from fanin.backends.kinds import FixedFanIn
from fanin.backends.registry import make_trainer
from fanin.backends.setup import LayerSetup
from fanin.benchmarks.records.store import read_result, result_path
from fanin.benchmarks.records.task_files import read_tasks


@pytest.fixture(scope="module")
def reproduced(place):
    """All setups in both backends, once."""
    return command("reproduce", *arguments(place, "all", "--json"))


@pytest.mark.slow
class TestReproduce:
    def test_all_setups_in_both_backends(self, place, reproduced):
        assert reproduced.returncode == 0, reproduced.stderr
        answer = json.loads(reproduced.stdout)
        assert len(answer["results"]) == 12
        assert Path(answer["report"]).is_file()
        for result in answer["results"]:
            assert result["status"] == "finished"
            assert len(result["history"]) == 2
            assert result["machine"]["framework"].startswith(result["backend"])
            memory = result["memory"]
            assert memory["host_peak_rss_bytes"] >= memory["host_baseline_rss_bytes"] > 0
            assert memory["nvml_device_delta_bytes"] is None or result["machine"]["gpu"]
            assert memory["parameter_bytes"] > 0

    def test_backends_agree_on_what_they_learned(self, reproduced):
        losses = {}
        for result in json.loads(reproduced.stdout)["results"]:
            key = (result["task"]["architecture"], result["task"]["connectivity"])
            losses.setdefault(key, []).append([e["loss"] for e in result["history"]])
        for pair in losses.values():
            assert np.allclose(*pair, rtol=1e-5)

    def test_finished_runs_are_skipped(self, place, reproduced):
        again = command("reproduce", *arguments(place, "all", "--setup", "dense"))
        assert again.returncode == 0
        assert again.stdout.count("finished before, skipped") == 2
        assert re.search(r"torch +\| Dense", again.stdout)

    def test_both_executions_beside_each_other(self, place, reproduced):
        setups = ("--setup", "dense", "--setup", "ffi-8-64")
        ways = ("--execution", "autograd", "--execution", "fused")
        done = command("reproduce", *arguments(place, "all", *setups, *ways, "--json"))
        assert done.returncode == 0, done.stderr
        assert done.stderr.count("finished before, skipped") == 4
        results = json.loads(done.stdout)["results"]
        assert len(results) == 8
        losses = {}
        for result in results:
            losses.setdefault(result["task"]["architecture"], []).append(
                [e["loss"] for e in result["history"]]
            )
        for alike in losses.values():
            assert np.allclose(alike[0], alike, rtol=1e-5)
        table = (place / "all" / "report" / "index.html").read_text()
        assert "FFI 8-64, fused" in table

    def test_bfloat16_is_refused_without_the_fused_execution(self, place):
        done = command("reproduce", *arguments(place, "half", "--weights-dtype", "bfloat16"))
        assert done.returncode == 2
        assert "weights_dtype and moments_dtype other than float32 need execution" in done.stderr

    def test_failed_runs_are_recorded_and_tried_again(self, place):
        spoiled = write_dataset(place / "spoiled")
        x = np.load(spoiled / "tiny" / "train-dense40.npy")
        x[3, 5] = np.nan
        np.save(spoiled / "tiny" / "train-dense40.npy", x)
        bad = [
            *("reproduce", "--dataset", "tiny", "--features", "dense40", "--setup", "dense"),
            *("--tasks", place / "tasks.json", "--results", place / "retry", "--backend", "torch"),
        ]
        failed = command(*bad, "--data-dir", spoiled)
        assert failed.returncode == 2  # the data are to blame
        assert "row 3, column 5" in failed.stdout
        path = result_path(place / "retry", read_tasks(place / "tasks.json")[0], "torch", 0)
        result = read_result(path)
        assert result.status == "failed"
        assert result.failure.kind == "DataError"
        mended = command(*bad, "--data-dir", place / "data")
        assert mended.returncode == 0, mended.stdout
        assert read_result(path).status == "finished"

    def test_ctrl_c_keeps_what_is_finished(self, place):
        data = place / "long"
        write_dataset(data, instances=20_000, labels=300)
        results = place / "stopped"
        process = subprocess.Popen(
            [
                *(sys.executable, "-P", "-m", "fanin.benchmarks", "reproduce", "--epochs"),
                *("90", "--dataset", "tiny", "--features", "dense40", "--data-dir", str(data)),
                *("--tasks", str(place / "tasks.json"), "--results", str(results)),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # Whoever runs the tests in the background may have SIGINT ignored; children inherit it.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        assert process.stdout is not None
        line = process.stdout.readline()  # the first epoch of the first run is done
        assert "epoch 1" in line
        (child,) = psutil.Process(process.pid).children()
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 130, errors
        assert "fanin: stopped; what has finished is kept" in errors
        assert not list(results.rglob("*.json"))
        assert not child.is_running()

    def test_ctrl_c_while_modules_are_imported(self, tmp_path):
        """Whenever it comes, there is no traceback. Before that, in Python's own start, nobody
        could help it."""
        for seconds in (0, 0.1, 0.3, 0.6):
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "fanin.benchmarks", "report", "--results", tmp_path],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )
            maps = Path(f"/proc/{process.pid}/maps")
            while "numpy" not in maps.read_text():  # the first large package
                time.sleep(0.001)
            time.sleep(seconds)
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=60)
            assert process.returncode in (130, 2), errors
            assert "Traceback" not in errors

    def test_ctrl_c_that_python_drops(self):
        """It comes while a destructor runs: Python cannot raise it there, and it is repeated."""
        program = """
import signal, sys, time, types
from fanin.benchmarks.__main__ import main

class Interrupted:
    def __del__(self):
        signal.raise_signal(signal.SIGINT)

def app():
    Interrupted()
    time.sleep(60)

sys.modules["fanin.benchmarks.cli.app"] = types.SimpleNamespace(app=app)
main()
"""
        done = subprocess.run(
            [sys.executable, "-P", "-c", program],
            capture_output=True,
            text=True,
            timeout=50,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        assert (done.returncode, done.stderr) == (130, "fanin: stopped\n")

    def test_holdout_never_sees_the_test_set(self, place):
        write_dataset(place / "holdout", instances=66)
        done = command(
            "reproduce",
            *("--dataset", "tiny", "--features", "dense40", "--data-dir", place / "holdout"),
            *("--tasks", place / "tasks.json", "--results", place / "held-out"),
            *("--setup", "dense", "--backend", "torch", "--protocol", "holdout", "--json"),
        )
        assert done.returncode == 0, done.stderr
        (result,) = json.loads(done.stdout)["results"]
        for epoch in result["history"]:
            assert epoch["steps"] == 2  # 60 of 66 instances, which would be 3
            sixths = 6 * epoch["validation"]["at_1"]
            assert sixths == pytest.approx(round(sixths))

    @pytest.mark.torch
    def test_saved_weights_load_in_the_other_backend(self, place):
        from safetensors.numpy import load_file

        done = command(
            "reproduce",
            *arguments(place, "weights", "--setup", "ffi-8-64", "--backend", "tensorflow"),
            *("--save-weights", "--epochs", "1"),
        )
        assert done.returncode == 0, done.stdout
        (path,) = (place / "weights").rglob("*.safetensors")
        arrays = load_file(path)
        setup = LayerSetup(40, 50, FixedFanIn(8), intermediate=64)
        trainer = make_trainer("torch", setup, initial_arrays(setup, 9), device="cpu")
        trainer.load_weights(arrays)
        assert np.array_equal(trainer.array("output.indices"), arrays["output.indices"])
