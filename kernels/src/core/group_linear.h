// The op of labels that share their sources, for CPUs: forward_grouped and backward_grouped do what
// forward_tile and backward_tile do in linear.h.
//
// A tile has 32 labels, whatever the size of a label group. It is cut where a group ends.
#pragma once

#include "core/group_products.h"
#include "core/linear.h"

namespace fanin {
namespace FANIN_TARGET {

// f(indices of the group, j, end) for each group that a tile has labels of: those from j to end
// - 1. Returns false where the team finds an index that names no input; the rest is then left
// undone.
template <class T, class I, class F>
FANIN_FN bool each_group(const Layer<T, I> &layer, int64_t first_label, int labels,
                         const Team<T> &team, const F &f) {
  for (int j = 0; j < labels;) {
    const int64_t group = (first_label + j) / layer.group_size;
    const int end = int(smaller<int64_t>((group + 1) * layer.group_size - first_label, labels));
    const I *const indices = layer.indices + group * layer.fan_in;
    if (!team.admits(indices, layer.fan_in, layer.inputs)) return false;
    f(indices, j, end);
    j = end;
  }
  return true;
}

// sources: the team's scratch of sources_size values.
template <class T, class I>
FANIN_FN bool forward_grouped(const Layer<T, I> &layer, const T *features, int64_t group,
                              int64_t first_label, T *scores, T *tile, T *sources, Team<T> &team) {
  const int labels = int(smaller<int64_t>(kTile, layer.labels - first_label));
  const int lanes = int(smaller<int64_t>(kLanes, layer.batch - group * kLanes));
  const int64_t fan_in = layer.fan_in;
  const auto score = [&](const I *indices, int j, int end) FANIN_INLINE {
    const int64_t label = first_label + j;
    gather_tile(indices, fan_in, features, sources);
    score_group(layer.weights + label * fan_in, fan_in, layer.bias ? layer.bias + label : nullptr,
                end - j, sources, tile + j * kTilePitch);
    for (; j < end; ++j) team.write_some();
  };
  if (!each_group(layer, first_label, labels, team, score)) return false;
  team.write_tile(tile, scores + group * kLanes * layer.labels + first_label, layer.labels, lanes,
                  labels);
  return true;
}

template <class T, class I>
FANIN_FN bool backward_grouped(const Layer<T, I> &layer, const T *features, int64_t group,
                               int64_t first_label, const T *grad_scores, T *grad_features,
                               T *grad_weights, T *grad_bias, T *tile, T *sources, Team<T> &team) {
  const int labels = int(smaller<int64_t>(kTile, layer.labels - first_label));
  const int lanes = int(smaller<int64_t>(kLanes, layer.batch - group * kLanes));
  const int64_t fan_in = layer.fan_in;
  const bool add = group > 0;
  const T *const rows_of_scores = grad_scores + group * kLanes * layer.labels + first_label;
  const bool another_follows = first_label + 2 * kTile <= layer.labels;
  T *const rows = sources + pitch_of(fan_in) * kLanes;
  team.read_tile(tile, rows_of_scores, layer.labels, lanes, labels);
  const auto gradients = [&](const I *indices, int j, int end) FANIN_INLINE {
    const int64_t first = (first_label + j) * fan_in;
    const T *const grads = tile + j * kTilePitch;
    if (grad_features)
      spread_group(layer.weights + first, fan_in, end - j, grads, indices, grad_features);
    if (grad_weights) {
      gather_and_turn(indices, fan_in, features, sources, rows);
      T *const out = grad_weights + first;
      const auto write = [&](int64_t l, int64_t k, int count, const Chunk<T> &sums) FANIN_INLINE {
        write_chunk(out + l * fan_in + k, count, sums, add, team.streaming);
      };
      weight_gradients(grads, 0, end - j, rows, fan_in, 1, write);
    }
    for (int i = j; i < end; ++i) {
      if (another_follows) team.read_some(rows_of_scores + kTile, layer.labels, lanes, i);
      if (grad_bias) write_one(grad_bias + first_label + i, sum(load(tile + i * kTilePitch)), add);
    }
  };
  return each_group(layer, first_label, labels, team, gradients);
}

}  // namespace FANIN_TARGET
}  // namespace fanin
