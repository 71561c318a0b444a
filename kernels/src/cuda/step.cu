// Launches the fused step on a GPU: of a fixed fan-in, and of unstructured connections.
//
// Two variants: a block keeps features and their gradients in shared memory, or leaves them in
// device memory.
#include "cuda/common.h"

#include "core/step.h"

namespace fanin {
namespace cuda {
namespace {

template <class I, class W, class M, bool keep>
__global__ void __launch_bounds__(kMostThreads, 1)
    step_kernel(TrainedLayer<I, W, M> layer, int64_t connections, const float *features,
                const uint32_t *masks, float *grad_features, double *loss_sum, int64_t row_size) {
  SharedPieces<float> shared;
  const BlockRows<float, keep> block(shared, features, grad_features,
                                     layer.groups() * layer.inputs * kLanes);
  float *const grads = shared.take_for_warp(kTile + layer.groups() * kLanes);
  float *const row = shared.take_for_warp(row_size);
  Team<float> team;
  Lanes<float> loss = broadcast(0.0f);
  each_tile((layer.labels + kTile - 1) / kTile, [&](int64_t tile) {
    const int64_t first = tile * kTile;
    if (!good_connections(layer, connections, first, smaller(first + kTile, layer.labels), team))
      loss = broadcast(NAN);
    else
      step_tile<false>(layer, block.features, first, masks, {0, layer.groups(), nullptr}, grads,
                       grads + kTile, row, block.to_add(), loss, team);
  });
  add_loss(loss, loss_sum);
  block.finish();
}

template <class I, class W, class M>
Finding run(const StepCall &c) {
  const TrainedLayer<I, W, M> layer = trained_layer<I, W, M>(c);
  return run_step(c, [&](const StepMemory &memory, float *sums) {
    const int64_t groups = groups_of(c.batch), rows = (sums ? 2 : 1) * groups * c.inputs;
    const int64_t tiles = (c.labels + kTile - 1) / kTile;
    const int64_t row = float8_row(c);
    const size_t warp_bytes = size_t(kTile + groups * kLanes + row) * sizeof(float);
    const auto start = [&](auto kernel, int warps, size_t block_bytes) {
      return launch_tiles(kernel, tiles, warps, block_bytes, warp_bytes, c.stream, layer,
                          c.connections, memory.features, memory.masks, sums, memory.losses, row);
    };
    return keeps(rows, kRowBytes, c.connections, kMostWarps, warp_bytes)
               ? start(step_kernel<I, W, M, true>, kMostWarps, size_t(rows) * kRowBytes)
               : start(step_kernel<I, W, M, false>, kFewWarps, 0);
  });
}

}  // namespace

Finding step(const StepCall &c) {
  return with_types(
      [&](auto index, auto weight, auto moment) {
        return run<decltype(index), decltype(weight), decltype(moment)>(c);
      },
      index_type(c), row_type(c), moment_type(c));
}

}  // namespace cuda
}  // namespace fanin
