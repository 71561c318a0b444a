// Versions, what was built, and which CPU code is in use.
#include <atomic>
#include <cstdlib>
#include <cstring>

#include "api/run.h"

namespace fanin {
namespace {

// Best first.
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

// The documented setting FANIN_INSTRUCTION_SET is read at the first use.
int32_t current_target(const CpuTarget **target, Message message) {
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

int64_t fanin_sorted_labels(int64_t inputs, int64_t labels) {
  return sorted_labels(inputs, labels);
}

const char *fanin_build_info(void) {
  static thread_local std::string text;
  char ignored[1];
  const CpuTarget *target = nullptr;
  current_target(&target, {ignored, sizeof ignored});
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

}  // extern "C"
