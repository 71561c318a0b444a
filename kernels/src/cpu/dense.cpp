// Launches dense layers: their fused step as output layers, forward pass, and backward pass with
// the optimiser.
#include "core/dense.h"

#include "cpu/common.h"

namespace fanin {
namespace FANIN_TARGET {
namespace {

template <class W, class M>
bool step_labels(const StepCall &c, const StepShare &share, int64_t first, int64_t,
                 Lanes<float> *loss) {
  const TrainedLayer<uint16_t, W, M> layer = trained_layer<uint16_t, W, M>(c);
  alignas(64) float staged[kStaged];
  step_block(layer, c.features, share.memory.features, first, share.memory.masks, share.scratch,
             staged, share.targets, *loss, share.team);
  return true;
}

template <class W>
Finding run_forward(const DenseForwardCall &c) {
  const DenseForwardMemory memory = dense_forward_memory(c, c.workspace);
  const W *const weights = static_cast<const W *>(c.weights);
  Faults faults;
#pragma omp parallel num_threads(c.threads)
  {
    transpose_features(c.features, c.batch, c.inputs, memory.features, &faults.feature);
#pragma omp barrier
    Team<float> team;
    alignas(64) float tile[kTile * kTilePitch], staged[kStaged];
    const Share share((c.units + kTile - 1) / kTile);
    for (int64_t t = share.begin; t < share.end && faults.feature < 0; ++t)
      for (int64_t group = 0; group < groups_of(c.batch); ++group)
        dense_tile(weights, c.bias, c.inputs, c.units, t * kTile, c.relu,
                   memory.features + group * c.inputs * kLanes,
                   c.outputs + group * kLanes * c.units, lanes_of(c.batch, group), tile, staged,
                   team);
    team.finish();
  }
  return faults.finding();
}

template <class W, class M>
Finding run_update(const DenseUpdateCall &c) {
  const DenseUpdateMemory memory = dense_update_memory(c, c.workspace);
  const DenseLayer<W, M> layer = dense_layer<W, M>(c);
#pragma omp parallel num_threads(c.threads)
  {
    float *const targets =
        c.grad_features ? memory.accumulators + thread_id() * memory.features_size : nullptr;
    for (int64_t i = 0; targets && i < memory.features_size; ++i) targets[i] = 0;
    Team<float> team;
    alignas(64) float tiles[2 * kTile * kTilePitch], staged[kStaged];
    float *const grads = memory.scratch + thread_id() * memory.scratch_size;
    const Share share((c.units + kTile - 1) / kTile);
    for (int64_t t = share.begin; t < share.end; ++t)
      update_tile(layer, t * kTile, c.grad_outputs, c.outputs, c.features, tiles, grads, staged,
                  targets, team);
    if (targets)
      collect_parts(kLanes, memory.accumulators, memory.features_size, c.batch, c.inputs,
                    c.grad_features);
  }
  return kNothing;
}

}  // namespace

Finding dense_step(const StepCall &c) {
  return with_types(
      [&](auto weight, auto moment) {
        return run_step(c, kLanes, kBlock, step_labels<decltype(weight), decltype(moment)>);
      },
      weight_type(c), moment_type(c));
}

Finding dense_forward(const DenseForwardCall &c) {
  return with_types([&](auto weight) { return run_forward<decltype(weight)>(c); }, weight_type(c));
}

Finding dense_update(const DenseUpdateCall &c) {
  return with_types(
      [&](auto weight, auto moment) { return run_update<decltype(weight), decltype(moment)>(c); },
      weight_type(c), moment_type(c));
}

}  // namespace FANIN_TARGET
}  // namespace fanin
