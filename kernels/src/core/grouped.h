// Labels that share their sources, a group of them one row of indices: the fused step (step_group)
// and prediction (offer_group), on the products of group_products.h.
#pragma once

#include "core/float8.h"
#include "core/group_products.h"
#include "core/top_k.h"

namespace fanin {
namespace FANIN_TARGET {

// Scratch of a team. Sizes count floats.
struct GroupScratch {
  float *weights;       // [labels of a group][fan_in]: as float32, where they are stored otherwise
  float *weight_grads;  // likewise
  float *tile;          // [fan_in][32]: the rows of the sources
  float *rows;          // [lane groups][32][pitch_of(fan_in)]: the same, turned
  float *grads;         // [lane groups][kGrads]: scores [labels][32], then their gradients
  static constexpr int64_t kGrads = kMostGroupSize * kLanes;

  FANIN_FN GroupScratch(float *memory, int64_t lane_groups, int64_t fan_in)
      : weights(memory),
        weight_grads(weights + kMostGroupSize * pitch_of(fan_in)),
        tile(weight_grads + kMostGroupSize * pitch_of(fan_in)),
        rows(tile + pitch_of(fan_in) * kLanes),
        grads(rows + lane_groups * pitch_of(fan_in) * kLanes) {}
};

// What is fetched beside the products, a little beside each block of sums. The memory is idle
// during the products; without this, the step would wait for it between them.
//
// Weights and moments of the next group.
template <class W, class M>
struct WeightsAhead {
  const W *weights;
  int64_t fan_in;
  const M *m, *v;  // null where they are not kept
  int64_t next, end;

  template <class I>
  FANIN_FN WeightsAhead(const TrainedLayer<I, W, M> &layer, int64_t first, int64_t labels)
      : weights(layer.weights),
        fan_in(layer.fan_in),
        m(layer.optimizer.kept > 0 ? layer.m : nullptr),
        v(layer.optimizer.kept == 2 ? layer.v : nullptr),
        next(first * layer.fan_in),
        end(smaller(first + labels, layer.labels) * layer.fan_in) {}

  FANIN_FN void fetch_some(int64_t count) {
    constexpr int64_t line = 32;
    for (const int64_t stop = smaller(next + count, end); next < stop; next += line) {
      fetch(row_of(weights, next / fan_in, next), line);
      if (m) fetch(m + next, line);
      if (v) fetch(v + next, line);
    }
  }
};

// Rows of sources.
template <class I>
struct RowsAhead {
  const I *indices;
  const float *rows;  // or null
  int64_t end, next = 0;

  FANIN_FN RowsAhead(const I *i, const float *r, int64_t fan_in)
      : indices(i), rows(r), end(i && r ? fan_in : 0) {}

  FANIN_FN void fetch_some(int64_t count) {
    for (const int64_t stop = smaller(next + count, end); next < stop; ++next)
      fetch(rows + indices[next] * kLanes, kLanes);
  }
};

// The weights of a group's labels, from the first on, as float32: their own memory, or a copy in
// scratch memory. weights: of the whole layer.
FANIN_FN const float *as_float(const float *weights, int64_t first, int64_t, int64_t fan_in,
                               float *) {
  return weights + first * fan_in;
}
FANIN_FN const float *as_float(const Float8 *weights, int64_t first, int64_t labels, int64_t fan_in,
                               float *copy) {
  for (int64_t j = 0; j < labels; ++j)
    weights_of(weights, first + j, (first + j) * fan_in, fan_in, copy + j * fan_in);
  return copy;
}
FANIN_FN const float *as_float(const Bf16 *weights, int64_t first, int64_t labels, int64_t fan_in,
                               float *copy) {
  constexpr int chunk = Chunk<float>::size;
  const int64_t count = labels * fan_in;
  weights += first * fan_in;
  for (int64_t i = 0; i < count; i += chunk) {
    const int some = int(smaller<int64_t>(chunk, count - i));
    write_chunk(copy + i, some, load_chunk<float>(weights + i, some), false, false);
  }
  return copy;
}

// The step of the labels from first to end - 1, which are one group. indices: its sources; next:
// those of the next group, or null. features: [lane groups][inputs][32]. grad_features: alike,
// added to; or null.
template <class I, class W, class M>
FANIN_FN void step_group(const TrainedLayer<I, W, M> &layer, const I *indices, const I *next,
                         int64_t first, int64_t end, const float *features, const uint32_t *masks,
                         const GroupScratch &scratch, float *grad_features, Lanes<float> &loss) {
  constexpr int chunk = Chunk<float>::size;
  constexpr int64_t kGrads = GroupScratch::kGrads;
  const int64_t lane_groups = layer.groups(), fan_in = layer.fan_in;
  const int labels = int(end - first);
  const int64_t begin = first * fan_in, weight_count = labels * fan_in;
  // A third of the next weights beside each of the three products, the rest beside the last.
  WeightsAhead<W, M> later(layer, end, labels);
  const float *const weights = as_float(layer.weights, first, labels, fan_in, scratch.weights);
  for (int64_t group = 0; group < lane_groups; ++group) {
    float *const grads = scratch.grads + group * kGrads;
    const int64_t rows_before = group * layer.inputs * kLanes;
    float *const targets = grad_features ? grad_features + rows_before : nullptr;
    gather_and_turn(indices, fan_in, features + rows_before, scratch.tile,
                    scratch.rows + group * pitch_of(fan_in) * kLanes);
    RowsAhead<I> later_targets(indices, targets, fan_in);
    score_group(weights, fan_in, layer.bias ? layer.bias + first : nullptr, labels, scratch.tile,
                grads, [&](int sums) FANIN_INLINE {
                  later.fetch_some(sums / kLanes * fan_in / 3);
                  later_targets.fetch_some(sums / kLanes * fan_in / labels + 1);
                });
    const Lanes<float> scale = layer.scale_of(group);
    const uint32_t *const positives = masks + group * layer.labels + first;
    for (int j = 0; j < labels; ++j)
      store(grads + j * kLanes,
            loss_gradient(layer.loss, load(grads + j * kLanes), positives[j], scale, loss));
    if (!targets) continue;
    const bool last = group + 1 == lane_groups;
    RowsAhead<I> later_rows(last ? next : indices,
                            features + (last ? 0 : rows_before + layer.inputs * kLanes), fan_in);
    spread_group(weights, fan_in, labels, grads, indices, targets, [&](int sums) FANIN_INLINE {
      later.fetch_some(sums / kLanes * labels / 3);
      later_rows.fetch_some(sums / kLanes + 1);
    });
  }
  weight_gradients(
      scratch.grads, kGrads, labels, scratch.rows, fan_in, lane_groups,
      [&](int64_t j, int64_t k, int count, const Chunk<float> &sums) FANIN_INLINE {
        write_chunk(scratch.weight_grads + j * fan_in + k, count, sums, false, false);
      },
      [&](int sums) FANIN_INLINE { later.fetch_some(sums); });
  const auto update = [&](auto *trained) FANIN_INLINE {
    for (int64_t i = 0; i < weight_count; i += chunk) {
      const int count = int(smaller<int64_t>(chunk, weight_count - i));
      const int64_t at = begin + i;
      // Here, unlike in step.h, it pays not to load what stands in for moments that are not kept.
      TrainedChunk updated;
      updated.load_kept(layer.optimizer, trained + i, layer.m, layer.v, at, count);
      updated.step(layer.optimizer, trained + i, layer.m, layer.v, at, count,
                   load_chunk<float>(scratch.weight_grads + i, count));
    }
  };
  if constexpr (std::is_same<W, Float8>::value) {
    update(scratch.weights);
    for (int j = 0; j < labels; ++j)
      round_row(layer.optimizer, scratch.weights + j * fan_in, fan_in, begin + j * fan_in,
                row_of(layer.weights, first + j, begin + j * fan_in));
  } else {
    update(layer.weights + begin);
  }
  if (!layer.bias) return;
  alignas(64) float bias_grads[kMostGroupSize];
  for (int j = 0; j < labels; ++j) {
    bias_grads[j] = 0;
    for (int64_t group = 0; group < lane_groups; ++group)
      bias_grads[j] += sum(load(scratch.grads + group * kGrads + j * kLanes));
  }
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
  const float *const weights = as_float(layer.weights, first, labels, fan_in, scratch.weights);
  score_group(weights, fan_in, layer.bias ? layer.bias + first : nullptr, labels, scratch.tile,
              scratch.grads);
  for (int j = 0; j < labels; ++j) best.offer(first + j, load(scratch.grads + j * kLanes), lanes);
}

}  // namespace FANIN_TARGET
}  // namespace fanin
