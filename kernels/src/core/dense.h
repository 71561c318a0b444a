// Dense layers over lane groups, a block of labels at a time: the forward pass (dense_tile), the
// backward pass with the optimiser (update_tile), and the fused step of a dense output layer
// (step_block). Backward pass and optimiser are one pass, so that no gradient of a weight is ever
// stored.
//
// Weights are [labels, inputs]: a label's weights are contiguous, as in fixed fan-in layers.
#pragma once

#include "core/trained.h"

namespace fanin {
namespace FANIN_TARGET {

// kBlock labels are worked on together, so that features are read once for all of them: as many as
// there are registers for their sums. In the backward pass so are kInputVectors vectors of
// neighbouring inputs. The weights of kUpdated labels are loaded together before they are updated.
#if defined(__CUDACC__)
constexpr int kBlock = 8, kInputVectors = 2, kUpdated = 2;
#else
constexpr int kBlock = kVectorBytes == 64 ? 8 : kVectorBytes == 32 ? 2 : 1;
constexpr int kInputVectors = kVectorBytes == 64 ? 2 : kVectorBytes == 32 ? 4 : 8;
constexpr int kUpdated = 1;
#endif
static_assert(kBlock <= kMostBlock, "memory.h makes room for it");
// Scratch of the functions below: the weights of a block and a chunk of inputs, which all lanes
// read.
constexpr int kStaged = kBlock * Chunk<float>::size;

// staged[j][c] = weight c of label j, float32. weights: the chunk's first, of the first label.
template <class W>
FANIN_FN void stage_block(const W *weights, int64_t inputs, int labels, int count, float *staged,
                          const Team<float> &team) {
  team.sync();  // nobody reads the previous ones any more
  FANIN_UNROLL
  for (int j = 0; j < kBlock; ++j)
    stage(staged + j * Chunk<float>::size,
          load_chunk<float>(weights + (j < labels ? j : 0) * inputs, count));
  team.sync();
}

// out[j] for the labels j of a block: bias + sum over the inputs. weights: of the first label.
// features: this group's [inputs][32].
template <class W>
FANIN_FN void score_block(const W *weights, int64_t inputs, const float *bias, int labels,
                          const float *features, float *staged, Lanes<float> *out,
                          const Team<float> &team) {
  constexpr int chunk = Chunk<float>::size;
  Lanes<float> total[kBlock];
  FANIN_UNROLL
  for (int j = 0; j < kBlock; ++j) total[j] = broadcast(bias && j < labels ? bias[j] : 0.0f);
  for (int64_t i = 0; i < inputs; i += chunk) {
    const int count = int(smaller<int64_t>(chunk, inputs - i));
    stage_block(weights + i, inputs, labels, count, staged, team);
    FANIN_UNROLL_FEW
    for (int c = 0; c < count; ++c) {
      const Lanes<float> x = load(features + (i + c) * kLanes);
      FANIN_UNROLL
      for (int j = 0; j < kBlock; ++j) total[j] = fma(staged[j * chunk + c], x, total[j]);
    }
  }
  FANIN_UNROLL
  for (int j = 0; j < kBlock; ++j) out[j] = total[j];
}

// Gradients of features, for one group: added to grad_features [inputs][32] (a float *, or on a GPU
// SharedRows). grads: zero beyond `labels`.
template <class W, class Rows>
FANIN_FN void spread_block(const W *weights, int64_t inputs, int labels, const Lanes<float> *grads,
                           float *staged, Rows grad_features, const Team<float> &team) {
  constexpr int chunk = Chunk<float>::size;
  FANIN_ROLLED
  for (int64_t i = 0; i < inputs; i += chunk) {
    const int count = int(smaller<int64_t>(chunk, inputs - i));
    stage_block(weights + i, inputs, labels, count, staged, team);
    FANIN_UNROLL_FEW
    for (int c = 0; c < count; ++c) {
      Lanes<float> total = broadcast(0.0f);
      FANIN_UNROLL
      for (int j = 0; j < kBlock; ++j) total = fma(staged[j * chunk + c], grads[j], total);
      add_to(grad_features + (i + c) * kLanes, total);
    }
  }
}

// Gradients of weights, and the optimiser with them. features: [batch, inputs] as the caller has
// them, so that a vector holds neighbouring inputs and nothing has to be summed across it. grads:
// [groups][kBlock][32], which other lanes have written. at: the first weight; end: the size of the
// arrays.
template <int Vectors, class W, class M>
FANIN_FN void update_columns(const Optimizer &a, W *weights, M *m, M *v, int64_t at, int64_t end,
                             int64_t inputs, int labels, const float *features, int64_t batch,
                             const float *grads, int count) {
  constexpr int chunk = Chunk<float>::size;
  typedef decltype(Chunk<float>::v) Columns;
  // The weights of the next block arrive while this one is worked on.
  const int64_t next = at + kBlock * inputs;
  if (next + (kBlock - 1) * inputs + Vectors * chunk <= end) {
    FANIN_UNROLL
    for (int j = 0; j < kBlock; ++j) {
      fetch(weights + next + j * inputs, Vectors * chunk);
      fetch(m + next + j * inputs, Vectors * chunk);
      fetch(v + next + j * inputs, Vectors * chunk);
    }
  }
  Columns total[kBlock][Vectors] = {};
  FANIN_UNROLL_FEW
  for (int64_t b = 0; b < batch; ++b) {
    const float *const row = features + b * inputs;
    const float *const grad = grads + b / kLanes * kBlock * kLanes + b % kLanes;
    Columns x[Vectors];
    FANIN_UNROLL
    for (int i = 0; i < Vectors; ++i) x[i] = load_chunk<float>(row + i * chunk, count).v;
    FANIN_UNROLL
    for (int j = 0; j < kBlock; ++j) {
      FANIN_UNROLL
      for (int i = 0; i < Vectors; ++i) total[j][i] += grad[j * kLanes] * x[i];
    }
  }
  FANIN_UNROLL
  for (int j = 0; j < kBlock; j += kUpdated) {
    TrainedChunk chunks[kUpdated][Vectors];
    const auto each = [&](auto f) FANIN_INLINE {
      FANIN_UNROLL
      for (int u = 0; u < kUpdated; ++u)
        if (j + u < labels) {
          FANIN_UNROLL
          for (int i = 0; i < Vectors; ++i) f(u, i, at + (j + u) * inputs + i * chunk);
        }
    };
    each([&](int u, int i, int64_t from)
             FANIN_INLINE { chunks[u][i].load(a, weights + from, m, v, from, count); });
    each([&](int u, int i, int64_t to) FANIN_INLINE {
      chunks[u][i].step(a, weights + to, m, v, to, count, Chunk<float>{total[j + u][i]});
    });
  }
}

template <class W, class M>
FANIN_FN void update_block(const Optimizer &a, W *weights, M *m, M *v, int64_t at, int64_t end,
                           int64_t inputs, int labels, const float *features, int64_t batch,
                           const float *grads) {
  constexpr int chunk = Chunk<float>::size, wide = kInputVectors * chunk;
  int64_t i = 0;
  FANIN_ROLLED
  for (; i + wide <= inputs; i += wide)
    update_columns<kInputVectors>(a, weights, m, v, at + i, end, inputs, labels, features + i,
                                  batch, grads, chunk);
  FANIN_ROLLED
  for (; i < inputs; i += chunk)
    update_columns<1>(a, weights, m, v, at + i, end, inputs, labels, features + i, batch, grads,
                      int(smaller<int64_t>(chunk, inputs - i)));
}

// The labels of a block are unrolled, and the loss would be inlined for each of them.
FANIN_OUTLINED Lanes<float> block_gradient(fanin_loss kind, const Lanes<float> &scores,
                                           uint32_t positives, const Lanes<float> &scale,
                                           Lanes<float> &loss) {
  return loss_gradient(kind, scores, positives, scale, loss);
}

// The fused step of one block of an output layer. rows: the features as the caller has them;
// features: the same in lanes. grads: scratch, [groups][kBlock][32].
template <class W, class M, class Rows>
FANIN_FN void step_block(const TrainedLayer<uint16_t, W, M> &layer, const float *rows,
                         const float *features, int64_t first, const uint32_t *masks, float *grads,
                         float *staged, Rows grad_features, Lanes<float> &loss,
                         const Team<float> &team) {
  const int labels = int(smaller<int64_t>(kBlock, layer.labels - first));
  const int64_t groups = layer.groups(), inputs = layer.inputs;
  W *const weights = layer.weights + first * inputs;
  float bias_grads[kBlock] = {};
  for (int64_t group = 0; group < groups; ++group) {
    Lanes<float> block[kBlock];
    score_block(weights, inputs, layer.bias ? layer.bias + first : nullptr, labels,
                features + group * inputs * kLanes, staged, block, team);
    FANIN_UNROLL
    for (int j = 0; j < kBlock; ++j) {
      if (j < labels)
        block[j] = block_gradient(layer.loss, block[j], masks[group * layer.labels + first + j],
                                  layer.scale_of(group), loss);
      else
        block[j] = broadcast(0.0f);
      store(grads + (group * kBlock + j) * kLanes, block[j]);
      bias_grads[j] += sum(block[j]);
    }
    if (grad_features)
      spread_block(weights, inputs, labels, block, staged, grad_features + group * inputs * kLanes,
                   team);
  }
  team.sync();
  update_block(layer.optimizer, layer.weights, layer.m, layer.v, first * inputs,
               layer.labels * inputs, inputs, labels, rows, layer.batch, grads);
  FANIN_UNROLL
  for (int j = 0; j < kBlock; ++j) staged[j] = bias_grads[j];
  team.sync();
  if (layer.bias) step_bias(layer, first, labels, staged);
  team.sync();
}

// A dense layer with its optimiser state.
template <class W, class M>
struct DenseLayer {
  int64_t batch, inputs, units;
  W *weights;
  M *m, *v;
  float *bias, *bias_m, *bias_v;  // or null
  Optimizer optimizer;
};

template <class W, class M>
DenseLayer<W, M> dense_layer(const DenseUpdateCall &c) {
  DenseLayer<W, M> layer;
  layer.batch = c.batch;
  layer.inputs = c.inputs;
  layer.units = c.units;
  layer.weights = static_cast<W *>(c.weights);
  layer.m = static_cast<M *>(c.m);
  layer.v = static_cast<M *>(c.v);
  layer.bias = c.bias;
  layer.bias_m = c.bias_m;
  layer.bias_v = c.bias_v;
  layer.optimizer = c.optimizer;
  return layer;
}

FANIN_FN Lanes<float> positive_part(const Lanes<float> &a) {
  return map([](auto x) FANIN_INLINE { return x < decltype(x){} ? decltype(x){} : x; }, a);
}

// outputs[group * 32 + lane, first + j] for the 32 units j of a tile, negative ones 0 with relu.
// features: this group's [inputs][32]. tile: scratch of 32 * kTilePitch values.
template <class W>
FANIN_FN void dense_tile(const W *weights, const float *bias, int64_t inputs, int64_t units,
                         int64_t first, bool relu, const float *features, float *outputs, int lanes,
                         float *tile, float *staged, Team<float> &team) {
  const int size = int(smaller<int64_t>(kTile, units - first));
  for (int j = 0; j < size; j += kBlock) {
    const int labels = smaller(kBlock, size - j);
    Lanes<float> block[kBlock];
    score_block(weights + (first + j) * inputs, inputs, bias ? bias + first + j : nullptr, labels,
                features, staged, block, team);
    FANIN_UNROLL
    for (int i = 0; i < kBlock; ++i)
      if (i < labels) store(tile + (j + i) * kTilePitch, relu ? positive_part(block[i]) : block[i]);
  }
  team.sync();
  team.write_tile(tile, outputs + first, units, lanes, size);
  team.sync();
}

// Backward pass and optimiser for the 32 units of a tile. grad_outputs and outputs are [batch,
// units]; without relu, outputs is null. rows: features [batch, inputs]. tiles: scratch of two
// tiles, 32 * kTilePitch values each. grads: scratch, [32 / kBlock][groups][kBlock][32].
template <class W, class M, class Rows>
FANIN_FN void update_tile(const DenseLayer<W, M> &layer, int64_t first, const float *grad_outputs,
                          const float *outputs, const float *rows, float *tiles, float *grads,
                          float *staged, Rows grad_features, Team<float> &team) {
  const int labels = int(smaller<int64_t>(kTile, layer.units - first));
  const int64_t groups = groups_of(layer.batch), inputs = layer.inputs;
  float *const output_tile = tiles + kTile * kTilePitch;
  const auto rows_of = [&](int64_t group, int j) {
    return grads + ((j / kBlock * groups + group) * kBlock + j % kBlock) * kLanes;
  };
  FANIN_ROLLED
  for (int64_t group = 0; group < groups; ++group) {
    const int64_t at = group * kLanes * layer.units + first;
    const int lanes = int(smaller<int64_t>(kLanes, layer.batch - group * kLanes));
    team.read_tile(tiles, grad_outputs + at, layer.units, lanes, labels);
    if (outputs) team.read_tile(output_tile, outputs + at, layer.units, lanes, labels);
    team.sync();
    FANIN_UNROLL_FEW
    for (int j = 0; j < kTile; ++j) {
      Lanes<float> grad = load(tiles + j * kTilePitch);
      if (outputs)
        grad =
            map([](auto g, auto y) FANIN_INLINE { return y > decltype(y){} ? g : decltype(g){}; },
                grad, load(output_tile + j * kTilePitch));
      store(rows_of(group, j), grad);
    }
    team.sync();
  }
  FANIN_ROLLED
  for (int j = 0; j < labels; j += kBlock) {
    const int size = smaller(kBlock, labels - j);
    const int64_t at = (first + j) * inputs;
    for (int64_t group = 0; grad_features && group < groups; ++group) {
      Lanes<float> block[kBlock];
      FANIN_UNROLL
      for (int i = 0; i < kBlock; ++i) block[i] = load(rows_of(group, j + i));
      spread_block(layer.weights + at, inputs, size, block, staged,
                   grad_features + group * inputs * kLanes, team);
    }
    update_block(layer.optimizer, layer.weights, layer.m, layer.v, at, layer.units * inputs, inputs,
                 size, rows, layer.batch, rows_of(0, j));
    if (layer.bias) {
      float bias_grads[kBlock] = {};
      for (int64_t group = 0; group < groups; ++group) {
        FANIN_UNROLL
        for (int i = 0; i < kBlock; ++i) bias_grads[i] += sum(load(rows_of(group, j + i)));
      }
      team.sync();
      FANIN_UNROLL
      for (int i = 0; i < kBlock; ++i) staged[i] = bias_grads[i];
      team.sync();
      update_chunk(without_decay(layer.optimizer), layer.bias, layer.bias_m, layer.bias_v,
                   first + j, size, load_chunk<float>(staged, size));
    }
  }
  team.sync();
}

}  // namespace FANIN_TARGET
}  // namespace fanin
