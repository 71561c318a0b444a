// The fixed fan-in layer over lane groups, written once for CUDA and for every CPU: forward_tile
// and backward_tile.
//
// A call works on one tile of 32 labels and one group of 32 instances. Features lie transposed,
// [inputs, 32], so that each connection reads one contiguous row of 32 values. The launchers
// (cpu/linear.cpp, cuda/linear.cu) walk over tiles and groups and own all memory.
#pragma once

#include "core/call.h"
#include "core/lanes.h"

namespace fanin {
namespace FANIN_TARGET {

// The arrays of one layer. T: the type of values; I: that of indices.
template <class T, class I>
struct Layer {
  int64_t batch, inputs, labels, fan_in;
  int64_t group_size;  // labels that share a row of indices, else 0
  const I *indices;    // [labels, fan_in], or [label groups, fan_in]
  const T *weights;    // [labels, fan_in]
  const T *bias;       // [labels] or null

  // A label's sources. CPUs have functions of their own for labels that share them.
  FANIN_FN const I *sources(int64_t label) const {
    return indices + (kOnGpu && group_size ? label / group_size : label) * fan_in;
  }
};

// The layer of a call, forward or backward. The backward pass has no bias.
template <class T, class I, class Call>
Layer<T, I> layer_of(const Call &c, const void *bias) {
  Layer<T, I> layer;
  layer.batch = c.batch;
  layer.inputs = c.inputs;
  layer.labels = c.labels;
  layer.fan_in = c.fan_in;
  layer.group_size = c.group_size;
  layer.indices = static_cast<const I *>(c.indices);
  layer.weights = static_cast<const T *>(c.weights);
  layer.bias = static_cast<const T *>(bias);
  return layer;
}

// While the connections of one label are worked on, those of a later one are fetched: `count`
// values of each array, kFetched behind those that begin at `begin`. end: the size of the arrays.
constexpr int64_t kFetched = 256;
template <class... T>
FANIN_FN void fetch_later(int64_t begin, int64_t count, int64_t end, const T *...arrays) {
  const int64_t later = begin + kFetched;
  if (later + count <= end) (fetch(arrays + later, count), ...);
}

// Connections, by the types of their arrays.
template <class I, class W>
FANIN_FN Connections<float, I, W> connections_of(const I *indices, const W *weights, int count) {
  return Connections<float, I, W>(indices, weights, count);
}

// One label's score for each lane: bias + sum_k weights[k] * features[indices[k]].
template <class T, class I, class W>
FANIN_FN Lanes<T> score(const I *indices, const W *weights, int64_t fan_in, const T *features,
                        T bias) {
  constexpr int chunk = Chunk<T>::size;
  Gathered<T> total(bias);
  for (int64_t k = 0; k < fan_in; k += chunk) {
    const int count = int(smaller<int64_t>(chunk, fan_in - k));
    total.add(Connections<T, I, W>(indices + k, weights + k, count), count, features);
  }
  return total.lanes();
}

// scores[group * 32 + lane, first_label + j] for the 32 labels j of a tile.
// features: this group's [inputs, 32]. tile: the team's scratch of 32 * kTilePitch values. Returns
// false where the team finds an index that names no input; the rest is then left undone.
template <class T, class I>
FANIN_FN bool forward_tile(const Layer<T, I> &layer, const T *features, int64_t group,
                           int64_t first_label, T *scores, T *tile, Team<T> &team) {
  const int labels = int(smaller<int64_t>(kTile, layer.labels - first_label));
  const int lanes = int(smaller<int64_t>(kLanes, layer.batch - group * kLanes));
  for (int j = 0; j < labels; ++j) {
    const int64_t label = first_label + j, begin = label * layer.fan_in;
    fetch_later(begin, layer.fan_in, layer.labels * layer.fan_in, layer.indices, layer.weights);
    const I *const indices = layer.sources(label);
    if (!team.admits(indices, layer.fan_in, layer.inputs)) return false;
    store(tile + j * kTilePitch, score(indices, layer.weights + begin, layer.fan_in, features,
                                       layer.bias ? layer.bias[label] : T(0)));
    team.write_some();
  }
  team.sync();
  team.write_tile(tile, scores + group * kLanes * layer.labels + first_label, layer.labels, lanes,
                  labels);
  team.sync();
  return true;
}

// Gradients of a tile's labels. grad_features is this group's accumulator [inputs, 32] (a T *, or
// on a GPU SharedRows), which holds what earlier tiles added. grad_weights [labels, fan_in] and
// grad_bias [labels] are written by the first group; the later ones add to them. Any of the three
// may be null. Returns false as forward_tile does.
template <class T, class I, class Rows>
FANIN_FN bool backward_tile(const Layer<T, I> &layer, const T *features, int64_t group,
                            int64_t first_label, const T *grad_scores, Rows grad_features,
                            T *grad_weights, T *grad_bias, T *tile, Team<T> &team) {
  const int labels = int(smaller<int64_t>(kTile, layer.labels - first_label));
  const int lanes = int(smaller<int64_t>(kLanes, layer.batch - group * kLanes));
  const int64_t fan_in = layer.fan_in;
  const bool add = group > 0;
  constexpr int chunk = Chunk<T>::size;
  const T *rows = grad_scores + group * kLanes * layer.labels + first_label;
  const bool another_follows = first_label + 2 * kTile <= layer.labels;
  team.read_tile(tile, rows, layer.labels, lanes, labels);
  team.sync();
  for (int j = 0; j < labels; ++j) {
    const int64_t label = first_label + j;
    fetch_later(label * fan_in, fan_in, layer.labels * fan_in, layer.indices, layer.weights);
    const I *const indices = layer.sources(label);
    if (!team.admits(indices, fan_in, layer.inputs)) return false;
    const Lanes<T> grad = load(tile + j * kTilePitch);
    if (another_follows) team.read_some(rows + kTile, layer.labels, lanes, j);
    if (grad_bias) write_one(grad_bias + label, sum(grad), add);
    for (int64_t k = 0; k < fan_in; k += chunk) {
      const int count = int(smaller<int64_t>(chunk, fan_in - k));
      const int64_t at = label * fan_in + k;
      const Connections<T, I> connections(indices + k, layer.weights + at, count);
      if (grad_weights) {
        const Chunk<T> total =
            grad_features ? row_sums_and_spread(connections, count, grad, features, grad_features)
                          : row_sums(connections, count, grad, features);
        write_chunk(grad_weights + at, count, total, add, team.streaming);
      } else if (grad_features) {
        spread(connections, count, grad, grad_features);
      }
    }
  }
  team.sync();
  return true;
}

}  // namespace FANIN_TARGET
}  // namespace fanin
