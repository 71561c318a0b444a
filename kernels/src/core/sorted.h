// The fused step, and scores, of a layer whose connections are sorted by source within tiles of
// labels, rather than label by label. For CPUs, and for a fixed fan-in.
//
// Where features and their gradients do not fit a core's cache, label order makes every connection
// wait for memory. In a sorted tile they pass once, in order. What is accessed at random then are
// the tile's scores, which do fit. Each connection carries the number of its label within the tile
// (`tile_labels`).
//
// The more labels share a pass over the features, the better; but their scores, kSortedScores at a
// time, have to stay in the cache. So there are two variants. With many inputs (in_halves,
// memory.h) a group is worked on in two parts of half its lanes, one after the other, and a tile
// holds twice the labels. With fewer inputs a group is one part, so that connections are visited
// less often. N is the number of lanes in a part.
//
// Measured with 1 MiB of second-level cache: 65,536 scores were fastest. Halves were 0.9 times as
// fast with 16,384 inputs, 1.05 times with 32,768 and 1.3 times with 65,536.
#pragma once

#include "core/trained.h"

namespace fanin {
namespace FANIN_TARGET {

// The scores of a tile for one group: parts of [labels][N], kSortedScores apart.
template <int N>
struct SortedScores {
  float *values;

  FANIN_FN Lanes<float> get(int64_t label) const {
    Lanes<float> all;
    FANIN_UNROLL
    for (int p = 0; p < kLanes / N; ++p) {
      const Lanes<float, N> part = load<N>(values + p * kSortedScores + label * N);
      FANIN_UNROLL
      for (int i = 0; i < part.count; ++i) all.v[p * part.count + i] = part.v[i];
    }
    return all;
  }
  FANIN_FN void set(int64_t label, const Lanes<float> &all) const {
    FANIN_UNROLL
    for (int p = 0; p < kLanes / N; ++p) {
      Lanes<float, N> part;
      FANIN_UNROLL
      for (int i = 0; i < part.count; ++i) part.v[i] = all.v[p * part.count + i];
      store(values + p * kSortedScores + label * N, part);
    }
  }
};

// Scores of a tile's labels for one group of `lanes` instances, whose features are
// [parts][inputs][N]. bias: of the tile's labels, or null. Lanes of a part without instances get no
// more than it.
template <int N, class I, class W>
FANIN_FN void score_sorted(const I *indices, const uint16_t *tile_labels, const W *weights,
                           int64_t count, const float *bias, int64_t labels, const float *features,
                           int64_t inputs, int64_t lanes, const SortedScores<N> &scores) {
  for (int64_t l = 0; l < labels; ++l) scores.set(l, broadcast(bias ? bias[l] : 0.0f));
  constexpr int chunk = Chunk<float>::size;
  for (int64_t part = 0; part * N < lanes; ++part) {
    const float *const sources = features + part * inputs * N;
    float *const targets = scores.values + part * kSortedScores;
    for (int64_t e = 0; e < count; e += chunk) {
      const int size = int(smaller<int64_t>(chunk, count - e));
      const Connections<float, I, W> connections(indices + e, weights + e, size);
      const auto push = [&](int c, auto weight) FANIN_INLINE {
        add_to(targets + tile_labels[e + c] * N, weight,
               load<N>(sources + connections.source(c) * N));
      };
      if (size == chunk) {
        const Weights<float, W> whole(weights + e);
        FANIN_UNROLL
        for (int c = 0; c < chunk; ++c) push(c, whole[c]);
      } else {
        for (int c = 0; c < size; ++c) push(c, connections.weight(c));
      }
    }
  }
}

// For each connection of a tile, grad * the source's row, summed over the lanes of a part. The sums
// are handed to finish(position, count, sums), chunk by chunk. Beside that, weight * grad is added
// to the source's row of `targets`, unless it is null. grads: [labels][N]; sources and targets:
// [inputs][N].
template <int N, class I, class W, class F>
FANIN_FN void spread_sorted(const I *indices, const uint16_t *tile_labels, const W *weights,
                            int64_t count, const float *grads, const float *sources, float *targets,
                            const F &finish) {
  constexpr int chunk = Chunk<float>::size;
  for (int64_t e = 0; e < count; e += chunk) {
    const int size = int(smaller<int64_t>(chunk, count - e));
    const Connections<float, I, W> connections(indices + e, weights + e, size);
    const auto row_sum = [&](int c, auto weight) FANIN_INLINE {
      const Lanes<float, N> grad = load<N>(grads + tile_labels[e + c] * N);
      const size_t source = connections.source(c) * N;
      if (targets) add_to(targets + source, weight, grad);
      return product(grad, load<N>(sources + source));
    };
    if (size == chunk) {
      const Weights<float, W> whole(weights + e);
      finish(e, size, sums<float>([&](int c) FANIN_INLINE { return row_sum(c, whole[c]); }));
    } else {
      finish(e, size, sums_of_part<float>(size, [&](int c) FANIN_INLINE {
               return row_sum(c, connections.weight(c));
             }));
    }
  }
}

// The step of the sorted tile of `labels` labels from first_label on. Arguments are those of
// step_tile (step.h), but features and grad_features are [parts of the batch][inputs][N].
// tile_labels: of the whole layer. scratch: the scores of all groups, then, where there is more
// than one part, a value for each of the tile's connections.
template <int N, class I, class W, class M>
FANIN_FN void step_sorted(const TrainedLayer<I, W, M> &layer, const uint16_t *tile_labels,
                          const float *features, int64_t first_label, int64_t labels,
                          const uint32_t *masks, float *scratch, float *grad_features,
                          Lanes<float> &loss) {
  const int64_t begin = first_label * layer.fan_in, count = labels * layer.fan_in;
  const int64_t groups = layer.groups(), parts = (layer.batch + N - 1) / N;
  const int64_t scores_size = kSortedScores * (kLanes / N), part_size = layer.inputs * N;
  const I *const indices = layer.indices + begin;
  W *const weights = layer.weights + begin;
  tile_labels += begin;
  for (int64_t group = 0; group < groups; ++group) {
    const SortedScores<N> scores{scratch + group * scores_size};
    score_sorted(indices, tile_labels, weights, count,
                 layer.bias ? layer.bias + first_label : nullptr, labels,
                 features + group * layer.inputs * kLanes, layer.inputs,
                 smaller<int64_t>(kLanes, layer.batch - group * kLanes), scores);
    const Lanes<float> scale = layer.scale_of(group);
    for (int64_t l = 0; l < labels; ++l)
      scores.set(l, loss_gradient(layer.loss, scores.get(l),
                                  masks[group * layer.labels + first_label + l], scale, loss));
  }
  for (int64_t l = 0; layer.bias && l < labels; l += kTile) {
    float bias_grads[kTile] = {};
    const int size = int(smaller<int64_t>(kTile, labels - l));
    for (int64_t group = 0; group < groups; ++group)
      for (int j = 0; j < size; ++j)
        bias_grads[j] += sum(SortedScores<N>{scratch + group * scores_size}.get(l + j));
    step_bias(layer, first_label + l, size, bias_grads);
  }
  float *const before = scratch + groups * scores_size;  // sums over the parts that have passed
  for (int64_t part = 0; part < parts; ++part) {
    const bool last = part == parts - 1;
    spread_sorted<N>(
        indices, tile_labels, weights, count, scratch + part * kSortedScores,
        features + part * part_size, grad_features ? grad_features + part * part_size : nullptr,
        [&](int64_t e, int size, Chunk<float> total) FANIN_INLINE {
          if (!last) return write_chunk(before + e, size, total, part > 0, false);
          if (part > 0) {
            const Chunk<float> earlier = load_chunk<float>(before + e, size);
            total.v += earlier.v;
          }
          update_chunk(layer.optimizer, layer.weights, layer.m, layer.v, begin + e, size, total);
        });
  }
}

}  // namespace FANIN_TARGET
}  // namespace fanin
