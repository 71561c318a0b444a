// Launches the op on a GPU: forward and backward pass of the fixed fan-in layer, a group of
// instances after the other. Labels may share their sources.
//
// Two variants: a block keeps features and their gradients in shared memory, or leaves them in
// device memory.
#include "cuda/common.h"

#include "core/linear.h"

namespace fanin {
namespace cuda {
namespace {

// Scratch of a warp: a tile on its way to or from [batch, labels].
template <class T>
constexpr size_t kTileBytes = sizeof(T) * kTile * kTilePitch;

// Doubles take twice the registers.
template <class T>
constexpr int kWarps = sizeof(T) == sizeof(float) ? kMostWarps : kMostWarps / 2;

// Whether all sources of the labels from `first` on can be read.
template <class T, class I>
FANIN_FN bool good_sources(const Layer<T, I> &layer, int64_t first, int64_t labels,
                           const Team<T> &team) {
  const I *const begin = layer.sources(first);
  return team.all_below(begin, layer.sources(first + labels - 1) + layer.fan_in - begin,
                        layer.inputs);
}

// Adds a tile's gradients of features, where labels share their sources: a sum over the labels of a
// group for each source. tile: the gradients by scores, [32][kTilePitch].
template <class T, class I, class Rows>
FANIN_FN void spread_groups(const Layer<T, I> &layer, int64_t first_label, int labels,
                            const T *tile, Rows grad_features) {
  constexpr int together = 4;  // sources, so that a label's gradients are read once for all of them
  const int64_t fan_in = layer.fan_in;
  for (int j = 0; j < labels;) {
    const int64_t label = first_label + j, left = layer.group_size - label % layer.group_size;
    const int end = int(smaller<int64_t>(j + left, labels));
    const I *const indices = layer.sources(label);
    FANIN_ROLLED
    for (int64_t k = 0; k < fan_in; k += together) {
      Lanes<T> total[together] = {};
      FANIN_ROLLED
      for (int i = j; i < end; ++i) {
        const Lanes<T> grad = load(tile + i * kTilePitch);
        const T *const weights = layer.weights + (first_label + i) * fan_in;
        FANIN_UNROLL
        for (int n = 0; n < together; ++n)
          if (k + n < fan_in) total[n] = fma(weights[k + n], grad, total[n]);
      }
      FANIN_UNROLL
      for (int n = 0; n < together; ++n)
        if (k + n < fan_in) add_to(grad_features + size_t(indices[k + n]) * kLanes, total[n]);
    }
    j = end;
  }
}

template <class T, class I, bool keep>
__global__ void __launch_bounds__(kWarps<T> *kLanes, 1)
    forward_kernel(Layer<T, I> layer, const T *features, int64_t group, T *scores) {
  SharedPieces<T> shared;
  const BlockRows<T, keep> block(shared, features, nullptr, layer.inputs * kLanes);
  T *const tile = shared.take_for_warp(kTile * kTilePitch);
  Team<T> team;
  each_tile((layer.labels + kTile - 1) / kTile, [&](int64_t number) {
    const int64_t first = number * kTile, labels = smaller<int64_t>(kTile, layer.labels - first);
    if (good_sources(layer, first, labels, team)) {
      forward_tile(layer, block.features, group, first, scores, tile, team);
      return;
    }
    for (int64_t b = group * kLanes; b < smaller((group + 1) * kLanes, layer.batch); ++b)
      if (thread_id() < labels) scores[b * layer.labels + first + thread_id()] = T(NAN);
  });
}

template <class T, class I, bool keep>
__global__ void __launch_bounds__(kWarps<T> *kLanes, 1)
    backward_kernel(Layer<T, I> layer, const T *features, int64_t group, const T *grad_scores,
                    T *grad_features, T *grad_weights, T *grad_bias) {
  SharedPieces<T> shared;
  const BlockRows<T, keep> block(shared, features, grad_features, layer.inputs * kLanes);
  T *const tile = shared.take_for_warp(kTile * kTilePitch);
  Team<T> team;
  each_tile((layer.labels + kTile - 1) / kTile, [&](int64_t number) {
    const int64_t first = number * kTile, labels = smaller<int64_t>(kTile, layer.labels - first);
    const int64_t count = labels * layer.fan_in;
    const auto grads = block.to_add();
    if (good_sources(layer, first, labels, team)) {
      backward_tile(layer, block.features, group, first, grad_scores,
                    layer.group_size ? decltype(grads){} : grads, grad_weights, grad_bias, tile,
                    team);
      if (layer.group_size && grads) spread_groups(layer, first, int(labels), tile, grads);
      team.sync();
      return;
    }
    for (int64_t i = thread_id(); grad_weights && i < count; i += kLanes)
      grad_weights[first * layer.fan_in + i] = T(NAN);
    if (grad_bias && first + thread_id() < layer.labels) grad_bias[first + thread_id()] = T(NAN);
  });
  block.finish();
}

template <class T, class I>
Finding run_forward(const ForwardCall &c) {
  const Layer<T, I> layer = layer_of<T, I>(c, c.bias);
  T *const features = static_cast<T *>(c.workspace), *const scores = static_cast<T *>(c.scores);
  to_lanes(c.features, features, c.batch, c.inputs, c.stream);
  const int64_t tiles = (c.labels + kTile - 1) / kTile, size = c.inputs * kLanes;
  const bool keep =
      keeps(c.inputs, kLanes * sizeof(T), c.labels * c.fan_in, kWarps<T>, kTileBytes<T>);
  Finding finding = last_error();
  for (int64_t group = 0; group < groups_of(c.batch) && finding.kind == Finding::nothing; ++group) {
    const T *const rows = features + group * size;
    finding =
        keep ? launch_tiles(forward_kernel<T, I, true>, tiles, kWarps<T>, size_t(size) * sizeof(T),
                            kTileBytes<T>, c.stream, layer, rows, group, scores)
             : launch_tiles(forward_kernel<T, I, false>, tiles, kFewWarps, 0, kTileBytes<T>,
                            c.stream, layer, rows, group, scores);
  }
  return finding;
}

template <class T, class I>
Finding run_backward(const BackwardCall &c) {
  const Layer<T, I> layer = layer_of<T, I>(c, nullptr);
  const int64_t tiles = (c.labels + kTile - 1) / kTile, size = c.inputs * kLanes;
  T *const features = static_cast<T *>(c.workspace);
  T *const sums = c.grad_features ? features + groups_of(c.batch) * size : nullptr;
  to_lanes(c.features, features, c.batch, c.inputs, c.stream);
  const int64_t rows = sums ? 2 * c.inputs : c.inputs;
  const bool keep = keeps(rows, kLanes * sizeof(T), c.labels * c.fan_in, kWarps<T>, kTileBytes<T>);
  Finding finding = last_error();
  for (int64_t group = 0; group < groups_of(c.batch) && finding.kind == Finding::nothing; ++group) {
    const auto start = [&](auto kernel, int warps, size_t block_bytes) {
      return launch_tiles(kernel, tiles, warps, block_bytes, kTileBytes<T>, c.stream, layer,
                          features + group * size, group, static_cast<const T *>(c.grad_scores),
                          sums, static_cast<T *>(c.grad_weights), static_cast<T *>(c.grad_bias));
    };
    if (sums) clear(sums, size, c.stream);
    finding = keep
                  ? start(backward_kernel<T, I, true>, kWarps<T>, size_t(rows) * kLanes * sizeof(T))
                  : start(backward_kernel<T, I, false>, kFewWarps, 0);
    if (sums) from_lanes(sums, c.grad_features, c.batch, c.inputs, group, 1, c.stream);
  }
  return first_of(finding, last_error());
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

}  // namespace cuda
}  // namespace fanin
