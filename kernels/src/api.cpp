// The C interface: checks what shapes and types can tell, words every message, and hands a checked
// call to the launcher of the device and instruction set. Messages are written here and nowhere
// else, so both frameworks raise the same text.
#include "fanin.h"

#include <atomic>
#include <cinttypes>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

#if defined(_OPENMP)
#include <omp.h>
#endif

#include "call.h"

namespace fanin {
namespace {

struct Message {
  char *text;
  size_t bytes;
  __attribute__((format(printf, 3, 4))) int32_t say(fanin_status status, const char *format,
                                                    ...) const {
    if (text && bytes) {
      va_list arguments;
      va_start(arguments, format);
      vsnprintf(text, bytes, format, arguments);
      va_end(arguments);
    }
    return status;
  }
};

const char *name_of(int32_t dtype) {
  static const char *const names[] = {"an unsupported type", "float32", "float64", "uint16",
                                      "uint32", "float16", "bfloat16", "uint8", "uint64", "int8",
                                      "int16", "int32", "int64", "bool"};
  return dtype > 0 && dtype <= FANIN_BOOL ? names[dtype] : names[0];
}

std::string device_name(const fanin_tensor &t) {
  if (t.device == FANIN_CPU) return "cpu";
  if (t.device == FANIN_CUDA) return "cuda:" + std::to_string(t.device_index);
  return "a device that is neither cpu nor cuda";
}

std::string shape_of(const fanin_tensor &t) {
  std::string text = "[";
  for (int i = 0; i < t.rank && i < FANIN_MAX_RANK; ++i)
    text += (i ? ", " : "") + (t.shape[i] < 0 ? "?" : std::to_string(t.shape[i]));
  return text + "]";
}

// A size that tensors share; the first that knows it says what it is.
struct Dimension {
  const char *name;
  int64_t size;
  const char *said_by;
};

// Collects the first thing that is wrong with a call's tensors.
class Check {
 public:
  explicit Check(Message message) : message_(message) {}

  void tensor(const char *name, const fanin_tensor &t, std::initializer_list<Dimension *> dims,
              bool optional = false) {
    if (status_ != FANIN_OK || (optional && t.rank < 0)) return;
    std::string expected = "[";
    for (const Dimension *d : dims) expected += (expected.size() > 1 ? ", " : "") + std::string(d->name);
    expected += "]";
    if (t.rank != int(dims.size())) {
      if (t.rank < 0)
        wrong("%s is missing; expected %s", name, expected.c_str());
      else
        wrong("%s must be %s, got %d dimensions", name, expected.c_str(), t.rank);
      return;
    }
    int i = 0;
    for (Dimension *d : dims) {
      const int64_t size = t.shape[i++];
      if (size < 0) continue;
      if (d->size < 0) {
        d->size = size;
        d->said_by = name;
      } else if (d->size != size) {
        wrong("%s %s must be %s: %s is %" PRId64 " here but %" PRId64 " in %s", name,
              shape_of(t).c_str(), expected.c_str(), d->name, size, d->size, d->said_by);
        return;
      }
    }
    if (!first_) {
      first_ = &t;
      first_name_ = name;
    } else if (t.device != first_->device || t.device_index != first_->device_index) {
      wrong("%s is on %s but %s is on %s; move them to one device", name, device_name(t).c_str(),
            first_name_, device_name(*first_).c_str());
      return;
    } else if (t.device != FANIN_CPU && t.device != FANIN_CUDA) {
      wrong("%s is on %s", name, device_name(t).c_str());
      return;
    }
    // The stride of a size of 1 is meaningless, and an empty tensor has none that matters.
    for (int d = 0; d < t.rank; ++d)
      if (t.shape[d] <= 0) return;
    int64_t expected_stride = 1;
    for (int d = t.rank - 1; d >= 0; --d) {
      if (t.shape[d] > 1 && t.strides[d] != expected_stride) {
        wrong("%s %s is not contiguous (row-major); make a contiguous copy first", name,
              shape_of(t).c_str());
        return;
      }
      expected_stride *= t.shape[d];
    }
  }

  void values(const char *name, const fanin_tensor &t, bool optional = false) {
    if (status_ != FANIN_OK || (optional && t.rank < 0)) return;
    if (t.dtype != FANIN_FLOAT32 && t.dtype != FANIN_FLOAT64)
      wrong("%s must be float32 or float64, got %s", name, name_of(t.dtype));
    else if (!value_name_)
      value_type_ = t.dtype, value_name_ = name;
    else if (t.dtype != value_type_)
      wrong("%s is %s but %s is %s; use one type for both", name, name_of(t.dtype), value_name_,
            name_of(value_type_));
  }

  void indices(const fanin_tensor &t) {
    if (status_ == FANIN_OK && t.dtype != FANIN_UINT16 && t.dtype != FANIN_UINT32)
      wrong("indices must be uint16 or uint32, got %s; convert them once, uint16 where inputs <= "
            "65536", name_of(t.dtype));
  }

  void sizes(const Dimension &inputs, const Dimension &labels, const Dimension &fan_in) {
    if (status_ != FANIN_OK) return;
    if (inputs.size == 0) return (void)wrong("inputs must be at least 1, features have 0 columns");
    if (labels.size == 0) return (void)wrong("labels must be at least 1, indices have 0 rows");
    if (fan_in.size == 0) return (void)wrong("fan_in must be at least 1, indices have 0 columns");
    if (inputs.size > 0 && fan_in.size > inputs.size)
      return (void)wrong("fan_in %" PRId64 " is larger than the %" PRId64 " inputs", fan_in.size,
                         inputs.size);
    if (inputs.size > INT32_MAX)
      return (void)wrong("inputs must be below 2^31, got %" PRId64, inputs.size);
  }

  __attribute__((format(printf, 2, 3))) void wrong(const char *format, ...) {
    char text[512];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    status_ = message_.say(FANIN_INVALID, "%s", text);
  }

  int32_t status() const { return status_; }
  int32_t device() const { return first_->device; }

 private:
  Message message_;
  int32_t status_ = FANIN_OK;
  const fanin_tensor *first_ = nullptr;
  const char *first_name_ = nullptr;
  const char *value_name_ = nullptr;
  int32_t value_type_ = 0;
};

int threads_for(int32_t wanted, int64_t labels) {
#if defined(_OPENMP)
  int64_t threads = wanted > 0 ? wanted : omp_get_max_threads();
#else
  int64_t threads = 1;
#endif
  const int64_t tiles = (labels + 31) / 32;
  return int(threads < tiles ? threads : tiles);
}

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
  if (p->threads < 0) check.wrong("threads must be 0 (all) or more, got %d", p->threads);
  if (check.status() != FANIN_OK) return check.status();
  if (call)
    *call = {batch.size, inputs.size, labels.size, fan_in.size,
             p->features.dtype == FANIN_FLOAT64, p->indices.dtype == FANIN_UINT32,
             p->features.data, p->indices.data, p->weights.data,
             p->bias.rank < 0 ? nullptr : p->bias.data, p->scores.data,
             p->workspace ? aligned(p->workspace) : nullptr, p->stream, threads_for(p->threads, labels.size)};
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
  if (p->threads < 0) check.wrong("threads must be 0 (all) or more, got %d", p->threads);
  if (check.status() != FANIN_OK) return check.status();
  const auto data = [](const fanin_tensor &t) { return t.rank < 0 ? nullptr : t.data; };
  if (call)
    *call = {batch.size, inputs.size, labels.size, fan_in.size,
             p->features.dtype == FANIN_FLOAT64, p->indices.dtype == FANIN_UINT32,
             p->grad_scores.data, p->features.data, p->indices.data, p->weights.data,
             data(p->grad_features), data(p->grad_weights), data(p->grad_bias),
             p->workspace ? aligned(p->workspace) : nullptr, p->stream, threads_for(p->threads, labels.size)};
  return FANIN_OK;
}

int32_t require_known(std::initializer_list<int64_t> sizes, Message message) {
  for (const int64_t size : sizes)
    if (size < 0) return message.say(FANIN_INVALID, "a size is not known at the time of the call");
  return FANIN_OK;
}

int32_t require_workspace(uint64_t has, const void *workspace, uint64_t needs, Message message) {
  if (needs && (!workspace || has < needs))
    return message.say(FANIN_INVALID, "workspace has %" PRIu64 " bytes but %" PRIu64 " are needed",
                       workspace ? has : uint64_t(0), needs);
  return FANIN_OK;
}

template <class Call>
int32_t report(const Finding &found, const Call &call, Message message) {
  switch (found.kind) {
    case Finding::nothing:
      return FANIN_OK;
    case Finding::bad_index: {
      const uint32_t value = call.wide_indices
                                 ? static_cast<const uint32_t *>(call.indices)[found.at]
                                 : static_cast<const uint16_t *>(call.indices)[found.at];
      return message.say(FANIN_INVALID,
                         "indices[%" PRId64 ", %" PRId64 "] is %" PRIu32
                         ", out of range for %" PRId64 " inputs",
                         found.at / call.fan_in, found.at % call.fan_in, value, call.inputs);
    }
    case Finding::bad_feature: {
      const double value = call.wide_values ? static_cast<const double *>(call.features)[found.at]
                                            : static_cast<const float *>(call.features)[found.at];
      return message.say(FANIN_INVALID,
                         "features[%" PRId64 ", %" PRId64 "] is %s; all features must be finite",
                         found.at / call.inputs, found.at % call.inputs,
                         value != value ? "NaN" : value > 0 ? "inf" : "-inf");
    }
    default:
      return message.say(FANIN_DEVICE_ERROR, "CUDA: %s", found.text);
  }
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

// The documented setting FANIN_INSTRUCTION_SET is read at the first use.
int32_t current(const CpuTarget **target, Message message) {
  if (!chosen.load())
    if (const int32_t status = choose(getenv("FANIN_INSTRUCTION_SET"), message)) return status;
  *target = chosen.load();
  return FANIN_OK;
}

#if !defined(FANIN_HAS_CUDA)
constexpr const char *kNoCuda =
    "this build of fanin has no CUDA kernels; install it where nvcc is on the PATH";
#endif

}  // namespace
}  // namespace fanin

using namespace fanin;

extern "C" {

int32_t fanin_abi_version(void) { return FANIN_ABI_VERSION; }

const char *fanin_version(void) { return FANIN_LIBRARY_VERSION; }

const char *fanin_build_info(void) {
  static thread_local std::string text;
  char ignored[1];
  const CpuTarget *target = nullptr;
  current(&target, {ignored, sizeof ignored});
  text = "{\"cuda\": [";
#if defined(FANIN_HAS_CUDA)
  text += cuda::architectures;
#endif
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
  status = require_known({call.batch, call.inputs, call.labels, call.fan_in}, message);
  if (status) return status;
  if (call.batch == 0) return FANIN_OK;
  status = require_workspace(params->workspace_bytes, params->workspace, forward_workspace(call),
                             message);
  if (status) return status;
  if (params->features.device == FANIN_CUDA) {
#if defined(FANIN_HAS_CUDA)
    return report(cuda::forward(call), call, message);
#else
    return message.say(FANIN_UNAVAILABLE, "%s", kNoCuda);
#endif
  }
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
  status = require_known({call.batch, call.inputs, call.labels, call.fan_in}, message);
  if (status) return status;
  const bool cpu = params->features.device == FANIN_CPU;
  if (call.batch == 0) {
    // Gradients of parameters over no instances are zero.
    const size_t size = call.wide_values ? 8 : 4;
    const size_t weights = size_t(call.labels * call.fan_in) * size, bias = size_t(call.labels) * size;
    if (cpu) {
      if (call.grad_weights) memset(call.grad_weights, 0, weights);
      if (call.grad_bias) memset(call.grad_bias, 0, bias);
      return FANIN_OK;
    }
#if defined(FANIN_HAS_CUDA)
    return report(cuda::zero(call.grad_weights, weights, call.grad_bias, bias, call.stream), call,
                  message);
#endif
  }
  status = require_workspace(params->workspace_bytes, params->workspace,
                             backward_workspace(call, cpu ? call.threads : 1), message);
  if (status) return status;
  if (!cpu) {
#if defined(FANIN_HAS_CUDA)
    return report(cuda::backward(call), call, message);
#else
    return message.say(FANIN_UNAVAILABLE, "%s", kNoCuda);
#endif
  }
  const CpuTarget *target;
  status = current(&target, message);
  return status ? status : report(target->backward(call), call, message);
}

}  // extern "C"
