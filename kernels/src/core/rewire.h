// What rewiring does to a connection, and how its threshold is found; for CPU and GPU alike.
#pragma once

#include <stdint.h>
#include <string.h>

#include "core/call.h"
#include "core/memory.h"
#include "core/types.h"

namespace fanin {

// SplitMix64 (Steele, Lea & Flood, "Fast splittable pseudorandom number generators", 2014): returns
// the next output and moves the state on.
FANIN_ANYWHERE static inline uint64_t split_mix(uint64_t &state) {
  uint64_t z = state += 0x9e3779b97f4a7c15u;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

// The random source of the connection at a flat position; it is defined at fanin_rewire_params.
FANIN_ANYWHERE static inline int64_t drawn_source(uint64_t seed, uint64_t position,
                                                  int64_t inputs) {
  uint64_t state = seed + position * 0x9e3779b97f4a7c15u;
  return int64_t((split_mix(state) >> 32) * uint64_t(inputs) >> 32);
}

// The threshold is found by counting, not by sorting. The bits of |weight| are ordered as |weight|
// is. So a table of their upper 16 bits tells which 65,536th of the range holds the wanted rank,
// and a second table, of the lower 16 bits within it, tells which value.
FANIN_ANYWHERE static inline uint32_t magnitude(float weight) {
  uint32_t bits;
  memcpy(&bits, &weight, sizeof bits);
  return bits & 0x7fffffffu;
}
FANIN_ANYWHERE static inline uint32_t magnitude(Bf16 weight) {
  return uint32_t(weight.bits & 0x7fffu) << 16;
}
static inline float weight_of(uint32_t magnitude) {
  float value;
  memcpy(&value, &magnitude, sizeof value);
  return value;
}

// The rank of the threshold among all |weight|, from the smallest.
static inline uint64_t threshold_rank(const RewireCall &c) {
  return uint64_t(c.fraction * double(c.connections));
}

// Gives the connection at flat position i a new source if its |weight| is below the threshold;
// returns whether it did. Nothing is below NaN. The new source is defined at fanin_rewire_params.
template <class I, class W, class M>
FANIN_ANYWHERE static inline bool rewire_one(const RewireCall &c, int64_t i, uint32_t threshold) {
  constexpr uint32_t infinity = 0x7f800000u;
  if (threshold > infinity || magnitude(static_cast<const W *>(c.weights)[i]) >= threshold)
    return false;
  static_cast<I *>(c.indices)[i] = I(drawn_source(c.seed, uint64_t(i), c.inputs));
  if (c.m) static_cast<M *>(c.m)[i] = M();
  if (c.v) static_cast<M *>(c.v)[i] = M();
  return true;
}

}  // namespace fanin
