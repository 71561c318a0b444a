// The optimiser, a chunk of an array at a time.
//
// With two moments it is Adam as Keras has it ("epsilon hat" in Kingma & Ba, 2015, end of section
// 2): w -= rate * m / (sqrt(v) + epsilon), rate = learning_rate * sqrt(1 - beta2^t) / (1 -
// beta1^t). With one it is gradient descent with momentum: m = momentum * m + gradient, w -= rate *
// m, and with none plain gradient descent: w -= rate * gradient, rate = learning_rate. Each chunk
// asks once which of them it is. A CPU also loads moments that are not kept, from the arrays that
// stand in for them (set_trained, api/layer.h): with loads that depend on a condition, a step with
// a fixed fan-in took 1.5 times as long. A GPU loads only what is kept. Otherwise updates of dense
// layers run out of registers.
//
// Before that, l2 * w is added to the gradient. Beside the step, decay * w is taken from w, where
// decay = learning_rate * weight_decay. Both are always computed: with 0 they change no bit, and
// two multiply-adds cost little beside the rest of a chunk.
//
// Arrays in bfloat16 are rounded stochastically. Most updates are less than half a unit in the last
// place; rounded so, they are right on average rather than lost. Their random numbers follow from
// the seed and the position, as it is in the layer that the arrays are a part of (random_at).
#pragma once

#include "core/lanes.h"

namespace fanin {
namespace FANIN_TARGET {

typedef OptimizerCall Optimizer;

// The optimiser of biases, which nothing holds small.
FANIN_FN Optimizer without_decay(Optimizer o) {
  o.decay = o.l2 = 0;
  return o;
}

// Random numbers for the chunk of weights, or of their moments, that stands at `at`.
FANIN_FN auto random_at(const Optimizer &o, int64_t at) {
  return random_chunk(o.first + uint32_t(at), o.seed);
}

// A chunk of an array that is trained, from its load to its store. Code that updates several chunks
// loads all of them before it stores the first, so that the loads overlap.
struct TrainedChunk {
  Chunk<float> weight, mean{}, square{};

  // weights: the first of the chunk; m, v: the whole arrays, in which it stands at `at`.
  template <class W, class M>
  FANIN_FN void load(const Optimizer &o, const W *weights, const M *m, const M *v, int64_t at,
                     int count) {
    weight = load_chunk<float>(weights, count);
    load_moments(o, m, v, at, count);
  }
  template <class M>
  FANIN_FN void load_moments(const Optimizer &o, const M *m, const M *v, int64_t at, int count) {
    if (!kOnGpu || o.kept > 0) mean = load_chunk<float>(m + at, count);
    if (!kOnGpu || o.kept == 2) square = load_chunk<float>(v + at, count);
  }
  // The same, but without moments nothing is loaded in their place. With float8 nothing could be.
  template <class W, class M>
  FANIN_FN void load_kept(const Optimizer &o, const W *weights, const M *m, const M *v, int64_t at,
                          int count) {
    weight = load_chunk<float>(weights, count);
    if (o.kept) load_moments(o, m, v, at, count);
  }
  template <class W, class M>
  FANIN_FN void step(const Optimizer &o, W *weights, M *m, M *v, int64_t at, int count,
                     const Chunk<float> &loss_grad) {
    const Chunk<float> grad{loss_grad.v + o.l2 * weight.v};
    // Each array takes 16 bits. The two halves of a word, and their sum without carry, are pairwise
    // independent.
    const auto random = random_at(o, at), upper = random >> 16;
    Chunk<float> change;
    if (o.kept == 2) {
      mean.v += o.rest1 * (grad.v - mean.v);
      square.v += o.rest2 * (grad.v * grad.v - square.v);
      change.v = o.rate * mean.v / (root(square.v) + o.epsilon);
      store_chunk(m + at, count, mean, upper);
      store_chunk(v + at, count, square, lower_half(random));
    } else if (o.kept == 1) {
      mean.v = o.momentum * mean.v + grad.v;
      change.v = o.rate * mean.v;
      store_chunk(m + at, count, mean, upper);
    } else {
      change.v = o.rate * grad.v;
    }
    const Chunk<float> updated{weight.v - change.v - o.decay * weight.v};
    store_chunk(weights, count, updated, lower_half(random ^ upper));
  }
};

// One chunk, `count` values from `at` on, with this gradient.
template <class W, class M>
FANIN_FN void update_chunk(const Optimizer &o, W *weights, M *m, M *v, int64_t at, int count,
                           const Chunk<float> &grad) {
  TrainedChunk chunk;
  chunk.load(o, weights + at, m, v, at, count);
  chunk.step(o, weights + at, m, v, at, count, grad);
}

// One chunk of weights that have row moments, with this gradient, to which the L2 term has been
// added. rate: what the gradient is multiplied with.
template <class W>
FANIN_FN void step_by_row(const Optimizer &o, W *weights, int64_t at, int count, float rate,
                          const Chunk<float> &grad) {
  const auto weight = load_chunk<float>(weights + at, count).v;
  const Chunk<float> updated{weight - rate * grad.v - o.decay * weight};
  const auto random = random_at(o, at);
  store_chunk(weights + at, count, updated, lower_half(random ^ random >> 16));
}

}  // namespace FANIN_TARGET
}  // namespace fanin
