// What the CPU launchers share: OpenMP threads, and the way of features into lanes and back.
#pragma once

#if defined(_OPENMP)
#include <omp.h>
#endif

#include "core/call.h"
#include "core/linear.h"

namespace fanin {
namespace FANIN_TARGET {
namespace {

#if defined(_OPENMP)
inline int thread_id() { return omp_get_thread_num(); }
inline int thread_count() { return omp_get_num_threads(); }
#else
inline int thread_id() { return 0; }
inline int thread_count() { return 1; }
#endif

// A thread's share of n things.
struct Share {
  int64_t begin, end;
  explicit Share(int64_t n)
      : begin(n * thread_id() / thread_count()), end(n * (thread_id() + 1) / thread_count()) {}
};

inline void note(int64_t *first_bad, int64_t at) {
#pragma omp critical(fanin_note)
  if (*first_bad < 0 || at < *first_bad) *first_bad = at;
}

// features [batch, inputs] -> [part][inputs][N], in parts of N lanes (a group, or half of one),
// those beyond the batch zero. Called by all threads of a team. Notes the first value that is not
// finite.
template <int N = kLanes, class T>
void transpose_features(const T *features, int64_t batch, int64_t inputs, T *out,
                        int64_t *first_bad) {
  const Share share(inputs);
  for (int64_t part = 0; part * N < batch; ++part) {
    const int lanes = int(smaller<int64_t>(N, batch - part * N));
    const T *rows = features + part * N * inputs;
    T *target = out + part * N * inputs;
    T poison = 0;  // stays 0 while all values are finite: x * 0 is NaN for the others
    constexpr int64_t block = 16;  // inputs at a time: one cache line of each instance
    for (int64_t i = share.begin; i < share.end; i += block) {
      const int64_t end = smaller(i + block, share.end);
      for (int b = 0; b < lanes; ++b)
        for (int64_t j = i; j < end; ++j) {
          const T x = rows[b * inputs + j];
          poison += x * T(0);
          target[j * N + b] = x;
        }
      for (int b = lanes; b < N; ++b)
        for (int64_t j = i; j < end; ++j) target[j * N + b] = 0;
    }
    if (!(poison == T(0)))
      for (int64_t b = 0; b < lanes; ++b)
        for (int64_t j = share.begin; j < share.end; ++j)
          if (!(rows[b * inputs + j] * T(0) == T(0))) {
            note(first_bad, (part * N + b) * inputs + j);
            break;
          }
  }
}

// The accumulators [inputs][N] of `count` threads, `apart` values from one to the next, added up
// -> grad_features [lanes, inputs] of one part of N lanes. Called by all threads of a team.
template <int N = kLanes, class T>
void collect(const T *accumulators, int count, int64_t apart, int64_t inputs, int lanes,
             T *grad_features) {
  Team<T> team;
  alignas(64) T tile[kTile * kTilePitch];
  const Share share((inputs + kTile - 1) / kTile);
  for (int64_t i = share.begin * kTile; i < share.end * kTile && i < inputs; i += kTile) {
    const int here = int(smaller<int64_t>(kTile, inputs - i));
    for (int j = 0; j < here; ++j) {
      Lanes<T, N> total = load<N>(accumulators + (i + j) * N);
      for (int t = 1; t < count; ++t)
        total = fma(T(1), load<N>(accumulators + t * apart + (i + j) * N), total);
      store(tile + j * kTilePitch, total);
    }
    team.write_tile(tile, grad_features + i, inputs, lanes, here);
  }
  team.finish();
}

// Notes the first of values[begin] to values[begin + count - 1] that is not below the bound.
template <class I>
void note_above(const I *values, int64_t begin, int64_t count, int64_t bound, int64_t *first_bad) {
  for (int64_t i = begin; i < begin + count; ++i)
    if (int64_t(values[i]) >= bound) return note(first_bad, i);
}

// Where tile_labels are wrong: the first that names a label beyond its tile, and the
// beginning of the first tile whose last label is nowhere.
struct BadTiles {
  int64_t label = -1, tile = -1;
  bool any() const { return label >= 0 || tile >= 0; }
};
template <class T>
bool tiles_fit(const Team<T> &team, const uint16_t *tile_labels, int64_t begin, int64_t count,
              int64_t labels, BadTiles *bad) {
  if (!team.all_below(tile_labels + begin, count, labels))
    note_above(tile_labels, begin, count, labels, &bad->label);
  else if (labels > 1 && team.all_below(tile_labels + begin, count, labels - 1))
    note(&bad->tile, begin);
  else
    return true;
  return false;
}

inline Finding finding(int64_t bad_feature, int64_t bad_index = -1, const BadTiles &tiles = {}) {
  if (bad_feature >= 0) return {Finding::bad_feature, bad_feature, nullptr};
  if (bad_index >= 0) return {Finding::bad_index, bad_index, nullptr};
  if (tiles.label >= 0) return {Finding::bad_tile_label, tiles.label, nullptr};
  if (tiles.tile >= 0) return {Finding::bad_tile, tiles.tile, nullptr};
  return {Finding::nothing, 0, nullptr};
}

}  // namespace
}  // namespace FANIN_TARGET
}  // namespace fanin
