// What run.h promises.
#include "api/run.h"

#include <atomic>

#if defined(_OPENMP)
#include <omp.h>
#endif
#if defined(__linux__)
#include <sys/mman.h>
#endif
#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif

namespace fanin {

#if defined(_OPENMP)
// Whether this process was forked from one that has used the library. OpenMP's threads do not exist
// in such a child, and to wait for them would last for ever, so it works with one.
static bool is_forked() {
  static std::atomic<bool> forked{false};
#if defined(__unix__) || defined(__APPLE__)
  static const int watched = pthread_atfork(nullptr, nullptr, [] { forked = true; });
  (void)watched;
#endif
  return forked;
}
#endif

int threads_for(int32_t wanted, int64_t labels) {
#if defined(_OPENMP)
  const int64_t threads = is_forked() ? 1 : wanted > 0 ? wanted : omp_get_max_threads();
#else
  const int64_t threads = 1;
  (void)wanted;
#endif
  const int64_t tiles = labels > 32 ? (labels + 31) / 32 : 1;
  return int(threads < tiles ? threads : tiles);
}

void set_resources(Call *call, const fanin_resources &resources, const fanin_tensor &tensor,
                   int64_t labels) {
  call->on_gpu = tensor.device == FANIN_CUDA;
  call->workspace = resources.workspace ? aligned(resources.workspace) : nullptr;
  call->stream = resources.stream;
  call->threads = call->on_gpu ? 1 : threads_for(resources.threads, labels);
}

int32_t require_workspace(const fanin_resources &resources, uint64_t bytes, Message message) {
  const uint64_t given = resources.workspace ? resources.workspace_bytes : 0;
  if (given >= bytes) return FANIN_OK;
  return message.say(FANIN_INVALID, "workspace has %" PRIu64 " bytes but %" PRIu64 " are needed",
                     given, bytes);
}

// Results of many MiB are mostly fresh memory. To get it in pages of 4 KiB, each through a fault of
// its own, can take longer than to compute the results. This is only a hint: where it does not
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

const char *name_of_non_finite(double value) {
  return value != value ? "NaN" : value > 0 ? "inf" : "-inf";
}

static int32_t report_index(int64_t position, const CheckedData &data, Message message) {
  const uint32_t value = data.wide_indices ? static_cast<const uint32_t *>(data.indices)[position]
                                           : static_cast<const uint16_t *>(data.indices)[position];
  // Unstructured connections are flat.
  const std::string place = data.fan_in ? std::to_string(position / data.fan_in) + ", " +
                                              std::to_string(position % data.fan_in)
                                        : std::to_string(position);
  return message.say(FANIN_INVALID,
                     "indices[%s] is %" PRIu32 ", out of range for %" PRId64 " inputs",
                     place.c_str(), value, data.inputs);
}

static int32_t report_feature(int64_t position, const CheckedData &data, Message message) {
  const double value = data.wide_values ? static_cast<const double *>(data.features)[position]
                                        : static_cast<const float *>(data.features)[position];
  return message.say(FANIN_INVALID,
                     "features[%" PRId64 ", %" PRId64 "] is %s; all features must be finite",
                     position / data.inputs, position % data.inputs, name_of_non_finite(value));
}

int32_t report(const Finding &finding, const CheckedData &data, Message message) {
  switch (finding.kind) {
    case Finding::nothing:
      return FANIN_OK;
    case Finding::bad_index:
      return report_index(finding.position, data, message);
    case Finding::bad_feature:
      return report_feature(finding.position, data, message);
    case Finding::bad_tile_label:
      return message.say(FANIN_INVALID,
                         "tile_labels at flat position %" PRId64
                         " names a label beyond its tile; sort the connections again",
                         finding.position);
    case Finding::bad_tile:
      return message.say(FANIN_INVALID,
                         "tile_labels from flat position %" PRId64
                         " on are not those of a tile of this layer; sort the connections for the "
                         "inputs that features has",
                         finding.position);
    case Finding::bad_slot:
      return message.say(FANIN_INVALID,
                         "tile_labels and slots at flat position %" PRId64
                         " name a place beyond the tile, or one named before",
                         finding.position);
    case Finding::unavailable:
      return message.say(FANIN_UNAVAILABLE, "%s", finding.text);
    default:
      return message.say(FANIN_DEVICE_ERROR, "CUDA: %s", finding.text);
  }
}

}  // namespace fanin
