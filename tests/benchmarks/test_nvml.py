"""Sampling the GPU's memory: the sampler's process, driven through the real pynvml.

A small `libnvidia-ml.so.1`, compiled here, stands in for the driver's. It reads its figures from a
file that the tests map into their memory and change while the sampler runs, and counts there how
often it was asked; its structs are generated from pynvml's own.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import psutil
import pynvml
import pytest
import scipy.sparse as sp

from fanin.benchmarks.harness import parent as runner
from fanin.benchmarks.measuring import measure, nvml
from fanin.benchmarks.records.store import read_result
from fanin.benchmarks.records.task import Task
from fanin.datasets.formats import write_labels

UUIDS = ("GPU-11111111-0000-0000-0000-000000000000", "GPU-22222222-0000-0000-0000-000000000000")
# What happens to a call: nothing, one of NVML's errors, or:
HANG, CRASH = 10_001, 10_002
MIB = 1 << 20


class State(ctypes.Structure):
    """What is in the file; of two devices, each with two processes (0: the sampler's parent)."""

    _fields_ = (
        ("memory_calls", ctypes.c_ulonglong),
        ("list_calls", ctypes.c_ulonglong),
        ("memory_fate", ctypes.c_ulonglong),
        ("list_fate", ctypes.c_ulonglong),
        ("growth", ctypes.c_ulonglong),  # of `used` with every look
        ("used", ctypes.c_ulonglong * 2),
        ("count", ctypes.c_ulonglong * 2),
        ("pid", ctypes.c_ulonglong * 4),
        ("bytes", ctypes.c_ulonglong * 4),
    )


SOURCE = r"""
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static volatile State* state;
static int devices[2] = {0, 1};
static const char* uuids[2] = {UUIDS};

int nvmlInitWithFlags(unsigned flags) {
  const char* path = getenv("NVML_STATE");
  int file = path ? open(path, O_RDWR | O_CLOEXEC) : -1;
  if (file < 0) return 9;  /* driver not loaded */
  if (!state) state = mmap(0, sizeof(State), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  close(file);
  return state == MAP_FAILED ? 999 : 0;
}
static int fate(unsigned long long what) {
  if (what == HANG) for (;;) pause();
  if (what == CRASH) abort();
  return (int)what;
}
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void** device) {
  if (index > 1) return 2;  /* invalid argument */
  *device = &devices[index];
  return 0;
}
int nvmlDeviceGetHandleByUUID(const char* uuid, void** device) {
  for (int i = 0; i < 2; ++i)
    if (!strcmp(uuid, uuids[i])) return nvmlDeviceGetHandleByIndex_v2(i, device);
  return 6;  /* not found */
}
int nvmlDeviceGetName(int* device, char* name, unsigned length) {
  strncpy(name, *device ? "Second GPU" : "First GPU", length);
  return 0;
}
int nvmlDeviceGetMemoryInfo(int* device, Memory* memory) {
  unsigned long long calls = state->memory_calls;
  memory->used = state->used[*device] + calls * state->growth;
  memory->total = 1ull << 40;
  memory->free = memory->total - memory->used;
  state->memory_calls = calls + 1;
  return fate(state->memory_fate);
}
int nvmlDeviceGetComputeRunningProcesses_v3(int* device, unsigned* count, Process* processes) {
  unsigned there = state->count[*device], room = *count;
  *count = there;
  if (!there && !state->list_fate) { ++state->list_calls; return 0; }
  if (room < there) return 7;  /* insufficient size: the count is the answer */
  for (unsigned i = 0; i < there; ++i) {
    unsigned long long pid = state->pid[2 * *device + i];
    memset(&processes[i], 0, sizeof(Process));
    processes[i].pid = pid ? pid : (unsigned)getppid();
    processes[i].usedGpuMemory = state->bytes[2 * *device + i];
  }
  ++state->list_calls;
  return fate(state->list_fate);
}
const char* nvmlErrorString(int code) { return "an error of the stand-in"; }
"""


def c_struct(name: str, layout: type[ctypes.Structure]) -> str:
    """The C declaration of a struct that ctypes describes, and a check that it has its size."""
    names = {ctypes.c_uint: "unsigned", ctypes.c_ulonglong: "unsigned long long"}
    members = ""
    for member, kind in layout._fields_:
        of, count = getattr(kind, "_type_", kind), getattr(kind, "_length_", None)
        of = kind if count is None else of
        members += f"{names[of]} {member}{f'[{count}]' if count else ''}; "
    size = ctypes.sizeof(layout)
    return f"""typedef struct {{ {members}}} {name};
_Static_assert(sizeof({name}) == {size}, "as ctypes has it");
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """The folder of the stand-in."""
    folder = tmp_path_factory.mktemp("nvml")
    source = folder / "nvml.c"
    source.write_text(
        c_struct("State", State)
        + c_struct("Memory", pynvml.c_nvmlMemory_t)
        + c_struct("Process", pynvml.c_nvmlProcessInfo_v3_t)
        + SOURCE
    )
    defined = [
        f"-DUUIDS={', '.join(map(json.dumps, UUIDS))}",
        *(f"-DHANG={HANG}", f"-DCRASH={CRASH}"),
    ]
    subprocess.run(
        ["cc", "-shared", "-fPIC", *defined, "-o", folder / "libnvidia-ml.so.1", source],
        check=True,
    )
    return folder


@pytest.fixture
def state(library, tmp_path, monkeypatch):
    """The stand-in's figures; processes started from now on load it."""
    path = tmp_path / "state"
    path.write_bytes(bytes(ctypes.sizeof(State)))
    monkeypatch.setenv("NVML_STATE", str(path))
    monkeypatch.setenv("LD_LIBRARY_PATH", f"{library}:{os.environ.get('LD_LIBRARY_PATH', '')}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with path.open("r+b") as file:
        found = State.from_buffer(mmap.mmap(file.fileno(), 0))
    found.used[0], found.used[1] = 1000 * MIB, 5000 * MIB
    return found


@pytest.fixture
def sampler(state):
    """A function that starts a sampler, which is closed at the end."""
    started = []

    def start() -> nvml.Sampler:
        started.append(nvml.Sampler())
        return started[-1]

    yield start
    for each in started:
        each.close()


def wait_for(condition: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.001)


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
        child = psutil.Process(watching._child.pid)
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
        wait_for(lambda: watching._child.poll() is not None)
        device, process, error = watching.figures()
        assert (device, process) == (None, None)
        assert error.startswith("the NVML sampler failed: ")


class TestTheProcess:
    def test_closing_ends_it(self, sampler):
        watching = sampler()
        watching.close()
        assert watching._child.returncode == 0

    def test_one_that_does_not_end_is_killed(self, sampler, monkeypatch):
        monkeypatch.setattr(nvml, "_END_SECONDS", 0.2)
        watching = sampler()
        child = psutil.Process(watching._child.pid)
        child.suspend()
        wait_for(lambda: child.status() == psutil.STATUS_STOPPED)
        watching.close()
        assert watching._child.wait(20) == -signal.SIGKILL

    @pytest.mark.parametrize("fate", [0, HANG])
    def test_it_ends_with_its_parent(self, state, fate):
        command = """if True:
            import time
            from fanin.benchmarks.measuring import nvml
            sampler = nvml.Sampler()
            print(sampler._child.pid, flush=True)
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
        assert os.getpgid(sampler()._child.pid) != os.getpgid(0)

    def test_it_keeps_no_descriptor_of_its_parent(self, sampler, tmp_path):
        """A run's lock and its pipe to the runner are inherited by its children else."""
        with (tmp_path / "lock").open("w") as lock:
            os.set_inheritable(lock.fileno(), True)
            child = psutil.Process(sampler()._child.pid)
            assert [file.path for file in child.open_files()] == []

    def test_it_is_light(self):
        def modules(code):
            command = [sys.executable, "-P", "-c", f"{code}; import sys; print(*sys.modules)"]
            found = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            return {name.partition(".")[0] for name in found.split()}

        added = modules("import fanin.benchmarks.measuring.nvml, pynvml") - modules("import fanin")
        assert added - set(sys.stdlib_module_names) == {"pynvml"}


NO_ALLOCATOR = {"allocator_peak_bytes": None, "allocator_reserved_bytes": None}
# As a run uses it; what it measured, and which processes and threads there were.
WATCH = f"""if True:
    import json, threading, types, psutil
    from fanin.benchmarks.measuring import measure
    trainer = types.SimpleNamespace(
        state_bytes=lambda: (1, 2),
        device=types.SimpleNamespace(memory=lambda: {NO_ALLOCATOR}),
    )
    me = psutil.Process()
    with measure.MemoryWatch() as watch:
        children, threads = len(me.children()), threading.active_count()
        memory = watch.result(trainer)
    print(json.dumps({{
        "memory": memory.model_dump(), "gpu": measure.gpu_name(), "children": children,
        "threads": threads, "left": len(me.children()),
        "on_cpu": measure.runs_on_cpu("auto"),
    }}))
"""


def watched() -> dict:
    done = subprocess.run(
        [sys.executable, "-P", "-c", WATCH], capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    return json.loads(done.stdout)


class TestMemoryWatch:
    @pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another malloc")
    def test_what_malloc_kept_is_not_in_the_baseline(self):
        """Arrays that lie freed between others: malloc would use their 37 MiB for the model, which
        then seemed to need nothing."""
        program = (
            "import numpy as np\n"
            "from fanin.backends.arrays import InitialArrays\n"
            "from fanin.backends.registry import make_trainer\n"
            "from fanin.backends.setup import FixedFanIn, LayerSetup\n"
            "from fanin.benchmarks.measuring import measure\n"
            "from fanin.benchmarks.records import base\n"
            "setup = LayerSetup(8, 8, FixedFanIn(4))\n"
            "trainer = make_trainer('torch', setup, InitialArrays(setup, 0))\n"
            "kept = [np.ones(10_000) for _ in range(500)][::25]\n"
            "with measure.MemoryWatch() as watch:\n"
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
        found = watched()
        assert found["memory"]["nvml_device_delta_bytes"] >= MIB
        assert found["memory"]["nvml_process_bytes"] == 7 * MIB
        assert found["memory"]["nvml_error"] is None
        assert found["memory"]["host_peak_rss_bytes"] > 0
        assert (found["children"], found["left"]) == (1, 0)
        assert found["gpu"] == "Second GPU" and not found["on_cpu"]

    def test_the_resident_set_where_the_kernel_keeps_no_peak(self, monkeypatch):
        monkeypatch.setattr(measure, "gpu_name", lambda: None)
        monkeypatch.setattr(measure, "_reset_peak", lambda: False)
        device = SimpleNamespace(memory=lambda: NO_ALLOCATOR)
        trainer = SimpleNamespace(state_bytes=lambda: (1, 2), device=device)
        with measure.MemoryWatch() as watch:
            held = np.ones(64 * MIB, np.uint8)
            resident = psutil.Process().memory_info().rss
            wait_for(lambda: watch._sampled_peak >= resident - MIB)
            del held
            memory = watch.result(trainer)
        assert memory.host_peak_rss_bytes >= memory.host_baseline_rss_bytes + 60 * MIB
        assert not watch._thread.is_alive()

    def test_no_library_no_process(self, tmp_path, monkeypatch):
        # Found before one that this machine may have, and not loadable.
        (tmp_path / "libnvidia-ml.so.1").touch()
        monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
        found = watched()
        assert found["children"] == 0
        assert found["threads"] == 1 or sys.platform != "linux"
        assert found["gpu"] is None and found["on_cpu"]
        memory = found["memory"]
        assert memory["nvml_device_delta_bytes"] is None
        assert memory["nvml_process_bytes"] is None and memory["nvml_error"] is None


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
        ("hidden", "error"),
        [
            ({"CUDA_VISIBLE_DEVICES": ""}, "Not Found"),
            ({"CUDA_VISIBLE_DEVICES": "-1"}, "Not Found"),
            ({"CUDA_VISIBLE_DEVICES": "2"}, "Invalid Argument"),
            ({"CUDA_VISIBLE_DEVICES": "GPU-3"}, "Not Found"),
            ({"NVML_STATE": "/nowhere"}, "Driver Not Loaded"),
        ],
        ids=str,
    )
    def test_none(self, state, monkeypatch, sampler, hidden, error):
        """`measure.gpu_name` asks the same, and no sampler is started; here it is all the same."""
        for variable, value in hidden.items():
            monkeypatch.setenv(variable, value)
        device, process, found = sampler().figures()
        assert (device, process) == (None, None)
        assert error in found


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
    options = runner.Options(results=tmp_path / "results", data_dir=tmp_path / "data", device="cpu")
    state.growth = MIB
    state.count[0], state.bytes[0] = 1, 7 * MIB
    (request,) = runner.requests([task], ["torch"], options)
    (result,) = runner.run_all([request], options, Quiet())
    assert result.status == "finished", result.failure
    result = read_result(request.path)
    assert result.machine.gpu == "First GPU"
    assert result.memory.nvml_device_delta_bytes >= MIB
    assert result.memory.nvml_process_bytes == 7 * MIB
    assert result.memory.nvml_error is None
    calls = state.memory_calls
    time.sleep(0.05)
    assert state.memory_calls == calls  # its sampler has ended with it
