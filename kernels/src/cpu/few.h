// Top-k of a few instances, or of a single one. A group has 32 lanes, and a label's connections
// cost the same work however many of the lanes hold an instance.
//
// So the rows of features are narrower for a few instances: [inputs][N]. Their scores are summed in
// the same order as those of a whole group. A single instance has a label's connections as lanes,
// so its scores may differ from those of a group in the last bits.
#pragma once

#include "core/grouped.h"

namespace fanin {
namespace FANIN_TARGET {

// N values of neighbouring lanes; `unaligned` is for reading and writing them in memory.
template <int N>
struct Few {
  typedef float type __attribute__((vector_size(4 * N)));
  typedef float unaligned __attribute__((vector_size(4 * N), aligned(4), may_alias));
};

// A single instance ------------------------------------------------------------------------------

typedef float Four __attribute__((vector_size(16)));

template <class W>
FANIN_FN Four four_of(const W *weights) {
  return Four{widen(weights[0]), widen(weights[1]), widen(weights[2]), widen(weights[3])};
}
template <class I>
FANIN_FN Four four_of(const float *features, const I *indices) {
  return Four{features[indices[0]], features[indices[1]], features[indices[2]],
              features[indices[3]]};
}

// One label's score. Vectors of four are as fast as wider ones, since filling them takes most of
// the time.
template <class I, class W>
FANIN_FN float score_one(const I *indices, const W *weights, int64_t fan_in, const float *features,
                         float bias) {
  Four even{}, odd{};
  int64_t k = 0;
  for (; k + 8 <= fan_in; k += 8) {
    even += four_of(weights + k) * four_of(features, indices + k);
    odd += four_of(weights + k + 4) * four_of(features, indices + k + 4);
  }
  for (; k < fan_in; ++k) bias += widen(weights[k]) * features[indices[k]];
  even += odd;
  return bias + ((even[0] + even[2]) + (even[1] + even[3]));
}

// Several instances ------------------------------------------------------------------------------

// One label's score for each of N instances. features: [inputs][N].
template <int N, class I, class W>
FANIN_FN typename Few<N>::type score_few(const I *indices, const W *weights, int64_t fan_in,
                                         const float *features, float bias) {
  typedef typename Few<N>::type Row;
  const auto row = [&](size_t source) FANIN_INLINE -> Row {
    return *reinterpret_cast<const typename Few<N>::unaligned *>(features + source * N);
  };
  constexpr int chunk = Chunk<float>::size;
  Row even = Row{} + bias, odd = Row{};
  int64_t k = 0;
  for (; k + chunk <= fan_in; k += chunk) {
    const Sources<float, I> sources(indices + k);
    FANIN_UNROLL
    for (int c = 0; c < chunk; c += 2) {
      even += widen(weights[k + c]) * row(sources[c]);
      odd += widen(weights[k + c + 1]) * row(sources[c + 1]);
    }
  }
  for (; k < fan_in; ++k) even += widen(weights[k]) * row(indices[k]);
  return even + odd;
}

// Offers the labels from first to end - 1, which must have connections, for `lanes` <= N instances.
// widened: scratch for a label's weights in float8.
template <int N, class I, class W>
FANIN_OUTLINED void offer_to_few(const ScoredLayer<I, W> &layer, int64_t first, int64_t end,
                                 const float *features, int lanes, float *widened, Best &best) {
  const int64_t all = layer.begin(layer.labels);
  alignas(64) float row[kLanes] = {};
  for (int64_t label = first; label < end; ++label) {
    const int64_t at = layer.begin(label), fan_in = layer.begin(label + 1) - at;
    fetch_later(at, fan_in, all, layer.indices, row_of(layer.weights, label, 0));
    const auto *const weights = weights_of(layer.weights, label, at, fan_in, widened);
    const float bias = layer.bias ? layer.bias[label] : 0.0f;
    const I *const indices = layer.indices + at;
    if constexpr (N == 1)
      row[0] = score_one(indices, weights, fan_in, features, bias);
    else
      *reinterpret_cast<typename Few<N>::unaligned *>(row) =
          score_few<N>(indices, weights, fan_in, features, bias);
    // Best::offer does the same for all lanes of a group.
    bool above = best.count < best.k;
    for (int lane = 0; lane < lanes; ++lane) above |= !(row[lane] <= best.thresholds[lane]);
    if (!above) continue;
    best.insert(label, load(row), lanes);
    if (best.count < best.k) ++best.count;
  }
}

// Labels that share their sources --------------------------------------------------------------

constexpr int64_t kFewInstances = 8;  // with more instances, whole lane groups are faster

// The weights of `count` labels from `label` on, as they stand or widened to `copy`.
template <class I, class W>
FANIN_FN auto few_rows(const ScoredLayer<I, W> &layer, int64_t label, int64_t count, float *copy) {
  if constexpr (std::is_same<W, Float8>::value)
    return as_float(layer.weights, label, count, layer.fan_in, copy);
  else
    return layer.weights + label * layer.fan_in;
}

// Offers the labels from first to end - 1, which are one group. features: [lanes][inputs].
// gathered: scratch, [lanes][fan_in], and a chunk of rows of weights in float8.
template <class I, class W>
FANIN_OUTLINED void offer_group_to_few(const ScoredLayer<I, W> &layer, const I *indices,
                                       int64_t first, int64_t end, const float *features, int lanes,
                                       float *gathered, Best &best) {
  constexpr int chunk = Chunk<float>::size;
  const int64_t fan_in = layer.fan_in;
  for (int lane = 0; lane < lanes; ++lane)
    for (int64_t k = 0; k < fan_in; ++k)
      gathered[lane * fan_in + k] = features[lane * layer.inputs + indices[k]];
  alignas(64) float scores[kFewInstances][chunk], row[kLanes] = {};
  for (int64_t label = first; label < end; label += chunk) {
    const int count = int(smaller<int64_t>(chunk, end - label));
    const Chunk<float> bias =
        layer.bias ? load_chunk<float>(layer.bias + label, count) : Chunk<float>{};
    bool above = best.count < best.k;
    const auto *const rows = few_rows(layer, label, count, gathered + kFewInstances * fan_in);
    for (int lane = 0; lane < lanes; ++lane) {
      const float *const values = gathered + lane * fan_in;
      const auto products = [&](int j) FANIN_INLINE {
        const auto *const weights = rows + j * fan_in;
        Chunk<float> total{};
        for (int64_t k = 0; k < fan_in; k += chunk) {
          const int some = int(smaller<int64_t>(chunk, fan_in - k));
          total.v += load_chunk<float>(weights + k, some).v * load_chunk<float>(values + k, some).v;
        }
        return total;
      };
      Chunk<float> total =
          count == chunk ? sums<float>(products) : sums_of_part<float>(count, products);
      total.v += bias.v;
      store_vector(scores[lane], total.v);
      const Bits low = (Bits)(total.v <= best.thresholds[lane]);
      above |= any_bit(~low);
    }
    if (!above) continue;
    for (int j = 0; j < count; ++j) {
      for (int lane = 0; lane < lanes; ++lane) row[lane] = scores[lane][j];
      best.offer(label + j, load(row), lanes);
    }
  }
}

}  // namespace FANIN_TARGET
}  // namespace fanin
