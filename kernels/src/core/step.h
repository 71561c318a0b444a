// The fused training step of an output layer over lane groups: score, loss, gradients and Adam in
// one pass over the labels. Neither scores nor gradients of weights outlive a block of labels.
//
// sorted.h is a CPU's way around features that do not fit its cache.
#pragma once

#include "core/linear.h"

namespace fanin {
namespace FANIN_TARGET {

// Adam as Keras has it ("epsilon hat" in Kingma & Ba, 2015, end of section 2):
// w -= rate * m / (sqrt(v) + epsilon), rate = learning_rate * sqrt(1 - beta2^t) / (1 - beta1^t).
typedef AdamCall Adam;  // seed: of stochastic rounding, another one for every step

// A chunk of an array that is trained, from its load to its store: whoever updates several loads
// them all before the first is stored, so that their loads overlap.
//
// Bf16 arrays are rounded stochastically: an update of less than half a unit in the last place,
// which most are, is then right on average rather than lost.
struct Updated {
  Chunk<float> weight, mean, square;

  template <class W, class M>
  FANIN_FN void load(const W *weights, const M *m, const M *v, int64_t at, int count) {
    weight = load_chunk<float>(weights + at, count);
    mean = load_chunk<float>(m + at, count);
    square = load_chunk<float>(v + at, count);
  }
  template <class W, class M>
  FANIN_FN void step(const Adam &a, W *weights, M *m, M *v, int64_t at, int count,
                     const Chunk<float> &grad) {
    mean.v += a.rest1 * (grad.v - mean.v);
    square.v += a.rest2 * (grad.v * grad.v - square.v);
    const Chunk<float> updated{weight.v - a.rate * mean.v / (root(square.v) + a.epsilon)};
    const auto random = random_chunk(uint32_t(at), a.seed);
    // Each takes 16 bits: two halves of a word, and their sum without carry, are pairwise independent.
    store_chunk(weights + at, count, updated, random);
    store_chunk(m + at, count, mean, random >> 16);
    store_chunk(v + at, count, square, random ^ random >> 16);
  }
};
template <class W, class M>
FANIN_FN void adam(const Adam &a, W *weights, M *m, M *v, int64_t at, int count,
                   const Chunk<float> &grad) {
  Updated chunk;
  chunk.load(weights, m, v, at, count);
  chunk.step(a, weights, m, v, at, count, grad);
}

// f(a value of the index type, of the type of weights, of the type of moments)
template <class F>
Finding with_types(bool wide_indices, bool bf16_weights, bool bf16_moments, const F &f) {
  const auto with_index = [&](auto index) {
    if (bf16_weights) return bf16_moments ? f(index, Bf16(), Bf16()) : f(index, Bf16(), float());
    return bf16_moments ? f(index, float(), Bf16()) : f(index, float(), float());
  };
  return wide_indices ? with_index(uint32_t()) : with_index(uint16_t());
}

typedef fanin_loss LossKind;

// One label's loss, added to `loss`, and its gradient, for each lane. positives: a bit per lane.
// scale: 1 / (batch * labels), and 0 for lanes beyond the batch.
FANIN_FN Lanes<float> loss_gradient(LossKind kind, const Lanes<float> &scores, uint32_t positives,
                                    const Lanes<float> &scale, Lanes<float> &loss) {
  if (kind == FANIN_SQUARED_HINGE) {
    // max(0, 1 - y s)^2 with y = +1 for positives, else -1. Written so that a NaN stays one.
    const auto margin = [](auto x) FANIN_INLINE { return x < decltype(x){} ? decltype(x){} : x; };
    const Lanes<float> y = positives ? of_mask(positives, 1.0f, -1.0f) : broadcast(-1.0f);
    const Lanes<float> part = map(
        [&](auto s, auto sign, auto c) FANIN_INLINE { return c * margin(1.0f - sign * s); },
        scores, y, scale);
    loss = map([&](auto sum, auto s, auto sign, auto p) FANIN_INLINE {
      return sum + p * margin(1.0f - sign * s); }, loss, scores, y, part);
    return map([](auto sign, auto p) FANIN_INLINE { return -2.0f * sign * p; }, y, part);
  }
  // log(1 + exp(s)) - t s, with t = 1 for positives, else 0; log(1 + e) = 2 atanh(e / (2 + e)).
  const Lanes<float> target = of_mask(positives, 1.0f, 0.0f);
  const Lanes<float> e = map([](auto s) FANIN_INLINE {
    return exponential(s < decltype(s){} ? s : -s); }, scores);
  loss = map([](auto sum, auto s, auto x, auto t, auto c) FANIN_INLINE {
    const auto z = x / (2.0f + x), q = z * z;
    const auto log1p = 2.0f * z *
        (1.0f + q * (1.0f / 3 + q * (1.0f / 5 + q * (1.0f / 7 + q * (1.0f / 9 + q * (1.0f / 11
         + q * (1.0f / 13 + q * (1.0f / 15))))))));
    return sum + c * ((s < decltype(s){} ? decltype(s){} : s) - t * s + log1p);
  }, loss, scores, e, target, scale);
  // sigmoid(s), or of positives -sigmoid(-s), which is sigmoid(s) - 1 with all of its digits.
  return map([](auto s, auto x, auto t, auto c) FANIN_INLINE {
    const auto sign = 1.0f - 2.0f * t, logit = sign * s;
    return c * sign * (logit < decltype(s){} ? x : 0.0f * x + 1.0f) / (1.0f + x);
  }, scores, e, target, scale);
}

// An output layer with its optimiser state. The connections of label l are those from starts[l] to
// starts[l + 1], or, without starts, fan_in of them from l * fan_in.
template <class I, class W, class M>
struct TrainedLayer {
  int64_t batch, inputs, labels, fan_in;
  const int32_t *starts;
  const I *indices;
  W *weights;
  M *m, *v;
  float *bias, *bias_m, *bias_v;  // or null
  Adam adam;
  LossKind loss;
  float scale;  // 1 / (batch * labels)

  FANIN_FN int64_t begin(int64_t label) const { return starts ? starts[label] : label * fan_in; }
  FANIN_FN int64_t groups() const { return groups_of(batch); }
  // The scale in a group's lanes: none of the padding counts.
  FANIN_FN Lanes<float> scale_of(int64_t group) const {
    const int64_t lanes = batch - group * kLanes;
    return lanes >= kLanes ? broadcast(scale) : of_mask((1u << lanes) - 1, scale, 0.0f);
  }
};

// The layer of a call.
template <class I, class W, class M>
TrainedLayer<I, W, M> trained_layer(const StepCall &c) {
  return {c.batch,
          c.inputs,
          c.labels,
          c.fan_in,
          c.starts,
          static_cast<const I *>(c.indices),
          static_cast<W *>(c.weights),
          static_cast<M *>(c.m),
          static_cast<M *>(c.v),
          c.bias,
          c.bias_m,
          c.bias_v,
          c.adam,
          LossKind(c.loss_kind),
          float(1.0 / (double(c.batch) * double(c.labels)))};
}

// Adam for the biases of a tile, given the gradients of its up to 32 labels.
template <class I, class W, class M>
FANIN_FN void step_bias(const TrainedLayer<I, W, M> &layer, int64_t first_label, int labels,
                        const float *grads) {
  constexpr int chunk = Chunk<float>::size;
  for (int j = 0; j < labels; j += chunk) {
    const int count = smaller(chunk, labels - j);
    adam(layer.adam, layer.bias, layer.bias_m, layer.bias_v, first_label + j, count,
         load_chunk<float>(grads + j, count));
  }
}

// Groups of the batch that are worked on at a time. Where that is not all of them, `before` holds
// sums for each connection of a tile over the groups that have been; the last ones make the step.
struct GroupRange {
  int64_t first, end;
  float *before;
};

// The step of a tile of up to 32 labels. features: [groups][inputs][32]. masks: of the positives,
// [groups][labels of the layer]. grads: the tile's gradients of biases, kept from one range of
// groups to the next. mine: scratch of the team's, 32 values a group. grad_features: like features
// (a float *, or on a GPU SharedRows), added to, or null. loss: added to.
// one_group: whether the range is known to be a single group, whose loops then fall away.
template <bool one_group, class I, class W, class M, class Rows>
FANIN_FN void step_tile(const TrainedLayer<I, W, M> &layer, const float *features,
                        int64_t first_label, const uint32_t *masks, const GroupRange &range,
                        float *grads, float *mine, Rows grad_features, Lanes<float> &loss,
                        const Team<float> &team) {
  const int labels = int(smaller<int64_t>(kTile, layer.labels - first_label));
  const int64_t stride = layer.inputs * kLanes, first_group = range.first;
  const int64_t end_group = one_group ? first_group + 1 : range.end;
  const bool last = !range.before || end_group == layer.groups();
  const int64_t all = layer.begin(layer.labels);
  constexpr int chunk = Chunk<float>::size;
  for (int j = 0; j < labels; ++j) {
    const int64_t label = first_label + j;
    const int64_t begin = layer.begin(label), fan_in = layer.begin(label + 1) - begin;
    announce(layer.m + begin, fan_in);
    announce(layer.v + begin, fan_in);
    if (j + 1 < labels) {  // the next one's connections
      const int64_t next = begin + fan_in, ahead = layer.begin(label + 2) - next;
      announce(layer.indices + next, ahead);
      announce(layer.weights + next, ahead);
    }
    bool needed = false;
    float of_bias = 0;
    for (int64_t group = first_group; group < end_group; ++group) {
      const Lanes<float> scores = score(layer.indices + begin, layer.weights + begin, fan_in,
                                        features + group * stride,
                                        layer.bias ? layer.bias[label] : 0.0f);
      const Lanes<float> grad =
          loss_gradient(layer.loss, scores, masks[group * layer.labels + label],
                        layer.scale_of(group), loss);
      store(mine + (group - first_group) * kLanes, grad);
      needed |= any(grad);
      of_bias += sum(grad);
    }
    grads[j] = first_group ? grads[j] + of_bias : of_bias;
    for (int64_t k = 0; k < fan_in; k += chunk) {
      const int count = int(smaller<int64_t>(chunk, fan_in - k));
      const int64_t at = begin + k;
      const Connections<float, I, W> connections(layer.indices + at, layer.weights + at, count);
      Chunk<float> total{};
      // The squared hinge leaves labels alone that all instances have well behind them.
      for (int64_t group = first_group; needed && group < end_group; ++group) {
        const Lanes<float> grad = load(mine + (group - first_group) * kLanes);
        if (grad_features) fetch_later(at, count, all, layer.m, layer.v);
        const float *const rows = features + group * stride;
        total.v += (grad_features ? row_sums_and_spread(connections, count, grad, rows,
                                                        grad_features + group * stride)
                                  : row_sums(connections, count, grad, rows))
                       .v;
      }
      if (range.before) {
        float *const before = range.before + (at - layer.begin(first_label));
        if (!last) {
          write_chunk(before, count, total, first_group > 0, false);
          continue;
        }
        const Chunk<float> held = load_chunk<float>(before, count);
        total.v += held.v;
      }
      adam(layer.adam, layer.weights, layer.m, layer.v, at, count, total);
    }
  }
  team.sync();
  if (layer.bias && last) step_bias(layer, first_label, labels, grads);
  team.sync();
}

}  // namespace FANIN_TARGET
}  // namespace fanin
