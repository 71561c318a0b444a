"""A small `libnvidia-ml.so.1` that stands in for the driver's.

It reads its figures from a file that the tests map into their memory and change while the sampler
runs, and counts there how often it was asked; its structs are generated from pynvml's own.
"""

from __future__ import annotations

import ctypes
import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pynvml

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
  unsigned known = state->count[*device], room = *count;
  *count = known;
  if (!known && !state->list_fate) { ++state->list_calls; return 0; }
  if (room < known) return 7;  /* insufficient size: the count is the answer */
  for (unsigned i = 0; i < known; ++i) {
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
        count = getattr(kind, "_length_", None)
        element = kind if count is None else kind._type_
        members += f"{names[element]} {member}{f'[{count}]' if count else ''}; "
    size = ctypes.sizeof(layout)
    return f"""typedef struct {{ {members}}} {name};
_Static_assert(sizeof({name}) == {size}, "as ctypes has it");
"""


def compile_library(folder: Path) -> None:
    """Compile the stand-in into a folder."""
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


def wait_for(condition: Callable[[], bool], seconds: float = 20) -> None:
    """Wait until it happens."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.001)
