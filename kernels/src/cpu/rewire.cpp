// Rewiring on a CPU: two passes count, with one table per thread, and give the threshold; a third
// gives connections new sources. See core/rewire.h.
#include "core/rewire.h"

#if defined(_OPENMP)
#include <omp.h>
#endif

#include "core/launchers.h"

namespace fanin {
namespace {

int thread_id() {
#if defined(_OPENMP)
  return omp_get_thread_num();
#else
  return 0;
#endif
}

// Counts the weights in each bucket; bucket(|weight|) is negative for those that do not count.
// Returns the bucket of rank `rank`, and makes `rank` the rank within it.
template <class W, class Bucket>
int64_t select(const W *weights, int64_t count, int threads, uint64_t *tables, uint64_t &rank,
               const Bucket &bucket) {
  memset(tables, 0, size_t(threads * kBuckets) * sizeof *tables);
#pragma omp parallel num_threads(threads)
  {
    uint64_t *const table = tables + thread_id() * kBuckets;
#pragma omp for schedule(static)
    for (int64_t i = 0; i < count; ++i) {
      const int64_t b = bucket(magnitude(weights[i]));
      if (b >= 0) ++table[b];
    }
  }
  for (int64_t b = 0; b < kBuckets; ++b) {
    uint64_t in_bucket = 0;
    for (int t = 0; t < threads; ++t) in_bucket += tables[t * kBuckets + b];
    if (rank < in_bucket) return b;
    rank -= in_bucket;
  }
  return kBuckets - 1;  // not reached: ranks are below count
}

template <class I, class W, class M>
Rewired run(const RewireCall &c) {
  const W *const weights = static_cast<const W *>(c.weights);
  uint64_t *const tables = static_cast<uint64_t *>(c.workspace);
  uint64_t rank = threshold_rank(c);
  const int64_t upper = select(weights, c.connections, c.threads, tables, rank,
                               [](uint32_t bits) { return int64_t(bits >> 16); });
  const int64_t lower = select(weights, c.connections, c.threads, tables, rank, [=](uint32_t bits) {
    return int64_t(bits >> 16) == upper ? int64_t(bits & 0xffffu) : int64_t(-1);
  });
  const uint32_t threshold = uint32_t(upper << 16 | lower);
  int64_t moved = 0;
#pragma omp parallel for num_threads(c.threads) schedule(static) reduction(+ : moved)
  for (int64_t i = 0; i < c.connections; ++i) moved += rewire_one<I, W, M>(c, i, threshold);
  return {weight_of(threshold), moved};
}

}  // namespace

Rewired rewire(const RewireCall &c) {
  if (c.connections == 0) return {0, 0};
  return with_types(
      [&](auto index, auto weight, auto moment) {
        return run<decltype(index), decltype(weight), decltype(moment)>(c);
      },
      index_type(c), weight_type(c), moment_type(c));
}

}  // namespace fanin
