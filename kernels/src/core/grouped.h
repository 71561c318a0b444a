// Labels that share their sources, a group of them one row of indices: the fused step (step_group)
// and prediction (offer_group). The sources' rows are gathered once for the group, into a tile
// [fan_in][32]. What is left is a small dense layer: its scores and gradients are products of this
// tile.
//
// A label group has nothing to do with a lane group, which is 32 instances (lanes.h).
#pragma once

#include "core/top_k.h"

namespace fanin {
namespace FANIN_TARGET {

// Labels whose scores, or sources whose gradients, are summed together: as many as there are
// registers for their sums.
constexpr int kSums = kVectorBytes == 64 ? 8 : 2;

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

// The rows of a group's sources -> tile [fan_in][32]. features: of one lane group.
template <class I>
FANIN_FN void gather_tile(const I *indices, int64_t fan_in, const float *features, float *tile) {
  for (int64_t k = 0; k < fan_in; ++k)
    store(tile + k * kLanes, load(features + indices[k] * kLanes));
}

// tile [fan_in][32] -> rows [32][fan_in].
FANIN_FN void turn_tile(const float *tile, int64_t fan_in, float *rows) {
  constexpr int width = VectorOf<float>::width;
  int64_t k = 0;
  for (; k + width <= fan_in; k += width)
    for (int b = 0; b < kLanes; b += width) {
      Vector<float> square[width];
      FANIN_UNROLL
      for (int i = 0; i < width; ++i) square[i] = load_vector(tile + (k + i) * kLanes + b);
      transpose<float>(square);
      FANIN_UNROLL
      for (int i = 0; i < width; ++i) store_vector(rows + (b + i) * fan_in + k, square[i]);
    }
  for (; k < fan_in; ++k)
    for (int b = 0; b < kLanes; ++b) rows[b * fan_in + k] = tile[k * kLanes + b];
}

// scores[j][32] for Count labels. weights: of the first of them, [Count][fan_in].
template <int Count>
FANIN_FN void score_labels(const float *weights, int64_t fan_in, const float *bias,
                           const float *tile, float *scores) {
  Lanes<float> total[Count];
  FANIN_UNROLL
  for (int j = 0; j < Count; ++j) total[j] = broadcast(bias ? bias[j] : 0.0f);
  for (int64_t k = 0; k < fan_in; ++k) {
    const Lanes<float> x = load(tile + k * kLanes);
    FANIN_UNROLL
    for (int j = 0; j < Count; ++j) total[j] = fma(weights[j * fan_in + k], x, total[j]);
  }
  FANIN_UNROLL
  for (int j = 0; j < Count; ++j) store(scores + j * kLanes, total[j]);
}

// The scores of a group.
FANIN_FN void score_group(const float *weights, int64_t fan_in, const float *bias, int labels,
                          const float *tile, float *scores) {
  int j = 0;
  for (; j + kSums <= labels; j += kSums)
    score_labels<kSums>(weights + j * fan_in, fan_in, bias ? bias + j : nullptr, tile,
                        scores + j * kLanes);
  for (; j < labels; ++j)
    score_labels<1>(weights + j * fan_in, fan_in, bias ? bias + j : nullptr, tile,
                    scores + j * kLanes);
}

// Adds the gradients of Count sources, summed over the labels of a group. weights: the first
// source's, of the first label. grads: [labels][32], of this lane group.
template <int Count, class I, class Rows>
FANIN_FN void spread_sources(const float *weights, int64_t fan_in, int labels, const float *grads,
                             const I *indices, Rows targets) {
  Lanes<float> total[Count];
  FANIN_UNROLL
  for (int i = 0; i < Count; ++i) total[i] = broadcast(0.0f);
  for (int j = 0; j < labels; ++j) {
    const Lanes<float> grad = load(grads + j * kLanes);
    FANIN_UNROLL
    for (int i = 0; i < Count; ++i) total[i] = fma(weights[j * fan_in + i], grad, total[i]);
  }
  FANIN_UNROLL
  for (int i = 0; i < Count; ++i) add_to(targets + indices[i] * kLanes, total[i]);
}

// The step of the labels from first to end - 1, which are one group. indices: its sources.
// features: [lane groups][inputs][32]. grad_features: alike, added to; or null.
template <class I, class W, class M, class Rows>
FANIN_FN void step_group(const TrainedLayer<I, W, M> &layer, const I *indices, int64_t first,
                         int64_t end, const float *features, const uint32_t *masks,
                         const GroupScratch &scratch, Rows grad_features, Lanes<float> &loss) {
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
    const Rows targets = grad_features + group * layer.inputs * kLanes;
    int64_t k = 0;
    for (; k + kSums <= fan_in; k += kSums)
      spread_sources<kSums>(weights + k, fan_in, labels, grads, indices + k, targets);
    for (; k < fan_in; ++k)
      spread_sources<1>(weights + k, fan_in, labels, grads, indices + k, targets);
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
