// Dense layers over lane groups, a block of labels at a time: forward, and backward with Adam in
// the same pass, so that no gradient of a weight is ever stored. For CPUs; on a GPU the frameworks'
// own matrix products do better.
//
// Weights are [labels, inputs]: a label's row is contiguous, as in fixed fan-in layers.
#pragma once

#include "step.h"

namespace fanin {
namespace FANIN_TARGET {

// Labels that are worked on together, as many as leave the registers for their sums: features are
// then read once for all of them.
constexpr int kBlock = kVectorBytes == 64 ? 8 : kVectorBytes == 32 ? 2 : 1;
// Vectors of neighbouring inputs, likewise, in the backward pass.
constexpr int kInputVectors = kVectorBytes == 64 ? 2 : kVectorBytes == 32 ? 4 : 8;

// out[j] for the labels j of a block: bias + sum over the inputs. weights: of the first label.
// features: this group's [inputs][32].
template <class W>
FANIN_FN void score_block(const W *weights, int64_t inputs, const float *bias, int labels,
                          const float *features, Lanes<float> *out) {
  constexpr int chunk = Chunk<float>::size;
  Lanes<float> total[kBlock];
  FANIN_UNROLL
  for (int j = 0; j < kBlock; ++j) total[j] = broadcast(bias && j < labels ? bias[j] : 0.0f);
  alignas(64) float converted[kBlock][chunk];
  for (int64_t i = 0; i < inputs; i += chunk) {
    const int count = int(smaller<int64_t>(chunk, inputs - i));
    FANIN_UNROLL
    for (int j = 0; j < kBlock; ++j)
      store_vector(converted[j],
                   load_chunk<float>(weights + (j < labels ? j : 0) * inputs + i, count).v);
    for (int c = 0; c < count; ++c) {
      const Lanes<float> x = load(features + (i + c) * kLanes);
      FANIN_UNROLL
      for (int j = 0; j < kBlock; ++j) total[j] = fma(converted[j][c], x, total[j]);
    }
  }
  FANIN_UNROLL
  for (int j = 0; j < kBlock; ++j) out[j] = total[j];
}

// Gradients of features, for one group: added to grad_features [inputs][32].
template <class W>
FANIN_FN void spread_block(const W *weights, int64_t inputs, int labels, const Lanes<float> *grads,
                           float *grad_features) {
  constexpr int chunk = Chunk<float>::size;
  alignas(64) float converted[kBlock][chunk];
  Lanes<float> grad[kBlock];
  FANIN_UNROLL
  for (int j = 0; j < kBlock; ++j) grad[j] = grads[j];  // zero beyond `labels`
  for (int64_t i = 0; i < inputs; i += chunk) {
    const int count = int(smaller<int64_t>(chunk, inputs - i));
    FANIN_UNROLL
    for (int j = 0; j < kBlock; ++j)
      store_vector(converted[j],
                   load_chunk<float>(weights + (j < labels ? j : 0) * inputs + i, count).v);
    for (int c = 0; c < count; ++c) {
      float *const row = grad_features + (i + c) * kLanes;
      Lanes<float> total = load(row);
      FANIN_UNROLL
      for (int j = 0; j < kBlock; ++j) total = fma(converted[j][c], grad[j], total);
      store(row, total);
    }
  }
}

// Gradients of weights, and Adam with them. features: [batch, inputs] as the caller has them, so
// that a vector holds neighbouring inputs and nothing has to be summed across it.
// grads: [groups][kBlock][32].
template <int Vectors, class W, class M>
FANIN_FN void update_columns(const Adam &a, W *weights, M *m, M *v, int64_t at, int64_t inputs,
                             int labels, const float *features, int64_t batch, const float *grads,
                             int count) {
  constexpr int chunk = Chunk<float>::size;
  Vector<float> total[kBlock][Vectors] = {};
  for (int64_t b = 0; b < batch; ++b) {
    const float *const row = features + b * inputs;
    const float *const grad = grads + b / kLanes * kBlock * kLanes + b % kLanes;
    Vector<float> x[Vectors];
    FANIN_UNROLL
    for (int i = 0; i < Vectors; ++i) x[i] = load_chunk<float>(row + i * chunk, count).v;
    FANIN_UNROLL
    for (int j = 0; j < kBlock; ++j)
      FANIN_UNROLL
      for (int i = 0; i < Vectors; ++i) total[j][i] += grad[j * kLanes] * x[i];
  }
  FANIN_UNROLL
  for (int j = 0; j < kBlock; ++j)
    if (j < labels) {
      FANIN_UNROLL
      for (int i = 0; i < Vectors; ++i)
        adam(a, weights, m, v, at + j * inputs + i * chunk, count, Chunk<float>{total[j][i]});
    }
}

template <class W, class M>
FANIN_FN void update_block(const Adam &a, W *weights, M *m, M *v, int64_t at, int64_t inputs,
                           int labels, const float *features, int64_t batch, const float *grads) {
  constexpr int chunk = Chunk<float>::size, wide = kInputVectors * chunk;
  int64_t i = 0;
  for (; i + wide <= inputs; i += wide)
    update_columns<kInputVectors>(a, weights, m, v, at + i, inputs, labels, features + i, batch,
                                  grads, chunk);
  for (; i < inputs; i += chunk)
    update_columns<1>(a, weights, m, v, at + i, inputs, labels, features + i, batch, grads,
                      int(smaller<int64_t>(chunk, inputs - i)));
}

}  // namespace FANIN_TARGET
}  // namespace fanin
