// Products of labels that share their sources: what the op (group_linear.h), the fused step and
// prediction (grouped.h) do with a group of them. The sources' rows are gathered once for the
// group, into a tile [fan_in][32]. What is left is a small dense layer: its scores and gradients
// are products of this tile.
//
// A label group has nothing to do with a lane group, which is 32 instances (lanes.h).
#pragma once

#include "core/lanes.h"
#include "core/memory.h"

namespace fanin {
namespace FANIN_TARGET {

// What all products are made of: Count sums of Vectors vectors each, in registers.
template <int Count, int Vectors, class T>
struct Sums {
  static constexpr int width = VectorOf<T>::width;
  Vector<T> v[Count][Vectors];

  // Adds, to each sum c, factors[r * next_row + c * next_sum] * row r, for so many rows, which are
  // `pitch` apart.
  FANIN_FN void add(int64_t count, const T *rows, int64_t pitch, const T *factors, int64_t next_row,
                    int64_t next_sum) {
    for (int64_t r = 0; r < count; ++r) {
      Vector<T> x[Vectors];
      FANIN_UNROLL
      for (int i = 0; i < Vectors; ++i) x[i] = load_vector(rows + r * pitch + i * width);
      FANIN_UNROLL
      for (int c = 0; c < Count; ++c) {
        const T factor = factors[r * next_row + c * next_sum];
        FANIN_UNROLL
        for (int i = 0; i < Vectors; ++i) v[c][i] += factor * x[i];
      }
    }
  }
};

// So many sums of so many vectors fill the registers, with room for what is read. Sums that are
// left over are made by twos and ones, of more vectors each, so that one addition need not wait for
// another.
constexpr int kSums = kVectorBytes == 64 ? 8 : 6, kSumVectors = 2, kMoreVectors = 4;

// f(first, how many, how many vectors of each) for `count` sums; the two numbers are types.
template <class F>
FANIN_FN void each_sums(int64_t count, const F &f) {
  int64_t i = 0;
  for (; i + kSums <= count; i += kSums)
    f(i, std::integral_constant<int, kSums>(), std::integral_constant<int, kSumVectors>());
  for (; i + 2 <= count; i += 2)
    f(i, std::integral_constant<int, 2>(), std::integral_constant<int, kMoreVectors>());
  if (i < count)
    f(i, std::integral_constant<int, 1>(), std::integral_constant<int, kMoreVectors>());
}

// What is done beside the products: a call for each block of sums, with their number.
struct Nothing {
  FANIN_FN void operator()(int) const {}
};

// How many lanes so many vectors have.
template <class T, int Vectors>
constexpr int lanes_in =
    Vectors * VectorOf<T>::width < kLanes ? Vectors * VectorOf<T>::width : kLanes;

// Rows of sources are as long in memory as whole vectors.
FANIN_FN int64_t pitch_of(int64_t fan_in) { return padded_sources(fan_in); }

// The rows of a group's sources: tile [fan_in][32], and turned, rows [32][pitch]. features: of one
// lane group.
template <class T, class I>
FANIN_FN void gather_and_turn(const I *indices, int64_t fan_in, const T *features, T *tile,
                              T *rows) {
  constexpr int width = VectorOf<T>::width;
  const int64_t pitch = pitch_of(fan_in);
  for (int64_t k = 0; k < fan_in; k += width) {
    const int count = int(smaller<int64_t>(width, fan_in - k));
    for (int b = 0; b < kLanes; b += width) {
      Vector<T> square[width];
      const auto take = [&](int i) FANIN_INLINE {
        square[i] = load_vector(features + indices[k + i] * kLanes + b);
        store_vector(tile + (k + i) * kLanes + b, square[i]);
      };
      if (count == width) {
        FANIN_UNROLL
        for (int i = 0; i < width; ++i) take(i);
      } else {
        for (int i = 0; i < width; ++i) i < count ? take(i) : void(square[i] = Vector<T>{});
      }
      transpose<T>(square);
      FANIN_UNROLL
      for (int i = 0; i < width; ++i) store_vector(rows + (b + i) * pitch + k, square[i]);
    }
  }
}

// The tile alone.
template <class T, class I>
FANIN_FN void gather_tile(const I *indices, int64_t fan_in, const T *features, T *tile) {
  for (int64_t k = 0; k < fan_in; ++k)
    store(tile + k * kLanes, load(features + indices[k] * kLanes));
}

// The scores of a group, or of some of its labels: scores[j][32]. weights: [labels][fan_in].
template <class T, class Beside = Nothing>
FANIN_FN void score_group(const T *weights, int64_t fan_in, const T *bias, int labels,
                          const T *tile, T *scores, const Beside &beside = {}) {
  each_sums(labels, [&](int64_t j, auto count, auto vectors) FANIN_INLINE {
    constexpr int n = decltype(count)::value, width = VectorOf<T>::width;
    constexpr int part = lanes_in<T, decltype(vectors)::value>;
    for (int b = 0; b < kLanes; b += part) {
      beside(n * part);
      Sums<n, part / width, T> sums;
      FANIN_UNROLL
      for (int c = 0; c < n; ++c)
        for (auto &v : sums.v[c]) v = Vector<T>{} + (bias ? bias[j + c] : T(0));
      sums.add(fan_in, tile + b, kLanes, weights + j * fan_in, 1, fan_in);
      FANIN_UNROLL
      for (int c = 0; c < n; ++c)
        for (int i = 0; i < part / width; ++i)
          store_vector(scores + (j + c) * kLanes + b + i * width, sums.v[c][i]);
    }
  });
}

// Adds the gradients of a group's sources, summed over its labels or some of them, to their rows of
// targets [inputs][32]. grads: [labels][32].
template <class T, class I, class Beside = Nothing>
FANIN_FN void spread_group(const T *weights, int64_t fan_in, int labels, const T *grads,
                           const I *indices, T *targets, const Beside &beside = {}) {
  each_sums(fan_in, [&](int64_t k, auto count, auto vectors) FANIN_INLINE {
    constexpr int n = decltype(count)::value, width = VectorOf<T>::width;
    constexpr int part = lanes_in<T, decltype(vectors)::value>;
    for (int b = 0; b < kLanes; b += part) {
      beside(n * part);
      Sums<n, part / width, T> sums = {};
      sums.add(labels, grads + b, kLanes, weights + k, fan_in, 1);
      FANIN_UNROLL
      for (int c = 0; c < n; ++c) {
        T *const target = targets + indices[k + c] * kLanes + b;
        for (int i = 0; i < part / width; ++i)
          store_vector(target + i * width, load_vector(target + i * width) + sums.v[c][i]);
      }
    }
  });
}

// The gradients of a group's weights, or of some of its labels, summed over the instances.
// grads: [lane groups][grads_pitch] with [labels][32] each. rows: [lane groups][32][pitch].
// write(j, k, count, chunk): of label j, `count` gradients from connection k on.
template <class T, class Write, class Beside = Nothing>
FANIN_FN void weight_gradients(const T *grads, int64_t grads_pitch, int labels, const T *rows,
                               int64_t fan_in, int64_t lane_groups, const Write &write,
                               const Beside &beside = {}) {
  const int64_t pitch = pitch_of(fan_in);
  each_sums(labels, [&](int64_t j, auto count, auto) FANIN_INLINE {
    constexpr int n = decltype(count)::value, width = VectorOf<T>::width;
    const auto columns = [&](auto vectors, int64_t k) FANIN_INLINE {
      constexpr int m = decltype(vectors)::value;
      beside(n * m * width);
      Sums<n, m, T> sums = {};
      for (int64_t group = 0; group < lane_groups; ++group)
        sums.add(kLanes, rows + group * kLanes * pitch + k, pitch,
                 grads + group * grads_pitch + j * kLanes, 1, kLanes);
      FANIN_UNROLL
      for (int c = 0; c < n; ++c)
        for (int i = 0; i < m; ++i) {
          const int64_t from = k + i * width;
          write(j + c, from, int(smaller<int64_t>(width, fan_in - from)), Chunk<T>{sums.v[c][i]});
        }
    };
    int64_t k = 0;
    for (; k + kSumVectors * width <= fan_in; k += kSumVectors * width)
      columns(std::integral_constant<int, kSumVectors>(), k);
    for (; k < fan_in; k += width) columns(std::integral_constant<int, 1>(), k);
  });
}

}  // namespace FANIN_TARGET
}  // namespace fanin
