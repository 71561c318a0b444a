// Rewiring and sorting on a CPU: what passes between the C interface, rewire.cpp and sort.cpp.
#pragma once

#include <stdint.h>

namespace fanin {

// Flat arrays of `count` connections.
struct RewireCall {
  int64_t count, inputs;
  double fraction;
  uint64_t seed;
  bool wide_indices, half_weights, half_moments;
  void *indices, *weights, *m, *v;
  void *workspace;
  int threads;
};

struct Rewired {
  double threshold;
  int64_t moved;
};

struct SortCall {
  int64_t labels, fan_in, inputs;
  bool wide_indices, half_weights, half_moments, undo;
  void *indices, *slots, *weights, *m, *v;
  uint16_t *rows;
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
inline uint64_t split_mix(uint64_t &state) {
  uint64_t z = state += 0x9e3779b97f4a7c15u;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

}  // namespace fanin
