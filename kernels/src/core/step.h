// The fused training step of an output layer whose connections stand label by label: with a fixed
// fan-in, or unstructured. Score, loss, gradients and optimiser in one pass over the labels;
// neither scores nor gradients of weights outlive a label.
//
// The other kinds: sorted.h is a CPU's way around features that do not fit its cache; dense.h has
// dense layers.
//
// Two variants. With `one_group` the batch (or the part of it that is worked on at a time) is a
// single group of 32 instances, and the loops over groups fall away. Else a label's gradients of
// all groups are kept in scratch memory, and each connection's sum goes over all of them.
#pragma once

#include "core/float8.h"
#include "core/linear.h"
#include "core/trained.h"

namespace fanin {
namespace FANIN_TARGET {

// Groups of the batch that are worked on at a time. Where that is not all of them, `before` holds
// the sum of each connection of a tile over the groups that have passed; the last groups then make
// the step.
struct GroupRange {
  int64_t first, end;
  float *before;  // or null
};

// Chunks of a label whose gradients are summed before the optimiser makes its step on them. On a
// CPU the steps of several then overlap, each of which waits for a root and a division: a step in
// bfloat16 with AVX2 takes a twentieth less time.
constexpr int kSteppedChunks = kOnGpu ? 1 : 4;

// The step of a tile of up to 32 labels.
//
// features: [groups][inputs][32]. masks: of the positives, [groups][labels of the layer].
// bias_grads: the gradients of the tile's biases, kept from one range of groups to the next. grads:
// scratch of the team's, 32 values a group. row: scratch for a label's weights in float8.
// grad_features: like features (a float *, or on a GPU SharedRows), added to; or null. loss: added
// to.
template <bool one_group, class I, class W, class M, class Rows>
FANIN_FN void step_tile(const TrainedLayer<I, W, M> &layer, const float *features,
                        int64_t first_label, const uint32_t *masks, const GroupRange &range,
                        float *bias_grads, float *grads, float *row, Rows grad_features,
                        Lanes<float> &loss, const Team<float> &team) {
  const int labels = int(smaller<int64_t>(kTile, layer.labels - first_label));
  const int64_t group_size = layer.inputs * kLanes, first_group = range.first;
  const int64_t end_group = one_group ? first_group + 1 : range.end;
  const bool last = !range.before || end_group == layer.groups();
  const int64_t all = layer.begin(layer.labels);
  constexpr int chunk = Chunk<float>::size;
  // Moments, or arrays in their place; beside float8 nothing stands in (set_trained, api/layer.h).
  const bool has_moments = !std::is_same<W, Float8>::value || layer.optimizer.kept > 0;
  for (int j = 0; j < labels; ++j) {
    const int64_t label = first_label + j;
    const int64_t begin = layer.begin(label), fan_in = layer.begin(label + 1) - begin;
    if (has_moments) announce(layer.m + begin, fan_in);
    if (has_moments) announce(layer.v + begin, fan_in);
    if (j + 1 < labels) {  // the next label's connections
      const int64_t next = begin + fan_in, next_fan_in = layer.begin(label + 2) - next;
      announce(layer.indices + next, next_fan_in);
      announce(row_of(layer.weights, label + 1, next), next_fan_in);
    }
    const auto *const weights = weights_of(layer.weights, label, begin, fan_in, row);

    // Scores, loss, and the gradients by the scores.
    bool needed = false;
    float bias_grad = 0;
    for (int64_t group = first_group; group < end_group; ++group) {
      const Lanes<float> scores =
          score(layer.indices + begin, weights, fan_in, features + group * group_size,
                layer.bias ? layer.bias[label] : 0.0f);
      const Lanes<float> grad = loss_gradient(
          layer.loss, scores, masks[group * layer.labels + label], layer.scale_of(group), loss);
      store(grads + (group - first_group) * kLanes, grad);
      needed |= any(grad);
      bias_grad += sum(grad);
    }
    bias_grads[j] = first_group ? bias_grads[j] + bias_grad : bias_grad;

    // Gradients by features and weights, and the optimiser.
    const auto sum_chunk = [&](int64_t at, int count) FANIN_INLINE {
      const auto connections = connections_of(layer.indices + at, weights + (at - begin), count);
      Chunk<float> total{};
      // The squared hinge leaves labels alone that all instances have well behind them.
      for (int64_t group = first_group; needed && group < end_group; ++group) {
        const Lanes<float> grad = load(grads + (group - first_group) * kLanes);
        if (grad_features && has_moments) fetch_later(at, count, all, layer.m, layer.v);
        const float *const rows = features + group * group_size;
        total.v += (grad_features ? row_sums_and_spread(connections, count, grad, rows,
                                                        grad_features + group * group_size)
                                  : row_sums(connections, count, grad, rows))
                       .v;
      }
      if (range.before) {
        float *const before = range.before + (at - layer.begin(first_label));
        if (!last) {
          write_chunk(before, count, total, first_group > 0, false);
        } else {
          const Chunk<float> earlier = load_chunk<float>(before, count);
          total.v += earlier.v;
        }
      }
      return total;
    };
    for (int64_t k = 0; k < fan_in; k += kSteppedChunks * chunk) {
      Chunk<float> totals[kSteppedChunks];
      const auto each_chunk = [&](const auto &f) FANIN_INLINE {
        for (int i = 0; i < kSteppedChunks && k + i * chunk < fan_in; ++i)
          f(i, begin + k + i * chunk, int(smaller<int64_t>(chunk, fan_in - k - i * chunk)));
      };
      each_chunk([&](int i, int64_t at, int count)
                     FANIN_INLINE { totals[i] = sum_chunk(at, count); });
      if (!last) continue;
      each_chunk([&](int i, int64_t at, int count) FANIN_INLINE {
        if constexpr (std::is_same<W, Float8>::value) {
          TrainedChunk updated;
          updated.load_kept(layer.optimizer, row + (at - begin), layer.m, layer.v, at, count);
          updated.step(layer.optimizer, row + (at - begin), layer.m, layer.v, at, count, totals[i]);
        } else {
          update_chunk(layer.optimizer, layer.weights, layer.m, layer.v, at, count, totals[i]);
        }
      });
    }
    if constexpr (std::is_same<W, Float8>::value)
      if (last) round_row(layer.optimizer, row, fan_in, begin, row_of(layer.weights, label, begin));
  }
  team.sync();
  if (layer.bias && last) step_bias(layer, first_label, labels, bias_grads);
  team.sync();
}

}  // namespace FANIN_TARGET
}  // namespace fanin
