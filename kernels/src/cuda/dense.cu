// Launches dense layers on a GPU: their fused step as output layers, forward pass, and backward
// pass with the optimiser.
#include "cuda/common.h"

#include "core/dense.h"

namespace fanin {
namespace cuda {
namespace {

constexpr int kUpdateWarps =
    4;  // of a block that updates a dense layer: takes 160 registers a thread

// How many floats of scratch a warp needs.
int64_t step_scratch(int64_t groups) { return kStaged + groups * kBlock * kLanes; }
constexpr int64_t kForwardScratch = kStaged + kTile * kTilePitch;
int64_t update_scratch(int64_t groups) {
  return kStaged + 2 * kTile * kTilePitch + groups * kTile * kLanes;
}

// Dense layers read features in order, which the first-level cache does well; sums are kept.
template <class W, class M, bool keep_sums>
__global__ void __launch_bounds__(kMostThreads, 1)
    dense_step_kernel(TrainedLayer<uint16_t, W, M> layer, const float *rows, const float *features,
                      const uint32_t *masks, float *grad_features, double *loss_sum) {
  SharedPieces<float> shared;
  const BlockRows<float, keep_sums> block(shared, features, grad_features,
                                          layer.groups() * layer.inputs * kLanes, false);
  float *const staged = shared.take_for_warp(kStaged);
  float *const grads = shared.take_for_warp(layer.groups() * kBlock * kLanes);
  Team<float> team;
  Lanes<float> loss = broadcast(0.0f);
  each_tile((layer.labels + kBlock - 1) / kBlock, [&](int64_t number) {
    step_block(layer, rows, features, number * kBlock, masks, grads, staged, block.to_add(), loss,
               team);
  });
  add_loss(loss, loss_sum);
  block.finish();
}

template <class W>
__global__ void __launch_bounds__(kMostThreads, 1)
    dense_forward_kernel(const W *weights, const float *bias, int64_t inputs, int64_t units,
                         bool relu, const float *features, float *outputs, int64_t batch) {
  SharedPieces<float> shared;
  float *const staged = shared.take_for_warp(kStaged);
  float *const tile = shared.take_for_warp(kTile * kTilePitch);
  Team<float> team;
  const int64_t groups = groups_of(batch);
  each_tile((units + kTile - 1) / kTile * groups, [&](int64_t number) {
    const int64_t group = number % groups;
    dense_tile(weights, bias, inputs, units, number / groups * kTile, relu,
               features + group * inputs * kLanes, outputs + group * kLanes * units,
               int(smaller<int64_t>(kLanes, batch - group * kLanes)), tile, staged, team);
  });
}

template <class W, class M>
__global__ void __launch_bounds__(kUpdateWarps *kLanes, 3)
    dense_update_kernel(DenseLayer<W, M> layer, const float *grad_outputs, const float *outputs,
                        const float *rows, float *grad_features) {
  SharedPieces<float> shared;
  float *const staged = shared.take_for_warp(kStaged);
  float *const tiles = shared.take_for_warp(2 * kTile * kTilePitch);
  float *const grads = shared.take_for_warp(groups_of(layer.batch) * kTile * kLanes);
  Team<float> team;
  each_tile((layer.units + kTile - 1) / kTile, [&](int64_t tile) {
    update_tile(layer, tile * kTile, grad_outputs, outputs, rows, tiles, grads, staged,
                grad_features, team);
  });
}

template <class W, class M>
Finding run_dense_step(const StepCall &c) {
  const TrainedLayer<uint16_t, W, M> layer = trained_layer<uint16_t, W, M>(c);
  return run_step(c, [&](const StepMemory &memory, float *sums) {
    const int64_t groups = groups_of(c.batch), rows = groups * c.inputs;
    const int64_t blocks = (c.labels + kBlock - 1) / kBlock;
    const size_t warp_bytes = size_t(step_scratch(groups)) * sizeof(float);
    const auto start = [&](auto kernel, int warps, size_t block_bytes) {
      return launch_tiles(kernel, blocks, warps, block_bytes, warp_bytes, c.stream, layer,
                          c.features, memory.features, memory.masks, sums, memory.losses);
    };
    return sums && keeps(rows, kRowBytes, blocks * c.inputs, kMostWarps, warp_bytes)
               ? start(dense_step_kernel<W, M, true>, kMostWarps, size_t(rows) * kRowBytes)
               : start(dense_step_kernel<W, M, false>, kFewWarps, 0);
  });
}

template <class W>
Finding run_dense_forward(const DenseForwardCall &c) {
  const DenseForwardMemory memory = dense_forward_memory(c, c.workspace);
  to_lanes(c.features, memory.features, c.batch, c.inputs, c.stream);
  const int64_t tiles = (c.units + kTile - 1) / kTile * groups_of(c.batch);
  return launch_tiles(dense_forward_kernel<W>, tiles, kFewWarps, 0, kForwardScratch * sizeof(float),
                      c.stream, static_cast<const W *>(c.weights), c.bias, c.inputs, c.units,
                      c.relu, memory.features, c.outputs, c.batch);
}

template <class W, class M>
Finding run_dense_update(const DenseUpdateCall &c) {
  const DenseUpdateMemory memory = dense_update_memory(c, c.workspace);
  const DenseLayer<W, M> layer = dense_layer<W, M>(c);
  const int64_t groups = groups_of(c.batch), rows = groups * c.inputs;
  float *const sums = c.grad_features ? memory.accumulators : nullptr;
  const int64_t tiles = (c.units + kTile - 1) / kTile;
  if (sums) clear(sums, rows * kLanes, c.stream);
  const size_t warp_bytes = size_t(update_scratch(groups)) * sizeof(float);
  const Finding launched =
      launch_tiles(dense_update_kernel<W, M>, tiles, kUpdateWarps, 0, warp_bytes, c.stream, layer,
                   c.grad_outputs, c.outputs, c.features, sums);
  if (sums) from_lanes(sums, c.grad_features, c.batch, c.inputs, 0, groups, c.stream);
  return first_of(launched, last_error());
}

}  // namespace

Finding dense_step(const StepCall &c) {
  return with_types(
      [&](auto weight, auto moment) {
        return run_dense_step<decltype(weight), decltype(moment)>(c);
      },
      weight_type(c), moment_type(c));
}

Finding dense_forward(const DenseForwardCall &c) {
  return with_types([&](auto weight) { return run_dense_forward<decltype(weight)>(c); },
                    weight_type(c));
}

Finding dense_update(const DenseUpdateCall &c) {
  return with_types(
      [&](auto weight, auto moment) {
        return run_dense_update<decltype(weight), decltype(moment)>(c);
      },
      weight_type(c), moment_type(c));
}

}  // namespace cuda
}  // namespace fanin
