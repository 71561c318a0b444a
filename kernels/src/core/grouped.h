// Labels that share their sources, a group of them one row of indices: the fused step (step_group)
// and prediction (offer_group), on the products of group_products.h.
#pragma once

#include "core/group_products.h"
#include "core/top_k.h"

namespace fanin {
namespace FANIN_TARGET {

// Scratch of a team. Sizes count floats.
struct GroupScratch {
  float *weights;  // [labels of a group][fan_in]: those that are not stored as float32
  float *tile;     // [fan_in][32]: the rows of the sources
  float *rows;     // [batch][fan_in]: the same as features of instances
  float *grads;    // [lane groups][kGroupGrads]: [labels][32] scores, then their gradients

  FANIN_FN GroupScratch(float *memory, int64_t lane_groups, int64_t fan_in)
      : weights(memory),
        tile(weights + kMostGroupSize * fan_in),
        rows(tile + fan_in * kLanes),
        grads(rows + lane_groups * fan_in * kLanes) {}
};

// The weights of a group as float32: their own memory, or a copy in scratch memory.
FANIN_FN const float *as_float(const float *weights, int64_t, float *) { return weights; }
FANIN_FN const float *as_float(const Bf16 *weights, int64_t count, float *copy) {
  constexpr int chunk = Chunk<float>::size;
  for (int64_t i = 0; i < count; i += chunk) {
    const int some = int(smaller<int64_t>(chunk, count - i));
    write_chunk(copy + i, some, load_chunk<float>(weights + i, some), false, false);
  }
  return copy;
}

// The step of the labels from first to end - 1, which are one group. indices: its sources.
// features: [lane groups][inputs][32]. grad_features: alike, added to; or null.
template <class I, class W, class M>
FANIN_FN void step_group(const TrainedLayer<I, W, M> &layer, const I *indices, int64_t first,
                         int64_t end, const float *features, const uint32_t *masks,
                         const GroupScratch &scratch, float *grad_features, Lanes<float> &loss) {
  const int64_t lane_groups = layer.groups(), fan_in = layer.fan_in;
  const int labels = int(end - first);
  const float *const weights =
      as_float(layer.weights + first * fan_in, labels * fan_in, scratch.weights);
  for (int64_t group = 0; group < lane_groups; ++group) {
    float *const grads = scratch.grads + group * kGroupGrads;
    gather_tile(indices, fan_in, features + group * layer.inputs * kLanes, scratch.tile);
    turn_tile(scratch.tile, fan_in, scratch.rows + group * fan_in * kLanes);
    score_group(weights, fan_in, layer.bias ? layer.bias + first : nullptr, labels, scratch.tile,
                grads);
    const Lanes<float> scale = layer.scale_of(group);
    const uint32_t *const positives = masks + group * layer.labels + first;
    for (int j = 0; j < labels; ++j)
      store(grads + j * kLanes,
            loss_gradient(layer.loss, load(grads + j * kLanes), positives[j], scale, loss));
    if (!grad_features) continue;
    spread_group(weights, fan_in, labels, grads, indices,
                 grad_features + group * layer.inputs * kLanes);
  }
  for (int j = 0; j < labels; j += kBlock)
    update_block(layer.optimizer, layer.weights, layer.m, layer.v, (first + j) * fan_in,
                 layer.labels * fan_in, fan_in, smaller(kBlock, labels - j), scratch.rows,
                 layer.batch, scratch.grads + j * kLanes, kGroupGrads);
  if (!layer.bias) return;
  float bias_grads[kMostGroupSize] = {};
  for (int64_t group = 0; group < lane_groups; ++group)
    for (int j = 0; j < labels; ++j)
      bias_grads[j] += sum(load(scratch.grads + group * kGroupGrads + j * kLanes));
  step_bias(layer, first, labels, bias_grads);
}

// Offers the labels from first to end - 1, which are one group. features: this lane group's
// [inputs][32].
template <class I, class W>
FANIN_FN void offer_group(const ScoredLayer<I, W> &layer, const I *indices, int64_t first,
                          int64_t end, const float *features, int lanes,
                          const GroupScratch &scratch, Best &best) {
  const int64_t fan_in = layer.fan_in;
  const int labels = int(end - first);
  gather_tile(indices, fan_in, features, scratch.tile);
  const float *const weights =
      as_float(layer.weights + first * fan_in, labels * fan_in, scratch.weights);
  score_group(weights, fan_in, layer.bias ? layer.bias + first : nullptr, labels, scratch.tile,
              scratch.grads);
  for (int j = 0; j < labels; ++j) best.offer(first + j, load(scratch.grads + j * kLanes), lanes);
}

}  // namespace FANIN_TARGET
}  // namespace fanin
