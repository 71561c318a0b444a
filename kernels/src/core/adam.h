// Adam, a chunk of an array at a time.
//
// As Keras has it ("epsilon hat" in Kingma & Ba, 2015, end of section 2):
// w -= rate * m / (sqrt(v) + epsilon), rate = learning_rate * sqrt(1 - beta2^t) / (1 - beta1^t).
//
// Arrays in bfloat16 are rounded stochastically. Most updates are less than half a unit in the last
// place; rounded so, they are right on average rather than lost.
#pragma once

#include "core/lanes.h"

namespace fanin {
namespace FANIN_TARGET {

typedef AdamCall Adam;

// A chunk of an array that is trained, from its load to its store. Code that updates several chunks
// loads all of them before it stores the first, so that the loads overlap.
struct AdamChunk {
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
    // Each array takes 16 bits. The two halves of a word, and their sum without carry, are pairwise
    // independent.
    const auto random = random_chunk(uint32_t(at), a.seed), upper = random >> 16;
    store_chunk(weights + at, count, updated, lower_half(random ^ upper));
    store_chunk(m + at, count, mean, upper);
    store_chunk(v + at, count, square, lower_half(random));
  }
};

// One chunk, `count` values from `at` on, with this gradient.
template <class W, class M>
FANIN_FN void adam(const Adam &a, W *weights, M *m, M *v, int64_t at, int count,
                   const Chunk<float> &grad) {
  AdamChunk chunk;
  chunk.load(weights, m, v, at, count);
  chunk.step(a, weights, m, v, at, count, grad);
}

// One chunk of weights that have no moments of their own, with this gradient. rate: what the
// gradient is multiplied with.
template <class W>
FANIN_FN void step_without_m(const Adam &a, W *weights, int64_t at, int count, float rate,
                             const Chunk<float> &grad) {
  const Chunk<float> updated{load_chunk<float>(weights + at, count).v - rate * grad.v};
  const auto random = random_chunk(uint32_t(at), a.seed);
  store_chunk(weights + at, count, updated, lower_half(random ^ random >> 16));
}

}  // namespace FANIN_TARGET
}  // namespace fanin
