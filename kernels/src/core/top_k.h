// The k best labels of each instance, kept while scores pass by and are forgotten: lists of the
// best (Best), and the labels that are offered to them (offer_labels).
#pragma once

#include <string.h>

#include "core/dense.h"
#include "core/float8.h"
#include "core/linear.h"

namespace fanin {
namespace FANIN_TARGET {

// Whether score a ranks before b, which has the lower id: NaN comes last, after -inf too.
FANIN_ANYWHERE inline bool ranks_before(float a, float b) { return a > b || (b != b && a == a); }
// The same where either may have the lower id.
FANIN_ANYWHERE inline bool ranks_before(float a, int64_t id, float b, int64_t other_id) {
  return ranks_before(a, b) || (id < other_id && !ranks_before(b, a));
}
// A number below a score, and above or equal to all lower ones; but next to 0 the numbers that are
// not normal are skipped, since they may count as 0. Nothing is below -inf: then NaN.
FANIN_ANYWHERE inline float just_below(float score) {
  constexpr float least = 1.17549435e-38f;  // of normal numbers
  if (!(score > -__builtin_inff())) return __builtin_nanf("");
  if (score <= least && score >= -least) return -2 * least;
  uint32_t bits;
  memcpy(&bits, &score, sizeof bits);
  bits += score > 0 ? -1 : 1;
  memcpy(&score, &bits, sizeof bits);
  return score;
}

// The best so far of the 32 instances of one group, best first: scores[k][lane], ids[k][lane].
// Of equal scores that of the lower id comes first. Where labels are their own ids, they have to be
// offered in ascending order.
struct Best {
  int64_t k;
  const int32_t *label_ids;  // [labels], or null: labels are their own ids
  int64_t *ids;
  float *scores;
  float *thresholds;  // [32]: in its lane no score gets in that is not above it
  int64_t count;      // labels seen, at most k

  // memory: as memory.h lays it out, aligned to a cache line. seen: how many labels were offered
  // before.
  FANIN_FN Best(char *memory, int64_t wanted, int64_t seen = 0,
                const int32_t *ids_of_labels = nullptr)
      : k(wanted),
        label_ids(ids_of_labels),
        ids(reinterpret_cast<int64_t *>(memory)),
        scores(reinterpret_cast<float *>(ids + kLanes * k)),
        thresholds(scores + kLanes * k),
        count(seen) {}

  // Lanes beyond `lanes` let nothing in.
  FANIN_FN void clear(int lanes) {
    store(thresholds, from_mask(mask_of_first(lanes), -__builtin_inff(), __builtin_inff()));
  }

  FANIN_FN void offer(int64_t label, const Lanes<float> &values, int lanes) {
    if (count == k) {
      // Most labels are below all thresholds. Where one of the two is NaN, `insert` looks at it.
      const Lanes<float> above = map(
          [](auto s, auto t) FANIN_INLINE { return s <= t ? decltype(s){} : decltype(s){} + 1.0f; },
          values, load(thresholds));
      if (!any(above)) return;
    }
    insert(label, values, lanes);
    if (count < k) ++count;
  }

  // Puts the label in its place in the list of each lane that it gets into.
  FANIN_OUTLINED void insert(int64_t label, const Lanes<float> &values, int lanes) const {
    const int64_t id = label_ids ? label_ids[label] : label;
    each_lane(values, lanes, [&](int lane, float score) {
      const auto gets_before = [&](int64_t rank) FANIN_INLINE {
        const int64_t other = rank * kLanes + lane;
        return ranks_before(score, id, scores[other], ids[other]);
      };
      if (count == k && !gets_before(k - 1)) return;
      int64_t at = count < k ? count : k - 1;
      for (; at > 0 && gets_before(at - 1); --at) {
        scores[at * kLanes + lane] = scores[(at - 1) * kLanes + lane];
        ids[at * kLanes + lane] = ids[(at - 1) * kLanes + lane];
      }
      scores[at * kLanes + lane] = score;
      ids[at * kLanes + lane] = id;
      if (count < k - 1) return;
      const float last = scores[(k - 1) * kLanes + lane];
      thresholds[lane] = label_ids ? just_below(last) : last;  // an equal score may have a lower id
    });
  }
};

// A layer that only predicts. Connections are as in TrainedLayer; a dense layer has no indices.
template <class I, class W>
struct ScoredLayer {
  int64_t inputs, labels, fan_in;
  const int32_t *starts;
  const I *indices;
  const W *weights;
  const float *bias;  // or null

  FANIN_FN int64_t begin(int64_t label) const { return starts ? starts[label] : label * fan_in; }
};

template <class I, class W>
ScoredLayer<I, W> scored_layer(const TopKCall &c) {
  ScoredLayer<I, W> layer;
  layer.inputs = c.inputs;
  layer.labels = c.labels;
  layer.fan_in = c.fan_in;
  layer.starts = c.starts;
  layer.indices = static_cast<const I *>(c.indices);
  layer.weights = static_cast<const W *>(c.weights);
  layer.bias = c.bias;
  return layer;
}

// Offers the labels from first to end - 1 of a dense layer; arguments as in offer_labels.
template <class I, class W>
FANIN_FN void offer_dense_labels(const ScoredLayer<I, W> &layer, int64_t first, int64_t end,
                                 const float *features, int lanes, float *staged, Best &best,
                                 const Team<float> &team) {
  for (int64_t label = first; label < end; label += kBlock) {
    const int size = int(smaller<int64_t>(kBlock, end - label));
    Lanes<float> block[kBlock];
    score_block(layer.weights + label * layer.inputs, layer.inputs,
                layer.bias ? layer.bias + label : nullptr, size, features, staged, block, team);
    FANIN_UNROLL
    for (int j = 0; j < kBlock; ++j)
      if (j < size) best.offer(label + j, block[j], lanes);
  }
}

// Offers the labels from first to end - 1. features: this group's [inputs][32]. staged: scratch of
// kStaged values. row: scratch for a label's weights in float8.
template <class I, class W>
FANIN_FN void offer_labels(const ScoredLayer<I, W> &layer, int64_t first, int64_t end,
                           const float *features, int lanes, float *staged, float *row, Best &best,
                           const Team<float> &team) {
  if constexpr (!std::is_same<W, Float8>::value)
    if (!layer.indices)
      return offer_dense_labels(layer, first, end, features, lanes, staged, best, team);
  const int64_t all = layer.begin(layer.labels);
  for (int64_t label = first; label < end; ++label) {
    const int64_t at = layer.begin(label), fan_in = layer.begin(label + 1) - at;
    fetch_later(at, fan_in, all, layer.indices, row_of(layer.weights, label, 0));
    best.offer(label,
               score(layer.indices + at, weights_of(layer.weights, label, at, fan_in, row), fan_in,
                     features, layer.bias ? layer.bias[label] : 0.0f),
               lanes);
  }
}

}  // namespace FANIN_TARGET
}  // namespace fanin
