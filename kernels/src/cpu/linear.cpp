// Launches the op on a CPU: forward and backward pass of the fixed fan-in layer.
#include "core/group_linear.h"

#include "cpu/common.h"

namespace fanin {
namespace FANIN_TARGET {
namespace {

// Results larger than this do not stay in a cache until somebody reads them.
constexpr uint64_t kStreamedBytes = 12 << 20;
// Features and their gradients that do not fit a core's cache together are better visited one after
// the other, this many labels at a time.
constexpr int64_t kBlockLabels = 4096;

// Notes the first index, of the labels from `first` to `end` - 1, that names no input.
template <class T, class I>
void note_index(const Layer<T, I> &layer, int64_t first, int64_t end, Faults *faults) {
  const int64_t size = layer.group_size ? layer.group_size : 1;
  const int64_t begin = first / size * layer.fan_in, stop = ((end - 1) / size + 1) * layer.fan_in;
  note_above(layer.indices, begin, stop - begin, layer.inputs, &faults->index);
}

template <class T, class I>
Finding run_forward(const ForwardCall &c) {
  const Layer<T, I> layer = layer_of<T, I>(c, c.bias);
  const int64_t tiles = (c.labels + kTile - 1) / kTile, groups = groups_of(c.batch);
  const int64_t share = tiles / (4 * c.threads),
                block = share < 1 ? 1 : smaller<int64_t>(share, 64);
  T *const features = static_cast<T *>(c.workspace);
  T *const all_sources = features + groups * c.inputs * kLanes;
  Faults faults;
#pragma omp parallel num_threads(c.threads)
  {
    transpose_features(static_cast<const T *>(c.features), c.batch, c.inputs, features,
                       &faults.feature);
    T *const sources = all_sources + thread_id() * sources_size(c);
#pragma omp barrier
    Team<T> team(uint64_t(c.batch) * uint64_t(c.labels) * sizeof(T) > kStreamedBytes);
    alignas(64) T scratch[kTile * kTilePitch];
    // A label's scores are the same whichever thread computes them, so threads take what is left:
    // they are not always equally fast. Groups go outside of a block's tiles, so that a group's
    // features stay in the cache.
#pragma omp for schedule(dynamic, 1)
    for (int64_t begin = 0; begin < tiles; begin += block) {
      const int64_t end = smaller(begin + block, tiles);
      for (int64_t group = 0; group < groups; ++group)
        for (int64_t tile = begin; tile < end && faults.feature < 0; ++tile) {
          const int64_t first = tile * kTile;
          const T *const rows = features + group * c.inputs * kLanes;
          T *const scores = static_cast<T *>(c.scores);
          if (!(c.group_size
                    ? forward_grouped(layer, rows, group, first, scores, scratch, sources, team)
                    : forward_tile(layer, rows, group, first, scores, scratch, team)))
            note_index(layer, first, smaller(first + kTile, c.labels), &faults);
        }
    }
    team.finish();
  }
  return faults.finding();
}

// The gradients that one pass over labels computes: each may be null.
template <class T>
struct Gradients {
  T *features, *weights, *bias;
};

template <class T, class I>
Finding run_backward(const BackwardCall &c) {
  const Layer<T, I> layer = layer_of<T, I>(c, nullptr);
  const int64_t tiles = (c.labels + kTile - 1) / kTile, groups = groups_of(c.batch);
  const int64_t group_size = c.inputs * kLanes;
  T *const features = static_cast<T *>(c.workspace);
  T *const accumulators = features + groups * group_size;
  T *const all_sources = accumulators + c.threads * group_size;
  Faults faults;
#pragma omp parallel num_threads(c.threads)
  {
    transpose_features(static_cast<const T *>(c.features), c.batch, c.inputs, features,
                       &faults.feature);
    Team<T> team(uint64_t(c.labels) * uint64_t(c.fan_in) * sizeof(T) > kStreamedBytes);
    alignas(64) T scratch[kTile * kTilePitch];
    const Share share(tiles);
    T *const sources = all_sources + thread_id() * sources_size(c);
    T *const accumulator = c.grad_features ? accumulators + thread_id() * group_size : nullptr;
    T *const weights = static_cast<T *>(c.grad_weights), *const bias =
                                                             static_cast<T *>(c.grad_bias);
    // Groups go outside, so that one accumulator a thread is enough however large the batch.
    for (int64_t group = 0; group < groups; ++group) {
      if (accumulator)
        for (int64_t i = 0; i < group_size; ++i) accumulator[i] = 0;
#pragma omp barrier
      const auto visit = [&](int64_t begin, int64_t end, Gradients<T> grads) {
        const T *const rows = features + group * group_size;
        const T *const grad_scores = static_cast<const T *>(c.grad_scores);
        bool good = true;
        for (int64_t tile = begin; tile < end && good; ++tile)
          good =
              c.group_size
                  ? backward_grouped(layer, rows, group, tile * kTile, grad_scores, grads.features,
                                     grads.weights, grads.bias, scratch, sources, team)
                  : backward_tile(layer, rows, group, tile * kTile, grad_scores, grads.features,
                                  grads.weights, grads.bias, scratch, team);
        return good;
      };
      const bool together = uint64_t(2 * group_size) * sizeof(T) <= kCacheBytes;
      const int64_t block = together ? 1 : kBlockLabels / kTile;
      for (int64_t begin = share.begin; begin < share.end && faults.feature < 0; begin += block) {
        const int64_t end = smaller(begin + block, share.end);
        bool good = true;
        if (together) {
          good = visit(begin, end, {accumulator, weights, bias});
        } else {
          if (weights || bias) good = visit(begin, end, {nullptr, weights, bias});
          if (accumulator && good) good = visit(begin, end, {accumulator, nullptr, nullptr});
        }
        if (!good) {
          note_index(layer, begin * kTile, smaller(end * kTile, c.labels), &faults);
          break;
        }
      }
      team.finish();
#pragma omp barrier
      if (accumulator)
        collect(accumulators, thread_count(), group_size, c.inputs, lanes_of(c.batch, group),
                static_cast<T *>(c.grad_features) + group * kLanes * c.inputs);
#pragma omp barrier
    }
  }
  return faults.finding();
}

}  // namespace

Finding forward(const ForwardCall &c) {
  return with_types(
      [&](auto value, auto index) { return run_forward<decltype(value), decltype(index)>(c); },
      value_type(c), index_type(c));
}

Finding backward(const BackwardCall &c) {
  return with_types(
      [&](auto value, auto index) { return run_backward<decltype(value), decltype(index)>(c); },
      value_type(c), index_type(c));
}

}  // namespace FANIN_TARGET
}  // namespace fanin
