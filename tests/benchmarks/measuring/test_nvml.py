"""Sampling the GPU's memory: the sampler's process, driven through the real pynvml."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import psutil
import pynvml
import pytest
from nvml_stand_in import CRASH, HANG, MIB, UUIDS, State, wait_for

from fanin.benchmarks.measuring import nvml


def seen(state: State) -> None:
    """Return when the sampler has looked, by itself, at what the state is now."""
    before = state.list_calls
    wait_for(lambda: state.list_calls >= before + 2)


def ended(process: psutil.Process) -> bool:
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


class TestPeaks:
    def test_a_rise_and_fall_between_two_looks(self, state, sampler):
        watching = sampler()
        state.used[0] += 300 * MIB
        seen(state)
        state.used[0] -= 200 * MIB
        seen(state)
        assert watching.figures() == (300 * MIB, None, None)

    def test_asking_is_a_look(self, state, sampler):
        watching = sampler()
        for rise in (1, 2, 3):
            state.used[0] += rise * MIB
            assert watching.figures().device_delta == rise * (rise + 1) // 2 * MIB

    def test_what_was_there_before_is_not_counted(self, state, sampler):
        state.used[0] += 700 * MIB
        watching = sampler()
        assert watching.figures().device_delta == 0
        state.used[0] -= 600 * MIB
        seen(state)
        assert watching.figures().device_delta == 0

    def test_process_and_device_are_kept_apart(self, state, sampler):
        """They peak at different times, and another process takes memory too."""
        state.count[0] = 2
        state.pid[:2] = os.getpid(), os.getpid() + 1
        state.bytes[:2] = 10 * MIB, 4000 * MIB
        watching = sampler()
        state.bytes[0] = 90 * MIB
        seen(state)
        state.bytes[0] = 20 * MIB
        state.used[0] += 400 * MIB
        seen(state)
        state.used[0] -= 400 * MIB
        assert watching.figures() == (400 * MIB, 90 * MIB, None)

    def test_a_list_without_this_process(self, state, sampler):
        state.count[0] = 1
        state.pid[0], state.bytes[0] = os.getpid() + 1, 50 * MIB
        assert sampler().figures() == (0, None, None)

    def test_a_list_that_knows_no_sizes(self, state, sampler):
        state.count[0] = 1
        state.pid[0] = os.getpid()
        state.bytes[0] = pynvml.NVML_VALUE_NOT_AVAILABLE_ulonglong.value
        assert sampler().figures() == (0, None, None)

    def test_it_looks_every_few_milliseconds(self, state, sampler):
        sampler()
        before, start = state.memory_calls, time.monotonic()
        wait_for(lambda: state.memory_calls >= before + 50)
        assert time.monotonic() - start < 5  # 0.25 s; the rest is for a busy machine


class TestTrouble:
    def test_nvml_fails_on_the_way(self, state, sampler):
        """The peak after that is unknown, so the figures are, whatever was seen before."""
        state.count[0] = 1
        state.pid[0] = os.getpid()
        watching = sampler()
        state.used[0] += MIB
        seen(state)
        state.memory_fate = state.list_fate = pynvml.NVML_ERROR_GPU_IS_LOST
        assert watching.figures() == (None, None, "NVMLError_GpuIsLost: GPU is lost")
        state.memory_fate = state.list_fate = 0
        calls = state.memory_calls
        assert watching.figures().device_delta is None
        assert state.memory_calls == calls  # left alone

    def test_the_list_fails_alone(self, state, sampler):
        state.list_fate = pynvml.NVML_ERROR_NO_PERMISSION
        watching = sampler()
        state.used[0] += 5 * MIB
        error = "NVMLError_NoPermission: Insufficient Permissions"
        assert watching.figures() == (5 * MIB, None, error)

    def test_nvml_fails_from_the_start(self, state, sampler):
        state.memory_fate = 12345
        assert sampler().figures() == (None, None, "NVMLError: an error of the stand-in")

    def test_nvml_hangs_on_the_way(self, state, sampler):
        watching = sampler()
        child = psutil.Process(watching._child.process.pid)
        state.memory_fate = HANG
        start = time.monotonic()
        assert watching.figures(0.5) == (
            *(None, None),
            "the NVML sampler failed: no answer within 0.5 seconds",
        )
        assert watching.figures().device_delta is None
        watching.close()
        assert time.monotonic() - start < 5
        assert ended(child)

    def test_nvml_hangs_at_the_start(self, state, sampler, monkeypatch):
        monkeypatch.setattr(nvml, "_START_SECONDS", 0.5)
        state.memory_fate = HANG
        assert sampler().figures() == (
            *(None, None),
            "the NVML sampler failed: no answer within 0.5 seconds",
        )

    def test_nvml_kills_the_sampler(self, state, sampler):
        watching = sampler()
        state.memory_fate = CRASH
        wait_for(lambda: watching._child.process.poll() is not None)
        device, process, error = watching.figures()
        assert (device, process) == (None, None)
        assert error.startswith("the NVML sampler failed: ")


class TestTheProcess:
    def test_closing_ends_it(self, sampler):
        watching = sampler()
        watching.close()
        assert watching._child.process.returncode == 0

    def test_one_that_does_not_end_is_killed(self, sampler, monkeypatch):
        monkeypatch.setattr(nvml, "_END_SECONDS", 0.2)
        watching = sampler()
        child = psutil.Process(watching._child.process.pid)
        child.suspend()
        wait_for(lambda: child.status() == psutil.STATUS_STOPPED)
        watching.close()
        assert watching._child.process.wait(20) == -signal.SIGKILL

    @pytest.mark.parametrize("fate", [0, HANG])
    def test_it_ends_with_its_parent(self, state, fate):
        command = """if True:
            import time
            from fanin.benchmarks.measuring import nvml
            sampler = nvml.Sampler()
            print(sampler._child.process.pid, flush=True)
            time.sleep(1000)
        """
        with subprocess.Popen(
            [sys.executable, "-P", "-c", command], stdout=subprocess.PIPE, text=True
        ) as parent:
            child = psutil.Process(int(parent.stdout.readline()))
            state.memory_fate = fate
            calls = state.memory_calls
            wait_for(lambda: state.memory_calls > calls)
            parent.kill()
        wait_for(lambda: ended(child))

    def test_a_signal_to_the_group_is_not_for_it(self, sampler):
        assert os.getpgid(sampler()._child.process.pid) != os.getpgid(0)

    def test_it_keeps_no_descriptor_of_its_parent(self, sampler, tmp_path):
        """A run's lock and its pipe to the runner are inherited by its children else."""
        with (tmp_path / "lock").open("w") as lock:
            os.set_inheritable(lock.fileno(), True)
            child = psutil.Process(sampler()._child.process.pid)
            assert [file.path for file in child.open_files()] == []

    def test_it_is_light(self):
        def modules(code):
            command = [sys.executable, "-P", "-c", f"{code}; import sys; print(*sys.modules)"]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            return {name.partition(".")[0] for name in done.stdout.split()}

        added = modules("import fanin.benchmarks.measuring.nvml, pynvml") - modules("import fanin")
        assert added - set(sys.stdlib_module_names) == {"pynvml"}


class TestTheDevice:
    @pytest.mark.parametrize(
        ("visible", "second"),
        [
            ("0", False), ("1", True), ("1,0", True), (UUIDS[1], True),
            (f"{UUIDS[0]},{UUIDS[1]}", False),
        ],
    )  # fmt: skip
    def test_the_first_that_is_visible(self, state, monkeypatch, sampler, visible, second):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        state.count[0] = state.count[1] = 1
        state.bytes[0], state.bytes[2] = 3 * MIB, 4 * MIB
        watching = sampler()
        state.used[0] += 30 * MIB
        state.used[1] += 40 * MIB
        expected = (40 * MIB, 4 * MIB, None) if second else (30 * MIB, 3 * MIB, None)
        assert watching.figures() == expected

    @pytest.mark.parametrize(
        ("settings", "error"),
        [
            ({"CUDA_VISIBLE_DEVICES": ""}, "Not Found"),
            ({"CUDA_VISIBLE_DEVICES": "-1"}, "Not Found"),
            ({"CUDA_VISIBLE_DEVICES": "2"}, "Invalid Argument"),
            ({"CUDA_VISIBLE_DEVICES": "GPU-3"}, "Not Found"),
            ({"NVML_STATE": "/nowhere"}, "Driver Not Loaded"),
        ],
        ids=str,
    )
    def test_none(self, state, monkeypatch, sampler, settings, error):
        """`machine.gpu_name` asks the same, and no sampler is started; here it is all the same."""
        for variable, value in settings.items():
            monkeypatch.setenv(variable, value)
        device, process, reason = sampler().figures()
        assert (device, process) == (None, None)
        assert error in reason
