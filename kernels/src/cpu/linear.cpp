// Launches the op's kernels on a CPU: OpenMP threads over tiles of labels. Compiled once per
// instruction set, with FANIN_TARGET naming it; so is cpu_train.cpp, which launches those of training.
//
// Each thread takes one contiguous range of labels, so results depend on the number of threads
// (through the order in which gradients of features are added up) and on nothing else.
#include "cpu/common.h"

namespace fanin {
namespace FANIN_TARGET {
namespace {

// Results larger than this do not stay in a cache until somebody reads them.
constexpr uint64_t kStreamedBytes = 12 << 20;
// Features and their gradients that do not fit a core's cache together are better visited one after
// the other, this many labels at a time.
constexpr int64_t kBlockLabels = 4096;

template <class T, class I>
Finding run_forward(const ForwardCall &c) {
  const Layer<T, I> layer = layer_of<T, I>(c, c.bias);
  const int64_t tiles = (c.labels + kTile - 1) / kTile, groups = groups_of(c.batch);
  const int64_t share = tiles / (4 * c.threads), block = share < 1 ? 1 : smaller<int64_t>(share, 64);
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
    // not always equally fast. Groups outside of a block's tiles: a group's features stay in the cache.
#pragma omp for schedule(dynamic, 1)
    for (int64_t begin = 0; begin < tiles; begin += block) {
      const int64_t end = smaller(begin + block, tiles);
      for (int64_t group = 0; group < groups; ++group)
        for (int64_t tile = begin; tile < end && bad_feature < 0; ++tile) {
          const int64_t first = tile * kTile, labels = smaller<int64_t>(kTile, c.labels - first);
          if (!forward_tile(layer, features + group * c.inputs * kLanes, group, first,
                            static_cast<T *>(c.scores), scratch, team))
            note_above(layer.indices, first * c.fan_in, labels * c.fan_in, c.inputs, &bad_index);
        }
    }
    team.finish();
  }
  return finding(bad_feature, bad_index);
}

template <class T, class I>
Finding run_backward(const BackwardCall &c) {
  const Layer<T, I> layer = layer_of<T, I>(c, nullptr);
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
          if (!backward_tile(layer, features + group * group_size, group, tile * kTile,
                             static_cast<const T *>(c.grad_scores), of_features, of_weights,
                             of_bias, scratch, team))
            return false;
        return true;
      };
      const bool together = uint64_t(2 * group_size) * sizeof(T) <= kCacheBytes;
      const int64_t block = together ? 1 : kBlockLabels / kTile;
      T *const of_weights = static_cast<T *>(c.grad_weights);
      T *const of_bias = static_cast<T *>(c.grad_bias);
      for (int64_t begin = share.begin; begin < share.end && bad_feature < 0; begin += block) {
        const int64_t end = smaller(begin + block, share.end);
        bool good = true;
        if (together) {
          good = visit(begin, end, mine, of_weights, of_bias);
        } else {
          if (of_weights || of_bias) good = visit(begin, end, nullptr, of_weights, of_bias);
          if (mine && good) good = visit(begin, end, mine, nullptr, nullptr);
        }
        if (!good) {
          const int64_t first = begin * kTile, labels = smaller(end * kTile, c.labels) - first;
          note_above(layer.indices, first * c.fan_in, labels * c.fan_in, c.inputs, &bad_index);
          break;
        }
      }
      team.finish();
#pragma omp barrier
      if (mine)
        collect(accumulators, thread_count(), group_size, c.inputs,
                int(smaller<int64_t>(kLanes, c.batch - group * kLanes)),
                static_cast<T *>(c.grad_features) + group * kLanes * c.inputs);
#pragma omp barrier
    }
  }
  return finding(bad_feature, bad_index);
}

Finding forward(const ForwardCall &c) {
  return with_op_types(c, [&](auto value, auto index) {
    return run_forward<decltype(value), decltype(index)>(c);
  });
}

Finding backward(const BackwardCall &c) {
  return with_op_types(c, [&](auto value, auto index) {
    return run_backward<decltype(value), decltype(index)>(c);
  });
}

}  // namespace

// In cpu_train.cpp.
Finding step(const StepCall &);
Finding dense_forward(const DenseForwardCall &);
Finding dense_update(const DenseUpdateCall &);
Finding top_k(const TopKCall &);

#define FANIN_STRING(x) #x
#define FANIN_NAME(x) FANIN_STRING(x)

extern const CpuTarget target = {FANIN_NAME(FANIN_TARGET), forward, backward, step, dense_forward,
                                 dense_update, top_k};

}  // namespace FANIN_TARGET
}  // namespace fanin
