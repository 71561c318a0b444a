// A dense layer over sparse features: its forward pass, and its backward pass with the optimiser on
// the rows of the words in the batch. Written once for a CPU thread and a GPU warp.
//
// Weights are [inputs, units], so a word's weights are a row, and an instance's outputs are a sum
// of rows. A vector holds neighbouring units. Nothing has to be summed across a vector, except the
// mean square of a row's gradient where each row has one moment.
//
// A CPU has checked all words, columns and instances before. A GPU checks them in this file.
#pragma once

#include <math.h>

#include "core/each.h"
#include "core/memory.h"
#include "core/optimizer.h"

namespace fanin {
namespace FANIN_TARGET {

// Units that are worked on together, in chunks: as many as there are registers for their sums.
#if defined(__CUDACC__)
constexpr int kWideChunks = 4;
#else
constexpr int kWideChunks = 8;
#endif
constexpr int kWide = kWideChunks * Chunk<float>::size;
// A part of a word's row is fetched this many words before it is read. Reading the rows of 256
// instances takes 2.9 ms on one core. A forward pass took 5.5 ms without this, and takes 3.4 with
// it (AMD Zen 5).
constexpr int64_t kAhead = 8;

FANIN_ANYWHERE static inline int64_t blocks_of(int64_t units) {
  return (units + kWide - 1) / kWide;
}

template <int n>
struct Count {
  static constexpr int value = n;
};
// f(Count of chunks, first unit, how many units the last chunk has), for all units of a block.
template <class F>
FANIN_FN void each_part(int64_t units, int64_t block, const F &f) {
  constexpr int chunk = Chunk<float>::size;
  const int64_t first = block * kWide, end = smaller(first + kWide, units);
  if (end - first == kWide) return f(Count<kWideChunks>{}, first, chunk);
  FANIN_ROLLED
  for (int64_t i = first; i < end; i += chunk)
    f(Count<1>{}, i, int(smaller<int64_t>(chunk, end - i)));
}

// Chunks side by side.
template <int n>
struct Block {
  Chunk<float> chunks[n];

  // Adds value * the numbers at `from` on.
  template <class T>
  FANIN_FN void add(float value, const T *from, int count) {
    FANIN_UNROLL
    for (int i = 0; i < n; ++i)
      chunks[i].v += value * load_chunk<float>(from + i * Chunk<float>::size, count).v;
  }
  FANIN_FN void load(const float *from, int count) {
    FANIN_UNROLL
    for (int i = 0; i < n; ++i) chunks[i] = load_chunk<float>(from + i * Chunk<float>::size, count);
  }
  FANIN_FN void write(float *to, int count) const {
    FANIN_UNROLL
    for (int i = 0; i < n; ++i)
      write_chunk(to + i * Chunk<float>::size, count, chunks[i], false, false);
  }
  // Sets each chunk to f(chunk, number of its first unit within the block).
  template <class F>
  FANIN_FN void each(const F &f) {
    FANIN_UNROLL
    for (int i = 0; i < n; ++i) f(chunks[i], i * Chunk<float>::size);
  }
};

// The index that stands at p. On a GPU an index that is out of range becomes 0, and its value NaN.
FANIN_FN int64_t index_at(const int32_t *indices, int64_t p, int64_t bound, float *value) {
  const int32_t at = indices[p];
  if (!kOnGpu || (at >= 0 && at < bound)) return at;
  *value = NAN;
  return 0;
}

// Forward ----------------------------------------------------------------------------------------

// The outputs of one instance, for a block of units.
template <class W>
FANIN_FN void instance_outputs(const SparseForwardCall &c, int64_t instance, int64_t block) {
  const W *const weights = static_cast<const W *>(c.weights);
  int64_t begin = c.starts[instance], end = c.starts[instance + 1];
  const bool good = in_bounds(begin, end, c.stored);
  if (!good) begin = end = 0;
  each_part(c.units, block, [&](auto chunks, int64_t first, int count) FANIN_INLINE {
    constexpr int n = decltype(chunks)::value;
    Block<n> total{};
    if (c.bias) total.load(c.bias + first, count);
    FANIN_UNROLL_FEW
    for (int64_t p = begin; p < end; ++p) {
      if (p + kAhead < end)
        fetch(weights + c.columns[p + kAhead] * c.units + first, n * Chunk<float>::size);
      float value = c.values[p];
      const int64_t row = index_at(c.columns, p, c.inputs, &value) * c.units + first;
      total.add(value, weights + row, count);
    }
    total.each([&](Chunk<float> &a, int) FANIN_INLINE {
      const auto none = decltype(a.v){};
      if (c.relu) a.v = a.v < 0.0f ? none : a.v;
      if (!good) a.v = none + NAN;
    });
    total.write(c.outputs + instance * c.units + first, count);
  });
}

// Update -----------------------------------------------------------------------------------------

// For a block of units: writes what relu lets through of the gradients, where there is a relu, and
// updates the bias, where there is one.
FANIN_FN void pass_and_update_bias(const SparseUpdateCall &c, const SparseUpdateMemory &memory,
                                   int64_t block) {
  each_part(c.units, block, [&](auto chunks, int64_t first, int count) FANIN_INLINE {
    constexpr int n = decltype(chunks)::value;
    Block<n> total{};
    FANIN_UNROLL_FEW
    for (int64_t b = 0; b < c.batch; ++b) {
      const int64_t at = b * c.units + first;
      Block<n> grad;
      grad.load(c.grad_outputs + at, count);
      if (c.outputs) {
        Block<n> outputs;
        outputs.load(c.outputs + at, count);
        FANIN_UNROLL
        for (int i = 0; i < n; ++i) {
          const auto y = outputs.chunks[i].v;
          grad.chunks[i].v = y > 0.0f ? grad.chunks[i].v : decltype(y){};
        }
        grad.write(memory.grads + at, count);
      }
      FANIN_UNROLL
      for (int i = 0; i < n; ++i) total.chunks[i].v += grad.chunks[i].v;
    }
    if (c.bias)
      total.each([&](Chunk<float> &a, int unit) FANIN_INLINE {
        update_chunk(without_decay(c.optimizer), c.bias, c.bias_m, c.bias_v, first + unit, count,
                     a);
      });
  });
}

// The values of one word of the batch.
struct WordValues {
  int64_t begin, end;
  bool good;  // whether their range is one of stored values
};
FANIN_FN WordValues values_of(const SparseUpdateCall &c, int64_t i) {
  const int64_t begin = c.word_starts[i], end = c.word_starts[i + 1];
  if (in_bounds(begin, end, c.stored)) return {begin, end, true};
  return {0, 0, false};
}
// Whether word i has a row, and no other word of the batch updates it.
FANIN_FN bool has_row(const SparseUpdateCall &c, int64_t i) {
  const int32_t word = c.word_ids[i];
  return !kOnGpu || (word >= 0 && word < c.inputs && (i == 0 || c.word_ids[i - 1] < word));
}

// The gradient of a word's row, for some units of it. grads: [batch, units].
template <int n>
FANIN_FN Block<n> row_gradient(const SparseUpdateCall &c, const float *grads,
                               const WordValues &values, int64_t first, int count) {
  Block<n> total{};
  FANIN_UNROLL_FEW
  for (int64_t p = values.begin; p < values.end; ++p) {
    float value = c.values[p];
    const int64_t row = index_at(c.instances, p, c.batch, &value) * c.units + first;
    total.add(value, grads + row, count);
  }
  if (!values.good) total.each([](Chunk<float> &a, int) FANIN_INLINE { a.v = a.v + NAN; });
  return total;
}

// The optimiser on a block of the row of word i, with moments for each weight, or none.
template <class W, class M>
FANIN_FN void update_row_part(const SparseUpdateCall &c, const float *grads, int64_t i,
                              int64_t block) {
  W *const weights = static_cast<W *>(c.weights);
  M *const m = static_cast<M *>(c.m), *const v = static_cast<M *>(c.v);
  const WordValues values = values_of(c, i);
  const int64_t row = c.word_ids[i] * c.units;
  // The next row arrives while this one is worked on.
  if (i + 1 < c.words) {
    const int64_t next = c.word_ids[i + 1] * c.units + block * kWide;
    const int64_t count = smaller<int64_t>(kWide, c.units - block * kWide);
    fetch(weights + next, count);
    fetch(m + next, count);
    fetch(v + next, count);
  }
  each_part(c.units, block, [&](auto chunks, int64_t first, int count) FANIN_INLINE {
    constexpr int n = decltype(chunks)::value;
    Block<n> grad = row_gradient<n>(c, grads, values, first, count);
    grad.each([&](Chunk<float> &a, int unit) FANIN_INLINE {
      update_chunk(c.optimizer, weights, m, v, row + first + unit, count, a);
    });
  });
}

// The optimiser on the row of word i, with one moment for the row. kept: on a CPU, scratch memory
// for the row's gradient. A GPU works on too many rows to keep theirs, and computes each gradient
// twice.
template <class W>
FANIN_FN void update_row(const SparseUpdateCall &c, const float *grads, int64_t i, float *kept,
                         const Team<float> &team) {
  W *const weights = static_cast<W *>(c.weights);
  float *const v = static_cast<float *>(c.v) + c.word_ids[i];
  const float before = *v;
  team.sync();  // all threads have read it
  const WordValues values = values_of(c, i);
  const int64_t row = c.word_ids[i] * c.units;
  Chunk<float> squares{};
  const auto gradient_of = [&](auto chunks, int64_t first, int count) FANIN_INLINE {
    Block<decltype(chunks)::value> grad =
        row_gradient<decltype(chunks)::value>(c, grads, values, first, count);
    if (c.optimizer.l2 != 0) grad.add(c.optimizer.l2, weights + row + first, count);
    return grad;
  };
  for (int64_t block = 0; block < blocks_of(c.units); ++block) {
    if (i + 1 < c.words)
      fetch(weights + c.word_ids[i + 1] * c.units + block * kWide,
            smaller<int64_t>(kWide, c.units - block * kWide));
    each_part(c.units, block, [&](auto chunks, int64_t first, int count) FANIN_INLINE {
      auto grad = gradient_of(chunks, first, count);
      grad.each([&](Chunk<float> &a, int) FANIN_INLINE { squares.v += a.v * a.v; });
      if (!kOnGpu) grad.write(kept + first, count);
    });
  }
  const float updated = before + c.optimizer.rest2 * (sum(squares) / float(c.units) - before);
  const float size = c.optimizer.row_rate / (sqrtf(updated) + c.optimizer.epsilon);
  for (int64_t block = 0; block < blocks_of(c.units); ++block)
    each_part(c.units, block, [&](auto chunks, int64_t first, int count) FANIN_INLINE {
      constexpr int n = decltype(chunks)::value;
      Block<n> grad;
      if (kOnGpu)
        grad = gradient_of(chunks, first, count);
      else
        grad.load(kept + first, count);
      grad.each([&](Chunk<float> &a, int unit) FANIN_INLINE {
        step_by_row(c.optimizer, weights, row + first + unit, count, size, a);
      });
    });
  write_one(v, updated, false);
}

}  // namespace FANIN_TARGET
}  // namespace fanin
