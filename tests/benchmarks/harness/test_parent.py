"""Which runs are begun, skipped and tried again."""

from __future__ import annotations

import os
import time
from datetime import UTC, datetime

import made_results
import pytest
from damage import DAMAGES
from fakes import Noting, make_task, write_dataset

from fanin.benchmarks.harness import parent
from fanin.benchmarks.harness.prepare import dataset_info
from fanin.benchmarks.harness.request import Options, failed, requests
from fanin.benchmarks.records.base import Machine
from fanin.benchmarks.records.files import checksum
from fanin.benchmarks.records.store import read_result, result_path, write_result
from fanin.datasets import load
from fanin.kernels import library


class TestRunAll:
    @pytest.fixture
    def run_all(self, tmp_path, monkeypatch):
        """Run tasks in one backend; each ends as `failures` has it, by its data set."""

        def run_tasks(tasks, failures=None, **options):
            def run_one(request, display, lock, runs):
                kind = (failures or {}).get(request.task.dataset)
                result = made_results.run(
                    dataset=made_results.dataset(
                        name=request.task.dataset, features=request.task.features
                    ),
                    for_task=request.task,
                    machine=made_results.machine(
                        kernels=f"0.1 {library.build_info()['instruction_set']}"
                    ),
                )
                if kind:
                    failed(result, kind, "so it is", "")
                write_result(request.path, result)
                return result

            monkeypatch.setattr(parent, "run_one", run_one)
            given = Options(results=tmp_path, **options)
            display = Noting()
            parent.run_all(requests(tasks, ["torch"], given), given, display)
            return display.lines

        return run_tasks

    def test_unusable_data_are_tried_once(self, run_all):
        setups = [{"loss_fn": "bce"}, {"loss_fn": "squared_hinge"}]
        tasks = [make_task(dataset=name, **values) for values in setups for name in ("bad", "good")]
        assert run_all(tasks[-1:]) == ["finished"]
        bad = {"bad": "DataError"}
        assert run_all(tasks, bad) == ["failed", "finished", "skipped"]
        assert run_all(tasks, {"bad": "OSError"}) == ["failed", "skipped", "failed", "skipped"]
        other = make_task(dataset="bad", features="other")
        assert run_all([tasks[0], other], bad) == ["failed", "failed"]

    def test_a_finished_run_without_the_weights_asked_for_runs_again(self, run_all, tmp_path):
        assert run_all([make_task()]) == ["finished"]
        lines = ["finished before without its weights, and runs again to save them", "finished"]
        failing = {make_task().dataset: "OSError"}
        assert run_all([make_task()], failing, save_weights=True) == [lines[0], "failed"]
        assert run_all([make_task()]) == ["skipped"]  # what it measured is still there
        assert run_all([make_task()], save_weights=True) == lines
        path = result_path(tmp_path, make_task(), "torch", 0)
        weights = path.with_suffix(".safetensors")
        weights.write_bytes(b"of another run")
        assert run_all([make_task()], save_weights=True) == lines
        result = read_result(path)
        result.weights_checksum = checksum(weights)
        write_result(path, result)
        assert run_all([make_task()], save_weights=True) == ["skipped"]
        for damage in DAMAGES:
            weights.write_bytes(b"of this run")
            result.weights_checksum = checksum(weights)
            write_result(path, result)
            damage(weights)
            first, last = run_all([make_task()], save_weights=True)
            assert first.endswith("and runs again to save them") and last == "finished"
            assert run_all([make_task()]) == ["skipped"]  # whoever does not ask for them
            weights.rmdir() if weights.is_dir() else weights.unlink(missing_ok=True)
        # A shape profile has no weights to keep.
        for expected in ("finished", "skipped"):
            assert run_all([make_task()], save_weights=True, profile="shapes") == [expected]

    def test_what_may_be_out_of_date_is_skipped_with_a_word(self, run_all, tmp_path, monkeypatch):
        data = write_dataset(tmp_path / "data")
        info = dataset_info(load("tiny", None, data))
        tiny = make_task(dataset="tiny", features=info.features)
        result = made_results.run(for_task=tiny, dataset=info)
        for epoch in result.history:
            epoch.steps = 2
        device = {"system": "s", "processor": "p", "cores": 2, "memory_bytes": 1, "gpu": None}
        device |= {"python": "3", "packages": {}, "framework": "torch", "device": "cpu"}
        kernels = f"fanin 0.1.0 {library.build_info()['instruction_set']}"
        result.machine = Machine(**device, kernels=kernels, threads=2, code=None)
        result.started = result.finished = datetime.now(UTC)
        write_result(result_path(tmp_path, tiny, "torch", 0), result)

        def notes(**options):
            *lines, last = run_all([tiny], **options)
            assert last == "skipped" and all(line.endswith("--force repeats it") for line in lines)
            return " ".join(lines)

        assert notes(data_dir=data) == notes(data_dir=data, device="cpu") == ""
        assert f"it read {info.source}, and no --data-dir is given" in notes()
        assert "it ran on cpu, and --device cuda is asked for" in notes(device="cuda")
        other = {"instruction_set": "other"}
        monkeypatch.setattr(parent, "build_info", lambda: other)
        assert f"it ran with {kernels}, and other is what would run now" in notes(data_dir=data)
        other["instruction_set"] = kernels.split()[-1]
        (data / "tiny" / "a-link").symlink_to("nowhere")
        moved = data.rename(tmp_path / "moved")
        assert f"it read {info.source}, and {moved / 'tiny'} is asked for" in notes(data_dir=moved)
        labels = moved / "tiny" / "train-labels.txt"
        os.utime(labels, (time.time() + 5, time.time() + 5))
        assert f"{labels} has changed since" in notes(data_dir=moved)
