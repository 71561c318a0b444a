// A stand-in for a GPU, with which the GPU kernels of TensorFlow's ops run on any machine. It is
// TensorFlow's "GPU:0", through the interface for device plug-ins; and it has fanin's kernels for
// that device, which are those of the CPU.
//
// Device memory is address space that nobody may touch. Its contents lie at a fixed distance from
// it, where this file alone looks. So a host that reads device memory dies, and a kernel that is
// given a pointer to the host's memory refuses it, as on a GPU. Order cannot be seen here: all work
// is done at once, and the null stream is the only one.
//
// It is linked to libfanin and loaded in its place (FANIN_LIBRARY), and then as TensorFlow's
// plug-in.
#include <dlfcn.h>
#include <sys/mman.h>

#include <atomic>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "fanin.h"
#include "tensorflow/c/experimental/stream_executor/stream_executor.h"

namespace {

// Memory -------------------------------------------------------------------------------------

constexpr size_t memory_bytes = size_t{1} << 30, alignment = 256;

char *mapped(int protection) {
  void *const memory =
      mmap(nullptr, memory_bytes, protection, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) std::abort();
  return static_cast<char *>(memory);
}

char *const addresses = mapped(PROT_NONE);
char *const contents = mapped(PROT_READ | PROT_WRITE);
size_t given = 0;
std::atomic<int64_t> fetched{0};

bool is_device(const void *pointer) {
  return pointer >= addresses && pointer < addresses + memory_bytes;
}

char *content(const void *pointer) {
  return contents + (static_cast<const char *>(pointer) - addresses);
}

// TensorFlow's own allocator lies above this one and asks for few large blocks.
void allocate(const SP_Device *, uint64_t size, int64_t, SP_DeviceMemoryBase *memory) {
  memory->struct_size = SP_DEVICE_MEMORY_BASE_STRUCT_SIZE;
  size = (size + alignment - 1) / alignment * alignment;
  if (size > memory_bytes - given) return;
  memory->opaque = addresses + given;
  memory->size = size;
  given += size;
}

// The plug-in --------------------------------------------------------------------------------

void set_up(SP_StreamExecutor *se) {
  se->struct_size = SP_STREAMEXECUTOR_STRUCT_SIZE;
  se->allocate = allocate;
  se->deallocate = [](auto...) {};
  se->host_memory_allocate = [](auto, uint64_t size) {
    return std::aligned_alloc(alignment, (size + alignment - 1) / alignment * alignment);
  };
  se->host_memory_deallocate = [](auto, void *memory) { std::free(memory); };
  se->get_allocator_stats = [](auto...) -> TF_Bool { return false; };
  se->device_memory_usage = [](auto, int64_t *free, int64_t *total) -> TF_Bool {
    *free = int64_t(memory_bytes - given);
    *total = int64_t(memory_bytes);
    return true;
  };
  se->create_stream = [](auto, SP_Stream *stream, auto) { *stream = nullptr; };
  se->destroy_stream = [](auto...) {};
  se->create_stream_dependency = [](auto...) {};
  se->get_stream_status = [](auto...) {};
  se->create_event = [](auto, SP_Event *event, auto) { *event = nullptr; };
  se->destroy_event = [](auto...) {};
  se->get_event_status = [](auto...) { return SE_EVENT_COMPLETE; };
  se->record_event = [](auto...) {};
  se->wait_for_event = [](auto...) {};
  se->create_timer = [](auto...) {};
  se->destroy_timer = [](auto...) {};
  se->start_timer = [](auto...) {};
  se->stop_timer = [](auto...) {};
  se->memcpy_dtoh = [](auto, auto, void *to, auto *from, uint64_t size, auto) {
    ++fetched;
    std::memcpy(to, content(from->opaque), size);
  };
  se->memcpy_htod = [](auto, auto, auto *to, const void *from, uint64_t size, auto) {
    std::memcpy(content(to->opaque), from, size);
  };
  se->memcpy_dtod = [](auto, auto, auto *to, auto *from, uint64_t size, auto) {
    std::memcpy(content(to->opaque), content(from->opaque), size);
  };
  se->sync_memcpy_dtoh = [](auto, void *to, auto *from, uint64_t size, auto) {
    ++fetched;
    std::memcpy(to, content(from->opaque), size);
  };
  se->sync_memcpy_htod = [](auto, auto *to, const void *from, uint64_t size, auto) {
    std::memcpy(content(to->opaque), from, size);
  };
  se->sync_memcpy_dtod = [](auto, auto *to, auto *from, uint64_t size, auto) {
    std::memcpy(content(to->opaque), content(from->opaque), size);
  };
  se->mem_zero = [](auto, auto, auto *at, uint64_t size, auto) {
    std::memset(content(at->opaque), 0, size);
  };
  se->memset = [](auto, auto, auto *at, uint8_t byte, uint64_t size, auto) {
    std::memset(content(at->opaque), byte, size);
  };
  se->memset32 = [](auto, auto, auto *at, uint32_t word, uint64_t size, auto) {
    for (uint64_t i = 0; i < size; i += sizeof word)
      std::memcpy(content(at->opaque) + i, &word, sizeof word);
  };
  se->block_host_for_event = [](auto...) {};
  se->block_host_until_done = [](auto...) {};
  se->synchronize_all_activity = [](auto...) {};
  se->host_callback = [](auto, auto, SE_StatusCallbackFn call, void *with) -> TF_Bool {
    call(with, nullptr);
    return true;
  };
}

}  // namespace

// How often the host fetched something from the device, for which it would have waited.
extern "C" FANIN_API int64_t stand_in_fetched() { return fetched; }

extern "C" FANIN_API void SE_InitPlugin(SE_PlatformRegistrationParams *params, TF_Status *) {
  params->platform->struct_size = SP_PLATFORM_STRUCT_SIZE;
  params->platform->name = "STAND_IN";
  params->platform->type = "GPU";
  params->platform->use_bfc_allocator = true;
  SP_PlatformFns *const make = params->platform_fns;
  make->struct_size = SP_PLATFORM_FNS_STRUCT_SIZE;
  make->get_device_count = [](auto, int *count, auto) { *count = 1; };
  make->create_device = [](auto, auto *params, auto) {
    params->device->struct_size = SP_DEVICE_STRUCT_SIZE;
    params->device->hardware_name = "stand-in";
  };
  make->create_device_fns = [](auto, auto *params, auto) {
    params->device_fns->struct_size = SP_DEVICE_FNS_STRUCT_SIZE;
  };
  make->create_stream_executor = [](auto, auto *params, auto) { set_up(params->stream_executor); };
  make->create_timer_fns = [](auto, SP_TimerFns *timer, auto) {
    timer->struct_size = SP_TIMER_FNS_STRUCT_SIZE;
    timer->nanoseconds = [](auto) -> uint64_t { return 0; };
  };
  make->destroy_device = [](auto...) {};
  make->destroy_device_fns = [](auto...) {};
  make->destroy_stream_executor = [](auto...) {};
  make->destroy_timer_fns = [](auto...) {};
  params->destroy_platform = [](auto...) {};
  params->destroy_platform_fns = [](auto...) {};
}

// The kernels --------------------------------------------------------------------------------

namespace {

// A function of libfanin itself.
template <class Function>
Function *own(const char *name) {
  return reinterpret_cast<Function *>(dlsym(RTLD_NEXT, name));
}

// Where the group size stands among the tensors of a struct; nowhere in one without connections.
template <class Params>
size_t group_size_at(const Params *params, decltype(params->connections) *) {
  return size_t(reinterpret_cast<const char *>(&params->connections.group_size) -
                reinterpret_cast<const char *>(params));
}
template <class Params>
size_t group_size_at(const Params *, ...) {
  return SIZE_MAX;
}

// The parameters as for a CPU. Every parameter struct begins with its tensors; `rest` is where they
// end. False where something on the device is not in its memory.
template <class Params>
bool for_cpu(Params *params, size_t rest) {
  const size_t group_size = group_size_at<Params>(params, nullptr);
  for (size_t at = 0; at + sizeof(fanin_tensor) <= rest; at += sizeof(fanin_tensor)) {
    if (at == group_size) at += sizeof(int64_t);
    auto *const tensor = reinterpret_cast<fanin_tensor *>(reinterpret_cast<char *>(params) + at);
    if (tensor->rank < 0 || tensor->device != FANIN_CUDA) continue;
    tensor->device = FANIN_CPU;
    if (!tensor->data) continue;  // without elements
    if (!is_device(tensor->data)) return false;
    tensor->data = content(tensor->data);
  }
  if (!params->resources.workspace) return true;
  const bool is_given = is_device(params->resources.workspace);
  if (is_given) params->resources.workspace = content(params->resources.workspace);
  return is_given;
}

template <class Params>
int32_t call(const char *name, Params *params, size_t rest, char *message, size_t bytes) {
  if (reinterpret_cast<fanin_tensor *>(params)->device == FANIN_CUDA && !for_cpu(params, rest)) {
    std::snprintf(message, bytes, "%s was given the host's memory as the device's", name);
    return FANIN_INVALID;
  }
  return own<int32_t(Params *, char *, size_t)>(name)(params, message, bytes);
}

}  // namespace

#define STAND_IN(function, first_other)                                                      \
  extern "C" FANIN_API int32_t function(const function##_params *params, char *message,      \
                                        size_t bytes) {                                      \
    auto copy = *params;                                                                     \
    return call(#function, &copy, offsetof(function##_params, first_other), message, bytes); \
  }                                                                                          \
  STAND_IN_WORKSPACE(function, first_other)
#define STAND_IN_WORKSPACE(function, first_other)                                       \
  extern "C" FANIN_API uint64_t function##_workspace(const function##_params *params) { \
    auto copy = *params;                                                                \
    for_cpu(&copy, offsetof(function##_params, first_other));                           \
    return own<uint64_t(const function##_params *)>(#function "_workspace")(&copy);     \
  }

STAND_IN(fanin_linear_forward, resources)
STAND_IN(fanin_linear_backward, resources)
STAND_IN(fanin_step, optimizer)
STAND_IN(fanin_dense_forward, relu)
STAND_IN(fanin_dense_update, optimizer)
STAND_IN(fanin_sparse_forward, relu)
STAND_IN(fanin_sparse_update, optimizer)
STAND_IN(fanin_words_step, block_labels)
STAND_IN(fanin_words_top_k, block_labels)
STAND_IN(fanin_top_k, resources)
STAND_IN_WORKSPACE(fanin_rewire, inputs)

extern "C" FANIN_API int32_t fanin_linear_forward_check(const fanin_linear_forward_params *params,
                                                        char *message, size_t bytes) {
  auto copy = *params;
  return call("fanin_linear_forward_check", &copy, offsetof(fanin_linear_forward_params, resources),
              message, bytes);
}

extern "C" FANIN_API int32_t fanin_rewire(fanin_rewire_params *params, char *message,
                                          size_t bytes) {
  auto copy = *params;
  const int32_t status =
      call("fanin_rewire", &copy, offsetof(fanin_rewire_params, inputs), message, bytes);
  params->threshold = copy.threshold;
  params->moved = copy.moved;
  return status;
}
