// Launches the op on a GPU: forward and backward pass of the fixed fan-in layer, a group of
// instances after the other.
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

template <class T, class I, bool keep>
__global__ void __launch_bounds__(kWarps<T> *kLanes, 1)
    forward_kernel(Layer<T, I> layer, const T *features, int64_t group, T *scores) {
  SharedPieces<T> shared;
  const BlockRows<T, keep> block(shared, features, nullptr, layer.inputs * kLanes);
  T *const tile = shared.take_for_warp(kTile * kTilePitch);
  Team<T> team;
  each_tile((layer.labels + kTile - 1) / kTile, [&](int64_t number) {
    const int64_t first = number * kTile, labels = smaller<int64_t>(kTile, layer.labels - first);
    if (team.all_below(layer.indices + first * layer.fan_in, labels * layer.fan_in, layer.inputs)) {
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
    const int64_t first = number * kTile;
    const int64_t count = smaller<int64_t>(kTile, layer.labels - first) * layer.fan_in;
    if (team.all_below(layer.indices + first * layer.fan_in, count, layer.inputs)) {
      backward_tile(layer, block.features, group, first, grad_scores, block.to_add(), grad_weights,
                    grad_bias, tile, team);
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
