// Launches the kernels on a CPU: OpenMP threads over tiles of labels. Compiled once per
// instruction set, with FANIN_TARGET naming it.
//
// Each thread takes one contiguous range of labels, so results depend on the number of threads
// (through the order in which gradients of features are added up) and on nothing else.
#if defined(_OPENMP)
#include <omp.h>
#endif

#include "call.h"
#include "fan_in_linear.h"

namespace fanin {
namespace FANIN_TARGET {
namespace {

#if defined(_OPENMP)
int thread_id() { return omp_get_thread_num(); }
int thread_count() { return omp_get_num_threads(); }
#else
int thread_id() { return 0; }
int thread_count() { return 1; }
#endif

// A thread's share of n things.
struct Share {
  int64_t begin, end;
  explicit Share(int64_t n)
      : begin(n * thread_id() / thread_count()), end(n * (thread_id() + 1) / thread_count()) {}
};

// Results larger than this do not stay in a cache until somebody reads them.
constexpr uint64_t kStreamedBytes = 12 << 20;
// Features and their gradients that together fill a core's second-level cache are better visited
// one after the other, this many labels at a time.
constexpr int64_t kCacheBytes = 768 << 10, kBlockLabels = 4096;

void note(int64_t *first_bad, int64_t at) {
#pragma omp critical(fanin_note)
  if (*first_bad < 0 || at < *first_bad) *first_bad = at;
}

// features [batch, inputs] -> [group][inputs][32], lanes beyond the batch zero. Called by all
// threads of a team. Notes the first value that is not finite.
template <class T>
void transpose_features(const T *features, int64_t batch, int64_t inputs, T *out,
                        int64_t *first_bad) {
  const Share share(inputs);
  for (int64_t group = 0; group < groups_of(batch); ++group) {
    const int lanes = int(smaller<int64_t>(kLanes, batch - group * kLanes));
    const T *rows = features + group * kLanes * inputs;
    T *target = out + group * kLanes * inputs;
    T poison = 0;  // stays 0 while all values are finite: x * 0 is NaN for the others
    constexpr int64_t block = 16;  // inputs at a time: one cache line of each instance
    for (int64_t i = share.begin; i < share.end; i += block) {
      const int64_t end = smaller(i + block, share.end);
      for (int b = 0; b < lanes; ++b)
        for (int64_t j = i; j < end; ++j) {
          const T x = rows[b * inputs + j];
          poison += x * T(0);
          target[j * kLanes + b] = x;
        }
      for (int b = lanes; b < kLanes; ++b)
        for (int64_t j = i; j < end; ++j) target[j * kLanes + b] = 0;
    }
    if (!(poison == T(0)))
      for (int64_t b = 0; b < lanes; ++b)
        for (int64_t j = share.begin; j < share.end; ++j)
          if (!(rows[b * inputs + j] * T(0) == T(0))) {
            note(first_bad, (group * kLanes + b) * inputs + j);
            break;
          }
  }
}

// [inputs][32] accumulators of `count` threads -> grad_features of one group.
template <class T>
void collect(const T *accumulators, int count, int64_t inputs, int lanes, T *grad_features) {
  const Share share(inputs);
  const int64_t stride = inputs * kLanes;
  for (int64_t i = share.begin; i < share.end; ++i) {
    Lanes<T> total = load(accumulators + i * kLanes);
    for (int t = 1; t < count; ++t)
      total = fma(T(1), load(accumulators + t * stride + i * kLanes), total);
    T row[kLanes];
    store(row, total);
    for (int b = 0; b < lanes; ++b) grad_features[b * inputs + i] = row[b];
  }
}

template <class T, class I>
void note_bad_index(const Layer<T, I> &layer, int64_t first_label, int64_t labels,
                    int64_t *first_bad) {
  const int64_t begin = first_label * layer.fan_in;
  for (int64_t i = begin; i < begin + labels * layer.fan_in; ++i)
    if (int64_t(layer.indices[i]) >= layer.inputs) return note(first_bad, i);
}

Finding finding(int64_t bad_feature, int64_t bad_index) {
  if (bad_feature >= 0) return {Finding::bad_feature, bad_feature, nullptr};
  if (bad_index >= 0) return {Finding::bad_index, bad_index, nullptr};
  return {Finding::nothing, 0, nullptr};
}

template <class T, class I>
Finding run_forward(const ForwardCall &c) {
  const Layer<T, I> layer{c.batch,
                          c.inputs,
                          c.labels,
                          c.fan_in,
                          static_cast<const I *>(c.indices),
                          static_cast<const T *>(c.weights),
                          static_cast<const T *>(c.bias)};
  const int64_t tiles = (c.labels + kTile - 1) / kTile, groups = groups_of(c.batch);
  T *features = static_cast<T *>(c.workspace);
  int64_t bad_feature = -1, bad_index = -1;
#pragma omp parallel num_threads(c.threads)
  {
    transpose_features(static_cast<const T *>(c.features), c.batch, c.inputs, features,
                       &bad_feature);
#pragma omp barrier
    Team<T> team(uint64_t(c.batch) * uint64_t(c.labels) * sizeof(T) > kStreamedBytes);
    alignas(64) T scratch[kTile * kTilePitch];
    // A label's scores are the same whoever computes them, so threads take what is left: they are
    // not always equally fast.
#pragma omp for schedule(dynamic, 64)
    for (int64_t tile = 0; tile < tiles; ++tile) {
      const int64_t first = tile * kTile, labels = smaller<int64_t>(kTile, c.labels - first);
      if (bad_feature >= 0 || bad_index >= 0) continue;
      if (!team.all_below(layer.indices + first * c.fan_in, labels * c.fan_in, c.inputs)) {
        note_bad_index(layer, first, labels, &bad_index);
        continue;
      }
      for (int64_t group = 0; group < groups; ++group)
        forward_tile(layer, features + group * c.inputs * kLanes, group, first,
                     static_cast<T *>(c.scores), scratch, team);
    }
    team.finish();
  }
  return finding(bad_feature, bad_index);
}

template <class T, class I>
Finding run_backward(const BackwardCall &c) {
  const Layer<T, I> layer{c.batch,
                          c.inputs,
                          c.labels,
                          c.fan_in,
                          static_cast<const I *>(c.indices),
                          static_cast<const T *>(c.weights),
                          nullptr};
  const int64_t tiles = (c.labels + kTile - 1) / kTile, groups = groups_of(c.batch);
  const int64_t group_size = c.inputs * kLanes;
  T *features = static_cast<T *>(c.workspace);
  T *accumulators = features + groups * group_size;
  int64_t bad_feature = -1, bad_index = -1;
#pragma omp parallel num_threads(c.threads)
  {
    transpose_features(static_cast<const T *>(c.features), c.batch, c.inputs, features,
                       &bad_feature);
    Team<T> team(uint64_t(c.labels) * uint64_t(c.fan_in) * sizeof(T) > kStreamedBytes);
    alignas(64) T scratch[kTile * kTilePitch];
    const Share share(tiles);
    T *mine = c.grad_features ? accumulators + thread_id() * group_size : nullptr;
    // Groups outside, so that one accumulator a thread is enough however large the batch.
    for (int64_t group = 0; group < groups; ++group) {
      if (mine)
        for (int64_t i = 0; i < group_size; ++i) mine[i] = 0;
#pragma omp barrier
      const auto visit = [&](int64_t begin, int64_t end, T *of_features, T *of_weights, T *of_bias) {
        for (int64_t tile = begin; tile < end; ++tile)
          backward_tile(layer, features + group * group_size, group, tile * kTile,
                        static_cast<const T *>(c.grad_scores), of_features, of_weights, of_bias,
                        scratch, team);
      };
      const bool together = uint64_t(2 * group_size) * sizeof(T) <= kCacheBytes;
      const int64_t block = together ? 1 : kBlockLabels / kTile;
      T *const of_weights = static_cast<T *>(c.grad_weights);
      T *const of_bias = static_cast<T *>(c.grad_bias);
      for (int64_t begin = share.begin; begin < share.end && bad_feature < 0; begin += block) {
        const int64_t end = smaller(begin + block, share.end);
        const int64_t first = begin * kTile, labels = smaller(end * kTile, c.labels) - first;
        if (!team.all_below(layer.indices + first * c.fan_in, labels * c.fan_in, c.inputs)) {
          note_bad_index(layer, first, labels, &bad_index);
          break;
        }
        if (together) {
          visit(begin, end, mine, of_weights, of_bias);
        } else {
          if (of_weights || of_bias) visit(begin, end, nullptr, of_weights, of_bias);
          if (mine) visit(begin, end, mine, nullptr, nullptr);
        }
      }
      team.finish();
#pragma omp barrier
      if (mine)
        collect(accumulators, thread_count(), c.inputs,
                int(smaller<int64_t>(kLanes, c.batch - group * kLanes)),
                static_cast<T *>(c.grad_features) + group * kLanes * c.inputs);
#pragma omp barrier
    }
  }
  return finding(bad_feature, bad_index);
}

Finding forward(const ForwardCall &c) {
  if (c.wide_values)
    return c.wide_indices ? run_forward<double, uint32_t>(c) : run_forward<double, uint16_t>(c);
  return c.wide_indices ? run_forward<float, uint32_t>(c) : run_forward<float, uint16_t>(c);
}

Finding backward(const BackwardCall &c) {
  if (c.wide_values)
    return c.wide_indices ? run_backward<double, uint32_t>(c) : run_backward<double, uint16_t>(c);
  return c.wide_indices ? run_backward<float, uint32_t>(c) : run_backward<float, uint16_t>(c);
}

#define FANIN_STRING(x) #x
#define FANIN_NAME(x) FANIN_STRING(x)

}  // namespace

extern const CpuTarget target = {FANIN_NAME(FANIN_TARGET), forward, backward};

}  // namespace FANIN_TARGET
}  // namespace fanin
