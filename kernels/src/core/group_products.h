// Products of labels that share their sources: what the op (group_linear.h), the fused step and
// prediction (grouped.h) do with a group of them. The sources' rows are gathered once for the
// group, into a tile [fan_in][32]. What is left is a small dense layer: its scores and gradients
// are products of this tile.
//
// A label group has nothing to do with a lane group, which is 32 instances (lanes.h).
#pragma once

#include "core/lanes.h"

namespace fanin {
namespace FANIN_TARGET {

// Labels whose scores, or sources whose gradients, are summed together: as many as there are
// registers for their sums.
constexpr int kSums = kVectorBytes == 64 ? 8 : 2;

// The rows of a group's sources -> tile [fan_in][32]. features: of one lane group.
template <class T, class I>
FANIN_FN void gather_tile(const I *indices, int64_t fan_in, const T *features, T *tile) {
  for (int64_t k = 0; k < fan_in; ++k)
    store(tile + k * kLanes, load(features + indices[k] * kLanes));
}

// tile [fan_in][32] -> rows [32][fan_in].
template <class T>
FANIN_FN void turn_tile(const T *tile, int64_t fan_in, T *rows) {
  constexpr int width = VectorOf<T>::width;
  int64_t k = 0;
  for (; k + width <= fan_in; k += width)
    for (int b = 0; b < kLanes; b += width) {
      Vector<T> square[width];
      FANIN_UNROLL
      for (int i = 0; i < width; ++i) square[i] = load_vector(tile + (k + i) * kLanes + b);
      transpose<T>(square);
      FANIN_UNROLL
      for (int i = 0; i < width; ++i) store_vector(rows + (b + i) * fan_in + k, square[i]);
    }
  for (; k < fan_in; ++k)
    for (int b = 0; b < kLanes; ++b) rows[b * fan_in + k] = tile[k * kLanes + b];
}

// scores[j][32] for Count labels. weights: of the first of them, [Count][fan_in].
template <int Count, class T>
FANIN_FN void score_labels(const T *weights, int64_t fan_in, const T *bias, const T *tile,
                           T *scores) {
  Lanes<T> total[Count];
  FANIN_UNROLL
  for (int j = 0; j < Count; ++j) total[j] = broadcast(bias ? bias[j] : T(0));
  for (int64_t k = 0; k < fan_in; ++k) {
    const Lanes<T> x = load(tile + k * kLanes);
    FANIN_UNROLL
    for (int j = 0; j < Count; ++j) total[j] = fma(weights[j * fan_in + k], x, total[j]);
  }
  FANIN_UNROLL
  for (int j = 0; j < Count; ++j) store(scores + j * kLanes, total[j]);
}

// The scores of a group, or of some of its labels.
template <class T>
FANIN_FN void score_group(const T *weights, int64_t fan_in, const T *bias, int labels,
                          const T *tile, T *scores) {
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
template <int Count, class T, class I>
FANIN_FN void spread_sources(const T *weights, int64_t fan_in, int labels, const T *grads,
                             const I *indices, T *targets) {
  Lanes<T> total[Count];
  FANIN_UNROLL
  for (int i = 0; i < Count; ++i) total[i] = broadcast(T(0));
  for (int j = 0; j < labels; ++j) {
    const Lanes<T> grad = load(grads + j * kLanes);
    FANIN_UNROLL
    for (int i = 0; i < Count; ++i) total[i] = fma(weights[j * fan_in + i], grad, total[i]);
  }
  FANIN_UNROLL
  for (int i = 0; i < Count; ++i) add_to(targets + indices[i] * kLanes, total[i]);
}

// The gradients of all sources of a group, or of some of its labels, added to their rows.
template <class T, class I>
FANIN_FN void spread_group(const T *weights, int64_t fan_in, int labels, const T *grads,
                           const I *indices, T *targets) {
  int64_t k = 0;
  for (; k + kSums <= fan_in; k += kSums)
    spread_sources<kSums>(weights + k, fan_in, labels, grads, indices + k, targets);
  for (; k < fan_in; ++k)
    spread_sources<1>(weights + k, fan_in, labels, grads, indices + k, targets);
}

}  // namespace FANIN_TARGET
}  // namespace fanin
