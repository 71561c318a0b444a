// Rewiring and sorting: what passes between the C interface and rewire.cpp, cuda_rewire.cu and
// sort.cpp, and what rewiring does to a connection.
#pragma once

#include <stdint.h>
#include <string.h>

#include "core/call.h"

namespace fanin {

// Flat arrays of `count` connections.
struct RewireCall {
  int64_t count, inputs;
  double fraction;
  uint64_t seed;
  bool wide_indices, bf16_weights, bf16_moments, on_gpu;
  void *indices, *weights, *m, *v;
  void *workspace;
  void *stream;
  int threads;
};

struct Rewired {
  double threshold;
  int64_t moved;
};

struct SortCall {
  int64_t labels, fan_in, inputs;
  bool wide_indices, bf16_weights, bf16_moments, undo;
  void *indices, *slots, *weights, *m, *v;
  uint16_t *tile_labels;
  void *workspace;
  int threads;
};

uint64_t sort_workspace(const SortCall &);
// The flat position of the first connection that names no input, or no place of its tile; else -1.
int64_t sort(const SortCall &);

uint64_t rewire_workspace(const RewireCall &);
Rewired rewire(const RewireCall &);

// SplitMix64 (Steele, Lea & Flood, "Fast splittable pseudorandom number generators", 2014): the
// next output; the state moves on.
FANIN_ANYWHERE inline uint64_t split_mix(uint64_t &state) {
  uint64_t z = state += 0x9e3779b97f4a7c15u;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

// The threshold is found by counting, not by sorting. The bits of |weight| order as |weight| does: a
// table of their upper 16 tells which 65,536th of the range holds the wanted rank, a second one of
// the lower 16 within it which value.
constexpr int64_t kBuckets = 65536;

FANIN_ANYWHERE inline uint32_t magnitude(float weight) {
  uint32_t bits;
  memcpy(&bits, &weight, sizeof bits);
  return bits & 0x7fffffffu;
}
FANIN_ANYWHERE inline uint32_t magnitude(uint16_t bits) {  // bfloat16
  return uint32_t(bits & 0x7fffu) << 16;
}
inline float weight_of(uint32_t magnitude) {
  float value;
  memcpy(&value, &magnitude, sizeof value);
  return value;
}

// The rank of the threshold among all |weight|, from the smallest.
inline uint64_t threshold_rank(const RewireCall &c) { return uint64_t(c.fraction * double(c.count)); }

// Gives the connection at flat position i a new source where its |weight| is below the threshold;
// whether it did. Nothing is below NaN. See fanin_rewire_params.
template <class I, class W, class M>
FANIN_ANYWHERE bool regrow(const RewireCall &c, int64_t i, uint32_t threshold) {
  constexpr uint32_t infinity = 0x7f800000u;
  if (threshold > infinity || magnitude(static_cast<const W *>(c.weights)[i]) >= threshold)
    return false;
  uint64_t state = c.seed + uint64_t(i) * 0x9e3779b97f4a7c15u;
  static_cast<I *>(c.indices)[i] = I((split_mix(state) >> 32) * uint64_t(c.inputs) >> 32);
  static_cast<M *>(c.m)[i] = static_cast<M *>(c.v)[i] = M(0);
  return true;
}

}  // namespace fanin
