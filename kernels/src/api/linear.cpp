// The C interface of the op: checks what shapes and types can tell (check.h), and hands a checked
// call to the launcher of the device and instruction set. That of training is in api_train.cpp.
#include <atomic>
#include <cstdlib>
#include <cstring>

#if defined(__linux__)
#include <sys/mman.h>
#endif
#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif

#include "api/check.h"

namespace fanin {
namespace {

// Checks the arguments; on success fills the call.
int32_t prepare(const fanin_linear_forward_params *p, ForwardCall *call, Message message) {
  if (!p) return message.say(FANIN_INVALID, "params is null");
  Check check(message);
  Dimension batch{"batch", -1, ""}, inputs{"inputs", -1, ""}, labels{"labels", -1, ""},
      fan_in{"fan_in", -1, ""};
  check.tensor("features", p->features, {&batch, &inputs});
  check.tensor("indices", p->indices, {&labels, &fan_in});
  check.tensor("weights", p->weights, {&labels, &fan_in});
  check.tensor("bias", p->bias, {&labels}, true);
  check.tensor("scores", p->scores, {&batch, &labels}, true);
  check.values("features", p->features);
  check.indices(p->indices);
  check.values("weights", p->weights);
  check.values("bias", p->bias, true);
  check.values("scores", p->scores, true);
  check.sizes(inputs, labels, fan_in);
  check.threads(p->resources.threads);
  if (call) check.known();
  if (check.status() != FANIN_OK) return check.status();
  if (call)
    *call = {batch.size, inputs.size, labels.size, fan_in.size,
             p->features.dtype == FANIN_FLOAT64, p->indices.dtype == FANIN_UINT32,
             p->features.data, p->indices.data, p->weights.data,
             data_of(p->bias), data_of(p->scores),
             workspace_of(p->resources.workspace), p->resources.stream, threads_for(p->resources.threads, labels.size)};
  return FANIN_OK;
}

int32_t prepare(const fanin_linear_backward_params *p, BackwardCall *call, Message message) {
  if (!p) return message.say(FANIN_INVALID, "params is null");
  Check check(message);
  Dimension batch{"batch", -1, ""}, inputs{"inputs", -1, ""}, labels{"labels", -1, ""},
      fan_in{"fan_in", -1, ""};
  check.tensor("features", p->features, {&batch, &inputs});
  check.tensor("indices", p->indices, {&labels, &fan_in});
  check.tensor("weights", p->weights, {&labels, &fan_in});
  check.tensor("grad_scores", p->grad_scores, {&batch, &labels});
  check.tensor("grad_features", p->grad_features, {&batch, &inputs}, true);
  check.tensor("grad_weights", p->grad_weights, {&labels, &fan_in}, true);
  check.tensor("grad_bias", p->grad_bias, {&labels}, true);
  check.values("features", p->features);
  check.indices(p->indices);
  check.values("weights", p->weights);
  check.values("grad_scores", p->grad_scores);
  check.values("grad_features", p->grad_features, true);
  check.values("grad_weights", p->grad_weights, true);
  check.values("grad_bias", p->grad_bias, true);
  check.sizes(inputs, labels, fan_in);
  check.threads(p->resources.threads);
  if (call) check.known();
  if (check.status() != FANIN_OK) return check.status();
  if (call)
    *call = {batch.size, inputs.size, labels.size, fan_in.size,
             p->features.dtype == FANIN_FLOAT64, p->indices.dtype == FANIN_UINT32,
             p->grad_scores.data, p->features.data, p->indices.data, p->weights.data,
             data_of(p->grad_features), data_of(p->grad_weights), data_of(p->grad_bias),
             workspace_of(p->resources.workspace), p->resources.stream, threads_for(p->resources.threads, labels.size)};
  return FANIN_OK;
}

// Results of many MiB are mostly fresh memory. To get it in pages of 4 KiB, each through a fault of its
// own, can take longer than to compute them; so ask for huge pages. Only a hint: where it does not
// help, nothing happens.
void prefer_huge_pages(void *data, uint64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uint64_t huge = 2 << 20, worth = 8 << 20;
  if (!data || bytes < worth) return;
  const uint64_t begin = (reinterpret_cast<uintptr_t>(data) + huge - 1) / huge * huge;
  const uint64_t end = (reinterpret_cast<uintptr_t>(data) + bytes) / huge * huge;
  madvise(reinterpret_cast<void *>(begin), end - begin, MADV_HUGEPAGE);
#else
  (void)data, (void)bytes;
#endif
}
template <class Call>
uint64_t value_bytes(const Call &c) {
  return c.wide_values ? 8 : 4;
}

// Instruction sets -----------------------------------------------------------------------------

const CpuTarget *const kTargets[] = {
#if defined(FANIN_X86)
    &avx512::target,
    &avx2::target,
#endif
    &baseline::target,
};

bool runs_here(const CpuTarget *target) {
#if defined(FANIN_X86)
  if (target == &avx512::target)
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("fma");
  if (target == &avx2::target)
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#endif
  return target == &baseline::target;
}

std::atomic<const CpuTarget *> chosen{nullptr};

int32_t choose(const char *name, Message message) {
  const bool best = !name || !*name || !strcmp(name, "auto");
  std::string known;
  for (const CpuTarget *target : kTargets) {
    if (best ? runs_here(target) : !strcmp(name, target->name)) {
      if (!runs_here(target))
        return message.say(FANIN_UNAVAILABLE, "this machine does not run instruction set %s", name);
      chosen = target;
      return FANIN_OK;
    }
    known += std::string(target->name) + ", ";
  }
  return message.say(FANIN_INVALID, "unknown instruction set '%s'; there are %sauto", name,
                     known.c_str());
}

}  // namespace

bool is_forked() {
  static std::atomic<bool> forked{false};
#if defined(__unix__) || defined(__APPLE__)
  static const int watched = pthread_atfork(nullptr, nullptr, [] { forked = true; });
  (void)watched;
#endif
  return forked;
}

// The documented setting FANIN_INSTRUCTION_SET is read at the first use.
int32_t current(const CpuTarget **target, Message message) {
  if (!chosen.load())
    if (const int32_t status = choose(getenv("FANIN_INSTRUCTION_SET"), message)) return status;
  *target = chosen.load();
  return FANIN_OK;
}

}  // namespace fanin

using namespace fanin;

extern "C" {

int32_t fanin_abi_version(void) { return FANIN_ABI_VERSION; }

const char *fanin_version(void) { return FANIN_LIBRARY_VERSION; }

int64_t fanin_sorted_labels(int64_t inputs, int64_t labels) { return sorted_labels(inputs, labels); }

const char *fanin_build_info(void) {
  static thread_local std::string text;
  char ignored[1];
  const CpuTarget *target = nullptr;
  current(&target, {ignored, sizeof ignored});
  text = "{\"cuda\": [";
  text += cuda::architectures;
  text += "], \"openmp\": ";
#if defined(_OPENMP)
  text += "true";
#else
  text += "false";
#endif
  text += ", \"instruction_sets\": [";
  bool first = true;
  for (const CpuTarget *t : kTargets)
    if (runs_here(t)) {
      text += std::string(first ? "" : ", ") + "\"" + t->name + "\"";
      first = false;
    }
  text += "], \"instruction_set\": ";
  text += target ? "\"" + std::string(target->name) + "\"" : "null";
  text += "}";
  return text.c_str();
}

int32_t fanin_set_instruction_set(const char *name, char *message, size_t message_bytes) {
  return choose(name, {message, message_bytes});
}

int32_t fanin_linear_forward_check(const fanin_linear_forward_params *params, char *message,
                                   size_t message_bytes) {
  return prepare(params, nullptr, {message, message_bytes});
}

uint64_t fanin_linear_forward_workspace(const fanin_linear_forward_params *params) {
  ForwardCall call;
  return prepare(params, &call, {nullptr, 0}) == FANIN_OK ? forward_workspace(call) : 0;
}

uint64_t fanin_linear_backward_workspace(const fanin_linear_backward_params *params) {
  BackwardCall call;
  if (prepare(params, &call, {nullptr, 0}) != FANIN_OK) return 0;
  return backward_workspace(call, params->features.device == FANIN_CPU ? call.threads : 1);
}

int32_t fanin_linear_forward(const fanin_linear_forward_params *params, char *text,
                             size_t text_bytes) {
  const Message message{text, text_bytes};
  ForwardCall call;
  int32_t status = prepare(params, &call, message);
  if (status) return status;
  if (params->scores.rank < 0) return message.say(FANIN_INVALID, "scores is missing");
  if (call.batch == 0) return FANIN_OK;
  status = require_workspace(params->resources.workspace_bytes, params->resources.workspace, forward_workspace(call),
                             message);
  if (status) return status;
  if (params->features.device == FANIN_CUDA)
    return report_device(cuda::forward(call), message);
  prefer_huge_pages(call.scores, uint64_t(call.batch) * uint64_t(call.labels) * value_bytes(call));
  const CpuTarget *target;
  status = current(&target, message);
  return status ? status : report(target->forward(call), call, message);
}

int32_t fanin_linear_backward(const fanin_linear_backward_params *params, char *text,
                              size_t text_bytes) {
  const Message message{text, text_bytes};
  BackwardCall call;
  int32_t status = prepare(params, &call, message);
  if (status) return status;
  const bool cpu = params->features.device == FANIN_CPU;
  if (call.batch == 0) {
    // Gradients of parameters over no instances are zero.
    const size_t size = value_bytes(call);
    const size_t weights = size_t(call.labels * call.fan_in) * size, bias = size_t(call.labels) * size;
    if (cpu) {
      if (call.grad_weights) memset(call.grad_weights, 0, weights);
      if (call.grad_bias) memset(call.grad_bias, 0, bias);
      return FANIN_OK;
    }
    return report_device(
        cuda::zero(call.grad_weights, weights, call.grad_bias, bias, call.stream), message);
  }
  status = require_workspace(params->resources.workspace_bytes, params->resources.workspace,
                             backward_workspace(call, cpu ? call.threads : 1), message);
  if (status) return status;
  if (!cpu) return report_device(cuda::backward(call), message);
  prefer_huge_pages(call.grad_weights,
                    uint64_t(call.labels) * uint64_t(call.fan_in) * value_bytes(call));
  const CpuTarget *target;
  status = current(&target, message);
  return status ? status : report(target->backward(call), call, message);
}

}  // extern "C"
