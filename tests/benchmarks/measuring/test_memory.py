"""Peak memory of a process and of its GPU."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import scipy.sparse as sp
from nvml_stand_in import MIB, wait_for

from fanin.benchmarks.harness.parent import run_all
from fanin.benchmarks.harness.request import Options, requests
from fanin.benchmarks.measuring import machine, memory
from fanin.benchmarks.records.store import read_result
from fanin.benchmarks.records.task import Task
from fanin.datasets.formats import write_labels

NO_ALLOCATOR = {"allocator_peak_bytes": None, "allocator_reserved_bytes": None}


# As a run uses it; what it measured, and which processes and threads there were.
WATCH = f"""if True:
    import json, threading, types, psutil
    from fanin.benchmarks.measuring import machine
    from fanin.benchmarks.measuring.memory import MemoryWatch
    trainer = types.SimpleNamespace(
        state_bytes=lambda: (1, 2),
        device=types.SimpleNamespace(memory=lambda: {NO_ALLOCATOR}),
    )
    me = psutil.Process()
    with MemoryWatch() as watch:
        children, threads = len(me.children()), threading.active_count()
        memory = watch.result(trainer)
    print(json.dumps({{
        "memory": memory.model_dump(), "gpu": machine.gpu_name(), "children": children,
        "threads": threads, "left": len(me.children()),
        "on_cpu": machine.runs_on_cpu("auto"),
    }}))
"""


def watched() -> dict:
    done = subprocess.run(
        [sys.executable, "-P", "-c", WATCH], capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    return json.loads(done.stdout)


class TestMemoryWatch:
    @pytest.mark.slow
    @pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another malloc")
    def test_what_malloc_kept_is_not_in_the_baseline(self):
        """Arrays that lie freed between others: malloc would use their 37 MiB for the model, which
        then seemed to need nothing."""
        program = (
            "import numpy as np\n"
            "from fanin.backends.arrays import InitialArrays\n"
            "from fanin.backends.kinds import FixedFanIn\n"
            "from fanin.backends.registry import make_trainer\n"
            "from fanin.backends.setup import LayerSetup\n"
            "from fanin.benchmarks.measuring.memory import MemoryWatch\n"
            "setup = LayerSetup(8, 8, FixedFanIn(4))\n"
            "trainer = make_trainer('torch', setup, InitialArrays(setup, 0))\n"
            "kept = [np.ones(10_000) for _ in range(500)][::25]\n"
            "with MemoryWatch() as watch:\n"
            "    model = [np.ones(10_000) for _ in range(400)]\n"
            "memory = watch.result(trainer)\n"
            "print(memory.host_peak_rss_bytes - memory.host_baseline_rss_bytes)\n"
        )
        done = subprocess.run(
            [sys.executable, "-P", "-c", program], capture_output=True, text=True, check=True
        )
        assert int(done.stdout) > 28 << 20  # of 30.5 MiB

    def test_figures_of_the_sampler(self, state, monkeypatch):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
        state.growth = MIB
        state.count[1], state.bytes[2] = 1, 7 * MIB  # its pid 0: whoever started the sampler
        measured = watched()
        assert measured["memory"]["nvml_device_delta_bytes"] >= MIB
        assert measured["memory"]["nvml_process_bytes"] == 7 * MIB
        assert measured["memory"]["nvml_error"] is None
        assert measured["memory"]["host_peak_rss_bytes"] > 0
        assert (measured["children"], measured["left"]) == (1, 0)
        assert measured["gpu"] == "Second GPU" and not measured["on_cpu"]

    def test_the_resident_set_where_the_kernel_keeps_no_peak(self, monkeypatch):
        monkeypatch.setattr(machine, "gpu_name", lambda: None)
        monkeypatch.setattr(memory, "_reset_peak", lambda: False)
        device = SimpleNamespace(memory=lambda: NO_ALLOCATOR)
        trainer = SimpleNamespace(state_bytes=lambda: (1, 2), device=device)
        with memory.MemoryWatch() as watch:
            array = np.ones(64 * MIB, np.uint8)
            resident = psutil.Process().memory_info().rss
            wait_for(lambda: watch._sampled_peak >= resident - MIB)
            del array
            weighed = watch.result(trainer)
        assert weighed.host_peak_rss_bytes >= weighed.host_baseline_rss_bytes + 60 * MIB
        assert not watch._thread.is_alive()

    def test_no_library_no_process(self, tmp_path, monkeypatch):
        # Found before one that this machine may have, and not loadable.
        (tmp_path / "libnvidia-ml.so.1").touch()
        monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
        measured = watched()
        assert measured["children"] == 0
        assert measured["threads"] == 1 or sys.platform != "linux"
        assert measured["gpu"] is None and measured["on_cpu"]
        memory = measured["memory"]
        assert memory["nvml_device_delta_bytes"] is None
        assert memory["nvml_process_bytes"] is None and memory["nvml_error"] is None


class Quiet:
    """A display that shows nothing."""

    def begin(self, *_): ...
    def event(self, *_): ...
    def end(self, *_, **__): ...


@pytest.mark.slow
def test_a_whole_run_has_figures_of_nvml_in_its_file(state, tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "data" / "tiny").mkdir(parents=True)
    for split in ("train", "test"):
        x, y = rng.standard_normal((40, 8)).astype(np.float32), sp.csr_array(np.eye(40, 12) > 0)
        np.save(tmp_path / "data" / "tiny" / f"{split}-f.npy", x)
        write_labels(tmp_path / "data" / "tiny" / f"{split}-labels.txt", y, 8)
    task = Task(dataset="tiny", features="f", architecture="dense", epochs=1)
    options = Options(results=tmp_path / "results", data_dir=tmp_path / "data", device="cpu")
    state.growth = MIB
    state.count[0], state.bytes[0] = 1, 7 * MIB
    (request,) = requests([task], ["torch"], options)
    (result,) = run_all([request], options, Quiet())
    assert result.status == "finished", result.failure
    result = read_result(request.path)
    assert result.machine.gpu == "First GPU"
    assert result.memory.nvml_device_delta_bytes >= MIB
    assert result.memory.nvml_process_bytes == 7 * MIB
    assert result.memory.nvml_error is None
    calls = state.memory_calls
    time.sleep(0.05)
    assert state.memory_calls == calls  # its sampler has ended with it
