// Rewiring on a CPU: the threshold in two passes that count, with one table per thread, then one pass
// that regrows.
#include "core/rewire.h"

#if defined(_OPENMP)
#include <omp.h>
#endif

namespace fanin {
namespace {

int thread_id() {
#if defined(_OPENMP)
  return omp_get_thread_num();
#else
  return 0;
#endif
}

// Counts bucket(weight) where it is not negative; returns the bucket of rank `rank`, and makes
// `rank` the rank within it.
template <class W, class Bucket>
int64_t select(const W *weights, int64_t count, int threads, uint64_t *tables, uint64_t &rank,
               const Bucket &bucket) {
  memset(tables, 0, size_t(threads * kBuckets) * sizeof *tables);
#pragma omp parallel num_threads(threads)
  {
    uint64_t *const mine = tables + thread_id() * kBuckets;
#pragma omp for schedule(static)
    for (int64_t i = 0; i < count; ++i) {
      const int64_t b = bucket(magnitude(weights[i]));
      if (b >= 0) ++mine[b];
    }
  }
  for (int64_t b = 0; b < kBuckets; ++b) {
    uint64_t here = 0;
    for (int t = 0; t < threads; ++t) here += tables[t * kBuckets + b];
    if (rank < here) return b;
    rank -= here;
  }
  return kBuckets - 1;  // not reached: ranks are below count
}

template <class I, class W, class M>
Rewired run(const RewireCall &c) {
  const W *const weights = static_cast<const W *>(c.weights);
  uint64_t *const tables = static_cast<uint64_t *>(c.workspace);
  uint64_t rank = threshold_rank(c);
  const int64_t upper = select(weights, c.count, c.threads, tables, rank,
                               [](uint32_t bits) { return int64_t(bits >> 16); });
  const int64_t lower =
      select(weights, c.count, c.threads, tables, rank, [=](uint32_t bits) {
        return int64_t(bits >> 16) == upper ? int64_t(bits & 0xffffu) : int64_t(-1);
      });
  const uint32_t threshold = uint32_t(upper << 16 | lower);
  int64_t moved = 0;
#pragma omp parallel for num_threads(c.threads) schedule(static) reduction(+ : moved)
  for (int64_t i = 0; i < c.count; ++i)
    moved += regrow<I, W, M>(c, i, threshold);
  return {weight_of(threshold), moved};
}

template <class I, class W>
Rewired with_moments(const RewireCall &c) {
  return c.bf16_moments ? run<I, W, uint16_t>(c) : run<I, W, float>(c);
}
template <class I>
Rewired with_weights(const RewireCall &c) {
  return c.bf16_weights ? with_moments<I, uint16_t>(c) : with_moments<I, float>(c);
}

}  // namespace

uint64_t rewire_workspace(const RewireCall &c) {
  return uint64_t(c.threads) * kBuckets * sizeof(uint64_t) + kCacheLine;
}

Rewired rewire(const RewireCall &c) {
  if (c.count == 0) return {0, 0};
  return c.wide_indices ? with_weights<uint32_t>(c) : with_weights<uint16_t>(c);
}

}  // namespace fanin
